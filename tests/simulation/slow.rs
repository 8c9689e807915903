//! Slow peers in virtual time: each ends for its own reason, when it should, and nobody else does.

use std::time::Duration;

use portcullis::telemetry::labels::{CloseReason, HandshakeOutcome, Limit};
use portcullis::telemetry::record::Record;

use crate::faults::{ClientEnd, Misbehaviour, Pace, Plan, Reply};
use crate::run::{Outcome, Setting};

const STALLED: Duration = Duration::from_secs(30);
/// More than all buffers on the way hold.
const LARGE: u64 = 1 << 20;

/// The setting of these tests: nothing but what is tested ends a connection within two minutes.
fn setting(plans: Vec<Plan>) -> Setting {
    let mut setting = Setting::of(plans);
    setting.timeouts.stalled = STALLED;
    setting.timeouts.idle = Duration::from_secs(600);
    setting.timeouts.half_closed = Duration::from_secs(600);
    setting
}

fn run(plan: Plan, min_rate: u32) -> (Record, Outcome) {
    let mut setting = setting(vec![plan, Plan::echo(LARGE)]);
    setting.min_rate = min_rate;
    let mut outcome = setting.run();
    let other = outcome.records.remove(1).expect("it was accepted");
    assert_eq!(other.reason, CloseReason::Finished, "somebody else was harmed");
    (outcome.records.remove(0).expect("it was accepted"), outcome)
}

fn seconds(record: &Record) -> u64 {
    record.total_nanos / 1_000_000_000
}

/// A client that asks and reads about so many bytes a second of a large answer.
fn reader(bytes_a_second: usize) -> Plan {
    let mut plan = Plan::echo(10);
    plan.capacity = 64 * 1024;
    plan.server.reply = Reply::Source(LARGE);
    plan.server.ends_first = true;
    plan.client.end = ClientEnd::AfterServer;
    // Pauses are random up to this: a second on average.
    let pause_micros = 2_000_000;
    plan.client.pace = Pace { read_max: bytes_a_second, pause_micros, ..Pace::FAST };
    plan
}

#[test]
fn a_client_that_stops_reading_is_too_slow() {
    let mut plan = reader(64 * 1024);
    plan.client.pace = Pace::FAST;
    plan.client.reads_until = Some(1000);
    let (record, _) = run(plan, 1024);
    assert_eq!(record.handshake, HandshakeOutcome::Ok);
    assert_eq!(record.reason, CloseReason::ClientTooSlow);
    // What the sockets take at first is much for one span.
    assert!((30..=60).contains(&seconds(&record)), "{}", seconds(&record));
}

#[test]
fn a_client_that_reads_too_little_is_too_slow_and_one_that_reads_enough_is_not() {
    let mut too_slow = reader(200);
    too_slow.client.reads_until = Some(LARGE / 2);
    let (record, _) = run(too_slow, 1024);
    assert_eq!(record.reason, CloseReason::ClientTooSlow);
    assert!((30..=62).contains(&seconds(&record)), "{}", seconds(&record));

    let (record, outcome) = run(reader(8 * 1024), 1024);
    assert_eq!(record.reason, CloseReason::Finished);
    assert!(seconds(&record) > 90, "it was no test: {}", seconds(&record));
    assert_eq!(outcome.talks[0].client.got, LARGE);
}

#[test]
fn without_a_minimum_rate_only_the_idle_timeout_is_left() {
    let mut plan = reader(64 * 1024);
    plan.client.pace = Pace::FAST;
    plan.client.reads_until = Some(1000);
    let (record, _) = run(plan, 0);
    assert_eq!(record.reason, CloseReason::IdleTimeout);
    let (record, _) = run(reader(2000), 0);
    assert_eq!(record.reason, CloseReason::Finished);
}

#[test]
fn a_client_that_talks_and_does_not_read_gains_nothing_by_it() {
    let mut plan = reader(64 * 1024);
    plan.client.pace = Pace { write_max: 1000, pause_micros: 1_000_000, ..Pace::FAST };
    plan.client.request_len = LARGE;
    plan.client.reads_until = Some(100);
    let (record, _) = run(plan, 1024);
    assert_eq!(record.reason, CloseReason::ClientTooSlow);
    assert!((30..=62).contains(&seconds(&record)), "{}", seconds(&record));
}

#[test]
fn a_server_that_takes_nothing_is_too_slow() {
    let mut plan = Plan::echo(LARGE);
    plan.capacity = 64 * 1024;
    plan.server.misbehaves = Some((2000, Misbehaviour::Silent));
    let (record, _) = run(plan, 1024);
    assert_eq!(record.reason, CloseReason::ServerTooSlow);
    assert!((30..=60).contains(&seconds(&record)), "{}", seconds(&record));
}

#[test]
fn a_server_that_waits_for_its_client_to_read_is_not_to_blame() {
    let mut plan = Plan::echo(LARGE);
    plan.capacity = 64 * 1024;
    plan.client.reads_until = Some(1000);
    let (record, _) = run(plan, 1024);
    assert_eq!(record.reason, CloseReason::ClientTooSlow);
}

#[test]
fn a_record_that_does_not_become_complete_ends_the_connection() {
    for tls12 in [false, true] {
        for how in [Misbehaviour::Silent, Misbehaviour::Crawl] {
            let mut plan = Plan::echo(LARGE);
            plan.client.tls12 = tls12;
            // In the midst of a record: the first is a full one.
            plan.client.misbehaves = Some((10_000, how));
            // The first has our own record layer, the second rustls's.
            let outcome = setting(vec![plan.clone(), plan, Plan::echo(LARGE)]).run();
            let records: Vec<&Record> = outcome.records.iter().flatten().collect();
            for record in &records[..2] {
                assert_eq!(record.reason, CloseReason::RecordTimeout, "{how:?}");
                assert!((30..=60).contains(&seconds(record)), "{how:?}: {}", seconds(record));
            }
            assert_eq!(records[2].reason, CloseReason::Finished);
        }
    }
}

#[test]
fn a_record_that_we_do_not_read_to_its_end_is_not_the_clients_fault() {
    let mut plan = Plan::echo(200_000);
    plan.capacity = 16 * 1024;
    plan.server.pace = Pace { read_max: 1000, pause_micros: 2_000_000, ..Pace::FAST };
    for min_rate in [0, 500] {
        let (record, _) = run(plan.clone(), min_rate);
        assert_eq!(record.reason, CloseReason::Finished);
        assert!(seconds(&record) > 90, "it was no test: {}", seconds(&record));
    }
}

#[test]
fn a_slow_client_whose_records_become_complete_is_served() {
    // 300 bytes a second: below the minimum rate, but nothing is kept of what it sends for long.
    let mut plan = Plan::echo(30_000);
    plan.client.pace = Pace { write_max: 300, pause_micros: 2_000_000, ..Pace::FAST };
    let (record, _) = run(plan, 1024);
    assert_eq!(record.reason, CloseReason::Finished);
    assert!(seconds(&record) > 90, "it was no test: {}", seconds(&record));
}

#[test]
fn a_hello_that_crawls_has_its_own_deadline_and_one_that_never_begins_that_of_the_handshake() {
    for (bytes, outcome, ended) in [
        (0, HandshakeOutcome::Timeout, 30..=30),
        (1, HandshakeOutcome::ClientHelloTimeout, 10..=10),
        (100, HandshakeOutcome::ClientHelloTimeout, 10..=10),
    ] {
        let mut setting = setting(vec![Plan::echo(10)]);
        setting.timeouts.client_hello = Duration::from_secs(10);
        let how = if bytes == 0 { Misbehaviour::Silent } else { Misbehaviour::Crawl };
        setting.clients[0].1.client.misbehaves = Some((bytes, how));
        let mut outcomes = setting.run();
        let record = outcomes.records.remove(0).expect("it was accepted");
        assert_eq!(record.reason, CloseReason::HandshakeFailed);
        assert_eq!(record.handshake, outcome, "after {bytes} bytes");
        // A client is given two seconds to read our last words.
        let took = seconds(&record);
        assert!((*ended.start()..=ended.end() + 2).contains(&took), "{bytes}: {took}");
        assert_eq!(outcomes.counters.limits.of(Limit::ClientHelloBytes).get(), 0);
    }
}

#[test]
fn a_hello_in_pieces_leaves_the_rest_of_the_handshake_its_time() {
    let mut plan = Plan::echo(10);
    // The hello takes its time, but not too much; then the client is gone.
    plan.client.trickle = Some(5);
    plan.client.pace = Pace { pause_micros: 1_000_000, ..Pace::FAST };
    plan.client.reads_until = Some(0);
    let mut setting = setting(vec![plan]);
    setting.timeouts.client_hello = Duration::from_secs(10);
    let mut outcome = setting.run();
    let record = outcome.records.remove(0).expect("it was accepted");
    assert_eq!(record.handshake, HandshakeOutcome::Timeout);
    assert!((30..=32).contains(&seconds(&record)), "{}", seconds(&record));
}
