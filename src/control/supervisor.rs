//! The worker threads: started together, told together, joined at the end. A worker is never
//! restarted: one that panicked has shown a defect, and the process ends after draining the others.
//!
//! A worker's thread leaves the process's descriptor table, so it cannot wake the control thread's
//! runtime, which would write to a descriptor. Its start and its end come by a channel that is
//! looked into from time to time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::config::Steering;
use crate::limits::{END_INTERVAL, START_INTERVAL, STOP_TIMEOUT};
use crate::sys::mailbox::{Sender, mailbox};
use crate::sys::start::{Start, StartError};
use crate::telemetry::exposition::Process;
use crate::telemetry::record;
use crate::tls::resumption::bridge::Beginnings;
use crate::worker::Bind;
use crate::worker::command::Command;
use crate::worker::snapshot::Snapshot;
use crate::worker::sources::Sources;

use super::failure::Failure;
use super::signals;

/// What a worker's thread calls when it accepts connections, with its listening sockets' inodes, or
/// when it has failed to start.
pub type Ready = Box<dyn FnOnce(Result<Vec<u32>, StartError>) + Send>;

/// What all workers start with.
#[derive(Debug)]
pub struct Crew {
    /// CPU of each worker; `None`: not pinned.
    pub cpus: Vec<Option<usize>>,
    /// Listening sockets that each of them makes.
    pub binds: Vec<Bind>,
    /// Which of these sockets a new connection goes to.
    pub steering: Steering,
    /// Connections each of them holds.
    pub connections: u32,
    /// The first configuration.
    pub snapshot: Arc<Snapshot>,
    /// The tickets and sessions that each of them begins with.
    pub resumption: Beginnings,
    /// What they count together of each source of clients.
    pub sources: Arc<Sources>,
    /// The access log's queues, one per worker; empty: there is no access log.
    pub records: Vec<record::Sender>,
}

/// How a worker's thread ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Worker's number.
    pub worker: u16,
    /// By a panic that reached the thread.
    pub panicked: bool,
}

enum Event {
    Ready(u16, Result<Vec<u32>, StartError>),
    Ended(End),
}

/// The control thread's hold on the workers.
#[derive(Debug)]
pub struct Supervisor {
    workers: Vec<Hand>,
    events: Receiver<Event>,
    process: Arc<Process>,
}

/// One worker, from outside.
#[derive(Debug)]
struct Hand {
    mailbox: Sender,
    /// Commands that found the mailbox full.
    unsent: VecDeque<Command>,
    /// `None`: ended and joined.
    thread: Option<JoinHandle<()>>,
    /// Inodes of its listening sockets, in the order of its binds.
    sockets: Vec<u32>,
}

/// Tells the supervisor that the thread is over, however it came to that.
struct Farewell {
    worker: u16,
    events: std::sync::mpsc::Sender<Event>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let end = End { worker: self.worker, panicked: std::thread::panicking() };
        // Nobody listens any more when the process is about to exit.
        let _unheard = self.events.send(Event::Ended(end));
    }
}

impl Supervisor {
    /// Starts every worker and waits until all accept connections. `body` is the worker's life on
    /// its own thread.
    ///
    /// # Errors
    /// The first worker's that failed; the others are stopped then.
    ///
    /// # Panics
    /// When `process` counts another number of workers than `crew`: a defect of ours.
    pub async fn start<B>(crew: Crew, process: Arc<Process>, body: B) -> Result<Self, Failure>
    where
        B: Fn(Start, Ready) + Clone + Send + 'static,
    {
        assert_eq!(crew.cpus.len(), process.workers.len());
        let (sender, events) = channel();
        let mut supervisor = Self { workers: Vec::new(), events, process };
        let mut records = crew.records.into_iter();
        // All before the first thread, so that each inherits what wakes the others.
        let mailboxes: Vec<_> =
            crew.cpus.iter().map(|_| mailbox()).collect::<Result<_, _>>().map_err(|source| {
                Failure::Os { what: "make a worker's mailbox (eventfd)", source }
            })?;
        let wakes: Arc<[_]> = mailboxes.iter().map(|(sender, _)| sender.wake()).collect();
        for ((index, cpu), (mailbox, receiver)) in (0_u16..).zip(crew.cpus).zip(mailboxes) {
            let start = Start {
                index,
                cpu,
                binds: crew.binds.clone(),
                steering: crew.steering,
                connections: crew.connections,
                snapshot: Arc::clone(&crew.snapshot),
                resumption: crew.resumption.clone(),
                sources: Arc::clone(&crew.sources),
                counters: supervisor.counters(index),
                records: records.next(),
                mailbox: receiver,
                wakes: Arc::clone(&wakes),
            };
            let thread = spawn(start, sender.clone(), body.clone())?;
            supervisor.workers.push(Hand {
                mailbox,
                unsent: VecDeque::new(),
                thread: Some(thread),
                sockets: Vec::new(),
            });
        }
        drop(sender);
        match supervisor.readiness().await {
            Ok(()) => Ok(supervisor),
            Err(failure) => {
                supervisor.stop().await;
                Err(failure)
            }
        }
    }

    /// The next event, looked for at every `interval`; `None` when no thread is left to send one.
    async fn event(&mut self, interval: Duration) -> Option<Event> {
        loop {
            match self.events.try_recv() {
                Ok(event) => return Some(event),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => tokio::time::sleep(interval).await,
            }
        }
    }

    fn counters(&self, worker: u16) -> Arc<crate::telemetry::counters::Counters> {
        self.process
            .workers
            .get(usize::from(worker))
            .map(|observed| Arc::clone(&observed.counters))
            .unwrap_or_default()
    }

    async fn readiness(&mut self) -> Result<(), Failure> {
        let mut waiting = self.workers.len();
        while waiting > 0 {
            match self.event(START_INTERVAL).await {
                Some(Event::Ready(worker, Ok(sockets))) => {
                    self.set_up(worker, true);
                    if let Some(hand) = self.workers.get_mut(usize::from(worker)) {
                        hand.sockets = sockets;
                    }
                    waiting -= 1;
                }
                Some(Event::Ready(worker, Err(source))) => {
                    return Err(Failure::Start { worker, source });
                }
                Some(Event::Ended(end)) => {
                    self.join(end);
                    return Err(Failure::Workers { workers: vec![end.worker] });
                }
                None => return Err(Failure::Workers { workers: vec![] }),
            }
        }
        Ok(())
    }

    /// Leaves a command for every worker that runs. What a full mailbox does not take waits for
    /// [`Supervisor::send_unsent`].
    pub fn send(&mut self, command: &Command) {
        for hand in self.workers.iter_mut().filter(|hand| hand.thread.is_some()) {
            // Of two configurations, or two sets of keys, only the last one matters.
            let replaces = |unsent: &Command| match command {
                Command::Snapshot(_) => matches!(unsent, Command::Snapshot(_)),
                Command::TicketKeys(_) => matches!(unsent, Command::TicketKeys(_)),
                Command::Drain { .. } | Command::Stop => false,
            };
            hand.unsent.retain(|unsent| !replaces(unsent));
            hand.unsent.push_back(command.clone());
            hand.flush();
        }
    }

    /// Tries again what full mailboxes did not take.
    pub fn send_unsent(&mut self) {
        for hand in &mut self.workers {
            hand.flush();
        }
    }

    /// Waits until a worker's thread has ended. Safe to cancel.
    pub async fn ended(&mut self) -> End {
        loop {
            match self.event(END_INTERVAL).await {
                Some(Event::Ended(end)) => {
                    self.join(end);
                    return end;
                }
                Some(Event::Ready(..)) => {}
                // Every thread has said farewell; there is nothing more to wait for.
                None => std::future::pending().await,
            }
        }
    }

    /// Inodes of the listening sockets, by worker and in the order of the binds.
    pub fn sockets(&self) -> impl Iterator<Item = &[u32]> {
        self.workers.iter().map(|hand| hand.sockets.as_slice())
    }

    /// How many worker threads run.
    pub fn running(&self) -> usize {
        self.workers.iter().filter(|hand| hand.thread.is_some()).count()
    }

    /// Tells every worker to abort its connections, and waits a moment for them to end.
    pub async fn stop(&mut self) {
        self.send(&Command::Stop);
        let all = async {
            while self.running() > 0 {
                let _end = self.ended().await;
            }
        };
        if tokio::time::timeout(STOP_TIMEOUT, all).await.is_err() {
            tracing::warn!(
                workers = self.running(),
                "workers did not end within {STOP_TIMEOUT:?}; ending without them"
            );
        }
    }

    fn join(&mut self, end: End) {
        self.set_up(end.worker, false);
        let hand = self.workers.get_mut(usize::from(end.worker));
        if let Some(thread) = hand.and_then(|hand| hand.thread.take()) {
            // It has said farewell, so that this does not block; a panic was told by the farewell.
            let _told = thread.join();
        }
    }

    fn set_up(&self, worker: u16, up: bool) {
        if let Some(observed) = self.process.workers.get(usize::from(worker)) {
            observed.set_up(up);
        }
    }
}

impl Hand {
    fn flush(&mut self) {
        while let Some(command) = self.unsent.pop_front() {
            if let Err(command) = self.mailbox.send(command) {
                self.unsent.push_front(command);
                return;
            }
        }
    }
}

fn spawn<B>(
    start: Start,
    events: std::sync::mpsc::Sender<Event>,
    body: B,
) -> Result<JoinHandle<()>, Failure>
where
    B: Fn(Start, Ready) + Send + 'static,
{
    let worker = start.index;
    std::thread::Builder::new()
        .name(format!("worker-{worker}"))
        .spawn(move || {
            signals::keep_away();
            let ready = events.clone();
            let _farewell = Farewell { worker, events };
            body(
                start,
                Box::new(move |result| {
                    let _unheard = ready.send(Event::Ready(worker, result));
                }),
            );
        })
        .map_err(|source| Failure::Os { what: "start a worker's thread", source })
}

/// How long the workers may take from [`Command::Drain`] to their end.
pub fn drain_limit(timeout: Duration) -> Duration {
    timeout.saturating_add(crate::limits::DRAIN_GRACE)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::telemetry::exposition::Observed;
    use crate::worker::admission::{Admission, Costs};

    /// A worker that serves nobody and obeys.
    pub(in crate::control) fn obedient(start: Start, ready: Ready) {
        ready(Ok(Vec::new()));
        let mut commands = start.mailbox.commands;
        loop {
            match commands.pop() {
                Ok(Command::Drain { .. } | Command::Stop) => return,
                Ok(Command::TicketKeys(_)) => {}
                Ok(Command::Snapshot(_)) => start.counters.accepted.add(1),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn crew(workers: usize) -> (Crew, Arc<Process>) {
        let crew = Crew {
            cpus: vec![None; workers],
            binds: Vec::new(),
            steering: Steering::Hash,
            connections: 1,
            snapshot: Arc::new(empty()),
            resumption: Beginnings::for_tests(),
            sources: Arc::new(Sources::new(0, 0)),
            records: Vec::new(),
        };
        let process = Arc::new(Process::new(workers, SystemTime::now()));
        (crew, process)
    }

    fn empty() -> Snapshot {
        let second = Duration::from_secs(1);
        Snapshot {
            listeners: Vec::new(),
            backends: Vec::new(),
            admission: Admission::new(&crate::config::Limits::default(), Costs::default()),
            handshake: crate::config::Handshake::default(),
            timeouts: crate::config::Timeouts {
                handshake: second,
                connect: second,
                idle: second,
                rest: second,
                half_closed: second,
                drain: second,
                ..crate::config::Timeouts::default()
            },
            client_hello_bytes: 1,
            min_rate: 0,
        }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(
            async { tokio::time::timeout(Duration::from_secs(10), future).await.expect("in time") },
        )
    }

    #[test]
    fn commands_reach_every_worker_and_ends_are_told() {
        let (crew, process) = crew(3);
        block_on(async {
            let mut supervisor =
                Supervisor::start(crew, Arc::clone(&process), obedient).await.unwrap();
            assert!(process.workers.iter().all(Observed::is_up));
            supervisor.send(&Command::Snapshot(Arc::new(empty())));
            supervisor.send(&Command::Drain { timeout: Duration::ZERO });
            for _ in 0..3 {
                assert!(!supervisor.ended().await.panicked);
            }
            assert_eq!(supervisor.running(), 0);
        });
        assert_eq!(process.sum(|counters| counters.accepted.get()), 3);
        assert!(!process.workers.iter().any(Observed::is_up));
    }

    #[test]
    fn commands_that_find_a_full_mailbox_are_sent_later() {
        use std::sync::atomic::{AtomicBool, Ordering};

        use crate::limits::MAILBOX_COMMANDS_MAX;

        let (crew, process) = crew(1);
        let awake = Arc::new(AtomicBool::new(false));
        let sleeps = Arc::clone(&awake);
        let body = move |start: Start, ready: Ready| {
            ready(Ok(Vec::new()));
            while !sleeps.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            obedient(start, Box::new(|_| {}));
        };
        block_on(async {
            let mut supervisor = Supervisor::start(crew, Arc::clone(&process), body).await.unwrap();
            let snapshot = Command::Snapshot(Arc::new(empty()));
            for _ in 0..2 * MAILBOX_COMMANDS_MAX {
                supervisor.send(&snapshot);
            }
            supervisor.send(&Command::Drain { timeout: Duration::ZERO });
            awake.store(true, Ordering::Relaxed);
            let mut tick = tokio::time::interval(Duration::from_millis(5));
            loop {
                tokio::select! {
                    _ = supervisor.ended() => break,
                    _ = tick.tick() => supervisor.send_unsent(),
                }
            }
        });
        // Those that fitted, and the newest of the others.
        let seen = process.sum(|counters| counters.accepted.get());
        assert_eq!(seen, MAILBOX_COMMANDS_MAX as u64 + 1);
    }

    #[test]
    fn one_worker_that_cannot_start_stops_the_others() {
        let (crew, process) = crew(2);
        let body = |start: Start, ready: Ready| {
            if start.index == 1 {
                let source = std::io::Error::from_raw_os_error(12);
                ready(Err(StartError::Ring { step: "setup", source }));
            } else {
                obedient(start, ready);
            }
        };
        let failure = block_on(Supervisor::start(crew, Arc::clone(&process), body)).unwrap_err();
        assert!(matches!(failure, Failure::Start { worker: 1, .. }), "{failure}");
        assert!(!process.workers[0].is_up());
    }

    #[test]
    fn a_panicked_worker_is_told_apart() {
        let (crew, process) = crew(1);
        let body = |start: Start, ready: Ready| {
            ready(Ok(Vec::new()));
            drop(start);
            std::panic::resume_unwind(Box::new("defect"));
        };
        let end = block_on(async {
            let mut supervisor = Supervisor::start(crew, process, body).await.unwrap();
            supervisor.ended().await
        });
        assert_eq!(end, End { worker: 0, panicked: true });
    }
}
