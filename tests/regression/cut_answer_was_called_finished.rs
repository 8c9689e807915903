//! Symptom: a client that went away in the middle of its answer was counted as `finished`.
//!
//! Cause: the failed send emptied the queue before anybody looked whether something was in it.
//!
//! Scenario:
//! 1. The client asks and ends its side with `close_notify`.
//! 2. The server answers more than the client takes, and ends; a part waits in our queue.
//! 3. The client resets. That is no orderly end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::keep_little;
use crate::support::SOON;
use crate::support::backend::Backend;
use crate::support::client::{self, Tls};
use crate::support::server::Server;

/// Bytes that the server writes at once, and that the client reads at once.
const PIECE: usize = 16 * 1024;

/// How long no byte moves before we believe that none will.
const STALLED: Duration = Duration::from_millis(150);

/// Bytes passed on to clients so far.
fn passed_on(server: &Server) -> f64 {
    server.metrics().get("portcullis_outbound_bytes_total")
}

/// Whether `total` bytes have been passed on, or will be within a moment.
fn takes(server: &Server, total: f64) -> bool {
    let deadline = Instant::now() + STALLED;
    loop {
        if passed_on(server) >= total {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Answers until nothing more is taken, ends, and has the client read until the rest is taken too:
/// what the client does not read now is in a queue of ours or of the kernel.
fn answer_too_much(server: &Server, origin: &mut TcpStream, tls: &mut Tls) {
    let mut total = passed_on(server);
    loop {
        origin.write_all(&[b'a'; PIECE]).unwrap();
        total += f64::from(u32::try_from(PIECE).unwrap());
        if !takes(server, total) {
            break;
        }
    }
    origin.shutdown(std::net::Shutdown::Write).unwrap();
    while passed_on(server) < total {
        assert!(tls.read(&mut [0; PIECE]).unwrap() > 0);
    }
}

#[test]
fn an_answer_cut_by_the_client_is_not_finished() {
    let (sender, accepted) = mpsc::channel();
    let server = Server::before(Backend::new(move |stream| sender.send(stream).unwrap()));
    for count in 1..=6 {
        let mut tls = client::connect(server.address);
        keep_little(&tls.sock);
        let mut origin = accepted.recv_timeout(SOON).unwrap();
        client::end_sending(&mut tls);
        // Its end is there: the client has nothing more to say.
        assert_eq!(origin.read(&mut [0]).unwrap(), 0);
        answer_too_much(&server, &mut origin, &mut tls);
        let relaying = server.metrics().get("portcullis_connections{state=\"relay\"}");
        assert_eq!(relaying, 1.0, "nothing is queued any more");
        client::reset_at_close(&tls.sock);
        drop(tls);
        server.wait_closed("client_reset", count);
    }
    server.wait_idle();
}
