//! Configuration: text in, checked values out. A [`Config`] is validated and immutable; nothing
//! behind it has to check a value again.
//!
//! `raw.rs` mirrors the file, `defaults.rs` holds every default with its reason, `validate.rs`
//! turns raw into checked values with errors that name file, line, key, value and what is accepted.

pub mod defaults;
pub mod network;
mod quantity;
mod raw;
pub mod server_name;
mod validate;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The whole configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[workers]`
    pub workers: Workers,
    /// `[[listener]]`, at least one, names unique.
    pub listeners: Vec<Listener>,
    /// `[[backend]]`, at least one, names unique.
    pub backends: Vec<Backend>,
    /// `[tls]`
    pub tls: Tls,
    /// `[resumption]`
    pub resumption: Resumption,
    /// `[limits]`
    pub limits: Limits,
    /// `[handshake]`.
    pub handshake: Handshake,
    /// `[timeouts]`.
    pub timeouts: Timeouts,
    /// `[admin]`, absent: no admin endpoint.
    pub admin: Option<Admin>,
    /// `[access_log]`, absent: no access log.
    pub access_log: Option<AccessLog>,
    /// `[log]`
    pub log: Log,
}

pub use network::Network;
pub use quantity::{cpu_list, duration, show_duration, size};
pub use raw::Problem;
pub use validate::epoch;

/// `tls.cipher_suites`: the accepted names, as IANA registers them.
pub const CIPHER_SUITES: [&str; 9] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];

/// `tls.groups`: the accepted names.
pub const GROUPS: [&str; 4] = defaults::GROUPS;

/// Why there is no configuration.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file can be read, but not used. Every problem found, in the order of the file.
    Invalid(Vec<Problem>),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, source } => {
                let cure = match source.kind() {
                    std::io::ErrorKind::NotFound => "name another file with --config",
                    std::io::ErrorKind::PermissionDenied => {
                        "make the file and its directories readable to this user"
                    }
                    std::io::ErrorKind::InvalidData => "write the file in UTF-8",
                    _ => "see whether the path names a regular file",
                };
                write!(f, "{}: cannot be read: {source}; {cure}", path.display())
            }
            Self::Invalid(problems) => {
                for (index, problem) in problems.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "\n\n" };
                    write!(f, "{separator}{problem}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { source, .. } => Some(source),
            Self::Invalid(_) => None,
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The file cannot be read, or what is wrong in it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Checks a text; `path` is named in errors, and its directory is where relative paths start.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        validate::config(text, path).map_err(ConfigError::Invalid)
    }
}

/// `[workers]`: how many worker threads and where they run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workers {
    /// `count`: `None` is `"auto"`, one per physical core this process may use.
    pub count: Option<usize>,
    /// `cpus`: `None` is `"auto"`; else CPU numbers as taskset(1) writes them, in order.
    pub cpus: Option<Vec<usize>>,
    /// `steering`: which worker a new connection goes to.
    pub steering: Steering,
}

/// `workers.steering`: which of the workers' listening sockets gets a new connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Steering {
    /// `"hash"`: one by a hash of the addresses, so that all get as many.
    #[default]
    Hash,
    /// `"incoming_cpu"`: that of the worker on whose CPU its first packet arrived
    /// (`SO_INCOMING_CPU`); by the hash where no worker is.
    IncomingCpu,
}

/// `[[listener]]`: addresses that share certificates and a backend.
#[derive(Debug, Clone)]
pub struct Listener {
    /// `name`: unique; label of metrics and logs.
    pub name: String,
    /// `bind`: at least one address.
    pub bind: Vec<SocketAddr>,
    /// `backend`: index into [`Config::backends`].
    pub backend: usize,
    /// `alpn`: protocols offered, in order of preference; empty: ALPN is not negotiated.
    pub alpn: Vec<String>,
    /// `backlog`: connections the kernel queues per worker and address before accept; `None` is
    /// `"auto"`, as many as a worker does handshakes within `handshake.queue_deadline`.
    pub backlog: Option<u32>,
    /// `defer_accept`: how long the kernel keeps a client that has said nothing to itself; `None`
    /// is `"off"`.
    pub defer_accept: Option<Duration>,
    /// `connection_rate`: new connections in a second that it lets in, on all workers together;
    /// `None`: as many as come.
    pub connection_rate: Option<u32>,
    /// `unknown_name`: what a client gets whose server name matches no certificate.
    pub unknown_name: UnknownName,
    /// `[[listener.certificate]]`, at least one; the first is the default.
    pub certificates: Vec<CertificateFiles>,
    /// `[listener.client_auth]`; absent: no client is asked for a certificate.
    pub client_auth: Option<ClientAuth>,
}

/// `unknown_name`: what happens when no certificate matches the client's server name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownName {
    /// `"default"`: the listener's first certificate.
    Default,
    /// `"refuse"`: alert `unrecognized_name` (RFC 6066 section 3), also when no name was sent.
    Refuse,
}

/// `[[listener.certificate]]`: PEM files, and where the configuration names them.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    /// `chain`: leaf first.
    pub chain: PathBuf,
    /// `key`: unencrypted PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
    /// `names`: server names to serve it for; empty: those the certificate itself lists.
    pub names: Vec<String>,
    /// Where `chain` stands, for errors.
    pub chain_at: Position,
    /// Where `key` stands, for errors.
    pub key_at: Position,
}

/// `[listener.client_auth]`: who must show a certificate, and which certificates are good.
#[derive(Debug, Clone)]
pub struct ClientAuth {
    /// `mode`.
    pub mode: ClientAuthMode,
    /// `ca`: PEM, the certificates of one or more authorities that issue to clients.
    pub ca: NamedFile,
    /// `crl`: PEM, one or more revocation lists; absent: revocation is not checked.
    pub crl: Option<NamedFile>,
}

/// `mode` of `[listener.client_auth]`. A certificate that is not good ends the handshake in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuthMode {
    /// `"required"`: no handshake without a certificate.
    Required,
    /// `"optional"`: a client may go without.
    Optional,
}

impl ClientAuthMode {
    /// As the configuration writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Optional => "optional",
        }
    }
}

/// A file, and where the configuration names it.
#[derive(Debug, Clone)]
pub struct NamedFile {
    /// The file.
    pub path: PathBuf,
    /// Where it stands, for errors.
    pub at: Position,
}

/// A place in the configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The configuration file.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Dotted key, such as `listener[0].certificate[1].key`.
    pub key: String,
}

/// `[[backend]]`: a named group of servers.
#[derive(Debug, Clone)]
pub struct Backend {
    /// `name`: unique; label of metrics and logs.
    pub name: String,
    /// `[[backend.server]]`, at least one.
    pub servers: Vec<Server>,
    /// `connect`.
    pub connect: Connect,
    /// `send_proxy_protocol`; absent: none.
    pub send_proxy_protocol: Option<ProxyVersion>,
    /// `[backend.queue]`
    pub queue: BackendQueue,
}

impl Backend {
    /// Whether a server of it has `max_connections`.
    pub fn is_limited(&self) -> bool {
        self.servers.iter().any(|server| server.max_connections.is_some())
    }
}

/// `[backend.queue]`: clients that wait because every server has `max_connections`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendQueue {
    /// `max`: how many, of all workers together.
    pub max: u32,
    /// `timeout`: how long each.
    pub timeout: Duration,
}

impl Default for BackendQueue {
    fn default() -> Self {
        Self { max: defaults::QUEUE_CLIENTS, timeout: defaults::QUEUE_TIMEOUT }
    }
}

/// `connect`: when a client's server is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connect {
    /// `"eager"`: when its handshake is complete.
    Eager,
    /// `"on_first_byte"`: when it has said something.
    OnFirstByte,
}

/// `[[backend.server]]`.
#[derive(Debug, Clone)]
pub struct Server {
    /// `address`.
    pub address: ServerAddress,
    /// Where `address` stands, for errors of name resolution.
    pub address_at: Position,
    /// `max_connections`: at a time, of all workers together and to all addresses of its name;
    /// `None`: any number.
    pub max_connections: Option<u32>,
}

/// `address` of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerAddress {
    /// `"host:port"`; the host is a name or an IP address, resolved by the control thread.
    Host {
        /// Name or address, without brackets.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// `"unix:/path"`.
    Unix(PathBuf),
}

/// `send_proxy_protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyVersion {
    /// `"v1"`: one line of text.
    V1,
    /// `"v2"`: binary, with the ALPN, authority and SSL TLVs.
    V2,
}

/// `[tls]`: what is offered to clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// `versions`: subset of `["1.2", "1.3"]`.
    pub versions: Vec<TlsVersion>,
    /// `cipher_suites`, IANA names in order; `None`: ordered for this CPU.
    pub cipher_suites: Option<Vec<String>>,
    /// `groups`, in order of preference.
    pub groups: Vec<String>,
    /// `record_layer`.
    pub record_layer: RecordLayer,
}

/// `tls.record_layer`: what opens and seals records behind the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordLayer {
    /// `"lean"`: ours.
    Lean,
    /// `"rustls"`: the library's own.
    Rustls,
}

/// A TLS protocol version we serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

/// `[resumption]`: how returning clients continue their sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resumption {
    /// `mode`.
    pub mode: ResumptionMode,
    /// `secret_file`, and where it stands; `None`: a random secret for this process alone.
    pub secret_file: Option<(PathBuf, Position)>,
    /// `epoch`: how long one ticket key seals, in whole seconds.
    pub epoch: Duration,
    /// `lifetime`: from the full handshake that began a session to the last time it is resumed, in
    /// whole seconds.
    pub lifetime: Duration,
    /// `tickets_per_handshake`: for a TLS 1.3 client after a full handshake.
    pub tickets_per_handshake: u8,
    /// `sessions_per_worker`: sessions in a worker's own cache.
    pub sessions_per_worker: u32,
    /// `sessions`: sessions in the cache of all workers.
    pub sessions: u32,
    /// `session_bytes`: bytes that these may take.
    pub session_bytes: usize,
}

impl Default for Resumption {
    fn default() -> Self {
        Self {
            mode: ResumptionMode::Tickets,
            secret_file: None,
            epoch: defaults::EPOCH,
            lifetime: defaults::LIFETIME,
            tickets_per_handshake: defaults::TICKETS_PER_HANDSHAKE,
            sessions_per_worker: defaults::SESSIONS_PER_WORKER,
            sessions: defaults::SESSIONS,
            session_bytes: defaults::SESSION_BYTES,
        }
    }
}

/// `resumption.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResumptionMode {
    /// `"tickets"`: clients keep their sessions, sealed; those of TLS 1.2 clients that take no
    /// tickets are kept here.
    Tickets,
    /// `"cache"`: all sessions are kept here; one of TLS 1.3 resumes once.
    Cache,
    /// `"off"`: every handshake is a full one.
    Off,
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// `connections_per_worker`: `None` is `"auto"`, as many as the descriptor limit allows.
    pub connections_per_worker: Option<u32>,
    /// `client_hello_bytes`: the most a client may send before its `ClientHello` is complete.
    pub client_hello_bytes: usize,
    /// `min_rate`: bytes a second that a peer must take of what waits for it, on average over
    /// `timeouts.stalled`; 0: none.
    pub min_rate: u32,
    /// `connection_rate`: new connections in a second that are let in, on all workers and listeners
    /// together; `None`: as many as come.
    pub connection_rate: Option<u32>,
    /// `refuse`: what a client sees that a rate or its source's limit refuses.
    pub refuse: Refuse,
    /// `[limits.per_source]`.
    pub per_source: PerSource,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_per_worker: None,
            client_hello_bytes: defaults::CLIENT_HELLO_BYTES,
            min_rate: defaults::MIN_RATE,
            connection_rate: None,
            refuse: defaults::REFUSE,
            per_source: PerSource::default(),
        }
    }
}

/// `limits.refuse`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refuse {
    /// `"reset"`: a reset.
    Reset,
    /// `"close"`: the end of the stream; still a reset if it has sent what we have not read.
    Close,
}

impl Refuse {
    /// As the configuration writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Close => "close",
        }
    }
}

/// `[limits.per_source]`: what one source of clients may have, on all workers together. A source is
/// the network that a client's address belongs to; each limit is off where it is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PerSource {
    /// `connections`: open at a time.
    pub connections: Option<u32>,
    /// `handshakes`: under way at a time, from accept to the client's Finished.
    pub handshakes: Option<u32>,
    /// `handshake_cpu`: time of the processor that its handshakes may take in a second.
    pub handshake_cpu: Option<Duration>,
    /// `ipv4_prefix`: leading bits of an IPv4 address that name its source.
    pub ipv4_prefix: u8,
    /// `ipv6_prefix`: leading bits of an IPv6 address that name its source.
    pub ipv6_prefix: u8,
    /// `allow`: networks whose clients are not limited.
    pub allow: Vec<Network>,
    /// `sources`: how many are counted at a time.
    pub sources: u32,
}

impl PerSource {
    /// Whether any limit is on.
    pub fn is_on(&self) -> bool {
        self.connections.is_some() || self.handshakes.is_some() || self.handshake_cpu.is_some()
    }
}

impl Default for PerSource {
    fn default() -> Self {
        Self {
            connections: None,
            handshakes: None,
            handshake_cpu: None,
            ipv4_prefix: defaults::IPV4_PREFIX,
            ipv6_prefix: defaults::IPV6_PREFIX,
            allow: Vec::new(),
            sources: defaults::SOURCES,
        }
    }
}

/// `[handshake]`: how the worker's time is shared out to handshakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake {
    /// `budget_us`: time for handshakes between two looks at established connections; one step is
    /// always taken, and only one while kept connections are busy (beyond their fifth).
    pub budget: Duration,
    /// `queue_deadline`: what a handshake's first step may wait for the processor.
    pub queue_deadline: Duration,
    /// `max_pending`: steps of handshakes that may wait, per worker.
    pub max_pending: u32,
}

impl Default for Handshake {
    fn default() -> Self {
        Self {
            budget: defaults::HANDSHAKE_BUDGET,
            queue_deadline: defaults::HANDSHAKE_QUEUE_DEADLINE,
            max_pending: defaults::HANDSHAKES_PENDING,
        }
    }
}

/// `[timeouts]`, each from the event named to the end named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// `handshake`: from accept to the client's Finished.
    pub handshake: Duration,
    /// `client_hello`: from the client's first byte to the last of its `ClientHello`.
    pub client_hello: Duration,
    /// `connect`: for each try to connect to a server.
    pub connect: Duration,
    /// `idle`: without a byte in either direction.
    pub idle: Duration,
    /// `rest`: without a byte in either direction until a connection gives its buffers back.
    pub rest: Duration,
    /// `half_closed`: after one side ended and the other sends nothing more.
    pub half_closed: Duration,
    /// `stalled`: while bytes wait for a peer that takes fewer than `limits.min_rate`, or a record
    /// of the client's is incomplete.
    pub stalled: Duration,
    /// `drain`: from SIGTERM to the end of the last connection.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: defaults::HANDSHAKE,
            client_hello: defaults::CLIENT_HELLO,
            connect: defaults::CONNECT,
            idle: defaults::IDLE,
            rest: defaults::REST,
            half_closed: defaults::HALF_CLOSED,
            stalled: defaults::STALLED,
            drain: defaults::DRAIN,
        }
    }
}

/// `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// `bind`: metrics and status over HTTP.
    pub bind: SocketAddr,
}

/// `[access_log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog {
    /// `path`: a file, appended to; `"-"` is standard output.
    pub path: PathBuf,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// `level`: one of `error`, `warn`, `info`, `debug`.
    pub level: tracing::Level,
}
