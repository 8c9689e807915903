//! Rates, and what sources may have: who is refused, when, and what the others notice.

use std::net::Ipv4Addr;
use std::time::Duration;

use portcullis::config::{Config, PerSource, Refuse};
use portcullis::io::Time;
use portcullis::telemetry::labels::{
    CloseReason, HandshakeOutcome, HandshakeStep, KeyType, Label, Limit,
};

use crate::faults::{ClientEnd, Misbehaviour, Opening, Plan};
use crate::run::{Outcome, Sent, Setting};

/// Two sources.
const ONE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

/// A client: when it comes, from where, and what it does.
type Client = (Time, Ipv4Addr, Plan);

fn setting(clients: Vec<Client>) -> Setting {
    let mut setting = Setting::of(Vec::new());
    setting.addresses = clients.iter().map(|(_, address, _)| *address).collect();
    setting.clients = clients.into_iter().map(|(at, _, plan)| (at, plan)).collect();
    setting.connections = 1024;
    setting.handshake.max_pending = 1000;
    setting
}

fn millis(millis: u64) -> Time {
    Time(millis * 1_000_000)
}

/// Clients that stay until they are cut, one each millisecond.
fn staying(count: u64, from: Ipv4Addr) -> Vec<Client> {
    let mut plan = Plan::echo(10);
    plan.client.end = ClientEnd::Never;
    (0..count).map(|number| (millis(number), from, plan.clone())).collect()
}

fn ended(outcome: &Outcome, wanted: HandshakeOutcome) -> u64 {
    outcome.counters.handshakes.of(wanted).get()
}

/// So many were refused by a limit: counted, told, and seen by the client.
#[track_caller]
fn assert_refused(outcome: &Outcome, wanted: HandshakeOutcome, limit: Limit, count: u64) {
    assert_eq!(ended(outcome, wanted), count, "{wanted}");
    assert_eq!(outcome.counters.limits.of(limit).get(), count, "{limit}");
    let mut refused = 0;
    for (talk, record) in outcome.talks.iter().zip(&outcome.records) {
        let Some(record) = record.as_ref().filter(|record| record.handshake == wanted) else {
            continue;
        };
        refused += 1;
        assert_eq!(record.reason, CloseReason::HandshakeFailed);
        assert_eq!((talk.tries, talk.client.sent), (0, 0), "nothing of it got through");
        assert!(talk.client.saw_failure, "it was not told: {talk:#?}");
    }
    assert_eq!(refused, count, "told in records");
}

#[test]
fn connections_of_a_source_are_refused_above_their_limit_and_those_of_another_are_not() {
    for refuse in [Refuse::Reset, Refuse::Close] {
        let mut clients = staying(10, ONE);
        clients.extend(staying(2, OTHER));
        let mut setting = setting(clients);
        setting.limits.refuse = refuse;
        setting.limits.per_source.connections = Some(4);
        let outcome = setting.run();
        let why = HandshakeOutcome::SourceConnections;
        assert_refused(&outcome, why, Limit::SourceConnections, 6);
        assert_eq!(ended(&outcome, HandshakeOutcome::Ok), 4 + 2);
    }
}

#[test]
fn a_source_may_come_again_when_its_connections_have_ended() {
    let each_second = |number: u64| (millis(number * 1000), ONE, Plan::echo(10));
    let mut setting = setting((0..20).map(each_second).collect());
    setting.limits.per_source.connections = Some(1);
    setting.limits.per_source.handshakes = Some(1);
    let outcome = setting.run();
    assert_eq!(ended(&outcome, HandshakeOutcome::Ok), 20);
}

#[test]
fn a_handshake_counts_until_it_is_complete_or_has_failed() {
    let mut silent = Plan::echo(10);
    silent.client.misbehaves = Some((0, Misbehaviour::Silent));
    let mut garbage = Plan::echo(0);
    garbage.client.opening = Opening::Noise;
    // Each of the eight is done within a millisecond.
    let mut clients = staying(8, ONE);
    // Two that never say anything hold both places until they run into their timeout.
    clients.extend([(millis(100), ONE, silent.clone()), (millis(101), ONE, silent)]);
    clients.push((millis(200), ONE, Plan::echo(10)));
    // After that two fail, and give their places back too.
    clients.extend([(millis(40_000), ONE, garbage.clone()), (millis(41_000), ONE, garbage)]);
    clients.push((millis(50_000), ONE, Plan::echo(10)));
    let mut setting = setting(clients);
    setting.limits.per_source.handshakes = Some(2);
    let outcome = setting.run();
    assert_refused(&outcome, HandshakeOutcome::SourceHandshakes, Limit::SourceHandshakes, 1);
    let refused = outcome.records[10].as_ref().map(|record| record.handshake);
    assert_eq!(refused, Some(HandshakeOutcome::SourceHandshakes), "the eleventh");
    assert_eq!(ended(&outcome, HandshakeOutcome::Timeout), 2);
    assert_eq!(ended(&outcome, HandshakeOutcome::Ok), 8 + 1);
}

#[test]
fn networks_that_are_allowed_are_not_limited() {
    const TEXT: &str = "[[listener]]\nname = \"a\"\nbind = [\"0.0.0.0:443\"]\nbackend = \"b\"\n\
        [[listener.certificate]]\nchain = \"c\"\nkey = \"k\"\n\
        [[backend]]\nname = \"b\"\n[[backend.server]]\naddress = \"127.0.0.1:80\"\n\
        [limits.per_source]\nconnections = 1\nallow = [\"198.18.0.1\"]\n";
    let config = Config::parse(TEXT, std::path::Path::new("x.toml")).unwrap();
    let mut clients = staying(20, ONE);
    clients.extend(staying(5, OTHER));
    let mut setting = setting(clients);
    setting.limits = config.limits;
    let outcome = setting.run();
    assert_eq!(ended(&outcome, HandshakeOutcome::Ok), 20 + 1);
    assert_refused(&outcome, HandshakeOutcome::SourceConnections, Limit::SourceConnections, 4);
}

#[test]
fn rates_let_a_second_s_worth_in_and_count_what_they_refuse() {
    // 100 at once, and again when the bucket is full. Every other one comes to the first listener.
    let at = |at: u64| (0..100).map(move |_| (millis(at), ONE, Plan::echo(1)));
    let clients: Vec<Client> = at(0).chain(at(2000)).collect();
    let mut all = setting(clients.clone());
    all.limits.connection_rate = Some(30);
    let outcome = all.run();
    assert_refused(&outcome, HandshakeOutcome::ConnectionRate, Limit::ConnectionRate, 140);
    assert_eq!(ended(&outcome, HandshakeOutcome::Ok), 60);

    let mut one = setting(clients);
    one.connection_rate = Some(30);
    let outcome = one.run();
    let why = HandshakeOutcome::ListenerConnectionRate;
    assert_refused(&outcome, why, Limit::ListenerConnectionRate, 40);
    assert_eq!(ended(&outcome, HandshakeOutcome::Ok), 160);
}

#[test]
fn who_is_refused_for_its_source_leaves_the_rate_to_the_others() {
    let mut clients = staying(50, ONE);
    for number in 0..10 {
        clients.push((millis(500), Ipv4Addr::new(198, 18, 1, number), Plan::echo(1)));
    }
    let mut setting = setting(clients);
    setting.limits.connection_rate = Some(12);
    setting.limits.per_source.connections = Some(2);
    let outcome = setting.run();
    assert_refused(&outcome, HandshakeOutcome::SourceConnections, Limit::SourceConnections, 48);
    assert_eq!(ended(&outcome, HandshakeOutcome::Ok), 12);
}

/// What a full handshake's steps take.
const STEP: Duration = Duration::from_millis(11);

/// Steps of 10 ms, as an RSA key on a slow core takes; a quiet source, whose clients come every 97
/// ms after the first second, and perhaps a loud one, with 200 handshakes a second for 3 seconds.
fn quiet_and_loud(is_loud: bool, handshake_cpu: Option<Duration>) -> Outcome {
    let quiet = |number: u64| (millis(1000 + number * 97), ONE, Plan::echo(10));
    let loud = |number: u64| (millis(number * 5), OTHER, Plan::echo(10));
    let mut clients: Vec<Client> = (0..20).map(quiet).collect();
    if is_loud {
        clients.extend((0..600).map(loud));
    }
    let mut setting = setting(clients);
    setting.faults.full_step_micros = 10_000;
    setting.limits.per_source = PerSource { handshake_cpu, ..PerSource::default() };
    setting.run()
}

/// The slowest handshake of the quiet source.
fn slowest(outcome: &Outcome) -> Duration {
    let took = outcome.records.iter().take(20).flatten().map(|record| {
        assert_eq!(record.handshake, HandshakeOutcome::Ok, "{record:#?}");
        record.handshake_nanos
    });
    Duration::from_nanos(took.max().expect("twenty"))
}

/// What all steps of handshakes took together: nothing for those who are refused.
fn cost(outcome: &Outcome) -> Duration {
    let steps = HandshakeStep::ALL.iter().flat_map(|step| {
        let [_, nanos] = outcome.counters.steps(*step);
        KeyType::ALL.iter().map(|key| nanos.of(*key).get())
    });
    Duration::from_nanos(steps.sum())
}

#[test]
fn a_source_at_ten_times_its_budget_does_not_change_another_s_wait() {
    // Most of 200 handshakes a second are full, of 11 ms: 2.2 s a second.
    let budget = Duration::from_millis(220);
    let (alone, flooded) =
        (quiet_and_loud(false, Some(budget)), quiet_and_loud(true, Some(budget)));
    let (before, during) = (slowest(&alone), slowest(&flooded));
    // A step of the loud one's may have begun just before, and its Finished.
    assert!(during <= before + Duration::from_millis(12), "{before:?} {during:?}");
    // A second's worth at once, what comes in three seconds, and one step more; and the quiet
    // one's, which may resume.
    let most = budget * 4 + STEP + 20 * STEP;
    let least = budget * 4 + 19 * STEP / 2;
    assert!((least..=most).contains(&cost(&flooded)), "{:?}", cost(&flooded));
    let let_in = ended(&flooded, HandshakeOutcome::Ok) - 20;
    let why = HandshakeOutcome::SourceHandshakeCpu;
    assert_refused(&flooded, why, Limit::SourceHandshakeCpu, 600 - let_in);

    // Without the budget the flood is felt.
    let suffered = slowest(&quiet_and_loud(true, None));
    assert!(suffered > 3 * during, "{during:?} {suffered:?}");
}

#[test]
fn what_a_source_has_counts_on_under_a_new_configuration() {
    let mut clients = staying(3, ONE);
    clients.extend((0..3).map(|_| (millis(2000), ONE, Plan::echo(1))));
    let mut setting = setting(clients);
    setting.limits.per_source.connections = Some(4);
    setting.commands = vec![(millis(1000), Sent::SameSnapshot)];
    let outcome = setting.run();
    assert_refused(&outcome, HandshakeOutcome::SourceConnections, Limit::SourceConnections, 2);
}

#[test]
fn sources_beyond_the_table_are_let_in_and_counted_as_such() {
    let mut clients = staying(300, ONE);
    for (number, (_, address, _)) in (0..).zip(&mut clients) {
        *address = Ipv4Addr::from_bits(ONE.to_bits() + number);
    }
    let mut setting = setting(clients);
    setting.limits.per_source.connections = Some(1);
    let outcome = setting.run();
    assert_eq!(ended(&outcome, HandshakeOutcome::Ok), 300);
    assert_eq!(outcome.counters.limits.of(Limit::SourceTable).get(), 300 - 64);
}
