//! The threads of a load: each has a share of the clients, and all do the same at a time.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::engine::{Engine, Live, SharedStage, Stage, Task, WINDOWS};
use super::tally::Tally;
use crate::control::failure::Failure;
use crate::sys::start::{StartError, client_ring, step_back};

/// How often the end of the threads is looked for.
const JOIN_INTERVAL: Duration = Duration::from_millis(20);

/// What a crew has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Count {
    pub(super) open: u64,
    pub(super) given_up: u64,
    pub(super) operations: u64,
    pub(super) handshakes: u64,
    pub(super) failures: u64,
    pub(super) bytes: u64,
}

struct Thread {
    handle: JoinHandle<()>,
    wake: Arc<EventFd>,
    live: Arc<Live>,
}

/// Threads that work.
pub(super) struct Crew {
    threads: Vec<Thread>,
    stage: Arc<SharedStage>,
    /// What each thread saw: when the end begins, and when all is closed.
    seen: mpsc::Receiver<[Tally; WINDOWS]>,
}

/// How a crew's threads run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placement {
    /// The CPU of each thread; `None`: not pinned.
    pub(super) cpus: Vec<Option<usize>>,
    /// Everybody else goes first.
    pub(super) last: bool,
}

impl Crew {
    /// Starts a thread for each of `tasks`; they begin to connect at once.
    ///
    /// # Errors
    /// When one of them has no ring or no thread. Those that have started end.
    pub(super) fn start(tasks: Vec<Task>, placement: &Placement) -> Result<Self, Failure> {
        let stage = Arc::new(SharedStage::default());
        let (ready, started) = mpsc::channel();
        let (tell, seen) = mpsc::channel();
        let mut crew = Self { threads: Vec::new(), stage, seen };
        let wanted = tasks.len();
        for (index, task) in tasks.into_iter().enumerate() {
            let cpu = placement.cpus.get(index).copied().flatten();
            let place = (index, cpu, placement.last);
            let thread = crew.thread(place, task, ready.clone(), tell.clone());
            crew.threads.push(thread?);
        }
        drop(ready);
        for _ in 0..wanted {
            let Ok((index, outcome)) = started.recv() else {
                continue;
            };
            if let Err(source) = outcome {
                let worker = u16::try_from(index).unwrap_or(u16::MAX);
                crew.enter(Stage::End);
                return Err(Failure::Start { worker, source });
            }
        }
        Ok(crew)
    }

    fn thread(
        &self,
        (index, cpu, last): (usize, Option<usize>, bool),
        task: Task,
        ready: mpsc::Sender<(usize, Result<(), StartError>)>,
        seen: mpsc::Sender<[Tally; WINDOWS]>,
    ) -> Result<Thread, Failure> {
        let os = |what| move |source| Failure::Os { what, source };
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)
            .map_err(|error| os("make an eventfd")(error.into()))?;
        let wake = Arc::new(wake);
        let live = Arc::<Live>::default();
        let (stage, its_wake, its_live) =
            (Arc::clone(&self.stage), Arc::clone(&wake), Arc::clone(&live));
        let work = move || {
            if last {
                step_back();
            }
            let ring = client_ring(task.clients, cpu, &its_wake);
            let (ring, outcome) = match ring {
                Ok(ring) => (Some(ring), Ok(())),
                Err(error) => (None, Err(error)),
            };
            // Nobody listens once another thread has failed.
            let _unheard = ready.send((index, outcome));
            if let Some(ring) = ring {
                Engine::new(ring, task, stage, its_live).run(&seen);
            }
        };
        let handle = std::thread::Builder::new()
            .name(format!("load-{index}"))
            .spawn(work)
            .map_err(os("start a thread"))?;
        Ok(Thread { handle, wake, live })
    }

    /// All threads enter this stage.
    pub(super) fn enter(&self, stage: Stage) {
        self.stage.set(stage);
        for thread in &self.threads {
            // A full eventfd counter (EAGAIN) means that the wake-up is pending already.
            let _pending = thread.wake.write(1);
        }
    }

    /// What they have done so far.
    pub(super) fn count(&self) -> Count {
        self.threads.iter().fold(Count::default(), |sum, Thread { live, .. }| Count {
            open: sum.open + live.open.get(),
            given_up: sum.given_up + live.given_up.get(),
            operations: sum.operations + live.operations.get(),
            handshakes: sum.handshakes + live.handshakes.get(),
            failures: sum.failures + live.failures.get(),
            bytes: sum.bytes + live.bytes.get(),
        })
    }

    /// Ends all threads, and returns what they saw in each window. Who has not closed everything
    /// after `patience` is left alone; what he has measured is there all the same.
    ///
    /// # Errors
    /// When a thread has panicked.
    pub(super) fn end(self, patience: Duration) -> Result<[Tally; WINDOWS], Failure> {
        self.enter(Stage::End);
        let until = Instant::now() + patience;
        for thread in self.threads {
            while !thread.handle.is_finished() && Instant::now() < until {
                std::thread::sleep(JOIN_INTERVAL);
            }
            if thread.handle.is_finished() {
                thread.handle.join().map_err(|_| Failure::Os {
                    what: "go on: a thread of the load panicked",
                    source: std::io::Error::other("please report the message above"),
                })?;
            }
        }
        let mut sums: [Tally; WINDOWS] = std::array::from_fn(|_| Tally::default());
        for seen in self.seen.try_iter() {
            for (sum, seen) in sums.iter_mut().zip(&seen) {
                sum.add(seen);
            }
        }
        Ok(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{RecordLayer, Tls, TlsVersion};
    use crate::load::engine::Pace;
    use crate::tls::client::{Offer, Resume, Wishes};

    #[test]
    fn what_was_measured_is_told_before_all_is_closed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let wishes = Wishes {
            tls: Tls {
                versions: vec![TlsVersion::Tls13],
                cipher_suites: None,
                groups: vec!["X25519".to_owned()],
                record_layer: RecordLayer::Lean,
            },
            alpn: Vec::new(),
            server_name: "localhost".to_owned(),
            authorities: None,
            resume: Resume::No,
        };
        let task = Task {
            target,
            sources: None,
            offer: Offer::new(&wishes).unwrap(),
            question: None,
            reconnects: true,
            holds: false,
            clients: 1,
            clients_before: 0,
            pace: Pace::Closed,
            connect_interval: Duration::ZERO,
            connecting_max: 1,
            timeout: Duration::from_secs(60),
        };
        let placement = Placement { cpus: vec![None], last: false };
        let crew = Crew::start(task.share_out(1), &placement).unwrap();
        crew.enter(Stage::Measure);
        // The first client is cut off, the next one waits for an answer at the end and long after.
        drop(listener.accept().unwrap());
        let next = listener.accept().unwrap();
        crew.enter(Stage::End);
        let [_, measured, _] = crew.seen.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(measured.failed(), 1, "{:?}", measured.failures);
        assert!(!crew.threads[0].handle.is_finished(), "it has not waited for the closing");
        drop(next);
    }
}
