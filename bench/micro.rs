//! The pieces of the hot path, one at a time and in memory: what each costs, in wall time on one
//! thread. See `bench/README.md`.

#![forbid(unsafe_code)]

use std::error::Error;
use std::hint::black_box;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use zeroize::Zeroizing;

use portcullis::backend::proxy_protocol::{self, HEADER_BYTES_MAX, Header, Tls};
use portcullis::config::{Limits, ProxyVersion, Timeouts, UnknownName};
use portcullis::io::buffer::Pool;
use portcullis::io::queue::Queue;
use portcullis::io::{Completion, Io, Operation, Payload, ReceivedAt, Time, Token};
use portcullis::telemetry::counters::Counters;
use portcullis::telemetry::labels::{Suite, Version};
use portcullis::tls::hello::{Peek, peek};
use portcullis::tls::resolver::{NamedCertificate, Resolver};
use portcullis::tls::resumption::Binding;
use portcullis::tls::resumption::bridge::Beginnings;
use portcullis::tls::resumption::ratchet::Ratchet;
use portcullis::tls::resumption::ticket::Keys;
use portcullis::tls::session::{self, Session, Sinks};
use portcullis::tls::terms::Terms;
use portcullis::worker::admission::{Admission, Costs};
use portcullis::worker::snapshot::{Listener, Snapshot};
use portcullis::worker::sources::Sources;
use portcullis::worker::timers::Timers;
use portcullis::worker::{Bind, Setup, Worker};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The name in the certificate, and the one that the client asks for.
const NAME: &str = "bench.invalid";
/// Names in the table of certificates, half of them wildcards.
const NAMES: usize = 10_000;
/// Bytes of a session's state without client certificates.
const STATE_BYTES: usize = 120;
/// Timers pending while one more is inserted and one is handed out.
const TIMERS: u32 = 10_000;
/// Records made ahead of those that are opened, so that the client's work is in no figure.
const RECORDS_AHEAD: u64 = 64;
/// Plaintext of one record, with the name it has in a benchmark's.
const SIZES: [(&str, usize); 3] = [("64B", 64), ("1KiB", 1024), ("16KiB", 16 * 1024)];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("micro: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let identity = Identity::create()?;
    dispatch(&mut criterion, &identity)?;
    hello(&mut criterion, &identity)?;
    route(&mut criterion, &identity)?;
    ticket(&mut criterion)?;
    timers(&mut criterion);
    proxy_header(&mut criterion);
    record(&mut criterion, &identity)?;
    criterion.final_summary();
    Ok(())
}

/// A self-signed certificate, its key, and what both ends make of them.
struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    fn create() -> Result<Self> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
        Ok(Self { certificate: made.cert.der().clone(), key })
    }

    fn certified(&self) -> Result<Arc<CertifiedKey>> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let chain = vec![self.certificate.clone()];
        Ok(Arc::new(CertifiedKey::from_der(chain, self.key.clone_key(), &provider)?))
    }

    /// A client that has said nothing yet; TLS 1.3, AES-128-GCM with SHA-256.
    fn client(&self) -> Result<ClientConnection> {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        let suite = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
        provider.cipher_suites = vec![suite];
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(ClientConnection::new(Arc::new(config), ServerName::try_from(NAME)?)?)
    }

    fn server_config(&self) -> Result<Arc<ServerConfig>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())?;
        session::use_own_records(&mut config);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn session(&self) -> Result<Session> {
        let session = Session::new(self.server_config()?);
        session.map_err(|failure| format!("{failure:?}").into())
    }
}

/// Runs every operation at once, and well; clients come without end and end without a byte.
#[derive(Debug, Default)]
struct Instantly {
    now: Time,
    completed: Vec<Completion>,
    /// Connections that have been closed.
    closed: u64,
}

impl Io for Instantly {
    fn submit(&mut self, token: Token, operation: Operation) {
        let payload = match operation {
            Operation::Accept { .. } => {
                Payload::Peer(SocketAddr::from((Ipv4Addr::LOCALHOST, 51_234)))
            }
            Operation::Send { buffer, .. } => Payload::Sent(buffer),
            Operation::Close { .. } => {
                self.closed += 1;
                Payload::None
            }
            // A receive of no byte is the end.
            _ => Payload::None,
        };
        self.completed.push(Completion { token, result: Ok(0), more: false, payload });
    }

    fn wait(&mut self, _deadline: Option<Time>, completions: &mut Vec<Completion>) {
        self.now = self.now + Duration::from_millis(1);
        completions.append(&mut self.completed);
    }

    fn received(&mut self, _at: &ReceivedAt) -> &mut [u8] {
        &mut []
    }

    fn recycle(&mut self, _at: ReceivedAt) {}

    fn now(&mut self) -> Time {
        self.now
    }

    fn unix(&mut self) -> u32 {
        1_700_000_000
    }
}

/// A worker's turns, without a kernel: each connection is three completions, for its accept, its
/// client's end and its close.
fn dispatch(criterion: &mut Criterion, identity: &Identity) -> Result<()> {
    let timeout = Duration::from_secs(10);
    let snapshot = Snapshot {
        listeners: vec![Listener {
            terms: Arc::new(Terms::new(identity.server_config()?)),
            backend: 0,
            connection_rate: None,
        }],
        backends: Vec::new(),
        admission: Admission::new(&Limits::default(), Costs::default()),
        handshake: portcullis::config::Handshake::default(),
        timeouts: Timeouts {
            handshake: timeout,
            connect: timeout,
            idle: timeout,
            rest: timeout,
            half_closed: timeout,
            drain: timeout,
            ..Timeouts::default()
        },
        client_hello_bytes: 16 * 1024,
        min_rate: 0,
    };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 443));
    // Nobody sends commands.
    let (_sender, commands) = rtrb::RingBuffer::new(1);
    let counters = Arc::new(Counters::default());
    let setup = Setup {
        index: 0,
        binds: vec![Bind { listener: 0, address, backlog: 1, defer_accept: None }],
        connections: 1024,
        snapshot: Arc::new(snapshot),
        resumption: Beginnings::for_tests(),
        sources: Arc::new(Sources::new(0, 1)),
        counters: Arc::clone(&counters),
        records: None,
        commands,
    };
    let mut worker = Worker::new(Instantly::default(), setup);
    let mut group = criterion.benchmark_group("dispatch");
    group.throughput(Throughput::Elements(1));
    group.bench_function("accept_end_close", |bencher| {
        bencher.iter_custom(|connections| {
            let closed_before = worker.io_mut().closed;
            let started = Instant::now();
            while worker.io_mut().closed - closed_before < connections {
                worker.turn();
            }
            let elapsed = started.elapsed();
            // A turn closes several; the last may have closed more than was asked for.
            let closed = worker.io_mut().closed - closed_before;
            Duration::from_secs_f64(elapsed.as_secs_f64() * ratio(connections, closed))
        });
    });
    group.finish();
    worker.check_invariants();
    let (accepted, completions) = (counters.accepted.get(), counters.completions.get());
    // Those of the connections that are open now have not all come yet.
    if counters.panics.get() > 0 || (3 * accepted).abs_diff(completions) > 100 {
        return Err(format!("{completions} completions of {accepted} connections").into());
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts of far less than 2^53")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

/// The first look at a `ClientHello`, whole and in one piece.
fn hello(criterion: &mut Criterion, identity: &Identity) -> Result<()> {
    let mut bytes = Vec::new();
    identity.client()?.write_tls(&mut bytes)?;
    let mut group = criterion.benchmark_group("hello");
    group.throughput(Throughput::Elements(1));
    group.bench_function("peek", |bencher| {
        bencher.iter(|| assert!(matches!(peek(black_box(&bytes)), Peek::Complete(_))));
    });
    group.finish();
    Ok(())
}

/// From the name that a client asks for to its certificate. Each name has an entry of its own; the
/// key behind all of them is one.
fn route(criterion: &mut Criterion, identity: &Identity) -> Result<()> {
    const OFFERED: &[SignatureScheme] = &[SignatureScheme::ECDSA_NISTP256_SHA256];
    let certified = identity.certified()?;
    let certificates: Vec<_> = (0..NAMES)
        .map(|number| {
            let star = if number % 2 == 0 { "" } else { "*." };
            let names = vec![format!("{star}site-{number}.example.com")];
            NamedCertificate { names, certified: Arc::clone(&certified) }
        })
        .collect();
    let resolver = Resolver::new(&certificates, UnknownName::Refuse)
        .map_err(|twice| format!("names twice: {twice:?}"))?;
    let name = |number: usize| match number % 2 {
        0 => format!("site-{number}.example.com"),
        _ => format!("www.site-{number}.example.com"),
    };
    let mut group = criterion.benchmark_group(format!("route/lookup/{NAMES}"));
    group.throughput(Throughput::Elements(1));
    for (kind, first) in [("exact", 0), ("wildcard", 1)] {
        // Each once before any again, far from the one before: 1009 has no factor with the count.
        let count = NAMES / 2;
        let asked: Vec<_> = (0..count).map(|at| name(at * 1009 % count * 2 + first)).collect();
        let mut asked = asked.iter().cycle();
        group.bench_function(kind, |bencher| {
            bencher.iter(|| {
                let name = asked.next().map(String::as_str);
                assert!(black_box(resolver.select(black_box(name), OFFERED)).is_some());
            });
        });
    }
    group.finish();
    Ok(())
}

/// A session's state into a ticket and back.
fn ticket(criterion: &mut Criterion) -> Result<()> {
    const EPOCH: u64 = 10;
    let ratchet = Ratchet::new(EPOCH - 1, Zeroizing::new([1; 32]));
    let keys = Keys::derive(&ratchet, EPOCH, 43_200).ok_or("no ticket keys")?;
    let binding = Binding { listener: [1; 8], policy: [2; 8], name: [3; 8] };
    let state = [5; STATE_BYTES];
    let sealed = keys.seal([0; 12], &state, &binding, 0).ok_or("no ticket")?;
    let mut group = criterion.benchmark_group("ticket");
    group.throughput(Throughput::Elements(1));
    group.bench_function("seal", |bencher| {
        bencher.iter(|| {
            assert!(keys.seal(black_box([0; 12]), black_box(&state), &binding, 0).is_some());
        });
    });
    group.bench_function("open", |bencher| {
        bencher.iter(|| assert!(keys.open(black_box(&sealed)).is_ok()));
    });
    group.finish();
    Ok(())
}

/// One timer inserted, ten seconds ahead, and on average one handed out, a millisecond later.
fn timers(criterion: &mut Criterion) {
    let step = Duration::from_secs(10) / TIMERS;
    let mut timers = Timers::with_capacity(TIMERS);
    let mut slots = (0..TIMERS).cycle();
    let mut expired = Vec::new();
    let mut now = Time(0);
    let mut turn = || {
        // The slots come round a little later than their timers.
        timers.set(slots.next().unwrap_or_default(), now + Duration::from_secs(9));
        now = now + step;
        timers.expire(now, &mut expired);
        black_box(&expired);
        expired.clear();
        timers.len()
    };
    for _ in 0..TIMERS {
        turn();
    }
    let mut group = criterion.benchmark_group("timers");
    group.throughput(Throughput::Elements(1));
    group.bench_function("insert_expire", |bencher| bencher.iter(&mut turn));
    group.finish();
}

/// What a server is told about its client.
fn proxy_header(criterion: &mut Criterion) {
    let header = Header {
        client: SocketAddr::from((Ipv4Addr::new(203, 0, 113, 7), 51_234)),
        local: Some(SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 443))),
        alpn: Some(b"http/1.1"),
        authority: Some(NAME),
        tls: Some(Tls {
            version: Version::Tls13,
            suite: Suite::Tls13Aes128GcmSha256,
            certificate: None,
        }),
    };
    let mut out = [0; HEADER_BYTES_MAX];
    let mut group = criterion.benchmark_group("proxy_protocol");
    group.throughput(Throughput::Elements(1));
    for (name, version) in [("v1", ProxyVersion::V1), ("v2", ProxyVersion::V2)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let length = proxy_protocol::encode(version, black_box(&header), &mut out);
                assert!(length.is_some());
                black_box(&out);
            });
        });
    }
    group.finish();
}

/// Our end of a TLS session, with what it has given out.
struct Server {
    session: Session,
    plaintext: Queue,
    records: Queue,
    pool: Pool,
}

impl Server {
    fn receive(&mut self, bytes: &mut [u8]) -> bool {
        let Self { session, plaintext, records, pool } = self;
        session.receive(bytes, &mut Sinks { plaintext, records, pool, now: Time(0) }).is_ok()
    }
}

/// Takes all that waits in `queue` out, as sends do, and returns how many bytes it was.
fn drain(queue: &mut Queue, pool: &mut Pool, mut each: impl FnMut(&[u8])) -> usize {
    let mut drained = 0;
    while let Some(buffer) = queue.take() {
        let length = buffer.unsent().len();
        each(buffer.unsent());
        drained += length;
        queue.sent(buffer, length, pool);
    }
    drained
}

/// A client and a session of ours that have ended their handshake, joined in memory.
fn meet(identity: &Identity) -> Result<(ClientConnection, Server)> {
    let mut client = identity.client()?;
    let mut server = Server {
        session: identity.session()?,
        plaintext: Queue::default(),
        records: Queue::default(),
        pool: Pool::default(),
    };
    while client.is_handshaking() || client.wants_write() || !server.session.is_established() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes)?;
        }
        if !server.receive(&mut bytes) {
            return Err("the session refused the client's handshake".into());
        }
        let mut answer = Vec::new();
        drain(&mut server.records, &mut server.pool, |part| answer.extend_from_slice(part));
        let mut answer = answer.as_slice();
        if bytes.is_empty() && answer.is_empty() {
            return Err("the handshake does not go on".into());
        }
        while !answer.is_empty() {
            client.read_tls(&mut answer)?;
            client.process_new_packets()?;
        }
    }
    Ok((client, server))
}

/// One record opened or sealed, from and into pooled buffers, which are then given back.
fn record(criterion: &mut Criterion, identity: &Identity) -> Result<()> {
    let mut group = criterion.benchmark_group("record/open");
    for (name, length) in SIZES {
        let (mut client, mut server) = meet(identity)?;
        let payload = vec![7; length];
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                || {
                    // In the order in which they are opened: a record's number is in its nonce.
                    let mut bytes = Vec::with_capacity(length + 64);
                    let written = client.writer().write_all(&payload);
                    assert!(written.is_ok());
                    while client.wants_write() {
                        assert!(client.write_tls(&mut bytes).is_ok());
                    }
                    bytes
                },
                |bytes| {
                    assert!(server.receive(bytes));
                    let opened = drain(&mut server.plaintext, &mut server.pool, |_| ());
                    assert_eq!(opened, length);
                },
                BatchSize::NumIterations(RECORDS_AHEAD),
            );
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("record/seal");
    for (name, length) in SIZES {
        let (_, mut server) = meet(identity)?;
        let payload = vec![7; length];
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let Server { session, records, pool, .. } = &mut server;
                assert!(session.seal(black_box(&payload), records, pool).is_ok());
                let sealed = drain(records, pool, |part| {
                    black_box(part);
                });
                assert!(sealed > length);
            });
        });
    }
    group.finish();
    Ok(())
}
