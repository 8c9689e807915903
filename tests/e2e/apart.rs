//! Dear steps of handshakes are done beside the worker while established connections are busy.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::load;
use crate::support::backend::Backend;
use crate::support::certificates::Kind;
use crate::support::server::{NAME, Server, Setup};
use crate::support::{client, eventually};

const APART: &str = "portcullis_handshake_steps_apart_total";
/// `SCHED_IDLE` of sched(7).
const IDLE: u32 = 5;

/// One worker on CPU 0 whose only key is dear.
fn server(tables: &str) -> Server {
    let setup = Setup::new(Backend::echo()).certificate(Kind::Rsa, &[NAME]);
    let mut setup = setup.tables(tables);
    setup.certificates.remove(0);
    setup.cpus = Some("0");
    setup.start()
}

/// Clients who ask on connections that are there, a thousand times a second or so, and are always
/// answered.
struct Asking {
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Asking {
    fn at(server: &Server) -> Self {
        let (ends, address) = (Arc::new(AtomicBool::new(false)), server.address);
        let ask = || {
            let ends = Arc::clone(&ends);
            std::thread::spawn(move || {
                let mut tls = client::connect(address);
                while !ends.load(Ordering::Relaxed) {
                    client::echo(&mut tls, b"is answered");
                    std::thread::sleep(Duration::from_millis(2));
                }
                client::finish(tls);
            })
        };
        let threads = (0..4).map(|_| ask()).collect();
        server.wait_metric("portcullis_connections{state=\"relay\"}", 4.0);
        Self { ends, threads }
    }

    fn end(self) {
        self.ends.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

/// Shakes hands, several times if need be, until steps have been done apart for it; on a machine
/// that does other things, too, somebody who asks is not heard of all the time.
fn shake_hands_apart(server: &Server, options: &str) -> Value {
    let before = server.metrics().get(APART);
    eventually(options, || {
        let found = shake_hands(server.address, options);
        (server.metrics().get(APART) > before).then_some(found)
    })
}

fn shake_hands(target: SocketAddr, options: &str) -> Value {
    let found =
        load::json("handshake", target, &format!("{options} --connections 32 --duration 500ms"));
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
    assert_eq!(thread(&server, "beside-0"), None);
    let asking = Asking::at(&server);
    for options in ["--tls 1.3", "--tls 1.2"] {
        shake_hands_apart(&server, options);
    }
    assert_eq!(thread(&server, "beside-0"), Some((IDLE, "0".to_owned())));
    asking.end();
    eventually("it goes", || thread(&server, "beside-0").is_none().then_some(()));
    server.wait_idle();
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success());
}

#[test]
fn whose_step_was_done_there_gets_what_it_needs_to_come_back() {
    let server = server("");
    let asking = Asking::at(&server);
    for (options, kind) in [
        ("--tls 1.2 --resume ticket", "ticket"),
        ("--tls 1.2 --resume session-id", "session_id"),
        ("--tls 1.3 --resume ticket", "psk"),
    ] {
        let found = shake_hands_apart(&server, options);
        let count = |path| found.pointer(path).and_then(Value::as_u64).unwrap();
        let all = count("/outside/handshakes") + count("/measured/handshakes");
        let again = count("/outside/handshakes_resumed") + count("/measured/handshakes_resumed");
        assert_eq!(all - again, 32, "each client's first: {found:#}");
        let resumed = format!("portcullis_resumptions_total{{kind=\"{kind}\",result=\"resumed\"}}");
        assert!(server.metrics().get(&resumed) > 32.0, "{options}");
    }
    asking.end();
}

#[test]
fn a_hello_that_has_to_come_twice_is_not_dearer_for_others() {
    // The client's key share is X25519, the server wants P-384: HelloRetryRequest.
    let server = server("[tls]\ngroups = [\"P-384\"]");
    let ok = "portcullis_handshakes_total{outcome=\"ok\"}";
    let asking = Asking::at(&server);
    shake_hands_apart(&server, "--tls 1.3 --group P-384");
    // The answer to the first hello is cheap; a worker that did the second step itself would have
    // no more than one apart for each client.
    eventually("both steps are done apart", || {
        let before = server.metrics();
        shake_hands(server.address, "--tls 1.3 --group X25519,P-384");
        let after = server.metrics();
        let more = |metric| after.get(metric) - before.get(metric);
        (more(APART) > more(ok)).then_some(())
    });
    asking.end();
}
