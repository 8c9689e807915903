//! Clients that connect and end without a byte: what is left of a connection when there is no TLS.

use std::io::{ErrorKind, Read};
use std::net::{Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::client::{open, source};
use super::{Result, wait};

/// Connections at once.
const AT_ONCE: usize = 32;
/// With no event for this long the server under test hangs.
const STALL_LIMIT: Duration = Duration::from_secs(5);

/// A connection that is being made, or has been ended and waits for the server's end.
struct Knock {
    tcp: TcpStream,
    ended: bool,
}

/// One thread's clients, closed loop.
pub(crate) struct Knocks {
    target: SocketAddrV4,
    epoll: Epoll,
    slots: Vec<Option<Knock>>,
    opened: u64,
}

impl Knocks {
    /// Clients of the server at `target`.
    pub(crate) fn new(target: SocketAddr) -> Result<Self> {
        let SocketAddr::V4(target) = target else {
            return Err("only IPv4 targets".into());
        };
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let slots = std::iter::repeat_with(|| None).take(AT_ONCE).collect();
        Ok(Self { target, epoll, slots, opened: 0 })
    }

    /// Connects `count` times, and waits until the server has ended each connection.
    ///
    /// # Errors
    /// Any connection that fails or gets a byte, and a server that hangs.
    pub(crate) fn run(&mut self, count: u64) -> Result<()> {
        let (mut unopened, mut left) = (count, count);
        for at in 0..self.slots.len() {
            self.next(at, &mut unopened)?;
        }
        let mut events = vec![EpollEvent::empty(); AT_ONCE];
        let mut last_event = Instant::now();
        while left > 0 {
            let ready = wait(&self.epoll, &mut events)?;
            if ready > 0 {
                last_event = Instant::now();
            } else if last_event.elapsed() > STALL_LIMIT {
                return Err(format!("no end of a connection for {STALL_LIMIT:?}").into());
            }
            for event in events.iter().take(ready) {
                let at = usize::try_from(event.data())?;
                let Some(Some(knock)) = self.slots.get_mut(at) else { continue };
                if knock.advance(&self.epoll, at)? {
                    left -= 1;
                    self.next(at, &mut unopened)?;
                }
            }
        }
        Ok(())
    }

    /// Puts a new connection in the place of the one at `at`, if there are any to come.
    fn next(&mut self, at: usize, unopened: &mut u64) -> Result<()> {
        let Some(slot) = self.slots.get_mut(at) else {
            return Ok(());
        };
        *slot = None;
        if *unopened > 0 {
            *unopened -= 1;
            let tcp = open(self.target, source(self.opened)?)?;
            self.opened += 1;
            self.epoll.add(&tcp, EpollEvent::new(EpollFlags::EPOLLOUT, at as u64))?;
            *slot = Some(Knock { tcp, ended: false });
        }
        Ok(())
    }
}

impl Knock {
    /// Serves one event. True: the server has ended the connection.
    fn advance(&mut self, epoll: &Epoll, at: usize) -> Result<bool> {
        if !self.ended {
            // Connected, or this fails.
            self.tcp.shutdown(Shutdown::Write)?;
            self.ended = true;
            epoll.modify(&self.tcp, &mut EpollEvent::new(EpollFlags::EPOLLIN, at as u64))?;
            return Ok(false);
        }
        match self.tcp.read(&mut [0; 16]) {
            Ok(0) => Ok(true),
            Ok(_) => Err("bytes for a client that sent none".into()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
