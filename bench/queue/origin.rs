//! A server that gets slower with each request that it has in hand, as most do: beyond some number
//! of them it is busy with having them. It sleeps instead of working, so that the machine is not
//! what is measured.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::work::Work;
use crate::support::{Result, listener, payload};

/// How long an answer takes with `c` requests in hand when it is asked for, itself among them:
/// `base` up to `knee` of them, beyond that `base x (c / knee)^1.5`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Model {
    pub(crate) base: Duration,
    pub(crate) knee: u32,
}

impl Model {
    fn takes(self, in_hand: u32) -> Duration {
        let load = f64::from(in_hand) / f64::from(self.knee);
        self.base.mul_f64(load.max(1.0).powf(1.5))
    }
}

/// A running origin; it ends when this is dropped.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    model: Model,
    work: Work,
    stop: AtomicBool,
    in_hand: AtomicU32,
    most: AtomicU32,
}

impl Origin {
    /// Starts an origin that answers as `work` says, each connection in a thread of its own.
    pub(crate) fn start(work: Work, model: Model) -> Result<Self> {
        let (listener, address) = listener()?;
        let shared = Arc::new(Shared {
            model,
            work,
            stop: AtomicBool::new(false),
            in_hand: AtomicU32::new(0),
            most: AtomicU32::new(0),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("origin".into()).spawn(move || {
            if let Err(error) = accept(&listener, &theirs) {
                eprintln!("origin: {error}; the measurement is void");
            }
        })?;
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// The most requests that it had in hand at once since the last call.
    pub(crate) fn most(&self) -> u32 {
        self.shared.most.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed by the panic hook.
            drop(thread.join());
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) -> Result<()> {
    while !shared.stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                let shared = Arc::clone(shared);
                std::thread::Builder::new().stack_size(64 * 1024).spawn(move || {
                    // A terminator that ends during an answer is part of the end of a measurement.
                    drop(answer(&stream, &shared));
                })?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// One request, one answer; the terminator closes.
fn answer(mut stream: &TcpStream, shared: &Shared) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let mut request = vec![0; usize::try_from(shared.work.request_bytes)?];
    stream.read_exact(&mut request)?;
    let in_hand = shared.in_hand.fetch_add(1, Ordering::Relaxed) + 1;
    shared.most.fetch_max(in_hand, Ordering::Relaxed);
    std::thread::sleep(shared.model.takes(in_hand));
    shared.in_hand.fetch_sub(1, Ordering::Relaxed);
    stream.write_all(payload(shared.work.answer_bytes))?;
    stream.read_to_end(&mut request)?;
    Ok(())
}
