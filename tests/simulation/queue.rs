//! Servers with `max_connections`: who waits, how long, and who gets the next connection; with one
//! worker and with several that share the permits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use portcullis::io::Time;
use portcullis::telemetry::labels::{CloseReason, Limit};
use portcullis::telemetry::record::Record;

use crate::faults::{ClientEnd, ConnectOutcome, Misbehaviour, Pace, Plan, Reply};
use crate::permits::run_together;
use crate::run::{Outcome, Sent, Setting};

/// Seeds of which each is run with two or three workers; `PORTCULLIS_SEEDS` replaces the number.
const SEEDS: u64 = 300;

/// One server that takes one connection at a time, and clients that come a millisecond apart.
fn one_at_a_time(plans: Vec<Plan>) -> Setting {
    let mut setting = Setting::of(plans);
    setting.servers = 1;
    setting.max_connections = Some(1);
    setting.connections = 64;
    setting.handshake.max_pending = 1000;
    for ((at, _), number) in setting.clients.iter_mut().zip(0..) {
        *at = Time(number * 1_000_000);
    }
    setting
}

/// The same, but all come at once.
fn at_once(mut setting: Setting) -> Setting {
    setting.clients.iter_mut().for_each(|(at, _)| *at = Time(0));
    setting
}

/// A client that has its answer and keeps its connection.
fn never_ends() -> Plan {
    let mut plan = Plan::echo(10);
    plan.client.end = ClientEnd::Never;
    plan
}

/// A client that is served for up to so many milliseconds.
fn takes(milliseconds: u64) -> Plan {
    let mut plan = Plan::echo(10);
    plan.server.pace.pause_micros = milliseconds * 1000;
    plan
}

fn records(outcome: &Outcome) -> Vec<&Record> {
    outcome.records.iter().map(|record| record.as_ref().expect("it was accepted")).collect()
}

fn reasons(outcome: &Outcome) -> Vec<CloseReason> {
    records(outcome).iter().map(|record| record.reason).collect()
}

fn milliseconds(nanos: u64) -> u64 {
    nanos / 1_000_000
}

#[test]
fn clients_above_the_limit_wait_and_all_are_served() {
    let outcome = at_once(one_at_a_time(vec![Plan::echo(100_000); 20])).run();
    assert_eq!(reasons(&outcome), vec![CloseReason::Finished; 20]);
    let records = records(&outcome);
    let waited = records.iter().filter(|record| record.queue_nanos > 0).count() as u64;
    assert_eq!(outcome.counters.limits.of(Limit::ServerConnections).get(), waited);
    assert!(waited > 10, "{waited} have waited");
}

#[test]
fn clients_are_served_in_the_order_in_which_they_came() {
    let mut plans = vec![takes(200)];
    plans.extend(vec![Plan::echo(10); 10]);
    let outcome = one_at_a_time(plans).run();
    let served_at = |(number, record): (usize, &&Record)| {
        let arrived = u64::try_from(number).unwrap() * 1_000_000;
        assert_eq!(record.reason, CloseReason::Finished);
        arrived + record.total_nanos
    };
    let records = records(&outcome);
    let ends: Vec<u64> = records.iter().enumerate().map(served_at).collect();
    assert!(ends.is_sorted(), "{ends:?}");
}

#[test]
fn when_the_line_is_full_the_next_client_is_refused_at_once() {
    let mut setting = one_at_a_time(vec![never_ends(); 5]);
    setting.queue.max = 2;
    let outcome = setting.run();
    let reasons = reasons(&outcome);
    assert_eq!(reasons[0], CloseReason::IdleTimeout);
    assert_eq!(reasons[1..3], [CloseReason::QueueTimeout; 2]);
    assert_eq!(reasons[3..], [CloseReason::QueueFull; 2]);
    assert_eq!(outcome.counters.limits.of(Limit::BackendQueue).get(), 2);
    for record in &records(&outcome)[3..] {
        assert!(milliseconds(record.total_nanos) < 100, "{record:?}");
        assert_eq!((record.backend, record.server), (Some(0), None));
    }
}

#[test]
fn a_client_that_waits_in_vain_is_told_after_the_timeout_and_rests_meanwhile() {
    let mut silent = never_ends();
    silent.client.request_len = 0;
    let outcome = one_at_a_time(vec![never_ends(), silent]).run();
    let record = records(&outcome)[1];
    assert_eq!(record.reason, CloseReason::QueueTimeout);
    assert!((5000..5100).contains(&milliseconds(record.queue_nanos)), "{record:?}");
    assert_eq!(record.connect_nanos, 0);
    assert!(outcome.talks[1].client.saw_failure);
    assert_eq!(outcome.talks[1].tries, 0);
    // Its own, and the other's, which was served and said nothing more.
    assert_eq!(outcome.counters.rests.get(), 2);
}

#[test]
fn a_client_that_rested_in_line_is_served() {
    let mut listens = Plan::echo(0);
    listens.client.end = ClientEnd::AfterServer;
    listens.server.reply = Reply::Source(20_000);
    listens.server.ends_first = true;
    let outcome = one_at_a_time(vec![takes(4000), listens]).run();
    assert_eq!(reasons(&outcome), [CloseReason::Finished; 2]);
    assert_eq!(outcome.talks[1].client.got, 20_000);
    let record = records(&outcome)[1];
    assert!(milliseconds(record.queue_nanos) > 1000, "{record:?}");
    assert!(outcome.counters.rests.get() >= 1);
}

#[test]
fn a_client_that_leaves_the_line_makes_room() {
    for (how, reason) in [
        (Misbehaviour::Reset, CloseReason::ClientReset),
        (Misbehaviour::Fin, CloseReason::ClientTruncated),
        (Misbehaviour::Garbage, CloseReason::ClientViolation),
    ] {
        let mut leaves = Plan::echo(100_000);
        leaves.client.misbehaves = Some((10_000, how));
        leaves.client.pace = Pace { read_max: 2000, write_max: 2000, pause_micros: 1000 };
        let mut setting = one_at_a_time(vec![never_ends(), leaves, Plan::echo(10)]);
        setting.queue.max = 1;
        setting.clients[2].0 = Time(1_000_000_000);
        let outcome = setting.run();
        let reasons = reasons(&outcome);
        assert_eq!(reasons[1], reason);
        assert_eq!(reasons[2], CloseReason::QueueTimeout, "{how:?}: there was room for it");
        assert_eq!(outcome.talks[1].tries, 0);
    }
}

#[test]
fn a_server_that_refuses_gives_its_place_back_and_the_client_waits_for_the_other() {
    let mut refused = Plan::echo(10);
    refused.connects = vec![ConnectOutcome::Refused];
    let mut setting = one_at_a_time(vec![takes(100), refused]);
    setting.servers = 2;
    let outcome = setting.run();
    assert_eq!(reasons(&outcome), [CloseReason::Finished; 2]);
    assert_eq!(outcome.talks[1].tries, 2);
}

#[test]
fn those_in_line_go_on_waiting_during_a_drain_and_are_cut_at_its_end() {
    let mut setting =
        one_at_a_time(vec![takes(1000), Plan::echo(10), never_ends(), Plan::echo(10)]);
    setting.queue.timeout = Duration::from_secs(60);
    setting.commands = vec![(Time(500_000_000), Sent::Drain(Duration::from_secs(30)))];
    let outcome = setting.run();
    let reasons = reasons(&outcome);
    assert_eq!(reasons[..2], [CloseReason::Finished; 2]);
    assert_eq!(reasons[2..], [CloseReason::DrainTimeout; 2]);
    assert_eq!(outcome.talks[3].tries, 0);
}

/// The same clients on so many workers, in turn.
fn spread(setting: &Setting, workers: usize) -> Vec<Setting> {
    let of = |worker: usize| {
        let mut part = setting.clone();
        part.seed = part.seed.wrapping_add((worker as u64) << 32);
        let clients = setting.clients.iter().skip(worker).step_by(workers);
        part.clients = clients.cloned().collect();
        part
    };
    (0..workers).map(of).collect()
}

#[test]
fn workers_share_the_limit_and_the_line() {
    let setting = at_once(one_at_a_time(vec![Plan::echo(10_000); 20]));
    let outcomes = run_together(&spread(&setting, 2));
    for outcome in &outcomes {
        assert_eq!(reasons(outcome), vec![CloseReason::Finished; 10]);
        assert!(outcome.counters.limits.of(Limit::ServerConnections).get() > 5);
    }
}

#[test]
fn the_longest_waiter_is_served_next_on_whichever_worker_it_waits() {
    let mut plans = vec![takes(200)];
    plans.extend(vec![Plan::echo(10); 11]);
    let setting = one_at_a_time(plans);
    let outcomes = run_together(&spread(&setting, 3));
    let mut ends = Vec::new();
    for number in 0..12_usize {
        let record = records(&outcomes[number % 3])[number / 3];
        assert_eq!(record.reason, CloseReason::Finished);
        ends.push(number as u64 * 1_000_000 + record.total_nanos);
    }
    assert!(ends.is_sorted(), "{ends:?}");
}

/// Everything at once: clients that leave in line, permits that meet them on their way, connects
/// that fail, drains; `permits::check` looks between any two turns.
#[test]
fn seeds_keep_every_law_with_several_workers() {
    let seeds = crate::number_from("PORTCULLIS_SEEDS").unwrap_or(SEEDS);
    let mut waited = 0;
    for (seed, workers) in (0..seeds).zip([2, 3].into_iter().cycle()) {
        let mut setting = Setting::draw(seed);
        setting.max_connections = Some(1 + u32::try_from(seed % 3).unwrap());
        let settings = spread(&setting, workers);
        let result = catch_unwind(AssertUnwindSafe(|| run_together(&settings)));
        let outcomes = result.unwrap_or_else(|_| panic!("seed {seed}, {workers} workers"));
        for outcome in outcomes {
            waited += outcome.counters.limits.of(Limit::ServerConnections).get();
        }
    }
    assert!(waited > seeds, "{waited} have waited");
}
