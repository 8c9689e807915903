//! Several workers share the load.

use std::net::SocketAddr;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::support::backend::Backend;
use crate::support::client;
use crate::support::server::Setup;

/// More workers than a small machine has cores still all serve.
#[test]
fn every_one_of_four_workers_gets_connections() {
    let server = Setup::new(Backend::echo()).workers(4).start();
    let mut open: Vec<_> = (0..64).map(|_| client::connect(server.address)).collect();
    for tls in &mut open {
        client::echo(tls, b"served");
    }
    let metrics = server.metrics();
    let per_worker: Vec<f64> = (0..4)
        .map(|worker| {
            metrics.get(&format!("portcullis_connections_accepted_total{{worker=\"{worker}\"}}"))
        })
        .collect();
    // The kernel spreads by a hash of the addresses: none of four empty-handed out of 64 has a
    // chance of 1 in 10 million to be an accident.
    assert!(per_worker.iter().all(|count| *count > 0.0), "{per_worker:?}");
    assert_eq!(per_worker.iter().sum::<f64>(), 64.0);
    open.into_iter().for_each(client::finish);
    server.wait_closed("finished", 64);
    server.wait_idle();
}

#[test]
fn workers_can_be_pinned_to_chosen_cpus() {
    let mut setup = Setup::new(Backend::echo());
    setup.cpus = Some("0");
    let server = setup.start();
    let mut tls = client::connect(server.address);
    client::echo(&mut tls, b"pinned");
    client::finish(tls);
    let tasks = format!("/proc/{}/task", server.process.id());
    let pinned = std::fs::read_dir(tasks)
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok())
        .any(|status| status.lines().any(|line| line == "Cpus_allowed_list:\t0"));
    assert!(pinned, "no thread is pinned to CPU 0");
}

/// Connects `count` times from a CPU, talks, and ends.
fn clients_on(cpu: usize, address: SocketAddr, count: usize) {
    let client = move || {
        let mut cpus = CpuSet::new();
        cpus.set(cpu).unwrap();
        sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
        for _ in 0..count {
            let mut tls = client::connect(address);
            client::echo(&mut tls, b"here");
            client::finish(tls);
        }
    };
    std::thread::spawn(client).join().unwrap();
}

/// On the loopback a packet arrives on the CPU that sent it.
#[test]
fn a_steered_connection_goes_to_the_worker_of_its_cpu() {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    if !(allowed.is_set(0).unwrap() && allowed.is_set(1).unwrap()) {
        eprintln!("skipped: needs CPUs 0 and 1");
        return;
    }
    let mut setup = Setup::new(Backend::echo()).workers(2);
    (setup.cpus, setup.steering) = (Some("0,1"), Some("incoming_cpu"));
    let server = setup.start();
    clients_on(0, server.address, 40);
    clients_on(1, server.address, 80);
    server.wait_closed("finished", 120);
    let metrics = server.metrics();
    let of = |name: &str, worker: usize| {
        metrics.get(&format!("portcullis_{name}_total{{worker=\"{worker}\"}}"))
    };
    assert_eq!((of("connections_accepted", 0), of("connections_accepted", 1)), (40.0, 80.0));
    for worker in 0..2 {
        let (samples, matches) =
            (of("incoming_cpu_samples", worker), of("incoming_cpu_matches", worker));
        assert!(samples >= 3.0, "worker {worker}: {samples}");
        assert_eq!(samples, matches, "worker {worker}");
    }
}

/// Whoever is on a CPU without a worker is served all the same.
#[test]
fn a_connection_of_another_cpu_is_served_by_a_steered_worker() {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    if !(allowed.is_set(0).unwrap() && allowed.is_set(1).unwrap()) {
        eprintln!("skipped: needs CPUs 0 and 1");
        return;
    }
    let mut setup = Setup::new(Backend::echo());
    (setup.cpus, setup.steering) = (Some("0"), Some("incoming_cpu"));
    let server = setup.start();
    clients_on(1, server.address, 40);
    server.wait_closed("finished", 40);
    let metrics = server.metrics();
    let samples = metrics.get("portcullis_incoming_cpu_samples_total{worker=\"0\"}");
    let matches = metrics.get("portcullis_incoming_cpu_matches_total{worker=\"0\"}");
    assert!(samples >= 2.0 && matches < samples, "{matches} of {samples}");
}
