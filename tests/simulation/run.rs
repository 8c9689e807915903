//! One run: a worker, its simulated kernel and a world, from the first client to the last record.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use portcullis::backend::permits::Permits;
use portcullis::config::{
    BackendQueue, Handshake, Limits, PerSource, ProxyVersion, Refuse, Timeouts,
};
use portcullis::io::{Address, Time};
use portcullis::limits::{CONNECT_TRIES_MAX, MAILBOX_COMMANDS_MAX};
use portcullis::telemetry::counters::Counters;
use portcullis::telemetry::labels::{CloseReason, HandshakeOutcome, Label, State};
use portcullis::telemetry::record::{self, Record};
use portcullis::tls::resumption::bridge::{Beginnings, Bridge};
use portcullis::tls::terms::Terms;
use portcullis::worker::admission::{Admission, Costs};
use portcullis::worker::command::Command;
use portcullis::worker::snapshot::{Backend, Listener, Server, Snapshot};
use portcullis::worker::sources::Sources;
use portcullis::worker::{Bind, Progress, Setup, Worker};

use crate::conversation::Conversation;
use crate::faults::{Faults, Plan};
use crate::permits;
use crate::random::Random;
use crate::sim_io::SimIo;
use crate::trust::AnyCertificate;
use crate::world::{Event, World, listener_address};

pub(crate) const LISTENERS: usize = 2;

/// What is run.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) seed: u64,
    pub(crate) faults: Faults,
    /// When each client comes, and what it and its server do.
    pub(crate) clients: Vec<(Time, Plan)>,
    /// Where they come from; the others each from an address of their own.
    pub(crate) addresses: Vec<Ipv4Addr>,
    /// Slots in the worker's table.
    pub(crate) connections: u32,
    pub(crate) servers: u16,
    /// Of each server; `None`: any number.
    pub(crate) max_connections: Option<u32>,
    pub(crate) queue: BackendQueue,
    pub(crate) proxy: Option<ProxyVersion>,
    pub(crate) on_first_byte: bool,
    pub(crate) client_hello_bytes: usize,
    pub(crate) min_rate: u32,
    pub(crate) handshake: Handshake,
    /// Rates and limits of sources, of which 64 are counted side by side.
    pub(crate) limits: Limits,
    /// `listener.connection_rate` of the first listener.
    pub(crate) connection_rate: Option<u32>,
    pub(crate) timeouts: Timeouts,
    /// Commands before the last client has gone.
    pub(crate) commands: Vec<(Time, Sent)>,
}

/// A command to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    SameSnapshot,
    Drain(Duration),
    Stop,
}

/// A worker under way.
pub(crate) struct Running {
    pub(crate) worker: Worker<SimIo>,
    counters: Arc<Counters>,
    sources: Arc<Sources>,
    told: record::Receiver,
}

/// What came of it.
pub(crate) struct Outcome {
    pub(crate) talks: Vec<Conversation>,
    /// In the order of the conversations; `None`: never accepted.
    pub(crate) records: Vec<Option<Record>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) trace: u64,
    /// The most operations that the worker has had started between two looks.
    pub(crate) most_started: usize,
}

impl Setting {
    /// Clients of a kind world, all at once.
    pub(crate) fn of(plans: Vec<Plan>) -> Self {
        Self {
            seed: 1,
            faults: Faults::none(),
            clients: plans.into_iter().map(|plan| (Time(0), plan)).collect(),
            addresses: Vec::new(),
            connections: 8,
            servers: 2,
            max_connections: None,
            queue: BackendQueue { max: 64, timeout: Duration::from_secs(5) },
            proxy: None,
            on_first_byte: false,
            client_hello_bytes: 16 * 1024,
            min_rate: 1024,
            handshake: Handshake {
                budget: Duration::from_micros(100),
                queue_deadline: Duration::from_secs(10),
                max_pending: 16,
            },
            limits: Limits::default(),
            connection_rate: None,
            timeouts: Timeouts {
                handshake: Duration::from_secs(30),
                client_hello: Duration::from_secs(30),
                connect: Duration::from_secs(3),
                idle: Duration::from_secs(60),
                rest: Duration::from_secs(1),
                half_closed: Duration::from_secs(20),
                stalled: Duration::from_secs(90),
                drain: Duration::from_secs(30),
            },
            commands: Vec::new(),
        }
    }

    /// Everything from the seed.
    pub(crate) fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let faults = Faults::draw(&mut random.fork());
        let mut plans = random.fork();
        let window_nanos = random.pick(&[1, 100_000_000, 5_000_000_000]);
        let clients = (0..random.range(1, 20))
            .map(|_| {
                let at = Time(random.range(0, window_nanos));
                (at, Plan::draw(&mut plans, &faults))
            })
            .collect();
        let mut commands = Vec::new();
        let mut command = |random: &mut Random, per_mille, sent| {
            if random.chance(per_mille) {
                commands.push((Time(random.range(0, 2 * window_nanos)), sent));
            }
        };
        command(&mut random, 200, Sent::SameSnapshot);
        let timeout = random.pick(&[0, 1_000, 60_000_000]);
        command(&mut random, 200, Sent::Drain(Duration::from_micros(timeout)));
        command(&mut random, 50, Sent::Stop);
        let rest = Duration::from_millis(random.pick(&[0, 5, 20, 1000]));
        let setting = Self {
            seed,
            faults,
            clients,
            addresses: Vec::new(),
            connections: random.pick(&[1, 3, 8, 32]),
            servers: random.pick(&[1, 2, 3]),
            proxy: random.pick(&[None, None, Some(ProxyVersion::V1), Some(ProxyVersion::V2)]),
            commands,
            on_first_byte: random.chance(300),
            client_hello_bytes: random.pick(&[100, 16 * 1024, 16 * 1024, 16 * 1024, 16 * 1024]),
            min_rate: 100,
            handshake: Handshake {
                budget: Duration::from_micros(random.pick(&[0, 100, 10_000])),
                max_pending: random.pick(&[1, 4, 1000]),
                ..Self::of(Vec::new()).handshake
            },
            timeouts: Timeouts {
                rest,
                client_hello: Duration::from_secs(random.pick(&[20, 40])),
                stalled: Duration::from_secs(random.pick(&[20, 20, 90])),
                ..Self::of(Vec::new()).timeouts
            },
            limits: Limits::default(),
            connection_rate: None,
            max_connections: random.pick(&[None, None, Some(1), Some(2), Some(5)]),
            queue: BackendQueue {
                max: random.pick(&[0, 2, 64, 64]),
                timeout: Duration::from_millis(random.pick(&[20, 1000, 5000, 50_000])),
            },
        };
        setting.with_limits(&mut random)
    }

    /// With limits in a third of all settings, and clients that come from few sources.
    fn with_limits(mut self, random: &mut Random) -> Self {
        if !random.chance(300) {
            return self;
        }
        self.limits = Limits {
            connection_rate: random.pick(&[None, None, Some(2)]),
            refuse: random.pick(&[Refuse::Reset, Refuse::Close]),
            per_source: PerSource {
                connections: random.pick(&[None, Some(1), Some(3)]),
                handshakes: random.pick(&[None, Some(1), Some(3)]),
                handshake_cpu: random.pick(&[None, Some(Duration::from_millis(1))]),
                ipv4_prefix: random.pick(&[24, 31, 32]),
                ..PerSource::default()
            },
            ..Limits::default()
        };
        self.connection_rate = random.pick(&[None, None, Some(1)]);
        self
    }

    fn ends_early(&self) -> bool {
        let ends = |sent: &Sent| *sent != Sent::SameSnapshot;
        self.commands.iter().any(|(_, sent)| ends(sent))
    }

    /// What `workers` workers share.
    pub(crate) fn snapshot(&self, workers: usize) -> Arc<Snapshot> {
        // The first listener has our own record layer, the second rustls's.
        let listener = |lean| Listener {
            terms: Arc::new(Terms::new(server_config(lean))),
            backend: 0,
            connection_rate: self.connection_rate.filter(|_| lean),
        };
        let server = |server| Server {
            server,
            address: Address::Inet(SocketAddr::from(([198, 51, 100, 1], 8000 + server))),
        };
        let permits = self.max_connections.map(|max| {
            let servers = (0..self.servers).map(|_| Some(max));
            let permits = Permits::new(servers, self.queue.max, self.queue.timeout, workers);
            (0..self.servers).for_each(|server| permits.set_reachable(server, true));
            Arc::new(permits)
        });
        Arc::new(Snapshot {
            listeners: [true, false].map(listener).into(),
            backends: vec![Backend {
                servers: (0..self.servers).map(server).collect(),
                on_first_byte: self.on_first_byte,
                send_proxy_protocol: self.proxy,
                permits,
            }],
            admission: Admission::new(&self.limits, Costs::default()),
            handshake: self.handshake,
            timeouts: self.timeouts.clone(),
            client_hello_bytes: self.client_hello_bytes,
            min_rate: self.min_rate,
        })
    }

    fn world(&self, snapshot: &Arc<Snapshot>) -> World {
        let random = Random::new(self.seed).fork();
        let faults = self.faults.clone();
        let mut world = World::new(random, faults, LISTENERS, client_configs());
        world.proxy = self.proxy;
        for (number, (at, plan)) in self.clients.iter().enumerate() {
            let listener = number % LISTENERS;
            let mut talk = Conversation::new(self.seed, number, listener, plan.clone());
            talk.on_first_byte = self.on_first_byte;
            if let Some(address) = self.addresses.get(number) {
                talk.address.set_ip((*address).into());
            }
            world.expect_client(*at, talk);
        }
        for (at, sent) in &self.commands {
            let command = match sent {
                Sent::SameSnapshot => Command::Snapshot(Arc::clone(snapshot)),
                Sent::Drain(timeout) => Command::Drain { timeout: *timeout },
                Sent::Stop => Command::Stop,
            };
            world.schedule(*at, Event::Command(command));
        }
        world
    }

    /// Runs until the worker has ended, and checks every law on the way and at the end.
    pub(crate) fn run(&self) -> Outcome {
        let snapshot = self.snapshot(1);
        let mut running = self.start(&snapshot, 0);
        while running.worker.turn() == Progress::Running {
            running.worker.check_invariants();
            permits::check(&snapshot, std::slice::from_ref(&running));
        }
        permits::check_at_end(&snapshot);
        self.finish(running)
    }

    /// A worker that has done nothing yet.
    pub(crate) fn start(&self, snapshot: &Arc<Snapshot>, index: u16) -> Running {
        let (sender, commands) = rtrb::RingBuffer::new(MAILBOX_COMMANDS_MAX);
        let (records, told) = rtrb::RingBuffer::new(1024);
        let counters = Arc::new(Counters::default());
        let sources = Arc::new(Sources::new(64, LISTENERS));
        let drain = Command::Drain { timeout: self.timeouts.drain };
        let io = SimIo::new(self.world(snapshot), sender, Some(drain));
        let bind = |number: usize| Bind {
            listener: u16::try_from(number).unwrap(),
            address: listener_address(number),
            backlog: 128,
            defer_accept: None,
        };
        let setup = Setup {
            index,
            binds: (0..LISTENERS).map(bind).collect(),
            connections: self.connections,
            snapshot: Arc::clone(snapshot),
            resumption: Beginnings::for_tests(),
            sources: Arc::clone(&sources),
            counters: Arc::clone(&counters),
            records: Some(records),
            commands,
        };
        Running { worker: Worker::new(io, setup), counters, sources, told }
    }

    /// What came of a worker that has ended; checks every law that holds then.
    pub(crate) fn finish(&self, running: Running) -> Outcome {
        let Running { mut worker, counters, sources, mut told } = running;
        worker.check_invariants();
        assert_eq!(sources.totals(), (0, 0), "connections and handshakes that no source gave back");
        let io = worker.io_mut();
        io.check_nothing_leaked();
        io.come_to_rest();
        let talks = std::mem::take(&mut io.world.talks);
        let mut records = vec![None; talks.len()];
        while let Ok(record) = told.pop() {
            let of = |talk: &Conversation| talk.address == record.client;
            let number = talks.iter().position(of).expect("a record of a client");
            assert!(records[number].is_none(), "told twice: {record:?}");
            records[number] = Some(*record);
        }
        let (trace, most_started) = (io.trace(), io.most_started);
        let outcome = Outcome { talks, records, counters, trace, most_started };
        self.check(&outcome);
        outcome
    }

    fn check(&self, outcome: &Outcome) {
        let tries_max = usize::from(CONNECT_TRIES_MAX.min(u8::try_from(self.servers).unwrap()));
        for (talk, record) in outcome.talks.iter().zip(&outcome.records) {
            talk.check_at_end(record.as_ref());
            // Above any ClientHello that a client here sends.
            let hello_fits = self.client_hello_bytes >= 4096;
            let kind = talk.must_finish(tries_max) && !talk.client.misbehaved;
            // More came at once than may wait, or than may come.
            let refused = record.as_ref().is_some_and(|record| {
                is_refused(record.handshake)
                    || record.reason == CloseReason::QueueFull
                    || record.reason == CloseReason::QueueTimeout
            });
            if kind && hello_fits && !refused && !self.ends_early() {
                let reason = record.as_ref().map(|record| record.reason);
                assert_eq!(
                    reason,
                    Some(CloseReason::Finished),
                    "nothing was in its way: {talk:#?} {record:#?}"
                );
            }
        }
        let told = outcome.records.iter().flatten();
        let counters = &outcome.counters;
        let count = |wanted: CloseReason| {
            let same = told.clone().filter(|record| record.reason == wanted);
            same.count() as u64
        };
        for reason in CloseReason::ALL {
            assert_eq!(counters.closed.of(*reason).get(), count(*reason), "{reason}");
        }
        for state in State::ALL {
            let left = counters.connections.of(*state).get();
            assert_eq!(left, 0, "connections left in state {state}");
        }
        assert_eq!(counters.accepted.get(), told.count() as u64, "accepted");
        assert_eq!(counters.panics.get(), 0, "a stage panicked");
    }
}

/// Whether a client was turned away without having done anything wrong.
fn is_refused(handshake: HandshakeOutcome) -> bool {
    matches!(
        handshake,
        HandshakeOutcome::Overload
            | HandshakeOutcome::ConnectionRate
            | HandshakeOutcome::ListenerConnectionRate
            | HandshakeOutcome::SourceConnections
            | HandshakeOutcome::SourceHandshakes
            | HandshakeOutcome::SourceHandshakeCpu
    )
}

/// A certificate whose signatures have one length, always: bytes on the wire follow from the seed.
fn server_config(lean: bool) -> Arc<rustls::ServerConfig> {
    static CERTIFICATE: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    let (certificate, key) = CERTIFICATE.get_or_init(|| {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let names = vec!["simulated.example".to_owned()];
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.serial_number = Some(0x1234_5678_u64.into());
        let certificate = params.self_signed(&key).unwrap();
        (certificate.der().to_vec(), key.serialize_der())
    });
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.clone().into()],
            rustls_pki_types::PrivatePkcs8KeyDer::from(key.clone()).into(),
        )
        .unwrap();
    let bridge = Arc::new(Bridge::new("simulated", [0; 8]));
    config.ticketer = Arc::clone(&bridge) as _;
    config.session_storage = Arc::clone(&bridge) as _;
    config.time_provider = bridge;
    if lean {
        portcullis::tls::session::use_own_records(&mut config);
    }
    Arc::new(config)
}

/// The clients' TLS 1.3 and TLS 1.2 configurations.
pub(crate) fn client_configs() -> [Arc<rustls::ClientConfig>; 2] {
    [&rustls::version::TLS13, &rustls::version::TLS12].map(client_config)
}

fn client_config(version: &'static rustls::SupportedProtocolVersion) -> Arc<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth();
    Arc::new(config)
}
