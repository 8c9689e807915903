//! Symptom: a client that reads a long answer steadily but slowly lost its last megabytes.
//!
//! Cause: the kernel took the whole answer at once, after which no operation completed any more;
//! `timeouts.half_closed` ran out while the client was reading, and reset the connection together
//! with what the kernel still held.
//!
//! Scenario:
//! 1. The server sends a long answer and ends.
//! 2. The client reads it for longer than `half_closed`, and does not end.
//! 3. It must get every byte and the `close_notify`.

use std::io::{Read, Write};

use crate::support::backend::Backend;
use crate::support::client;
use crate::support::pattern;
use crate::support::server::Setup;
use crate::{End, read_slowly};

const ANSWER_BYTES: u64 = 4_000_000;
const BYTES_A_SECOND: u64 = 400_000;

#[test]
fn a_slow_reader_gets_the_whole_finished_answer() {
    let answering = Backend::new(|mut stream| {
        stream.read_exact(&mut [0; 3]).unwrap();
        _ = pattern::write(&mut stream, ANSWER_BYTES);
    });
    let server = Setup::new(answering).tables("[timeouts]\nhalf_closed = \"2s\"").start();
    let mut tls = client::connect(server.address);
    tls.write_all(b"GET").unwrap();
    let (answer, end) = read_slowly(&mut tls, BYTES_A_SECOND, |_| {});
    assert_eq!((answer.len() as u64, end), (ANSWER_BYTES, End::Said));
    pattern::verify(&mut &*answer, ANSWER_BYTES);
}
