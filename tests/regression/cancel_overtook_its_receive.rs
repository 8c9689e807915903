//! Symptom: connections in the state `close` that never ended; a drain that took its whole time.
//!
//! Cause: the cancel of a receive was submitted in the same turn as the receive, behind which the
//! kernel may still be at work elsewhere. The cancel found nothing, the receive was armed after
//! it, and nobody cancelled a second time.
//!
//! Scenario:
//! 1. The server accepts and stays silent.
//! 2. Clients finish their handshake and reset within 1.5 ms, while the server is connected.
//! 3. No connection may be left, and SIGTERM ends the process.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::backend::Backend;
use crate::support::client;
use crate::support::server::{NAME, Setup};

const THREADS: u64 = 8;
const CLIENTS_OF_A_THREAD: u64 = 100;

#[test]
fn cancel_never_overtakes_its_receive() {
    let silent = Backend::new(|mut stream| {
        _ = stream.read_to_end(&mut Vec::new());
    });
    let mut server = Setup::new(silent).tables("[timeouts]\ndrain = \"1s\"").start();
    let (config, address) = (Arc::new(client::config()), server.address);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let config = &config;
            scope.spawn(move || {
                for count in 0..CLIENTS_OF_A_THREAD {
                    let tls = client::try_connect(config, address, NAME).unwrap();
                    client::reset_at_close(&tls.sock);
                    // Any moment of the connect to the server: what is waited for is the reset.
                    let moment = (count * THREADS + thread) * 37 % 150;
                    std::thread::sleep(Duration::from_micros(10 * moment));
                }
            });
        }
    });
    server.wait_metric(
        "portcullis_connections_accepted_total",
        f64::from(u32::try_from(THREADS * CLIENTS_OF_A_THREAD).unwrap()),
    );
    server.wait_idle();
    let start = Instant::now();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}
