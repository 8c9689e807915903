//! Bugs that must not come back, one module each, against the real binary.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, and its helpers stand outside #[test] functions"
)]
#![expect(
    clippy::float_cmp,
    reason = "metrics are whole numbers below 2^53, which f64 holds exactly"
)]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "shared with the end-to-end tests, which use all of it")]
mod support;

mod cancel_overtook_its_receive;
mod cut_answer_was_called_finished;
mod refused_upload_cost_the_answer;
mod slow_reader_lost_the_end;

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Gives `stream` a small receive buffer, so that what its owner does not read waits at the
/// sender.
fn keep_little(stream: &TcpStream) {
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::RcvBuf, &(32 * 1024)).unwrap();
}

/// How a stream ended.
#[derive(Debug, PartialEq)]
enum End {
    /// With an end that says so: `close_notify`, or a TCP end where there is no TLS.
    Said,
    /// Without one.
    Cut(ErrorKind),
}

/// Reads to the end at `rate` bytes a second, and calls `between` with the stream after each read.
fn read_slowly<S: Read>(
    stream: &mut S,
    rate: u64,
    mut between: impl FnMut(&mut S),
) -> (Vec<u8>, End) {
    let (start, mut all, mut buffer) = (Instant::now(), Vec::new(), vec![0; 16 * 1024]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (all, End::Said),
            Ok(count) => all.extend_from_slice(&buffer[..count]),
            Err(error) => return (all, End::Cut(error.kind())),
        }
        between(stream);
        // The rate is the scenario; nothing waits for this to be long enough.
        let due = Duration::from_millis(1000 * all.len() as u64 / rate);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
}
