//! Every compile-time bound, with its unit and its reason. What an operator may change lives in
//! [`crate::config`]; what relates two bounds is asserted at the bottom.

use std::time::Duration;

/// Bytes of one TLS record's payload, at most (RFC 8446 section 5.1).
pub const RECORD_PAYLOAD_BYTES_MAX: usize = 16 * 1024;

/// Bytes that one record adds to its payload, at most: header (5), TLS 1.2 explicit nonce (8) or
/// TLS 1.3 content type (1), and AEAD tag (16).
pub const RECORD_OVERHEAD_BYTES_MAX: usize = 5 + 8 + 16;

/// Records that one AES-GCM key protects, at most: RFC 8446 section 5.5 counts 2^24.5 full ones.
/// TLS 1.3 goes on with new keys, TLS 1.2 has to end.
pub const AES_GCM_RECORDS_MAX: u64 = 1 << 24;

/// Records that one ChaCha20-Poly1305 key protects, at most: only the sequence number, which must
/// not begin anew (RFC 8446 section 5.3), sets a bound. What is kept back is for alerts.
pub const CHACHA20_RECORDS_MAX: u64 = u64::MAX - 0xffff;

/// Empty records that a client may send one after another (RFC 8446 section 5.4 allows them
/// without a bound); each costs us an authentication and brings nothing.
pub const EMPTY_RECORDS_MAX: u8 = 32;

/// A record of data with fewer bytes than this is tiny.
pub const TINY_RECORD_BYTES: usize = 16;

/// Tiny records that a client may send in one second. One costs about 0.2 us, whose bytes are
/// nearly free to send; people and their terminals send tens a second. What this allows costs 0.7 %
/// of a core.
pub const TINY_RECORDS_PER_SECOND_MAX: u16 = 32 * 1024;

/// `KeyUpdate` messages that a client may send at once; each costs the derivation of a key, and one
/// that is answered two. Real clients send one in millions of records.
pub const KEY_UPDATES_MAX: u16 = 32;

/// Records of data by which a client earns another `KeyUpdate` beyond [`KEY_UPDATES_MAX`].
pub const KEY_UPDATE_EARNED_RECORDS: u16 = 16;

/// Warning alerts that a client may send in a session, besides `close_notify`.
pub const WARNING_ALERTS_MAX: u8 = 4;

/// Wishes of a TLS 1.2 client to renegotiate that are answered with `no_renegotiation` (RFC 5246
/// section 7.2.2); who insists is closed.
pub const RENEGOTIATIONS_REFUSED_MAX: u8 = 1;

/// Records that a `ClientHello` may come in. Clients send it in one, and those that cut it to get
/// past a filter in two to eight; the longest allowed is 33 of the shortest that a client can set
/// (512 bytes, RFC 6066 section 4). The headers of all are walked each time that bytes come.
pub const CLIENT_HELLO_RECORDS_MAX: u32 = 64;

/// Bytes that an ordinary receive delivers in one completion, at most. Two full records and their
/// headers fit.
pub const RECEIVE_PIECE_BYTES: usize = 2 * RECORD_PAYLOAD_BYTES_MAX + 256;

/// Bytes that an ordinary receive delivers in all its completions, at most.
pub const RECEIVE_PIECES_BYTES: usize = 2 * RECEIVE_PIECE_BYTES;

/// Bytes of one buffer of the provided-buffer ring: what the receive of a stream delivers, at
/// most, and with that how far a side can overshoot [`QUEUE_HIGH_WATER_BYTES`]. Eight full records
/// and their headers fit. The kernel acknowledges, and wakes the sender, about once per receive:
/// with 32 KiB each, that is half of what a stream costs.
pub const RECEIVE_BUFFER_BYTES: usize = 8 * RECORD_PAYLOAD_BYTES_MAX + 256;

/// A receive that brings so many bytes is filled: the next one is that of a stream.
pub const STREAM_RECEIVED_MIN: usize = 2 * RECORD_PAYLOAD_BYTES_MAX;

/// Receives of streams that a worker submits in one turn: how much of them others have to wait
/// for, about 0.3 ms.
pub const STREAM_RECEIVES_PER_TURN: usize = 4;

/// Operations that a worker submits in one turn, while kept connections keep it busy, for clients
/// that are not established yet: their accepts and handshakes. Who is established waits for them.
pub const BEGINNING_PER_TURN: usize = 8;

/// Operations that a worker submits in one turn for connections that end, while kept connections
/// keep it busy: closing a socket takes the kernel 30 us.
pub const ENDING_PER_TURN_BUSY: usize = 4;

/// The same at other times: who comes meanwhile waits for about 1 ms of it.
pub const ENDING_PER_TURN: usize = 32;

/// Buffers in a worker's provided-buffer ring. A power of two (kernel's rule). When all are taken
/// the kernel answers ENOBUFS and the receive is armed again on the next turn.
pub const RECEIVE_BUFFERS: u16 = 256;

/// Buffers that the kernel gets before it has run out for the first time; then twice as many each
/// time, up to [`RECEIVE_BUFFERS`]. Few buffers stay in the processor's cache.
pub const RECEIVE_BUFFERS_AT_FIRST: u16 = 8;

/// Bytes of one pooled send buffer: what one receive delivers, sealed into records, fits.
pub const SEND_BUFFER_BYTES: usize =
    RECEIVE_BUFFER_BYTES + 16 * RECORD_OVERHEAD_BYTES_MAX + RECORD_OVERHEAD_BYTES_MAX;

/// Bytes of a pooled send buffer for a direction in which nothing waits: most handshakes' records,
/// requests and answers fit, and a thousand of them take little of the address space, whose pages
/// the allocator keeps a record of.
pub const SMALL_SEND_BUFFER_BYTES: usize = 8 * 1024;

/// Bytes that a connection which ends may have to send and wait its turn with in memory of their
/// own size: an alert, not what a server has answered last.
pub const LAST_WORDS_BYTES_MAX: usize = 512;

/// Bytes waiting in one direction above which its source is no longer read.
pub const QUEUE_HIGH_WATER_BYTES: usize = 32 * 1024;

/// Bytes kept of an incomplete record once the handshake is done: the longest record (RFC 5246
/// section 6.2.3). A handshake message that is spread over more than that is refused.
pub const PARTIAL_BYTES_MAX: usize = 5 + RECORD_PAYLOAD_BYTES_MAX + 2048;

/// Bytes kept of an incomplete message during the handshake, records' headers included.
pub const PARTIAL_HANDSHAKE_BYTES_MAX: usize = 72 * 1024;

/// Bytes that a socket holds in the kernel before they are sent, beyond which it takes no more
/// (`TCP_NOTSENT_LOWAT`, tcp(7)): a reader that stalls costs that instead of 4 MB. Servers' sockets
/// have it where the ring can set options.
pub const NOT_SENT_BYTES: u32 = 128 * 1024;

/// Without being needed for this long, buffers of a burst go back to the allocator or the kernel.
pub const TRIM_INTERVAL: Duration = Duration::from_secs(1);

/// Connections whose end leaves enough with the allocator to be looked at. Behind such a look a
/// single one is enough for the next: each may be the last on its page.
pub const ENDED_MIN: u32 = 64;

/// Pages of a table of slots (`sys/slots.rs`) that go back to the kernel in one turn, at most: with
/// 4 KiB each 8 MiB, which takes it half a millisecond.
pub const SLOT_PAGES_PER_TRIM: usize = 2048;

/// Pages of such a table without a slot in use that are no reason to look after memory.
pub const SLOT_PAGES_KEPT: usize = 4;

/// What a turn's completions, and what waits in a queue for another turn, may have memory for that
/// is no reason to look after it: 128 each, 8 KiB at most.
pub const WAITING_KEPT: usize = 128;

/// Of so many connections that end one is asked, by a system call, which CPU its packets come to.
pub const CPU_SAMPLE_CONNECTIONS: u32 = 16;

/// Accept operations a listener keeps armed: the most connections one turn takes from one listener.
pub const ACCEPTS_ARMED: u32 = 16;

/// Servers of one backend tried for one connection: the first and one more.
pub const CONNECT_TRIES_MAX: u8 = 2;

/// Connections that a server may be limited to.
pub const SERVER_CONNECTIONS_MAX: u32 = 1_000_000;

/// Clients that may wait for one backend's servers. Room for each is taken at the start: 64 bytes
/// (16 KiB at least), and 8 for each worker.
pub const QUEUE_CLIENTS_MAX: u32 = 65_536;

/// Bytes read and thrown away from a client after we ended the conversation, so that the kernel
/// does not answer them with a reset that destroys our last alert (RFC 9112 section 9.6).
pub const LINGER_BYTES_MAX: usize = 256 * 1024;

/// Access-log records waiting for the control thread, per worker; more are dropped and counted.
/// Each has its own 230 bytes: as many places for them would all be written to in turn, and kept.
pub const ACCESS_LOG_RECORDS_MAX: usize = 16 * 1024;

/// Commands waiting in a worker's mailbox.
pub const MAILBOX_COMMANDS_MAX: usize = 64;

/// How often the control thread looks for workers that have started; unit time.
pub const START_INTERVAL: Duration = Duration::from_millis(1);

/// How often the control thread looks for workers that have ended; unit time.
pub const END_INTERVAL: Duration = Duration::from_millis(50);

/// Connections of one worker, at most: two direct descriptors each, and the kernel holds at most
/// 1,048,576 of them per ring (`IORING_MAX_FIXED_FILES`).
pub const CONNECTIONS_PER_WORKER_MAX: u32 = 1_048_576 / 2;

/// Connections of one source that can be counted (20 bits of a word).
pub const SOURCE_CONNECTIONS_MAX: u32 = (1 << 20) - 1;

/// Handshakes of one source that can be counted (16 bits of a word).
pub const SOURCE_HANDSHAKES_MAX: u32 = (1 << 16) - 1;

/// Sources that are counted at a time, at least: in fewer sets some would soon find no place.
pub const SOURCES_MIN: u32 = 64;

/// Sources that are counted at a time, at most: 256 MiB.
pub const SOURCES_MAX: u32 = 1 << 24;

/// Networks that are exempt from the limits of sources: each connection is compared with all.
pub const NETWORKS_ALLOWED_MAX: usize = 256;

/// New connections let in during one second, at most: rates are kept in whole nanoseconds for each.
pub const CONNECTION_RATE_MAX: u32 = 1_000_000;

/// A step of a handshake is charged to its source with this many times the dearest configured
/// key's cost at most: more was not the client's doing, the thread had lost its core.
pub const STEP_CHARGE_MAX: u32 = 4;

/// The answer to a `ClientHello` that takes so long is dear: for [`KEPT_LATELY`] it is not made by
/// the worker but beside it, at the cost of two changes of thread (5 to 10 us). With ECDSA P-256
/// and X25519 it takes 60 to 150 us, with an RSA key of 2048 bits 400 to 1,200.
pub const DEAR_STEP: Duration = Duration::from_micros(200);

/// Steps of handshakes that are with the thread beside a worker at most: one that it does, and one
/// with which it goes on while the worker is busy. Who else comes is in line, and can be dropped.
pub const STEPS_BESIDE_MAX: usize = 2;

/// For so long new clients wait for the step that is done beside the worker. A core that has no
/// time left for it belongs to established connections, or to another process; then the worker does
/// what is owed to handshakes itself.
pub const APART_PATIENCE: Duration = Duration::from_millis(50);

/// A connection that has been relayed for so long is kept: it is none of those that come with a
/// question, are answered and gone.
pub const KEPT_AFTER: Duration = Duration::from_millis(20);

/// For so long behind an event of a kept connection handshakes go one step at a time. Traffic that
/// has more seldom events finds the worker idle, or waits for two or three steps instead of one.
pub const KEPT_BUSY: Duration = Duration::from_millis(10);

/// For so long behind bytes of a kept connection dear steps are done beside the worker: who asks
/// ten times a second would else meet one in every second question.
pub const KEPT_LATELY: Duration = Duration::from_secs(1);

/// Workers, at most.
pub const WORKERS_MAX: usize = 1024;

/// Bytes of a ticket. One with a chain of client certificates fits; a longer one would not fit into
/// a `ClientHello` of the default `limits.client_hello_bytes` either.
pub const TICKET_BYTES_MAX: usize = 12 * 1024;

/// Tickets and session IDs of one client that are looked at; clients offer one, and several after
/// having talked to several servers of one name.
pub const PSK_IDENTITIES_MAX: u8 = 4;

/// Sessions of one cache, at most: 1.7 GB of entries besides their states.
pub const SESSIONS_MAX: u32 = 1 << 24;

/// Sessions that all workers share, at least: each of 64 shards keeps some.
pub const SHARED_SESSIONS_MIN: u32 = 1024;

/// Bytes of one session's state, at most: a few certificates of a client, and no more.
pub const SESSION_STATE_BYTES_MAX: usize = 16 * 1024;

/// Expired sessions that one insert drops, at most: more than it adds, so that they become fewer.
pub const EXPIRED_PER_INSERT_MAX: u32 = 2;

/// Without a jump of the clock for this long, or a quarter of an epoch if that is shorter, the
/// secrets of epochs that are over are forgotten.
pub const CLOCK_SETTLED: Duration = Duration::from_secs(300);

/// By how much the clock and its steady sister may differ between two looks, a second apart.
pub const CLOCK_JUMP: Duration = Duration::from_secs(5);

/// Intermediate certificates that a client may send with its own; more are refused as
/// `client_certificate_chain_too_long`. Three can be put in 16 orders, of which each costs a
/// signature's verification per authority; real client chains have one or none.
pub const CLIENT_INTERMEDIATES_MAX: usize = 3;

/// Bytes of the authorities' names that every client is told (RFC 8446 section 4.2.4, RFC 5246
/// section 7.4.4, whose field would hold 65,535): about 150 of them, in one record.
pub const CLIENT_AUTHORITY_NAMES_BYTES_MAX: usize = 15 * 1024;

/// Bytes of a client certificate's common name that are told; a longer one is not told at all.
/// Standard names have at most 64 characters (RFC 5280 appendix A.1), 4 bytes each.
pub const CLIENT_NAME_BYTES_MAX: usize = 255;

/// Bytes of a server name (RFC 1035 section 2.3.4).
pub const SERVER_NAME_BYTES_MAX: usize = 255;

/// Between two looks at the workers' counters by the control thread: short against an operator's
/// patience, long against a turn of the loop.
pub const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// Without biting for this long, a limit has stopped to bite: one at its edge fills no log.
pub const LIMIT_QUIET: Duration = Duration::from_secs(10);

/// Between two log lines about handshakes that failed for the same reason.
pub const FAILURE_SUMMARY_INTERVAL: Duration = Duration::from_secs(10);

/// Between two writes of the access log: what an operator who follows it hardly notices.
pub const ACCESS_LOG_INTERVAL: Duration = Duration::from_millis(100);

/// What the access log's last write may take at the end, when its disk or pipe hangs.
pub const ACCESS_LOG_END_TIMEOUT: Duration = Duration::from_secs(2);

/// Between two resolutions of the servers' names: the resolver's own caches honour the TTL, so this
/// is only how late a change is noticed.
pub const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);

/// How long the start waits for the first resolution: two tries of the system's resolver, whose
/// timeout is 5 s (resolv.conf(5)).
pub const RESOLVE_START_TIMEOUT: Duration = Duration::from_secs(10);

/// Admin connections at a time; more wait in the kernel's queue.
pub const ADMIN_CONNECTIONS_MAX: usize = 64;

/// From an admin connection's accept to the end of its request's header.
pub const ADMIN_HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// From an admin connection's accept to its close, so that clients which do not read hold no place.
pub const ADMIN_CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// What workers may take to stop when told to end at once.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// What workers may take beyond `timeouts.drain` to abort their connections and end.
pub const DRAIN_GRACE: Duration = Duration::from_secs(5);

const _: () = assert!(RECEIVE_BUFFERS.is_power_of_two());
const _: () = assert!(RECEIVE_BUFFERS_AT_FIRST <= RECEIVE_BUFFERS);
const _: () = assert!(RECEIVE_BUFFER_BYTES >= RECEIVE_PIECES_BYTES);
const _: () = assert!(STREAM_RECEIVED_MIN <= RECEIVE_PIECE_BYTES);
const _: () = assert!(STREAM_RECEIVES_PER_TURN > 0);
const _: () = assert!(BEGINNING_PER_TURN > 0 && ENDING_PER_TURN_BUSY > 0 && ENDING_PER_TURN > 0);
const _: () = assert!(SEND_BUFFER_BYTES > RECEIVE_BUFFER_BYTES);
const _: () = assert!(QUEUE_HIGH_WATER_BYTES >= RECORD_PAYLOAD_BYTES_MAX);
