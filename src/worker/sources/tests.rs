//! Tests of the counts: what bites, what is given back, what a crowd of addresses can do, and what
//! threads that meet in one place leave behind.

use std::net::Ipv4Addr;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn limits() -> PerSource {
    PerSource { connections: Some(3), handshakes: Some(2), ..PerSource::default() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn number(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(number))
}

#[test]
fn limits_bite_at_their_number_and_let_go_of_what_is_given_back() {
    let sources = Sources::new(64, 0);
    let (client, now) = (ip("192.0.2.1"), Time(5));
    let enter = || sources.enter(client, &limits(), now);
    let first = enter().expect("the first");
    let second = enter().expect("the second");
    assert_eq!(first, second, "one source");
    assert_eq!(enter(), Err(Denial::Handshakes));
    sources.handshake_ended(first);
    let third = enter().expect("a handshake is over");
    sources.handshake_ended(second);
    assert_eq!(enter(), Err(Denial::Connections));
    assert_eq!(sources.totals(), (3, 1));
    sources.leave(first);
    let fourth = enter().expect("a connection is gone");
    for handle in [third, fourth] {
        sources.handshake_ended(handle);
    }
    for handle in [second, third, fourth] {
        sources.leave(handle);
    }
    assert_eq!(sources.totals(), (0, 0));
}

#[test]
fn a_source_is_a_network_and_a_mapped_address_is_an_ipv4_one() {
    let sources = Sources::new(1024, 0);
    let limits = PerSource { connections: Some(1), ..PerSource::default() };
    let is_new =
        |client: &str, limits: &PerSource| sources.enter(ip(client), limits, Time(0)).is_ok();
    assert!(is_new("192.0.2.1", &limits));
    assert!(!is_new("::ffff:192.0.2.1", &limits), "the same client");
    assert!(is_new("192.0.2.2", &limits), "another address");
    assert!(is_new("2001:db8:0:1::1", &limits));
    assert!(!is_new("2001:db8:0:1:ffff::2", &limits), "the same /64");
    assert!(is_new("2001:db8:0:2::1", &limits), "another /64");
    let wide = PerSource { ipv4_prefix: 24, ipv6_prefix: 48, ..limits };
    assert!(is_new("198.51.100.1", &wide));
    assert!(!is_new("198.51.100.200", &wide), "the same /24");
    assert!(is_new("2001:db8:1::1", &wide));
    assert!(!is_new("2001:db8:1:9::1", &wide), "the same /48");
}

#[test]
fn a_bucket_holds_a_second_s_worth_may_be_overdrawn_and_fills_again() {
    let a_second = Duration::from_millis(50);
    let limits = PerSource { handshake_cpu: Some(a_second), ..PerSource::default() };
    let sources = Sources::new(64, 0);
    let client = ip("192.0.2.1");
    let start = Time(7 * SECOND);
    let source = sources.enter(client, &limits, start).expect("nothing spent");
    // Ten steps of 5 ms are what a second allows.
    for step in 0..10 {
        assert!(!sources.is_spent(source, start), "after {step} steps");
        sources.charge(source, Duration::from_millis(5), a_second, start);
    }
    assert!(sources.is_spent(source, start));
    assert_eq!(sources.enter(client, &limits, start), Err(Denial::Spent));
    // 5 ms are there again after a tenth of a second.
    let soon = Time(start.0 + SECOND / 10);
    assert!(!sources.is_spent(source, Time(start.0 + 1)), "something is there at once");
    // One dear step more than there is: 100 ms, two seconds' worth.
    sources.charge(source, Duration::from_millis(100), a_second, soon);
    assert!(sources.is_spent(source, Time(soon.0 + 19 * SECOND / 10)));
    assert!(!sources.is_spent(source, Time(soon.0 + 2 * SECOND)));
    // Another source owes nothing.
    assert!(sources.enter(ip("192.0.2.2"), &limits, start).is_ok());
}

#[test]
fn who_owes_keeps_its_place_and_who_owes_nothing_gives_way() {
    let a_second = Duration::from_millis(50);
    let limits = PerSource { handshake_cpu: Some(a_second), ..PerSource::default() };
    // One set.
    let sources = Sources::new(1, 0);
    let start = Time(SECOND);
    let enter = |client, now| sources.enter(number(client), &limits, now);
    for client in 0..8 {
        let source = enter(client, start).expect("a place");
        sources.charge(source, Duration::from_millis(client.into()), a_second, start);
        sources.handshake_ended(source);
        sources.leave(source);
    }
    // The one that has cost nothing has given way already, which leaves a place; the next does as
    // soon as its millisecond is paid, which takes a 50th of a second.
    assert!(enter(100, start).is_ok());
    assert_eq!(enter(101, start), Err(Denial::NoPlace));
    assert_eq!(enter(101, Time(start.0 + SECOND / 50 - 1)), Err(Denial::NoPlace));
    assert!(enter(101, Time(start.0 + SECOND / 50)).is_ok());
}

#[test]
fn a_million_sources_find_no_more_places_than_there_are_and_free_nobody() {
    const SOURCES: u32 = 1024;
    let sources = Sources::new(SOURCES, 0);
    let limits = PerSource { connections: Some(1), ..PerSource::default() };
    let known = ip("2001:db8::1");
    sources.enter(known, &limits, Time(0)).expect("a place");
    // Whatever they open stays open.
    let (mut counted, mut others) = (1, 0);
    for client in 0..1_000_000 {
        match sources.enter(number(client), &limits, Time(u64::from(client))) {
            Ok(_) => counted += 1,
            // In one run of thirty, somebody has the tag of another.
            Err(Denial::NoPlace | Denial::Connections) => others += 1,
            Err(denial) => panic!("{denial:?}"),
        }
    }
    assert_eq!(counted, SOURCES, "every place is used, and none is made");
    assert_eq!(others, 1_000_001 - SOURCES);
    assert_eq!(sources.totals(), (u64::from(SOURCES), u64::from(SOURCES)));
    assert_eq!(sources.enter(known, &limits, Time(SECOND)), Err(Denial::Connections));
}

#[test]
fn a_million_sources_that_come_and_go_are_each_counted() {
    let sources = Sources::new(64, 0);
    for client in 0..1_000_000 {
        let source = sources.enter(number(client), &limits(), Time(0)).expect("a place");
        sources.handshake_ended(source);
        sources.leave(source);
    }
    assert_eq!(sources.totals(), (0, 0));
}

#[test]
fn without_places_nobody_is_counted() {
    let sources = Sources::new(0, 0);
    assert_eq!(sources.enter(number(1), &limits(), Time(0)), Err(Denial::NoPlace));
}

#[test]
fn no_more_can_be_had_than_can_be_counted() {
    let sources = Sources::new(64, 0);
    let unlimited = PerSource::default();
    let client = number(1);
    let enter = || sources.enter(client, &unlimited, Time(0));
    for _ in 0..crate::limits::SOURCE_HANDSHAKES_MAX {
        enter().expect("it can be counted");
    }
    assert_eq!(enter(), Err(Denial::Handshakes));
    let most = u64::from(crate::limits::SOURCE_HANDSHAKES_MAX);
    assert_eq!(sources.totals(), (most, most));
}

/// Whatever threads do at one moment: a source never has more than it may, and nothing is left.
#[test]
fn threads_that_meet_in_one_place_keep_the_limit_and_leave_nothing() {
    const MOST: u32 = 4;
    let limits = PerSource { connections: Some(MOST), ..PerSource::default() };
    let sources = Sources::new(64, 0);
    let open = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut entered = 0;
                while entered < 5000 {
                    let Ok(source) = sources.enter(number(1), &limits, Time(0)) else {
                        std::thread::yield_now();
                        continue;
                    };
                    assert!(open.fetch_add(1, SeqCst) < MOST, "more than it may");
                    entered += 1;
                    open.fetch_sub(1, SeqCst);
                    sources.handshake_ended(source);
                    sources.leave(source);
                }
            });
        }
    });
    assert_eq!(sources.totals(), (0, 0));
}

/// Many more sources than places, from all threads: places change hands all the time.
#[test]
fn threads_that_take_places_from_each_other_leave_nothing() {
    let a_second = Duration::from_millis(50);
    let limits = PerSource { handshake_cpu: Some(a_second), ..limits() };
    let sources = Sources::new(16, 0);
    std::thread::scope(|scope| {
        for thread in 0..8_u32 {
            let (sources, limits) = (&sources, &limits);
            scope.spawn(move || {
                let mut held = std::collections::VecDeque::new();
                for step in 0..20_000_u32 {
                    let client = number(step.wrapping_mul(2_654_435_761).rotate_left(thread) % 64);
                    let now = Time(u64::from(step) * 100_000);
                    if let Ok(source) = sources.enter(client, limits, now) {
                        sources.charge(source, Duration::from_micros(1), a_second, now);
                        held.push_back(source);
                    }
                    if held.len() > 3
                        && let Some(source) = held.pop_front()
                    {
                        sources.handshake_ended(source);
                        sources.leave(source);
                    }
                }
                for source in held {
                    sources.handshake_ended(source);
                    sources.leave(source);
                }
            });
        }
    });
    assert_eq!(sources.totals(), (0, 0));
}

#[test]
fn rates_of_listeners_are_their_own() {
    let sources = Sources::new(0, 2);
    let now = Time(0);
    assert!(sources.take_of_listener(0, 1, now));
    assert!(!sources.take_of_listener(0, 1, now));
    assert!(sources.take_of_listener(1, 1, now));
    sources.give_back_to_listener(0, 1);
    assert!(sources.take_of_listener(0, 1, now));
    assert!(sources.take_of_all(1, now));
    assert!(!sources.take_of_all(1, now));
}
