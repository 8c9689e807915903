//! All slow and garbage clients, on threads with descriptor tables of their own that give way to
//! all others: whoever is measured goes first.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use portcullis::sys::start::step_back;

use crate::LOOK;
use crate::clients::{Client, Common, Kind};
use crate::support::Result;
use crate::support::certificate::Certificate;
use crate::support::work::REQUEST;

/// Threads; each holds its share.
const THREADS: u64 = 2;
/// Between two sweeps of a thread over its clients.
const SWEEP: Duration = Duration::from_millis(20);
/// Slow clients that one sweep lets come again, so that they do not come as a storm.
const AGAIN_PER_SWEEP: usize = 10;
/// What gathering may take.
const LIMIT: Duration = Duration::from_secs(120);
/// How long everybody has been there before the measurement begins.
const SETTLE: Duration = Duration::from_secs(3);

/// Who is to come.
pub(crate) struct Crowd {
    /// Where small answers are given, and where large ones.
    pub(crate) addresses: [SocketAddr; 2],
    pub(crate) slow: u64,
    pub(crate) garbage: u64,
}

/// What was there during the measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts {
    /// Connections open at the server when the measured ones have gone.
    pub(crate) open: u64,
    pub(crate) garbage_per_second: f64,
}

/// A crowd that is there until it leaves.
pub(crate) struct Here {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
    since: Instant,
    garbage_before: u64,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Slow clients that have been there once.
    came: AtomicU64,
    garbage: AtomicU64,
}

impl Crowd {
    /// Waits until everybody is there.
    pub(crate) fn gather(&self, certificate: &Certificate) -> Result<Here> {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        for thread in 0..THREADS {
            let config = certificate.client_config(REQUEST, false)?;
            let common = Common::new(self.addresses, config)?;
            let now = Instant::now();
            let share = |all: u64| (0..all).filter(move |number| number % THREADS == thread);
            let mut clients: Vec<Client> =
                share(self.slow).map(|number| Client::new(Kind::of(number), now)).collect();
            for number in share(self.garbage) {
                let kind = Kind::Garbage(usize::try_from(number)?);
                // Not all at once.
                let due = now + Duration::from_millis(number % 1000);
                clients.push(Client::new(kind, due));
            }
            let shared = Arc::clone(&shared);
            let work = move || -> Result<()> {
                unshare(CloneFlags::CLONE_FILES)?;
                step_back();
                keep(&mut clients, &common, &shared);
                Ok(())
            };
            threads.push(std::thread::Builder::new().name("crowd".into()).spawn(work)?);
        }
        let begun = Instant::now();
        while shared.came.load(Relaxed) < self.slow {
            if begun.elapsed() > LIMIT || threads.iter().any(JoinHandle::is_finished) {
                let came = shared.came.load(Relaxed);
                return Err(format!("{came} of {} slow clients came", self.slow).into());
            }
            std::thread::sleep(LOOK);
        }
        std::thread::sleep(SETTLE);
        let garbage_before = shared.garbage.load(Relaxed);
        Ok(Here { shared, threads, since: Instant::now(), garbage_before })
    }
}

impl Here {
    /// Ends all connections. `open`: those that the server had.
    pub(crate) fn leave(self, open: u64) -> Result<Counts> {
        let garbage = self.shared.garbage.load(Relaxed) - self.garbage_before;
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        let garbage_per_second = garbage as f64 / self.since.elapsed().as_secs_f64();
        self.shared.stop.store(true, Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| "a thread of the crowd panicked")??;
        }
        Ok(Counts { open, garbage_per_second })
    }
}

/// Lets each client do what is due, until told to stop.
fn keep(clients: &mut [Client], common: &Common, shared: &Shared) {
    let mut came = vec![false; clients.len()];
    while !shared.stop.load(Relaxed) {
        let mut again = 0;
        for (client, came) in clients.iter_mut().zip(&mut came) {
            let now = Instant::now();
            if client.due > now || !client.act(common, now) {
                continue;
            }
            let is_slow = !client.is_garbage();
            if is_slow && again >= AGAIN_PER_SWEEP {
                continue;
            }
            // One that the server refuses tries again, as one would.
            let connected = client.connect(common, now).is_ok();
            again += usize::from(is_slow);
            if !is_slow {
                shared.garbage.fetch_add(1, Relaxed);
            } else if connected && !std::mem::replace(came, true) {
                shared.came.fetch_add(1, Relaxed);
            }
        }
        std::thread::sleep(SWEEP);
    }
}
