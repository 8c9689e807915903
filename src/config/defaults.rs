//! Every default, with its unit and its reason. `portcullis.example.toml` says the same to an
//! operator; a test compares the two.

use std::time::Duration;

use super::{Connect, RecordLayer, Refuse};

/// `backend.connect`. Right for every protocol; with the other a server that speaks first is never
/// heard.
pub const CONNECT_WHEN: Connect = Connect::Eager;

/// `backend.queue.max`, clients of all workers. Within [`QUEUE_TIMEOUT`] a backend that ends 200
/// connections a second serves them all; more would only wait in vain. One that waits silently
/// takes about a kilobyte.
pub const QUEUE_CLIENTS: u32 = 1000;

/// `backend.queue.timeout`. People and programs give up after 5 to 10 seconds; a connection that is
/// made for one who has gone costs a server as much as any other.
pub const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// `tls.groups`: the hybrid against recording today and decrypting later, X25519 and P-256 for
/// speed, P-384 for clients bound to a profile. Among those that the client offers too, the
/// *client's* order decides: it has sent key shares for its favourites, and another choice would
/// cost a round trip (RFC 8446 section 4.1.4).
pub const GROUPS: [&str; 4] = ["X25519MLKEM768", "X25519", "P-256", "P-384"];

/// `tls.record_layer`: ours copies and allocates nothing, and keeps less of a connection that
/// waits.
pub const RECORD_LAYER: RecordLayer = RecordLayer::Lean;

/// `resumption.epoch`. A stolen ticket key opens what one to two epochs sealed; half a day keeps
/// that small and lets clients resume on the next day.
pub const EPOCH: Duration = Duration::from_secs(12 * 60 * 60);

/// `resumption.lifetime`. A client that returns once a day proves nothing anew for a day; longer
/// would also need a longer `epoch`.
pub const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// `resumption.tickets_per_handshake`. A TLS 1.3 ticket should be used once (RFC 8446 appendix
/// C.4), and clients open two connections at a time.
pub const TICKETS_PER_HANDSHAKE: u8 = 2;

/// `resumption.sessions_per_worker`. Those that return within minutes, in about 2 MB.
pub const SESSIONS_PER_WORKER: u32 = 8192;

/// `resumption.sessions`. Few clients are left that take no tickets; with `mode = "cache"` raise it
/// to the number of clients of one `lifetime`.
pub const SESSIONS: u32 = 65_536;

/// `resumption.session_bytes`. Twice what [`SESSIONS`] take that hold no client certificates.
pub const SESSION_BYTES: usize = 32 << 20;

/// `limits.client_hello_bytes`. A `ClientHello` with a post-quantum key share, a ticket and
/// Encrypted Client Hello has 2 to 3 KB; 16 KiB is one full record.
pub const CLIENT_HELLO_BYTES: usize = 16 * 1024;

/// `limits.min_rate`, bytes a second. Slower than any link that people use, GPRS with its 2 to 5
/// KiB included; common web servers ask for 240 to 500.
pub const MIN_RATE: u32 = 1024;
/// `limits.refuse`. Costs one packet and leaves nothing behind; who closes first keeps the
/// connection's end (`TIME_WAIT`) in the kernel for a minute, and a flood keeps hundreds of
/// thousands.
pub const REFUSE: Refuse = Refuse::Reset;

/// `limits.per_source.ipv4_prefix`, bits: one address, behind which one household or one office is.
pub const IPV4_PREFIX: u8 = 32;

/// `limits.per_source.ipv6_prefix`, bits. Whoever has one address of a network has all 2^64 of it
/// (RFC 4291 section 2.5.1).
pub const IPV6_PREFIX: u8 = 64;

/// `limits.per_source.sources`. Each takes 16 bytes; more than 65,536 sources with something open
/// or owed at a time is a large site or a large attack.
pub const SOURCES: u32 = 65_536;

/// `handshake.budget_us`. About one full handshake: what an established connection may have to
/// wait for, besides what it waits for anyway.
pub const HANDSHAKE_BUDGET: Duration = Duration::from_micros(100);

/// `handshake.queue_deadline`. Clients give up after 5 to 10 seconds; a handshake that is begun
/// within 3 ends in time.
pub const HANDSHAKE_QUEUE_DEADLINE: Duration = Duration::from_secs(3);

/// `handshake.max_pending`, per worker. Half a second of full handshakes with ECDSA keys; those
/// that wait take about a megabyte. More wait in the kernel's queue, which costs us nothing.
pub const HANDSHAKES_PENDING: u32 = 2048;

/// `timeouts.handshake`. Three round trips of a bad mobile link (1 s each) and two lost packets
/// fit; who needs longer is most likely a slowloris.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// `timeouts.client_hello`. It is one or two segments, sent at once: a lost one comes again after 1
/// s, and once more after 3 s.
pub const CLIENT_HELLO: Duration = Duration::from_secs(5);

/// `timeouts.connect`, each try. In a data centre a connect takes under 1 ms; 5 s lets two lost
/// SYNs be sent again (after 1 s and 3 s).
pub const CONNECT: Duration = Duration::from_secs(5);

/// `timeouts.idle`. Longer than the keep-alive of common HTTP servers (nginx 75 s, Apache 5 s) and
/// no shorter than browsers keep a socket (5 min), so that those who know whether a connection is
/// of use end it, and we reap only the dead; shorter than the 350 s at which large clouds' address
/// translation forgets a flow silently.
pub const IDLE: Duration = Duration::from_secs(5 * 60);

/// `timeouts.rest`. Short against how long idle connections wait, so that nearly all of them rest
/// at any time; long against a round trip and an answer, so that a conversation is not interrupted
/// by what going to rest and back costs, a few microseconds.
pub const REST: Duration = Duration::from_secs(1);

/// `timeouts.stalled`. What common web servers give a client between two reads; and we see a socket
/// take bytes in steps of 64 KiB (half of [`crate::limits::NOT_SENT_BYTES`]), which is what
/// [`MIN_RATE`] comes to in that time.
pub const STALLED: Duration = Duration::from_secs(60);

/// `timeouts.half_closed`. After one side has ended, an answer still being computed may take a
/// while, but a peer that is gone must not hold two descriptors for the whole of `idle`.
pub const HALF_CLOSED: Duration = Duration::from_secs(30);

/// `timeouts.drain`. Most requests end within it, and it is well below the 90 s after which
/// systemd kills what does not stop.
pub const DRAIN: Duration = Duration::from_secs(30);

/// `log.level`: start-up, reloads, state changes; never one line per connection.
pub const LOG_LEVEL: tracing::Level = tracing::Level::INFO;
