//! Hand-written conversations in a kind world, and the one reason that each has to end with.

use std::time::Duration;

use portcullis::config::ProxyVersion;
use portcullis::io::Time;
use portcullis::limits::{
    ACCEPTS_ARMED, BEGINNING_PER_TURN, ENDING_PER_TURN, ENDING_PER_TURN_BUSY,
    STREAM_RECEIVES_PER_TURN,
};
use portcullis::telemetry::labels::{
    CloseReason, GivingWay, HandshakeOutcome, HandshakeQueue, HandshakeStep, KeyType, Label, Limit,
};
use portcullis::telemetry::record::Record;

use crate::conversation::Conversation;
use crate::faults::{ClientEnd, ConnectOutcome, Misbehaviour, Opening, Pace, Plan, Reply};
use crate::run::{LISTENERS, Outcome, Sent, Setting};

/// Runs one conversation by itself.
fn one(plan: Plan) -> (Conversation, Record, Outcome) {
    one_of(&Setting::of(vec![plan]))
}

fn one_of(setting: &Setting) -> (Conversation, Record, Outcome) {
    let mut outcome = setting.run();
    let record = outcome.records.remove(0).expect("it was accepted");
    (outcome.talks.remove(0), record, outcome)
}

fn seconds(nanos: u64) -> u64 {
    nanos / 1_000_000_000
}

#[test]
fn an_echo_finishes() {
    for tls12 in [false, true] {
        let mut plan = Plan::echo(300_000);
        plan.client.tls12 = tls12;
        let (talk, record, outcome) = one(plan);
        assert_eq!(record.reason, CloseReason::Finished);
        assert_eq!(record.handshake, HandshakeOutcome::Ok);
        assert_eq!(record.inbound_bytes, 300_000);
        assert_eq!(record.outbound_bytes, 300_000);
        assert_eq!(talk.client.got, 300_000);
        assert_eq!(outcome.counters.inbound_bytes.get(), 300_000);
    }
}

#[test]
fn streams_that_take_turns_lose_nothing() {
    let count = 5 * STREAM_RECEIVES_PER_TURN;
    let outcome = Setting::of(vec![Plan::echo(400_000); count]).run();
    for (talk, record) in outcome.talks.iter().zip(&outcome.records) {
        let record = record.as_ref().expect("it was accepted");
        assert_eq!(record.reason, CloseReason::Finished);
        assert_eq!((talk.server.got, talk.client.got), (400_000, 400_000));
    }
}

#[test]
fn a_server_behind_the_proxy_protocol_learns_the_clients_address() {
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        let mut setting = Setting::of(vec![Plan::echo(1000)]);
        setting.proxy = Some(version);
        let (talk, record, _) = one_of(&setting);
        assert_eq!(record.reason, CloseReason::Finished);
        assert_eq!(record.inbound_bytes, 1000, "the header does not count");
        assert_eq!(talk.server.got, 1000);
    }
}

#[test]
fn client_half_close_still_receives_reply() {
    let mut plan = Plan::echo(10_000);
    plan.client.end = ClientEnd::AfterRequest;
    plan.server.reply = Reply::AfterEnd(100_000);
    let (talk, record, _) = one(plan);
    assert_eq!(record.reason, CloseReason::Finished);
    assert_eq!(talk.client.got, 100_000);
}

#[test]
fn server_half_close_still_receives_the_request() {
    let mut plan = Plan::echo(300_000);
    plan.client.end = ClientEnd::AfterServer;
    plan.client.pace.write_max = 1000;
    plan.server.reply = Reply::Source(10);
    plan.server.ends_first = true;
    let (talk, record, _) = one(plan);
    assert_eq!(record.reason, CloseReason::Finished);
    assert_eq!(talk.server.got, 300_000);
}

#[test]
fn a_client_hello_in_one_byte_pieces_is_served() {
    let mut plan = Plan::echo(10);
    plan.client.trickle = Some(10_000);
    plan.client.pace = Pace { read_max: 1, ..Pace::FAST };
    assert_eq!(one(plan).1.reason, CloseReason::Finished);
}

#[test]
fn a_client_that_says_nothing_runs_into_the_handshake_timeout() {
    for bytes in [0, 1, 100] {
        let mut plan = Plan::echo(10);
        plan.client.misbehaves = Some((bytes, Misbehaviour::Silent));
        let (_, record, _) = one(plan);
        assert_eq!(record.reason, CloseReason::HandshakeFailed);
        assert_eq!(record.handshake, HandshakeOutcome::Timeout);
        // A client is given two seconds to read our last words.
        assert!((30..=32).contains(&seconds(record.total_nanos)));
    }
}

#[test]
fn a_client_that_leaves_before_its_hello_is_told_apart_from_one_that_resets() {
    for (how, outcome) in [
        (Misbehaviour::Fin, HandshakeOutcome::ClientClosed),
        (Misbehaviour::Close, HandshakeOutcome::ClientClosed),
        (Misbehaviour::Reset, HandshakeOutcome::ClientReset),
    ] {
        for bytes in [0, 50] {
            let mut plan = Plan::echo(10);
            plan.client.misbehaves = Some((bytes, how));
            let (_, record, _) = one(plan);
            assert_eq!(record.reason, CloseReason::HandshakeFailed);
            assert_eq!(record.handshake, outcome, "{how:?} after {bytes} bytes");
        }
    }
}

#[test]
fn plain_http_is_named() {
    let mut plan = Plan::echo(0);
    plan.client.opening = Opening::PlainHttp;
    let (_, record, _) = one(plan);
    assert_eq!(record.reason, CloseReason::HandshakeFailed);
    assert_eq!(record.handshake, HandshakeOutcome::PlainHttp);
}

#[test]
fn a_client_hello_above_the_limit_is_refused_even_in_pieces() {
    for write_max in [1, 90] {
        let mut plan = Plan::echo(10);
        plan.client.pace.write_max = write_max;
        let mut setting = Setting::of(vec![plan]);
        setting.client_hello_bytes = 100;
        let (_, record, _) = one_of(&setting);
        assert_eq!(record.reason, CloseReason::HandshakeFailed);
        assert_eq!(record.handshake, HandshakeOutcome::ClientHelloTooLarge);
    }
}

#[test]
fn an_idle_connection_ends_after_its_timeout() {
    let mut plan = Plan::echo(1000);
    plan.client.end = ClientEnd::Never;
    let (talk, record, outcome) = one(plan);
    assert_eq!(record.reason, CloseReason::IdleTimeout);
    assert_eq!(record.outbound_bytes, 1000);
    assert_eq!(talk.client.got, 1000);
    assert!((60..=62).contains(&seconds(record.total_nanos)));
    assert_eq!(outcome.counters.rests.get(), 1);
}

/// Pauses between bytes that are longer than `timeouts.rest`.
const SLOW: Pace = Pace { read_max: 2000, write_max: 2000, pause_micros: 6_000_000 };

#[test]
fn whoever_speaks_after_a_rest_is_heard() {
    for (client, server) in [(SLOW, Pace::FAST), (Pace::FAST, SLOW), (SLOW, SLOW)] {
        let mut plan = Plan::echo(10_000);
        plan.client.pace = client;
        plan.server.pace = server;
        let (talk, record, outcome) = one(plan);
        assert_eq!(record.reason, CloseReason::Finished);
        assert_eq!(talk.client.got, 10_000);
        assert!(outcome.counters.rests.get() >= 5, "it had no rest");
    }
}

#[test]
fn a_reset_reaches_a_connection_at_rest() {
    let mut plan = Plan::echo(1000);
    plan.client.end = ClientEnd::Never;
    plan.server.pace.pause_micros = 20_000_000;
    plan.server.misbehaves = Some((2000, Misbehaviour::Reset));
    let (talk, record, outcome) = one(plan);
    assert_eq!(record.reason, CloseReason::ServerReset);
    assert!(talk.client.saw_failure && !talk.client.saw_end);
    assert!(outcome.counters.rests.get() >= 1, "it had no rest");
}

#[test]
fn wake_ups_for_nothing_do_not_put_the_idle_timeout_off() {
    let mut plan = Plan::echo(1000);
    plan.client.end = ClientEnd::Never;
    let mut setting = Setting::of(vec![plan]);
    setting.faults.spurious_polls = 1000;
    let (_, record, outcome) = one_of(&setting);
    assert_eq!(record.reason, CloseReason::IdleTimeout);
    assert!((60..=62).contains(&seconds(record.total_nanos)));
    assert!(outcome.counters.rests.get() >= 50, "it was woken each time");
}

#[test]
fn a_server_that_never_answers_a_half_closed_client_runs_into_its_timeout() {
    let mut plan = Plan::echo(1000);
    plan.client.end = ClientEnd::AfterRequest;
    plan.server.misbehaves = Some((2000, Misbehaviour::Silent));
    let (talk, record, _) = one(plan);
    assert_eq!(record.reason, CloseReason::HalfClosedTimeout);
    assert_eq!(seconds(record.total_nanos), 20);
    assert!(!talk.client.saw_end, "nothing ended cleanly");
}

fn on_first_byte(plan: Plan) -> (Conversation, Record, Outcome) {
    let mut setting = Setting::of(vec![plan]);
    setting.on_first_byte = true;
    one_of(&setting)
}

#[test]
fn on_first_byte_a_client_that_speaks_gets_its_server() {
    for (pace, connects) in [
        (Pace::FAST, Vec::new()),
        (SLOW, Vec::new()),
        (SLOW, vec![ConnectOutcome::Refused]),
        (Pace::FAST, vec![ConnectOutcome::Hangs]),
    ] {
        let mut plan = Plan::echo(10_000);
        plan.client.pace = pace;
        plan.connects = connects;
        let tries = 1 + plan.connects.len();
        let (talk, record, _) = on_first_byte(plan);
        assert_eq!((record.reason, talk.tries), (CloseReason::Finished, tries));
        assert_eq!(talk.client.got, 10_000);
    }
}

#[test]
fn on_first_byte_a_silent_client_costs_no_server_however_it_ends() {
    let mut plan = Plan::echo(0);
    plan.client.end = ClientEnd::Never;
    let (talk, record, outcome) = on_first_byte(plan.clone());
    assert_eq!((record.reason, talk.tries), (CloseReason::IdleTimeout, 0));
    assert!((60..=62).contains(&seconds(record.total_nanos)));
    assert_eq!((record.backend, record.connect_nanos), (None, 0));
    assert_eq!(outcome.counters.rests.get(), 1);

    plan.client.end = ClientEnd::AfterRequest;
    let (talk, record, _) = on_first_byte(plan);
    assert_eq!((record.reason, talk.tries), (CloseReason::Finished, 0));
    assert!(talk.client.saw_end, "its close_notify was not answered");
}

#[test]
fn a_refused_connect_is_tried_on_another_server() {
    for outcome in [ConnectOutcome::Refused, ConnectOutcome::Hangs] {
        let mut plan = Plan::echo(1000);
        plan.connects = vec![outcome];
        let (talk, record, outcome) = one(plan);
        assert_eq!(record.reason, CloseReason::Finished);
        assert_eq!(talk.tries, 2);
        assert_eq!(talk.client.got, 1000);
        assert_eq!(outcome.counters.connect_retries.get(), 1);
    }
}

#[test]
fn when_no_server_answers_the_reason_says_how_it_failed() {
    for (outcome, reason, timeouts) in [
        (ConnectOutcome::Refused, CloseReason::ConnectFailed, 0),
        (ConnectOutcome::NoFiles, CloseReason::ConnectFailed, 0),
        (ConnectOutcome::Hangs, CloseReason::ConnectTimeout, 2),
    ] {
        let mut plan = Plan::echo(1000);
        plan.connects = vec![outcome; 2];
        let (talk, record, _) = one(plan);
        assert_eq!(record.reason, reason, "{outcome:?}");
        assert_eq!(record.handshake, HandshakeOutcome::Ok);
        assert_eq!(seconds(record.total_nanos), 3 * timeouts);
        assert_eq!(talk.client.got, 0);
        assert!(!talk.client.saw_end, "no server has ended anything");
    }
}

#[test]
fn a_backend_without_servers_is_named() {
    let mut setting = Setting::of(vec![Plan::echo(10)]);
    setting.servers = 0;
    assert_eq!(one_of(&setting).1.reason, CloseReason::NoServer);
}

#[test]
fn a_reset_by_the_server_reaches_the_client_as_one() {
    let mut plan = Plan::echo(100_000);
    plan.server.misbehaves = Some((5000, Misbehaviour::Reset));
    let (talk, record, _) = one(plan);
    assert_eq!(record.reason, CloseReason::ServerReset);
    assert!(talk.client.saw_failure);
    assert!(!talk.client.saw_end, "its reply was cut short");
}

#[test]
fn a_client_that_breaks_off_after_the_handshake_is_told_apart() {
    for (how, reason) in [
        (Misbehaviour::Fin, CloseReason::ClientTruncated),
        (Misbehaviour::Reset, CloseReason::ClientReset),
        (Misbehaviour::Garbage, CloseReason::ClientViolation),
    ] {
        let mut plan = Plan::echo(100_000);
        plan.client.misbehaves = Some((20_000, how));
        let (talk, record, _) = one(plan);
        assert_eq!(record.handshake, HandshakeOutcome::Ok);
        assert_eq!(record.reason, reason, "{how:?}");
        assert!(!talk.server.saw_end, "the request was cut short: {how:?}");
    }
}

#[test]
fn a_drain_lets_connections_finish_and_ends_the_others_at_its_timeout() {
    let mut idle = Plan::echo(10);
    idle.client.end = ClientEnd::Never;
    let mut busy = Plan::echo(20_000);
    busy.client.pace = Pace { read_max: 1000, write_max: 1000, pause_micros: 10_000 };
    let mut late = Setting::of(vec![idle, busy, Plan::echo(10)]);
    late.clients[2].0 = Time(1_000_000_000);
    let timeout = Duration::from_secs(5);
    late.commands = vec![(Time(100_000_000), Sent::Drain(timeout))];
    let outcome = late.run();
    let reason = |number: usize| outcome.records[number].as_ref().map(|one| one.reason);
    assert_eq!(reason(0), Some(CloseReason::DrainTimeout));
    assert_eq!(reason(1), Some(CloseReason::Finished));
    assert_eq!(reason(2), None, "nothing is accepted while draining");
}

#[test]
fn a_stop_ends_everything_at_once() {
    let mut idle = Plan::echo(10);
    idle.client.end = ClientEnd::Never;
    let mut setting = Setting::of(vec![idle]);
    setting.commands = vec![(Time(1_000_000_000), Sent::Stop)];
    let (_, record, _) = one_of(&setting);
    assert_eq!(seconds(record.total_nanos), 1);
}

#[test]
fn a_full_table_makes_clients_wait_and_loses_none() {
    let mut setting = Setting::of(vec![Plan::echo(1000); 20]);
    setting.connections = 2;
    let outcome = setting.run();
    let finished = |record: &Option<Record>| {
        record.as_ref().map(|one| one.reason) == Some(CloseReason::Finished)
    };
    assert!(outcome.records.iter().all(finished));
}

/// Steps of a full handshake that cost 10 ms, as an RSA key on a slow core does.
fn slow_handshakes(setting: &mut Setting) {
    setting.faults.full_step_micros = 10_000;
    setting.connections = 256;
    setting.handshake.max_pending = 1000;
}

#[test]
fn an_overloaded_worker_spends_no_cryptography_on_those_it_drops() {
    let mut setting = Setting::of(vec![Plan::echo(10); 200]);
    slow_handshakes(&mut setting);
    setting.handshake.queue_deadline = Duration::from_millis(100);
    let outcome = setting.run();
    let ended = |wanted| {
        let records = outcome.records.iter().flatten();
        records.filter(|record| record.handshake == wanted).count() as u64
    };
    let (ok, dropped) = (ended(HandshakeOutcome::Ok), ended(HandshakeOutcome::Overload));
    assert_eq!(ok + dropped, 200);
    assert!((5..=15).contains(&ok), "100 ms are ten steps: {ok} were done");
    let [full, _] = outcome.counters.steps(HandshakeStep::Full);
    let full: u64 = KeyType::ALL.iter().map(|key| full.of(*key).get()).sum();
    assert_eq!(full, ok, "each step was for somebody who got through");
    assert_eq!(outcome.counters.limits.of(Limit::HandshakesDropped).get(), dropped);
    for queue in HandshakeQueue::ALL {
        assert_eq!(outcome.counters.handshake_queue.of(*queue).get(), 0, "{queue}");
    }
}

#[test]
fn too_many_pending_handshakes_pause_accept_and_lose_nobody() {
    let mut setting = Setting::of(vec![Plan::echo(10); 200]);
    slow_handshakes(&mut setting);
    setting.handshake.max_pending = 64;
    setting.handshake.queue_deadline = Duration::from_secs(60);
    let outcome = setting.run();
    let paused = outcome.counters.limits.of(Limit::HandshakesPending).get();
    assert!(paused > 1, "it goes on and pauses again: {paused}");
    assert_eq!(outcome.counters.handshakes.of(HandshakeOutcome::Ok).get(), 200);
    assert_eq!(outcome.counters.accept_paused.get(), 0);
}

#[test]
fn a_flood_of_handshakes_holds_up_those_before_it_by_a_step_each_time() {
    let mut setting = Setting::of(vec![Plan::echo(10)]);
    slow_handshakes(&mut setting);
    // While the first step of the first client is done.
    let flood = Time(5_000_000);
    setting.clients.extend((0..100).map(|_| (flood, Plan::echo(10))));
    let outcome = setting.run();
    let record = outcome.records[0].as_ref().expect("it was accepted");
    assert_eq!(record.reason, CloseReason::Finished);
    // Its own step, and one of somebody else's each time that it has to be looked at: its Finished,
    // the connect, the request, the reply, the ends. All of the flood's would take 1.1 s.
    assert!(record.total_nanos < 200_000_000, "{record:#?}");
    assert_eq!(outcome.counters.handshakes.of(HandshakeOutcome::Ok).get(), 101);
}

#[test]
fn a_kept_connection_waits_for_one_step_of_a_flood_and_not_for_a_whole_budget() {
    // Says a little every millisecond or so, for 200 of them.
    let mut kept = Plan::echo(20_000);
    kept.client.pace = Pace { write_max: 100, pause_micros: 2000, ..Pace::FAST };
    let longest_turn = |plan: Plan| {
        let mut setting = Setting::of(vec![plan]);
        slow_handshakes(&mut setting);
        setting.faults.full_step_micros = 1000;
        setting.handshake.budget = Duration::from_millis(50);
        let flood = Time(100_000_000);
        setting.clients.extend((0..60).map(|_| (flood, Plan::echo(10))));
        let outcome = setting.run();
        assert_eq!(outcome.counters.handshakes.of(HandshakeOutcome::Ok).get(), 61);
        Duration::from_nanos(outcome.counters.longest_turn_nanos.get())
    };
    let (beside, alone) = (longest_turn(kept), longest_turn(Plan::echo(10)));
    assert!(beside <= Duration::from_millis(3), "{beside:?}");
    assert!(alone >= Duration::from_millis(20), "nobody is spared by looks: {alone:?}");
}

#[test]
fn nobody_waits_for_all_of_those_who_come_and_go_together() {
    // Is there for three seconds, and busy.
    let kept = {
        let mut plan = Plan::echo(300_000);
        plan.client.pace = Pace { write_max: 100, pause_micros: 2000, ..Pace::FAST };
        plan
    };
    let most_started = |plan: Plan| {
        let mut setting = Setting::of(vec![plan]);
        setting.connections = 256;
        setting.handshake.max_pending = 1000;
        setting.timeouts.client_hello = Duration::from_millis(20);
        // They say no more, and are told so, and closed two seconds later, at the same time.
        let mut silent = Plan::echo(10);
        silent.client.misbehaves = Some((1, Misbehaviour::Silent));
        setting.clients.extend((0..100).map(|_| (Time(100_000_000), silent.clone())));
        let outcome = setting.run();
        let timed_out = outcome.counters.handshakes.of(HandshakeOutcome::ClientHelloTimeout).get();
        assert_eq!(timed_out, 100);
        let record = outcome.records[0].as_ref().expect("it was accepted");
        assert_eq!(record.reason, CloseReason::Finished);
        for queue in GivingWay::ALL {
            assert_eq!(outcome.counters.operations_waiting.of(*queue).get(), 0, "{queue}");
        }
        outcome.most_started
    };
    // The first accepts are armed while nobody is there.
    let accepts = ACCEPTS_ARMED as usize * LISTENERS;
    let beside = most_started(kept);
    let few = BEGINNING_PER_TURN + ENDING_PER_TURN_BUSY;
    assert!(beside <= accepts.max(few + 4), "{beside}");
    let alone = most_started(Plan::echo(10));
    assert!(alone <= 2 * accepts + ENDING_PER_TURN, "newcomers wait for {alone}");
}
