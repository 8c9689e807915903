//! The built `portcullis` binary over loopback, one worker: server CPU time per operation.
//!
//! What criterion reports as time is the CPU time of the server process, user and system, not wall
//! time: the machine's other load and the clients' cost are not in it. See `bench/README.md`.

#![forbid(unsafe_code)]

mod support;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use criterion::{Criterion, Throughput};

use support::certificate::{Certificate, KeyKind};
use support::client::{Clients, Until};
use support::cpu::{self, Placement};
use support::origin::Origin;
use support::server::{Program, Server};
use support::work::{FULL, FULL12, REQUEST, SESSION_ID12, TICKET12, TICKET13, Work};
use support::{Error, Result};

/// Stable names, and what they measure. What needs resumption comes last: where it does not work,
/// the first of those ends the program.
const BENCHES: [(&str, Work); 6] = [
    ("handshake/full/ecdsa_p256/tls13/workers", FULL),
    ("handshake/full/ecdsa_p256/tls12/workers", FULL12),
    ("relay/1KiB/workers", REQUEST),
    ("handshake/ticket/ecdsa_p256/tls13/workers", TICKET13),
    ("handshake/ticket/ecdsa_p256/tls12/workers", TICKET12),
    ("handshake/session_id/ecdsa_p256/tls12/workers", SESSION_ID12),
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
    let placement = Placement::choose()?;
    eprintln!("{}", placement.describe());
    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5))
        .configure_from_args();
    for (name, work) in BENCHES {
        bench(&mut criterion, name, work, placement);
    }
    criterion.final_summary();
    Ok(())
}

/// Measures `work` through a server with one worker under the stable name `name/1`.
fn bench(criterion: &mut Criterion, name: &str, work: Work, placement: Placement) {
    let mut group = criterion.benchmark_group(name);
    group.throughput(if work.closes {
        Throughput::Elements(1)
    } else {
        Throughput::Bytes(work.request_bytes + work.answer_bytes)
    });
    // Started at the first iteration: what the command line filters out must not start, nor fail.
    let mut bed = None;
    group.bench_function("1", |bencher| {
        bencher.iter_custom(|operations| {
            let bed = bed.get_or_insert_with(|| {
                Bed::start(work, placement).unwrap_or_else(|error| give_up(name, &error))
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

/// One server with its clients in front and its origin behind. Fields are dropped in this order.
struct Bed {
    clients: Clients,
    server: Server,
    _origin: Origin,
}

impl Bed {
    fn start(work: Work, placement: Placement) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let certificate = Certificate::create(KeyKind::Ecdsa, directory.path())?;
        let program =
            Program::portcullis("portcullis", Path::new(env!("CARGO_BIN_EXE_portcullis")));
        cpu::pin(placement.clients)?;
        let origin = Origin::start(work, placement.clients)?;
        let server = Server::start(&program, &certificate, origin.address, placement, work)?;
        let clients = Clients::connect(server.address, work, &certificate)
            .map_err(|error| server.explain(&program.name, &error))?;
        Ok(Self { clients, server, _origin: origin })
    }

    /// CPU time that `operations` cost the server.
    fn measure(&mut self, operations: u64) -> Result<Duration> {
        let before = self.server.cpu_time()?;
        self.clients.run(Until::Operations(operations))?;
        Ok((self.server.cpu_time()? - before).used)
    }
}
