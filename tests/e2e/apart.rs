//! Dear steps of handshakes are done beside the worker while established connections are busy.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::load;
use crate::support::backend::Backend;
use crate::support::certificates::Kind;
use crate::support::eventually;
use crate::support::server::{Server, Setup};

const APART: &str = "portcullis_handshake_steps_apart_total";
/// `SCHED_IDLE` of sched(7).
const IDLE: u32 = 5;

/// One worker on CPU 0 whose key is dear.
fn server(tables: &str) -> Server {
    let setup = Setup::new(Backend::echo()).certificate(Kind::Rsa, &["localhost"]);
    let mut setup = setup.tables(tables);
    setup.cpus = Some("0");
    setup.start()
}

/// Somebody who asks 500 times a second, and is always answered.
fn asks_for(seconds: u32, target: SocketAddr) -> JoinHandle<()> {
    let options = "--protocol raw --up 100B --connections 16 --rate 500";
    std::thread::spawn(move || {
        let found = load::json("request", target, &format!("{options} --duration {seconds}s"));
        assert_eq!(failed(&found), 0, "{found:#}");
    })
}

fn shake_hands(target: SocketAddr, options: &str) -> Value {
    let found =
        load::json("handshake", target, &format!("{options} --connections 8 --duration 1s"));
    assert_eq!(failed(&found), 0, "{found:#}");
    found
}

fn failed(found: &Value) -> u64 {
    found["measured"]["failed"].as_u64().unwrap()
}

/// Scheduling policy and CPUs of the process's thread of that name.
fn thread(server: &Server, name: &str) -> Option<(u32, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.process.id())).unwrap();
    // One that has ended meanwhile is none.
    let read = |task: &Path, file| std::fs::read_to_string(task.join(file)).unwrap_or_default();
    let is_it = |task: &PathBuf| read(task, "comm").trim() == name;
    let task = tasks.map(|task| task.unwrap().path()).find(is_it)?;
    let stat = read(&task, "stat");
    // Field 41 (proc_pid_stat(5)); the name, in parentheses, is field 2.
    let policy = stat.rsplit(") ").next().unwrap().split(' ').nth(38)?.parse().unwrap();
    let status = read(&task, "status");
    let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t"))?;
    Some((policy, cpus.to_owned()))
}

#[test]
fn a_second_thread_does_them_and_goes_when_it_is_not_needed() {
    let mut server = server("");
    let target = server.address;
    shake_hands(target, "--tls 1.3");
    assert_eq!(server.metrics().get(APART), 0.0, "nobody was there to go first");
    assert_eq!(thread(&server, "beside-0"), None);

    let asks = asks_for(6, target);
    let mut apart = 0.0;
    for options in ["--tls 1.3", "--tls 1.2", "--tls 1.3", "--tls 1.2"] {
        shake_hands(target, options);
        let now = server.metrics().get(APART);
        assert!(now > apart, "{options}: {now}");
        apart = now;
    }
    assert_eq!(thread(&server, "beside-0"), Some((IDLE, "0".to_owned())));
    asks.join().unwrap();
    eventually("it goes", || thread(&server, "beside-0").is_none().then_some(()));
    server.wait_idle();
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
}

#[test]
fn whose_step_was_done_there_gets_what_it_needs_to_come_back() {
    let server = server("");
    let target = server.address;
    let asks = asks_for(6, target);
    for (options, metric) in [
        ("--tls 1.2 --resume ticket", "ticket"),
        ("--tls 1.2 --resume session-id", "session_id"),
        ("--tls 1.3 --resume ticket", "psk"),
    ] {
        let before = server.metrics().get(APART);
        let found = shake_hands(target, options);
        assert!(found["measured"]["handshakes_resumed"].as_u64().unwrap() > 8, "{found:#}");
        let metrics = server.metrics();
        assert!(metrics.get(APART) > before, "{options}: the first time is a full handshake");
        let resumed =
            format!("portcullis_resumptions_total{{kind=\"{metric}\",result=\"resumed\"}}");
        assert!(metrics.get(&resumed) > 8.0, "{options}");
    }
    asks.join().unwrap();
}

#[test]
fn a_hello_that_has_to_come_twice_is_not_dearer_for_others() {
    // The client's key share is X25519, the server wants P-384: HelloRetryRequest.
    let server = server("[tls]\ngroups = [\"P-384\"]");
    let target = server.address;
    let ok = "portcullis_handshakes_total{outcome=\"ok\"}";
    let options = "--protocol raw --up 100B --connections 16 --rate 500 --duration 4s";
    let asks = std::thread::spawn(move || {
        let options = format!("{options} --group P-384");
        let found = load::json("request", target, &options);
        assert_eq!(failed(&found), 0, "{found:#}");
    });
    // Until it is known that steps are dear, and somebody asks.
    eventually("steps are done apart", || {
        shake_hands(target, "--tls 1.3 --group P-384");
        (server.metrics().get(APART) > 0.0).then_some(())
    });
    let before = server.metrics();
    shake_hands(target, "--tls 1.3 --group X25519,P-384");
    let after = server.metrics();
    let more = |metric| after.get(metric) - before.get(metric);
    // The answer to the first hello is cheap; a worker that did the second step itself would have
    // no more than one apart for each client.
    assert!(more(APART) > more(ok), "{} of {}", more(APART), more(ok));
    asks.join().unwrap();
}
