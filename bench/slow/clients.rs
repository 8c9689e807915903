//! One slow or garbage client: what it sends, and how it notices that it was closed.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;

use crate::support::certificate::NAME;
use crate::support::{PAYLOAD, Result};

/// Between two bytes of a slow client.
const PAUSE: Duration = Duration::from_secs(5);
/// Until a garbage client looks whether it was closed, and until it comes again.
const GLANCE: Duration = Duration::from_millis(200);
const AGAIN: Duration = Duration::from_secs(1);
/// What a client may wait for the server in its handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a client does slowly, or wrongly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its `ClientHello` comes byte by byte.
    Hello,
    /// Its request comes byte by byte, each in a record.
    Request,
    /// It has begun a record and does not end it.
    Record,
    /// It has asked for much and reads nothing.
    Reader,
    /// It sends no TLS, this way or that.
    Garbage(usize),
}

impl Kind {
    /// The kind of the slow client with this number.
    pub(crate) fn of(number: u64) -> Self {
        match number % 10 {
            0..4 => Self::Hello,
            4..7 => Self::Request,
            7..9 => Self::Record,
            _ => Self::Reader,
        }
    }
}

/// What all clients have in common.
pub(crate) struct Common {
    /// Where small answers are given, and where large ones.
    pub(crate) addresses: [SocketAddr; 2],
    pub(crate) config: Arc<ClientConfig>,
    hello: Vec<u8>,
}

impl Common {
    pub(crate) fn new(addresses: [SocketAddr; 2], config: Arc<ClientConfig>) -> Result<Self> {
        let mut hello = Vec::new();
        client(&config)?.write_tls(&mut hello)?;
        Ok(Self { addresses, config, hello })
    }
}

/// A client, connected or about to come again.
pub(crate) struct Client {
    kind: Kind,
    stream: Option<TcpStream>,
    tls: Option<ClientConnection>,
    sent: usize,
    /// When it does the next thing.
    pub(crate) due: Instant,
}

impl Client {
    pub(crate) fn new(kind: Kind, due: Instant) -> Self {
        Self { kind, stream: None, tls: None, sent: 0, due }
    }

    pub(crate) fn is_garbage(&self) -> bool {
        matches!(self.kind, Kind::Garbage(_))
    }

    /// Does what is due. True: it is not there, and wants to connect now.
    pub(crate) fn act(&mut self, common: &Common, now: Instant) -> bool {
        let Some(stream) = &mut self.stream else {
            return true;
        };
        // Who reads nothing sees a reset in the socket's error.
        let lives = if self.kind == Kind::Reader {
            matches!(stream.take_error(), Ok(None))
        } else {
            !is_closed(stream) && self.send(common).is_ok()
        };
        let garbage = self.is_garbage();
        if lives {
            self.due = now + if garbage { GLANCE } else { PAUSE };
            return false;
        }
        (self.stream, self.tls) = (None, None);
        self.due = now + if garbage { AGAIN } else { Duration::ZERO };
        !garbage
    }

    /// The next byte.
    fn send(&mut self, common: &Common) -> std::io::Result<()> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        let byte = match self.kind {
            Kind::Hello => common.hello.get(self.sent).copied().unwrap_or(0),
            Kind::Record => 0,
            Kind::Request => {
                if let Some(tls) = &mut self.tls {
                    tls.writer().write_all(b"x")?;
                    while tls.wants_write() {
                        tls.write_tls(stream)?;
                    }
                }
                return Ok(());
            }
            Kind::Reader | Kind::Garbage(_) => return Ok(()),
        };
        self.sent += 1;
        stream.write_all(&[byte])
    }

    /// Connects, and does what comes before its slowness.
    pub(crate) fn connect(&mut self, common: &Common, now: Instant) -> Result<()> {
        let [small, large] = common.addresses;
        let address = if self.kind == Kind::Reader { large } else { small };
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        (self.sent, self.tls) = (0, None);
        match self.kind {
            Kind::Hello => {
                stream.write_all(common.hello.get(..1).unwrap_or_default())?;
                self.sent = 1;
            }
            Kind::Garbage(number) => stream.write_all(&garbage(number, common))?,
            Kind::Request | Kind::Record | Kind::Reader => {
                stream.set_read_timeout(Some(PATIENCE))?;
                let mut tls = client(&common.config)?;
                while tls.is_handshaking() {
                    tls.complete_io(&mut stream)?;
                }
                if self.kind == Kind::Reader {
                    tls.writer().write_all(b"x")?;
                }
                while tls.wants_write() {
                    tls.write_tls(&mut stream)?;
                }
                match self.kind {
                    Kind::Record => stream.write_all(&[23, 3, 3, 0x40, 0x11])?,
                    Kind::Request => self.tls = Some(tls),
                    _ => {}
                }
            }
        }
        stream.set_nonblocking(true)?;
        self.stream = Some(stream);
        self.due = now + if self.is_garbage() { GLANCE } else { PAUSE };
        Ok(())
    }
}

fn client(config: &Arc<ClientConfig>) -> Result<ClientConnection> {
    Ok(ClientConnection::new(Arc::clone(config), ServerName::try_from(NAME)?)?)
}

fn garbage(number: usize, common: &Common) -> Vec<u8> {
    match number % 4 {
        0 => PAYLOAD.iter().skip(number % 251 + 30).take(300).copied().collect(),
        1 => b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n".to_vec(),
        2 => [&[22, 3, 1, 0xff, 0xff][..], &[1; 200]].concat(),
        // Half a hello, and then something else.
        _ => {
            let half = common.hello.iter().take(common.hello.len() / 2);
            half.copied().chain([0xff; 300]).collect()
        }
    }
}

/// Whether the server has ended the connection. What else it says is thrown away.
fn is_closed(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 512];
    loop {
        match stream.read(&mut answer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}
