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

use support::Result;
use support::certificate::{Certificate, KeyKind};
use support::client::{Clients, Until};
use support::cpu::{self, Placement};
use support::origin::Origin;
use support::server::{Program, Server};
use support::work::{FULL, REQUEST, Work};

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
    bench(
        &mut criterion,
        "handshake/full/ecdsa_p256/tls13/workers",
        FULL,
        Throughput::Elements(1),
        placement,
    )?;
    bench(
        &mut criterion,
        "relay/1KiB/workers",
        REQUEST,
        Throughput::Bytes(REQUEST.request_bytes + REQUEST.answer_bytes),
        placement,
    )?;
    criterion.final_summary();
    Ok(())
}

/// Measures `work` through a server with one worker under the stable name `name/1`.
fn bench(
    criterion: &mut Criterion,
    name: &str,
    work: Work,
    throughput: Throughput,
    placement: Placement,
) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let certificate = Certificate::create(KeyKind::Ecdsa, directory.path())?;
    let program = Program::portcullis("portcullis", Path::new(env!("CARGO_BIN_EXE_portcullis")));
    cpu::pin(placement.clients)?;
    let origin = Origin::start(work, placement.clients)?;
    let server = Server::start(&program, &certificate, origin.address, placement, work)?;
    let mut clients = Clients::connect(server.address, work, certificate.client_config(false)?)?;
    let mut failure = None;
    let mut group = criterion.benchmark_group(name);
    group.throughput(throughput);
    group.bench_function("1", |bencher| {
        bencher.iter_custom(|operations| {
            if failure.is_some() {
                return Duration::from_secs(1);
            }
            let mut run = || -> Result<Duration> {
                let before = server.cpu_time()?;
                clients.run(Until::Operations(operations))?;
                Ok((server.cpu_time()? - before).used)
            };
            run().unwrap_or_else(|error| {
                failure.get_or_insert(error);
                // Criterion wants a time that is not zero; the failure is returned below.
                Duration::from_secs(1)
            })
        });
    });
    group.finish();
    failure.map_or(Ok(()), |error| Err(server.explain(name, &error)))
}
