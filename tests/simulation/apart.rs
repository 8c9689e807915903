//! First steps of handshakes that are done on another thread, while a kept connection is busy.

use std::time::Duration;

use portcullis::io::Time;
use portcullis::telemetry::labels::{
    CloseReason, HandshakeOutcome, HandshakeStep, KeyType, Label, Limit,
};

use crate::faults::{ClientEnd, Misbehaviour, Pace, Plan};
use crate::random::Random;
use crate::run::{Outcome, Sent, Setting};

/// Those that come when the kept one is kept.
const FLOOD: u64 = 60;
const FLOOD_AT: Time = Time(100_000_000);

/// Says a little every millisecond or so, for half a second.
fn kept() -> Plan {
    let mut plan = Plan::echo(50_000);
    plan.client.pace = Pace { write_max: 100, pause_micros: 2000, ..Pace::FAST };
    plan
}

/// A first client, and a flood behind it; a first step costs a millisecond.
fn setting(first: Plan, flood: impl FnMut() -> Plan) -> Setting {
    let mut setting = Setting::of(vec![first]);
    setting.faults.full_step_micros = 1000;
    setting.connections = 256;
    setting.handshake.max_pending = 1000;
    let flood = std::iter::repeat_with(flood).take(usize::try_from(FLOOD).unwrap());
    setting.clients.extend(flood.map(|plan| (FLOOD_AT, plan)));
    setting
}

fn first_is_served(outcome: &Outcome) {
    let record = outcome.records[0].as_ref().expect("it was accepted");
    assert_eq!(record.reason, CloseReason::Finished);
}

fn full_steps(outcome: &Outcome) -> u64 {
    let [full, _] = outcome.counters.steps(HandshakeStep::Full);
    KeyType::ALL.iter().map(|key| full.of(*key).get()).sum()
}

#[test]
fn a_kept_connection_waits_for_no_dear_step() {
    let apart = |first: Plan| {
        let outcome = setting(first, || Plan::echo(10)).run();
        first_is_served(&outcome);
        assert_eq!(outcome.counters.handshakes.of(HandshakeOutcome::Ok).get(), 1 + FLOOD);
        (outcome.counters.steps_apart.get(), full_steps(&outcome))
    };
    let (apart_of, full) = apart(kept());
    assert!(full > FLOOD / 2);
    assert!(apart_of >= full - 1, "all but the first one's own: {apart_of} of {full}");
    assert_eq!(apart(Plan::echo(10)).0, 0, "nobody is there who would wait");
}

#[test]
fn a_cheap_step_is_done_where_it_is() {
    let mut setting = setting(kept(), || Plan::echo(10));
    setting.faults.full_step_micros = 100;
    let outcome = setting.run();
    assert_eq!(outcome.counters.steps_apart.get(), 0);
}

#[test]
fn no_step_is_done_apart_for_somebody_who_is_dropped() {
    let mut setting = setting(kept(), || Plan::echo(10));
    setting.handshake.queue_deadline = Duration::from_millis(20);
    let outcome = setting.run();
    first_is_served(&outcome);
    let dropped = outcome.counters.limits.of(Limit::HandshakesDropped).get();
    let done = full_steps(&outcome) - 1;
    let ok = outcome.counters.handshakes.of(HandshakeOutcome::Ok).get();
    assert_eq!(dropped + ok, 1 + FLOOD);
    assert!(outcome.counters.steps_apart.get() >= done);
    assert!(done <= ok, "no step was for somebody who was dropped");
    assert!((10..=25).contains(&done), "20 ms are about so many steps: {done}");
}

/// Clients that go, break the protocol or fall silent at any moment of their handshake; a core that
/// has no time for the thread now and then; a worker that is told to end.
#[test]
fn whatever_clients_do_while_their_step_is_done_harms_nobody() {
    use Misbehaviour::{Close, Fin, Garbage, Reset, Silent};
    let mut apart = 0;
    let mut outcomes = [0; HandshakeOutcome::COUNT];
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let mut plans = random.fork();
        let mut setting = setting(kept(), || {
            let mut plan = Plan::echo(10);
            plan.client.tls12 = plans.chance(300);
            let after = plans.range(100, 700);
            let how = plans.pick(&[Close, Fin, Garbage, Reset, Silent]);
            plan.client.misbehaves = plans.chance(800).then_some((after, how));
            plan
        });
        setting.seed = seed;
        setting.faults.late_completions = random.pick(&[0, 20, 300]);
        setting.faults.short_reads = random.pick(&[0, 100]);
        setting.timeouts.handshake = Duration::from_secs(random.pick(&[5, 30]));
        let end = random.pick(&[
            None,
            None,
            Some(Sent::Stop),
            Some(Sent::Drain(Duration::from_millis(1))),
            Some(Sent::SameSnapshot),
        ]);
        let at = Time(FLOOD_AT.0 + random.range(0, 50_000_000));
        setting.commands.extend(end.map(|end| (at, end)));
        let outcome = setting.run();
        apart += outcome.counters.steps_apart.get();
        for (sum, outcome_of) in outcomes.iter_mut().zip(HandshakeOutcome::ALL) {
            *sum += outcome.counters.handshakes.of(*outcome_of).get();
        }
    }
    let of = |outcome: HandshakeOutcome| outcomes[outcome.index()];
    println!("{apart} apart, {outcomes:?}");
    assert!(apart > 1000, "{apart}");
    for outcome in [
        HandshakeOutcome::BadRecord,
        HandshakeOutcome::ClientClosed,
        HandshakeOutcome::ClientReset,
        HandshakeOutcome::Draining,
        HandshakeOutcome::Ok,
        HandshakeOutcome::Timeout,
    ] {
        assert!(of(outcome) > 0, "{outcome}: {outcomes:?}");
    }
}

/// The core belongs to others for longer than a handshake may take.
#[test]
fn who_times_out_while_the_step_is_done_is_closed_when_it_is() {
    let (mut apart, mut timed_out) = (0, 0);
    for seed in 0..50 {
        let mut setting = setting(kept(), || {
            let mut plan = Plan::echo(10);
            // More than it will get: it need not be served.
            plan.client.reads_until = Some(1_000_000);
            plan
        });
        setting.seed = seed;
        setting.faults.late_completions = 300;
        setting.timeouts.handshake = Duration::from_millis(60);
        setting.clients[0].1.client.reads_until = Some(1_000_000);
        let outcome = setting.run();
        apart += outcome.counters.steps_apart.get();
        timed_out += outcome.counters.handshakes.of(HandshakeOutcome::Timeout).get();
    }
    assert!(apart > 0 && timed_out > 0, "{apart} and {timed_out}");
}

#[test]
fn who_comes_to_rest_has_nothing_to_wait_for() {
    let mut idle = Plan::echo(10);
    idle.client.end = ClientEnd::Never;
    let mut setting = Setting::of(vec![idle; 20]);
    setting.faults.full_step_micros = 1000;
    setting.connections = 256;
    setting.handshake.max_pending = 1000;
    // A second after their last word they come to rest, one after another.
    for (number, (at, _)) in (0..).zip(&mut setting.clients) {
        *at = Time(number * 10_000_000);
    }
    let others = (0..100).map(|number| (Time(1_050_000_000 + number * 2_000_000), Plan::echo(10)));
    setting.clients.extend(others);
    let outcome = setting.run();
    assert!(outcome.counters.rests.get() >= 20);
    assert_eq!(outcome.counters.steps_apart.get(), 0);
}
