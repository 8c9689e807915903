//! The plaintext server behind the terminator: a thread for each CPU, level-triggered epoll.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, unshare};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use portcullis::sys::socket;

use super::work::Work;
use super::{Result, cpu, free_address, listener, payload, wait};

/// Token of the listener; a connection's is its descriptor's number.
const LISTENER: u64 = u64::MAX;

/// A running origin; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Origin {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Origin {
    /// Starts an origin on `cpus` that answers as `work` says. It never closes first, so the side
    /// that closes a backend connection, and holds its `TIME_WAIT`, is the terminator.
    pub(crate) fn start(work: Work, cpus: &[usize]) -> Result<Self> {
        let (listener, address) = listener()?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut origin = Self { address, stop, threads: Vec::new() };
        for &cpu in cpus {
            let (listener, stop) = (listener.try_clone()?, Arc::clone(&origin.stop));
            let thread = std::thread::Builder::new().name("origin".into()).spawn(move || {
                let served = cpu::pin(&[cpu]).and_then(|()| serve(&listener, work, &stop));
                if let Err(error) = served {
                    eprintln!("origin: {error}; the measurement is void");
                }
            })?;
            origin.threads.push(thread);
        }
        Ok(origin)
    }
}

impl Origin {
    /// Starts an origin of so many threads, not pinned, each with a listening socket and a table of
    /// descriptors of its own, so that it holds more connections than one table does. It listens on
    /// every address of this machine: to one address there are no more connections than ports.
    pub(crate) fn spread(work: Work, threads: u64) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, free_address()?.port()));
        let stop = Arc::new(AtomicBool::new(false));
        let mut origin = Self { address, stop, threads: Vec::new() };
        for _ in 0..threads {
            let stop = Arc::clone(&origin.stop);
            let serve = move || {
                unshare(CloneFlags::CLONE_FILES)?;
                let listener = TcpListener::from(socket::listen(address, 4096)?);
                serve(&listener, work, &stop)
            };
            let thread = std::thread::Builder::new().name("origin".into()).spawn(move || {
                if let Err(error) = serve() {
                    eprintln!("origin: {error}; the measurement is void");
                }
            })?;
            origin.threads.push(thread);
        }
        Ok(origin)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic of the thread has been printed by the panic hook.
            drop(thread.join());
        }
    }
}

/// One backend connection.
struct Connection {
    stream: TcpStream,
    /// Bytes of the request not read yet.
    request_left: u64,
    /// Bytes of answers not written yet.
    owed: u64,
    /// Whether epoll tells us about room to write.
    wants_out: bool,
}

fn serve(listener: &TcpListener, work: Work, stop: &AtomicBool) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut events = vec![EpollEvent::empty(); 256];
    let mut scratch = vec![0; 256 * 1024];
    while !stop.load(Ordering::Relaxed) {
        let ready = wait(&epoll, &mut events)?;
        for event in events.iter().take(ready) {
            if event.data() == LISTENER {
                accept(listener, work, &epoll, &mut connections)?;
                continue;
            }
            let slot = usize::try_from(event.data()).ok().and_then(|at| connections.get_mut(at));
            let Some(slot) = slot else { continue };
            let Some(connection) = slot else { continue };
            let readable = event.events().intersects(!EpollFlags::EPOLLOUT);
            if !connection.advance(work, readable, &mut scratch, &epoll)? {
                *slot = None;
            }
        }
    }
    Ok(())
}

fn accept(
    listener: &TcpListener,
    work: Work,
    epoll: &Epoll,
    connections: &mut Vec<Option<Connection>>,
) -> Result<()> {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let at = usize::try_from(stream.as_raw_fd())?;
        epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, at as u64))?;
        if connections.len() <= at {
            connections.resize_with(at + 1, || None);
        }
        let connection =
            Connection { stream, request_left: work.request_bytes, owed: 0, wants_out: false };
        if let Some(slot) = connections.get_mut(at) {
            *slot = Some(connection);
        }
    }
}

impl Connection {
    /// Reads once, if there is something, and writes what it can. False: the connection has ended.
    fn advance(
        &mut self,
        work: Work,
        readable: bool,
        scratch: &mut [u8],
        epoll: &Epoll,
    ) -> Result<bool> {
        if readable {
            match self.stream.read(scratch) {
                Ok(0) => return Ok(false),
                Ok(read) => self.count(read as u64, work),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Ok(false),
            }
        }
        if self.owed > 0 {
            match self.stream.write(payload(self.owed)) {
                Ok(written) => self.owed -= written as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Ok(false),
            }
        }
        let wants_out = self.owed > 0;
        if wants_out != self.wants_out {
            self.wants_out = wants_out;
            let mut flags = EpollFlags::EPOLLIN;
            flags.set(EpollFlags::EPOLLOUT, wants_out);
            let token = u64::try_from(self.stream.as_raw_fd())?;
            epoll.modify(&self.stream, &mut EpollEvent::new(flags, token))?;
        }
        Ok(true)
    }

    /// Counts `read` bytes of requests and owes an answer for each one that is complete.
    fn count(&mut self, mut read: u64, work: Work) {
        while read >= self.request_left {
            read -= self.request_left;
            self.request_left = work.request_bytes;
            self.owed = self.owed.saturating_add(work.answer_bytes);
        }
        self.request_left -= read;
    }
}
