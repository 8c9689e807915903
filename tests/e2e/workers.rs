//! Several workers share the load.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use crate::load;
use crate::support::backend::Backend;
use crate::support::certificates::Kind;
use crate::support::client;
use crate::support::server::{Server, Setup};

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

/// Scheduling policy (sched(7)) and CPUs of the process's thread of that name.
fn thread(server: &Server, name: &str) -> (u32, String) {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.process.id())).unwrap();
    let read = |task: &Path, file| std::fs::read_to_string(task.join(file)).unwrap();
    let is_it = |task: &PathBuf| read(task, "comm").trim() == name;
    let task = tasks.map(|task| task.unwrap().path()).find(is_it);
    let task = task.unwrap_or_else(|| panic!("no thread {name}"));
    let stat = read(&task, "stat");
    // Field 41 (proc_pid_stat(5)); the name, in parentheses, is field 2.
    let policy = stat.rsplit(") ").next().unwrap().split(' ').nth(38).unwrap();
    let status = read(&task, "status");
    let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t"));
    (policy.parse().unwrap(), cpus.unwrap().to_owned())
}

/// Handshakes with an RSA key while somebody asks 500 times a second.
#[test]
fn dear_handshakes_are_done_beside_the_worker_while_established_connections_are_busy() {
    const SCHED_IDLE: u32 = 5;
    let mut setup = Setup::new(Backend::echo()).certificate(Kind::Rsa, &["localhost"]);
    setup.cpus = Some("0");
    let mut server = setup.start();
    let target = server.address;
    let shake_hands = |tls: &str| {
        let options = format!("{tls} --connections 8 --duration 1s");
        load::json("handshake", target, &options)
    };
    let failed = |found: &Value| found["measured"]["failed"].as_u64().unwrap();

    let apart = "portcullis_handshake_steps_apart_total";
    assert_eq!(failed(&shake_hands("--tls 1.3")), 0);
    assert_eq!(server.metrics().get(apart), 0.0, "nobody was there to go first");

    let options = "--protocol raw --up 100B --connections 16 --rate 500 --duration 4s";
    let asking = std::thread::spawn(move || load::json("request", target, options));
    let both =
        ["--tls 1.3", "--tls 1.2"].map(|tls| (shake_hands(tls), server.metrics().get(apart)));
    assert!(both.iter().all(|(found, _)| failed(found) == 0), "{both:#?}");
    assert!(0.0 < both[0].1 && both[0].1 < both[1].1, "in each version: {both:#?}");
    assert_eq!(thread(&server, "beside-0"), (SCHED_IDLE, "0".to_owned()));
    let found = asking.join().unwrap();
    assert_eq!(failed(&found), 0, "{found:#}");
    let metrics = server.metrics();
    let full = metrics.get("portcullis_handshake_steps_total{step=\"full\"}");
    assert!(metrics.get(apart) < full, "{} of {full}", metrics.get(apart));
    server.wait_idle();
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
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
