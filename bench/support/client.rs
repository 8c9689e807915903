//! TLS clients: many connections, one thread, level-triggered epoll, closed loop.

use std::io::{BufRead, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};
use rustls::{ClientConfig, ClientConnection, HandshakeKind};
use rustls_pki_types::ServerName;

use super::certificate::{Certificate, NAME};
use super::work::Work;
use super::{Error, Result, payload, wait};

/// Source addresses 127.0.0.1 to 127.0.0.8 in turn: the clients close first and so hold the
/// `TIME_WAIT`s, and one address has 28,000 ports by default.
const SOURCES: u8 = 8;
/// Plaintext bytes written at once in bulk work: one full TLS record.
const CHUNK_BYTES: u64 = 16 * 1024;
/// Chunks written to one connection before the others have their turn.
const CHUNKS_PER_TURN: usize = 16;
/// With no event for this long the server under test hangs.
const STALL_LIMIT: Duration = Duration::from_secs(5);

/// Significant digits of latencies.
const LATENCY_DIGITS: u8 = 3;

/// Share of handshakes that must be of the kind that the work names, else the figure is another's.
const RIGHT_KIND_MIN: f64 = 0.999;

/// When a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// At this time, but not before something was completed; what is under way goes on in the next
    /// run.
    Time(Instant),
    /// When as many operations were started and completed. Not for bulk work.
    Operations(u64),
    /// When every connection has ended its handshake; nothing is asked.
    Connected,
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The end of the handshake.
    Handshake,
    /// Its next operation.
    Idle,
    /// The rest of an answer.
    Answer,
    /// The server's close.
    Close,
}

/// One client connection.
struct Connection {
    tcp: TcpStream,
    tls: ClientConnection,
    phase: Phase,
    /// Bytes of the request not given to TLS yet.
    unsent: u64,
    /// Bytes of the answer not received yet.
    awaited: u64,
    wants_out: bool,
    /// Of the operation in hand.
    began: Instant,
}

/// What one event did.
#[derive(Debug, Clone, Copy, Default)]
struct Moved {
    sent: u64,
    received: u64,
    ended: bool,
}

/// What a run completed.
#[derive(Debug, Clone)]
pub(crate) struct Done {
    /// Operations; for bulk work bytes.
    pub(crate) progress: u64,
    /// Handshakes, as the clients saw them end.
    pub(crate) handshakes: u64,
    /// Those of them that resumed a session.
    pub(crate) resumed: u64,
    /// Microseconds from asking to the last byte of the answer; where connections are not kept,
    /// from the beginning of the connect. Empty for bulk work.
    pub(crate) latency: Histogram<u64>,
}

impl Done {
    /// # Errors
    /// Never: the histogram's precision is one that it takes.
    pub(crate) fn nothing() -> Result<Self> {
        let latency = Histogram::new(LATENCY_DIGITS)?;
        Ok(Self { progress: 0, handshakes: 0, resumed: 0, latency })
    }

    /// Adds what other clients completed in the same time.
    pub(crate) fn add(&mut self, other: &Self) -> Result<()> {
        self.progress += other.progress;
        self.handshakes += other.handshakes;
        self.resumed += other.resumed;
        Ok(self.latency.add(&other.latency)?)
    }

    /// Share of the handshakes that resumed a session; `None` if there was no handshake.
    #[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
    pub(crate) fn resumed_share(&self) -> Option<f64> {
        (self.handshakes > 0).then(|| self.resumed as f64 / self.handshakes as f64)
    }

    /// # Errors
    /// The handshakes were not what `work` says.
    fn check(&self, work: Work) -> Result<()> {
        let Some(share) = self.resumed_share() else {
            return Ok(());
        };
        let right = if work.resumes() { share } else { 1.0 - share };
        if right >= RIGHT_KIND_MIN {
            return Ok(());
        }
        Err(format!(
            "{:.1} % resumed of {} handshakes; `{}` is {}, and its figure would be of other work",
            100.0 * share,
            self.handshakes,
            work.name,
            work.handshake_words(),
        )
        .into())
    }
}

/// The clients of one server. Each keeps its own sessions and has one connection at a time, so
/// that a ticket of TLS 1.3, which is used once, is there for each connection: the server sends
/// at least one before the answer.
pub(crate) struct Clients {
    work: Work,
    target: SocketAddrV4,
    epoll: Epoll,
    /// What each client offers, with its sessions; as many as `connections`.
    configs: Vec<Arc<ClientConfig>>,
    connections: Vec<Option<Connection>>,
    scratch: Vec<u8>,
    opened: u64,
    /// Operations that this run may still start.
    budget: u64,
    /// What this run completed so far.
    done: Done,
}

impl Clients {
    /// Clients of the server at `target`, which presents `certificate`. Kept connections are
    /// opened at once, so that no run measures their handshakes; clients that resume get their
    /// first sessions, and use them once.
    ///
    /// # Errors
    /// As those of [`Clients::run`].
    pub(crate) fn connect(
        target: SocketAddr,
        work: Work,
        certificate: &Certificate,
    ) -> Result<Self> {
        let SocketAddr::V4(target) = target else {
            return Err("only IPv4 targets".into());
        };
        let mut clients = Self {
            work,
            target,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            configs: std::iter::repeat_with(|| certificate.client_config(work, false))
                .take(work.connections)
                .collect::<Result<_>>()?,
            connections: std::iter::repeat_with(|| None).take(work.connections).collect(),
            scratch: vec![0; 256 * 1024],
            opened: 0,
            budget: 0,
            done: Done::nothing()?,
        };
        if !work.closes {
            clients.run(Until::Connected)?;
        }
        if work.resumes() {
            // As many operations as clients are one of each.
            let each_once = Until::Operations(work.connections as u64);
            clients.drive(each_once)?;
            clients.run(each_once)?;
        }
        Ok(clients)
    }

    /// Does the work `until` the end.
    ///
    /// # Errors
    /// Any connection that fails, and a server that hangs: a benchmark of a server that loses
    /// connections has no figure. Handshakes that were not resumed where the work says so, or the
    /// other way round.
    pub(crate) fn run(&mut self, until: Until) -> Result<Done> {
        self.drive(until)?;
        self.done.check(self.work)?;
        Ok(std::mem::replace(&mut self.done, Done::nothing()?))
    }

    fn drive(&mut self, until: Until) -> Result<()> {
        self.done = Done::nothing()?;
        self.budget = match until {
            Until::Operations(count) => count,
            Until::Time(_) => u64::MAX,
            Until::Connected => 0,
        };
        for at in 0..self.connections.len() {
            self.turn(at, until == Until::Connected)?;
        }
        let mut events = vec![EpollEvent::empty(); 256];
        let mut last_event = Instant::now();
        while !self.is_done(until) {
            let ready = wait(&self.epoll, &mut events)?;
            let now = Instant::now();
            if ready > 0 {
                last_event = now;
            } else if now - last_event > STALL_LIMIT {
                return Err(format!("no answer for {STALL_LIMIT:?}").into());
            }
            for event in events.iter().take(ready) {
                let at = usize::try_from(event.data())?;
                self.handle(at, event.events())?;
            }
        }
        Ok(())
    }

    fn is_done(&self, until: Until) -> bool {
        match until {
            Until::Time(deadline) => self.done.progress > 0 && Instant::now() >= deadline,
            Until::Operations(count) => self.done.progress >= count,
            Until::Connected => self
                .connections
                .iter()
                .all(|slot| slot.as_ref().is_some_and(|c| c.phase != Phase::Handshake)),
        }
    }

    /// Starts what the connection at `at` has to do next, if it waits for nothing.
    fn turn(&mut self, at: usize, connect_only: bool) -> Result<()> {
        let (Some(slot), Some(config)) = (self.connections.get_mut(at), self.configs.get(at))
        else {
            return Ok(());
        };
        let idle = slot.as_ref().is_none_or(|connection| connection.phase == Phase::Idle);
        let may_start = self.budget > 0 || (connect_only && slot.is_none());
        if !idle || !may_start {
            return Ok(());
        }
        if slot.is_none() {
            let tcp = open(self.target, source(self.opened)?)?;
            self.opened += 1;
            let tls = ClientConnection::new(Arc::clone(config), ServerName::try_from(NAME)?)?;
            self.epoll.add(&tcp, EpollEvent::new(EpollFlags::EPOLLIN, at as u64))?;
            *slot = Some(Connection {
                tcp,
                tls,
                phase: Phase::Handshake,
                unsent: 0,
                awaited: 0,
                wants_out: false,
                began: Instant::now(),
            });
            if self.work.closes {
                self.budget -= 1;
            }
        } else {
            self.budget -= 1;
        }
        if let Some(connection) = slot {
            if connection.phase == Phase::Idle {
                connection.began = Instant::now();
                connection.ask(self.work);
            }
            let sent = connection.flush(&self.epoll, at)?;
            self.count_bytes(Moved { sent, ..Moved::default() });
        }
        Ok(())
    }

    /// Serves one event of the connection at `at`.
    fn handle(&mut self, at: usize, events: EpollFlags) -> Result<()> {
        let Some(slot) = self.connections.get_mut(at) else {
            return Ok(());
        };
        let Some(connection) = slot else {
            return Ok(());
        };
        let phase = connection.phase;
        let moved = connection
            .advance(self.work, events, &mut self.scratch, &self.epoll, at)
            .map_err(|error| Error::from(format!("connection in phase {phase:?}: {error}")))?;
        if phase == Phase::Handshake && connection.phase != phase {
            let resumed = connection.tls.handshake_kind() == Some(HandshakeKind::Resumed);
            self.done.handshakes += 1;
            self.done.resumed += u64::from(resumed);
        }
        if phase == Phase::Answer && connection.phase != phase {
            let took = connection.began.elapsed().as_micros();
            self.done.latency.record(u64::try_from(took)?)?;
        }
        let answered = phase == Phase::Answer && connection.phase == Phase::Idle;
        if moved.ended {
            *slot = None;
        }
        if moved.ended || answered {
            self.done.progress += 1;
            self.turn(at, false)?;
        }
        self.count_bytes(moved);
        Ok(())
    }

    fn count_bytes(&mut self, moved: Moved) {
        if self.work.is_bulk() {
            self.done.progress += moved.sent.max(moved.received);
        }
    }
}

/// Where the `number`th connection comes from.
pub(super) fn source(number: u64) -> Result<Ipv4Addr> {
    Ok(Ipv4Addr::new(127, 0, 0, 1 + u8::try_from(number % u64::from(SOURCES))?))
}

/// A socket from `source` that connects to `target`, non-blocking.
pub(super) fn open(target: SocketAddrV4, source: Ipv4Addr) -> Result<TcpStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    // The port is chosen at connect, when the kernel knows the whole quadruple.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0)))?;
    match connect(socket.as_raw_fd(), &SockaddrIn::from(target)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(error) => return Err(format!("connect from {source}: {error}").into()),
    }
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Connection {
    /// The next operation: a request to send, an answer to wait for.
    fn ask(&mut self, work: Work) {
        self.phase = Phase::Answer;
        self.unsent = work.request_bytes;
        self.awaited = work.answer_bytes;
    }

    fn advance(
        &mut self,
        work: Work,
        events: EpollFlags,
        scratch: &mut [u8],
        epoll: &Epoll,
        at: usize,
    ) -> Result<Moved> {
        let mut moved = Moved::default();
        if events.intersects(!EpollFlags::EPOLLOUT) {
            let ended = self.receive(scratch, &mut moved)?;
            if ended && self.phase == Phase::Close {
                return Ok(Moved { ended, ..moved });
            }
            if ended {
                return Err("the server closed early".into());
            }
        }
        if self.phase == Phase::Handshake && !self.tls.is_handshaking() {
            self.phase = Phase::Idle;
            // A kept connection waits until a run asks; see `Clients::connect`.
            if work.closes {
                self.ask(work);
            }
        }
        moved.sent += self.flush(epoll, at)?;
        if self.phase == Phase::Answer && self.awaited == 0 && self.unsent == 0 {
            self.phase = Phase::Idle;
            if work.closes {
                self.tls.send_close_notify();
                self.flush(epoll, at)?;
                self.tcp.shutdown(Shutdown::Write)?;
                self.phase = Phase::Close;
            }
        }
        Ok(moved)
    }

    /// Reads once and decrypts. True: the server has closed.
    fn receive(&mut self, scratch: &mut [u8], moved: &mut Moved) -> Result<bool> {
        let read = match self.tcp.read(scratch) {
            Ok(0) => return Ok(true),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            // All was received before: how a server closes after our close_notify is its affair.
            Err(_) if self.phase == Phase::Close => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        let mut wire = scratch.get(..read).unwrap_or_default();
        while !wire.is_empty() {
            if self.tls.read_tls(&mut wire)? == 0 {
                // After a close_notify rustls takes nothing more.
                break;
            }
            let mut plain = self.tls.process_new_packets()?.plaintext_bytes_to_read();
            moved.received += plain as u64;
            while plain > 0 {
                let mut reader = self.tls.reader();
                let part = reader.fill_buf()?.len();
                reader.consume(part);
                plain -= part;
            }
        }
        if moved.received > self.awaited {
            return Err("more bytes than were asked for".into());
        }
        self.awaited -= moved.received;
        Ok(false)
    }

    /// Encrypts and writes what it can, and tells epoll if there is more. Returns the plaintext
    /// bytes that were taken.
    fn flush(&mut self, epoll: &Epoll, at: usize) -> Result<u64> {
        let mut sent = 0;
        let mut blocked = false;
        for _ in 0..CHUNKS_PER_TURN {
            while self.tls.wants_write() && !blocked {
                match self.tls.write_tls(&mut self.tcp) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => blocked = true,
                    Err(_) if self.phase == Phase::Close => return Ok(sent),
                    Err(error) => return Err(error.into()),
                }
            }
            if blocked || self.unsent == 0 {
                break;
            }
            let taken = self.tls.writer().write(payload(self.unsent.min(CHUNK_BYTES)))? as u64;
            self.unsent -= taken;
            sent += taken;
        }
        let wants_out = blocked || self.unsent > 0 || self.tls.wants_write();
        if wants_out != self.wants_out {
            self.wants_out = wants_out;
            let mut flags = EpollFlags::EPOLLIN;
            flags.set(EpollFlags::EPOLLOUT, wants_out);
            epoll.modify(&self.tcp, &mut EpollEvent::new(flags, at as u64))?;
        }
        Ok(sent)
    }
}
