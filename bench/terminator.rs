//! The built `portcullis` binary over loopback, with 1, 2, 4, … workers: server CPU time per
//! operation.
//!
//! What criterion reports as time is the CPU time of the server process, user and system, not wall
//! time: the machine's other load and the clients' cost are not in it. See `bench/README.md`.

#![forbid(unsafe_code)]

mod support;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use criterion::{Criterion, Throughput};

use portcullis::control::topology;

use support::certificate::{Certificate, KeyKind};
use support::client::{Clients, Until};
use support::cpu::{self, Placement};
use support::knocks::Knocks;
use support::origin::Origin;
use support::program::Program;
use support::server::Server;
use support::work::{FULL, FULL12, REQUEST, REQUEST_16K, SESSION_ID12, TICKET12, TICKET13, Work};
use support::{Error, Result};

/// What the clients of a benchmark do.
#[derive(Debug, Clone, Copy)]
enum Load {
    /// TLS, with a certificate of this kind.
    Tls(KeyKind, Work),
    /// Connect and end without a byte.
    Knock,
}

use KeyKind::{Ecdsa, Rsa};
use Load::{Knock, Tls};

const RELAY_64: Work = Work { name: "relay64", request_bytes: 64, answer_bytes: 64, ..REQUEST };
/// In answers with an end, unlike that of `peers`: what was answered is what was asked for.
const BULK: Work = Work {
    name: "bulk",
    connections: 8,
    request_bytes: 1,
    answer_bytes: 4 * 1024 * 1024,
    ..REQUEST
};

/// Stable names, and what they measure. What needs resumption comes last: where it does not work,
/// the first of those ends the program.
const BENCHES: [(&str, Load); 15] = [
    ("handshake/full/ecdsa_p256/tls13/workers", Tls(Ecdsa, FULL)),
    ("handshake/full/ecdsa_p256/tls12/workers", Tls(Ecdsa, FULL12)),
    ("handshake/full/rsa_2048/tls13/workers", Tls(Rsa, FULL)),
    ("handshake/full/rsa_2048/tls12/workers", Tls(Rsa, FULL12)),
    ("relay/64B/workers", Tls(Ecdsa, RELAY_64)),
    ("relay/1KiB/workers", Tls(Ecdsa, REQUEST)),
    ("relay/16KiB/workers", Tls(Ecdsa, REQUEST_16K)),
    ("bulk/workers", Tls(Ecdsa, BULK)),
    ("accept/workers", Knock),
    ("handshake/ticket/ecdsa_p256/tls13/workers", Tls(Ecdsa, TICKET13)),
    ("handshake/ticket/ecdsa_p256/tls12/workers", Tls(Ecdsa, TICKET12)),
    ("handshake/ticket/rsa_2048/tls13/workers", Tls(Rsa, TICKET13)),
    ("handshake/ticket/rsa_2048/tls12/workers", Tls(Rsa, TICKET12)),
    ("handshake/session_id/ecdsa_p256/tls12/workers", Tls(Ecdsa, SESSION_ID12)),
    ("handshake/session_id/rsa_2048/tls12/workers", Tls(Rsa, SESSION_ID12)),
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("terminator: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    support::raise_open_files()?;
    let allowed = topology::allowed()?.len();
    let mut placements = Vec::new();
    // 1, 2, 4, … up to the CPUs that we may use.
    for workers in (0..usize::BITS).map(|bit| 1 << bit).take_while(|count| *count <= allowed) {
        let placement = Placement::choose(workers)?;
        eprintln!("{}", placement.describe());
        placements.push(placement);
    }
    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5))
        .configure_from_args();
    for (name, load) in BENCHES {
        for placement in &placements {
            bench(&mut criterion, name, load, placement);
        }
    }
    criterion.final_summary();
    Ok(())
}

/// Measures `load` through a server with a worker on each CPU of `placement`, under the stable name
/// `name/WORKERS`.
fn bench(criterion: &mut Criterion, name: &str, load: Load, placement: &Placement) {
    let mut group = criterion.benchmark_group(name);
    group.throughput(match load {
        Tls(_, work) if !work.closes => Throughput::Bytes(work.request_bytes + work.answer_bytes),
        Tls(..) | Knock => Throughput::Elements(1),
    });
    // Started at the first iteration: what the command line filters out must not start, nor fail.
    let mut bed = None;
    group.bench_function(placement.server.len().to_string(), |bencher| {
        bencher.iter_custom(|operations| {
            let bed = bed.get_or_insert_with(|| {
                Bed::start(load, placement).unwrap_or_else(|error| give_up(name, &error))
            });
            bed.measure(operations)
                .unwrap_or_else(|error| give_up(name, &bed.server.explain("portcullis", &error)))
        });
    });
    group.finish();
}

/// Ends the program because `name` cannot be measured.
#[expect(clippy::panic, reason = "criterion takes no error, and keeps what it gets as history")]
fn give_up(name: &str, error: &Error) -> ! {
    panic!("{name}: {error}")
}

/// One thread's clients.
enum Crowd {
    Tls(Box<Clients>),
    Knock(Knocks),
}

impl Crowd {
    fn run(&mut self, operations: u64) -> Result<()> {
        match self {
            Self::Tls(clients) => clients.run(Until::Operations(operations)).map(drop),
            Self::Knock(knocks) => knocks.run(operations),
        }
    }
}

/// One server with its clients in front and its origin behind. Fields are dropped in this order.
struct Bed {
    /// As many as the server has workers, so that the load of one worker is always the same; each
    /// with the CPU that its thread runs on.
    crowds: Vec<(usize, Crowd)>,
    server: Server,
    _origin: Origin,
}

impl Bed {
    fn start(load: Load, placement: &Placement) -> Result<Self> {
        // The server is probed before it is knocked at.
        let (kind, work) = match load {
            Tls(kind, work) => (kind, work),
            Knock => (Ecdsa, FULL),
        };
        let directory = tempfile::tempdir()?;
        let certificate = Certificate::create(kind, directory.path())?;
        let program =
            Program::portcullis("portcullis", Path::new(env!("CARGO_BIN_EXE_portcullis")));
        cpu::pin(&placement.clients)?;
        let origin = Origin::start(work, &placement.clients)?;
        let server = Server::start(&program, &certificate, Some(origin.address), placement, work)?;
        let cpus = placement.clients.iter().copied().cycle();
        let crowds = cpus
            .take(placement.server.len())
            .map(|cpu| {
                let crowd = match load {
                    Tls(..) => {
                        Crowd::Tls(Box::new(Clients::connect(server.address, work, &certificate)?))
                    }
                    Knock => Crowd::Knock(Knocks::new(server.address)?),
                };
                Ok((cpu, crowd))
            })
            .collect::<Result<_>>()
            .map_err(|error| server.explain(&program.name, &error))?;
        Ok(Self { crowds, server, _origin: origin })
    }

    /// CPU time that `operations` cost the server.
    fn measure(&mut self, operations: u64) -> Result<Duration> {
        let before = self.server.cpu_time()?;
        let count = self.crowds.len() as u64;
        cpu::on_each(&mut self.crowds, |at, crowd| {
            // What cannot be shared out evenly goes to the first.
            crowd.run(operations / count + u64::from(at < operations % count))
        })?;
        Ok((self.server.cpu_time()? - before).used)
    }
}
