//! Several workers share the load.

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
