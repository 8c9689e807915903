//! The simulated kernel itself, driven by hand: what it promises the worker has to be true before
//! a worker's failure means anything.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use portcullis::io::buffer::Pool;
use portcullis::io::{
    Address, Buffer, Completion, Connect, Errno, Io, Kind, Operation, Payload, Side, Time, Token,
};

use crate::conversation::Conversation;
use crate::faults::{Faults, Misbehaviour, Opening, Plan};
use crate::random::Random;
use crate::run::client_configs;
use crate::sim_io::SimIo;
use crate::world::{World, client_address};

/// A client that speaks plain HTTP, so that no TLS is needed to answer it.
fn http() -> Plan {
    let mut plan = Plan::echo(0);
    plan.client.opening = Opening::PlainHttp;
    plan
}

fn kernel(faults: Faults, plan: Plan) -> SimIo {
    let mut world = World::new(Random::new(5), faults, 1, client_configs());
    world.expect_client(Time(0), Conversation::new(5, 0, 0, plan));
    let (commands, _) = rtrb::RingBuffer::new(4);
    SimIo::new(world, commands, None)
}

fn token(kind: Kind) -> Token {
    Token::new(0, 1, kind)
}

/// Waits until `kind` has completed; whatever completes before is thrown away.
fn until(io: &mut SimIo, kind: Kind) -> Completion {
    let mut completions = Vec::new();
    for _ in 0..1000 {
        io.wait(Some(io.world.now + Duration::from_secs(600)), &mut completions);
        let found = completions.iter().position(|one| one.token.kind == kind);
        if let Some(found) = found {
            return completions.swap_remove(found);
        }
        completions.clear();
    }
    panic!("{kind:?} never completed");
}

fn run(io: &mut SimIo, kind: Kind, operation: Operation) -> Completion {
    io.submit(token(kind), operation);
    until(io, kind)
}

fn accepted(faults: Faults, plan: Plan) -> SimIo {
    let mut io = kernel(faults, plan);
    let accepted = run(&mut io, Kind::Accept, Operation::Accept { listener: 0 });
    assert_eq!(accepted.result, Ok(0));
    assert!(matches!(accepted.payload, Payload::Peer(peer) if peer == client_address(0)));
    io
}

fn recv(io: &mut SimIo) -> Result<Vec<u8>, Errno> {
    let side = Side::Client;
    let completion = run(io, Kind::RecvClient, Operation::Recv { side, streams: false });
    let len = completion.result?;
    let Payload::Received(at) = completion.payload else {
        assert_eq!(len, 0, "bytes come with a buffer");
        return Ok(Vec::new());
    };
    assert_eq!(len, at.len);
    let bytes = io.received(&at).to_vec();
    io.recycle(at);
    Ok(bytes)
}

fn buffer(len: usize) -> Buffer {
    let mut buffer = Pool::default().take(len);
    assert_eq!(buffer.append(&vec![7; len]), len);
    buffer
}

fn send(io: &mut SimIo, len: usize) -> Result<u32, Errno> {
    let (side, buffer) = (Side::Client, buffer(len));
    let completion = run(io, Kind::SendClient, Operation::Send { side, buffer, ends: false });
    let Payload::Sent(buffer) = completion.payload else {
        panic!("a send gives its buffer back, always");
    };
    assert_eq!(buffer.unsent().len(), len, "its owner counts what was sent");
    completion.result
}

fn close(mut io: SimIo) {
    let side = Side::Client;
    let closed = run(&mut io, Kind::CloseClient, Operation::Close { side });
    assert_eq!(closed.result, Ok(0));
    io.check_nothing_leaked();
    io.come_to_rest();
}

/// What the panic says that `act` ends in.
fn violation(act: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(act)).expect_err("the kernel noticed nothing");
    *panic.downcast::<String>().expect("a message")
}

#[test]
fn a_request_arrives_and_the_end_of_its_stream_after_our_shutdown() {
    for short in [0, 1000] {
        let faults = Faults { short_reads: short, ..Faults::none() };
        let mut io = accepted(faults, http());
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.extend(recv(&mut io).unwrap());
        }
        assert!(request.starts_with(b"GET / HTTP/1.1\r\n"));
        let side = Side::Client;
        let shutdown = run(&mut io, Kind::ShutdownClient, Operation::Shutdown { side });
        assert_eq!(shutdown.result, Ok(0));
        assert_eq!(recv(&mut io), Ok(Vec::new()));
        assert_eq!(send(&mut io, 1), Err(Errno::BROKEN_PIPE));
        close(io);
    }
}

#[test]
fn a_send_to_a_silent_client_fills_the_socket_and_then_waits_until_it_is_cancelled() {
    let mut plan = http();
    plan.client.misbehaves = Some((0, Misbehaviour::Silent));
    plan.capacity = 1000;
    let mut io = accepted(Faults::none(), plan);
    assert_eq!(send(&mut io, 1500), Ok(1000));
    let (side, buffer) = (Side::Client, buffer(500));
    io.submit(token(Kind::SendClient), Operation::Send { side, buffer, ends: false });
    let target = Kind::SendClient;
    let cancel = token(Kind::CancelSendClient);
    io.submit(cancel, Operation::Cancel { target });
    let sent = until(&mut io, Kind::SendClient);
    assert_eq!(sent.result, Err(Errno::CANCELED));
    assert!(matches!(sent.payload, Payload::Sent(buffer) if buffer.unsent().len() == 500));
    if !io.in_flight.is_empty() {
        until(&mut io, Kind::CancelSendClient);
    }
    close(io);
}

#[test]
fn a_cancel_that_comes_too_late_finds_nothing_and_its_target_succeeds() {
    let mut io = accepted(Faults::none(), http());
    while recv(&mut io).unwrap().last() != Some(&b'\n') {}
    let (side, buffer) = (Side::Client, buffer(10));
    io.submit(token(Kind::SendClient), Operation::Send { side, buffer, ends: false });
    let target = Kind::SendClient;
    let cancel = token(Kind::CancelSendClient);
    io.submit(cancel, Operation::Cancel { target });
    let mut results = Vec::new();
    while !io.in_flight.is_empty() {
        let mut completions = Vec::new();
        io.wait(None, &mut completions);
        results.extend(completions.iter().map(|one| (one.token.kind, one.result)));
    }
    assert!(results.contains(&(Kind::SendClient, Ok(10))));
    assert!(results.contains(&(Kind::CancelSendClient, Err(Errno::NOT_FOUND))));
    close(io);
}

#[test]
fn a_receive_without_a_free_buffer_says_so() {
    let faults = Faults { receive_buffers: 0, ..Faults::none() };
    let mut io = accepted(faults, http());
    assert_eq!(recv(&mut io), Err(Errno::NO_BUFFERS));
    close(io);
}

#[test]
fn a_reset_by_the_client_ends_a_waiting_receive() {
    let mut plan = http();
    plan.client.misbehaves = Some((0, Misbehaviour::Reset));
    let mut io = accepted(Faults::none(), plan);
    assert_eq!(recv(&mut io), Err(Errno::CONNECTION_RESET));
    assert_eq!(recv(&mut io), Ok(Vec::new()));
    close(io);
}

#[test]
fn a_poll_takes_nothing_and_waits_for_bytes_ends_and_errors() {
    let mut io = accepted(Faults::none(), http());
    let side = Side::Client;
    for _ in 0..2 {
        let polled = run(&mut io, Kind::PollClient, Operation::Poll { side });
        assert!(polled.result.is_ok());
    }
    while recv(&mut io).unwrap().last() != Some(&b'\n') {}
    io.submit(token(Kind::PollClient), Operation::Poll { side });
    let target = Kind::PollClient;
    io.submit(token(Kind::CancelPollClient), Operation::Cancel { target });
    let polled = until(&mut io, Kind::PollClient);
    assert_eq!(polled.result, Err(Errno::CANCELED));
    if !io.in_flight.is_empty() {
        until(&mut io, Kind::CancelPollClient);
    }
    close(io);

    let mut plan = http();
    plan.client.misbehaves = Some((0, Misbehaviour::Reset));
    let mut io = accepted(Faults::none(), plan);
    for _ in 0..2 {
        let polled = run(&mut io, Kind::PollClient, Operation::Poll { side });
        assert!(polled.result.is_ok());
    }
    assert_eq!(recv(&mut io), Err(Errno::CONNECTION_RESET));
    close(io);
}

#[test]
fn an_accept_without_descriptors_leaves_the_client_in_the_queue() {
    let faults = Faults { accept_no_files: 1000, ..Faults::none() };
    let mut io = kernel(faults, http());
    for _ in 0..3 {
        let failed = run(&mut io, Kind::Accept, Operation::Accept { listener: 0 });
        assert!(failed.result.unwrap_err().is_exhaustion());
    }
    io.world.faults.accept_no_files = 0;
    let accepted = run(&mut io, Kind::Accept, Operation::Accept { listener: 0 });
    assert_eq!(accepted.result, Ok(0));
    close(io);
}

#[test]
fn a_worker_that_breaks_the_contract_is_found_out() {
    let mut io = accepted(Faults::none(), http());
    let side = Side::Client;
    let close = || Operation::Close { side };
    let recv = || Operation::Recv { side, streams: false };
    while self::recv(&mut io).unwrap().last() != Some(&b'\n') {}
    io.submit(token(Kind::RecvClient), recv());
    let twice = violation(|| io.submit(token(Kind::RecvClient), recv()));
    assert!(twice.contains("is in flight already"), "{twice}");

    let mut io = accepted(Faults::none(), http());
    io.submit(token(Kind::RecvClient), recv());
    let busy = violation(|| io.submit(token(Kind::CloseClient), close()));
    assert!(busy.contains("while"), "{busy}");

    let mut io = accepted(Faults::none(), http());
    let leak = violation(|| io.check_nothing_leaked());
    assert!(leak.contains("never closed"), "{leak}");
    let completion = run(&mut io, Kind::RecvClient, recv());
    let Payload::Received(at) = completion.payload else {
        panic!("the request has arrived");
    };
    let leak = violation(|| io.buffers.check_all_returned());
    assert!(leak.contains("never recycled"), "{leak}");
    io.recycle(portcullis::io::ReceivedAt { ..at });
    let twice = violation(|| {
        io.received(&at);
    });
    assert!(twice.contains("not lent"), "{twice}");
}

#[test]
fn a_refused_connect_keeps_its_socket_until_it_is_closed() {
    let mut plan = http();
    plan.connects =
        vec![crate::faults::ConnectOutcome::Refused, crate::faults::ConnectOutcome::Hangs];
    let mut io = accepted(Faults::none(), plan);
    let connect = |port| {
        let address = Address::Inet(SocketAddr::from(([127, 0, 0, 1], port)));
        Operation::Connect(Box::new(Connect { address, source: None, speaks: false }))
    };
    let refused = run(&mut io, Kind::Connect, connect(1));
    assert_eq!(refused.result, Err(Errno::CONNECTION_REFUSED));
    let again = violation(|| io.submit(token(Kind::Connect), connect(2)));
    assert!(again.contains("was not closed"), "{again}");
    let side = Side::Server;
    run(&mut io, Kind::CloseServer, Operation::Close { side });

    io.submit(token(Kind::Connect), connect(2));
    let target = Kind::Connect;
    io.submit(token(Kind::CancelConnect), Operation::Cancel { target });
    let cancelled = until(&mut io, Kind::Connect);
    assert_eq!(cancelled.result, Err(Errno::CANCELED));
    if !io.in_flight.is_empty() {
        until(&mut io, Kind::CancelConnect);
    }
    run(&mut io, Kind::CloseServer, Operation::Close { side });
    close(io);
}
