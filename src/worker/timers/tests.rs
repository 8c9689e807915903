//! The wheel against a sorted map, and what its owner relies on.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const HOUR: u64 = 3_600_000_000_000;

fn all(timers: &mut Timers, now: Time) -> Vec<u32> {
    let mut out = Vec::new();
    while timers.next().is_some_and(|next| next <= now) {
        timers.expire(now, &mut out);
    }
    out
}

#[test]
fn entry_comes_after_its_time_and_within_one_tick() {
    let mut timers = Timers::with_capacity(1);
    let mut out = Vec::new();
    timers.set(7, Time(9_000_000));
    timers.expire(Time(9_000_000), &mut out);
    assert!(out.is_empty());
    let next = timers.next().unwrap();
    assert_eq!(next, Time(16_000_000));
    timers.expire(next, &mut out);
    assert_eq!(out, [7]);
    assert!(timers.is_empty());
    assert_eq!(timers.next(), None);
}

#[test]
fn time_in_the_past_means_the_next_call() {
    let mut timers = Timers::with_capacity(1);
    let mut out = Vec::new();
    timers.expire(Time(HOUR), &mut out);
    timers.set(1, Time(5));
    assert!(timers.next().unwrap() <= Time(HOUR));
    timers.expire(Time(HOUR), &mut out);
    assert_eq!(out, [1]);
}

#[test]
fn one_call_does_bounded_work_and_the_next_goes_on() {
    let mut timers = Timers::with_capacity(u32::try_from(3 * TOUCHED_PER_CALL_MAX).unwrap());
    let entries = u32::try_from(3 * TOUCHED_PER_CALL_MAX).unwrap();
    for slot in 0..entries {
        timers.set(slot, Time(HOUR));
    }
    let mut out = Vec::new();
    let mut calls = 0;
    while !timers.is_empty() {
        assert!(timers.next().unwrap() <= Time(2 * HOUR));
        let before = out.len();
        timers.expire(Time(2 * HOUR), &mut out);
        assert!(out.len() - before <= TOUCHED_PER_CALL_MAX);
        calls += 1;
        assert!(calls <= 3 * LEVELS + 1, "no progress");
    }
    out.sort_unstable();
    assert_eq!(out, (0..entries).collect::<Vec<_>>());
}

/// A connection that rests and wakes moves its entry each time; they used to pile up.
#[test]
fn a_slot_has_one_entry_however_often_it_is_set() {
    let mut timers = Timers::with_capacity(3);
    for round in 0..1000 {
        for slot in 0..3 {
            timers.set(slot, Time(HOUR - round * u64::from(slot) * TICK_NANOS));
        }
        assert_eq!(timers.len(), 3);
    }
    timers.forget(1);
    timers.forget(1);
    assert_eq!(timers.len(), 2);
    assert_eq!(all(&mut timers, Time(HOUR)), [2, 0]);
}

#[test]
fn far_beyond_the_wheel_comes_early_rather_than_late() {
    let mut timers = Timers::with_capacity(1);
    timers.set(1, Time(u64::MAX));
    let next = timers.next().unwrap();
    assert!(next > Time(10 * 365 * 24 * HOUR));
    assert_eq!(all(&mut timers, Time(u64::MAX)), [1]);
    timers.set(2, Time(u64::MAX));
    assert!(timers.next().is_some());
}

#[test]
fn sleeping_until_next_wakes_rarely_and_in_time() {
    let mut timers = Timers::with_capacity(1);
    for at in [1, 600_000_000, 40_000_000_000, 3 * HOUR, 300 * HOUR] {
        let start = Time(timers.tick * TICK_NANOS);
        let at = Time(start.0 + at);
        timers.set(1, at);
        let mut out = Vec::new();
        let mut wakes = 0;
        let mut now = start;
        while out.is_empty() {
            now = timers.next().unwrap();
            timers.expire(now, &mut out);
            wakes += 1;
        }
        assert!(wakes <= LEVELS, "{wakes} wake-ups for one deadline");
        assert!(now >= at);
        assert!(now.since(at) < TICK);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Insert {
        after: u64,
    },
    InsertPast {
        before: u64,
    },
    /// The entry of an earlier step moves.
    Move {
        of: u32,
        after: u64,
    },
    Forget {
        of: u32,
    },
    Advance {
        by: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let span = || {
        prop_oneof![0..2 * TICK_NANOS, 0..600_000_000_u64, 0..60_000_000_000_u64, 0..500 * HOUR,]
    };
    prop_oneof![
        3 => span().prop_map(|after| Step::Insert { after }),
        1 => span().prop_map(|before| Step::InsertPast { before }),
        1 => (0..100_u32, span()).prop_map(|(of, after)| Step::Move { of, after }),
        1 => (0..100_u32).prop_map(|of| Step::Forget { of }),
        2 => span().prop_map(|by| Step::Advance { by }),
    ]
}

proptest! {
    #[test]
    fn agrees_with_a_sorted_map(steps in proptest::collection::vec(step(), 1..200)) {
        let mut timers = Timers::with_capacity(200);
        let mut model: BTreeMap<u32, u64> = BTreeMap::new();
        let mut now = Time(0);
        let mut out = Vec::new();
        for (slot, step) in (0_u32..).zip(steps) {
            let (slot, at) = match step {
                Step::Insert { after } => (slot, Time(now.0 + after)),
                Step::InsertPast { before } => (slot, Time(now.0.saturating_sub(before))),
                Step::Move { of, after } => (of, Time(now.0 + after)),
                Step::Forget { of } => {
                    timers.forget(of);
                    model.remove(&of);
                    continue;
                }
                Step::Advance { by } => {
                    now = Time(now.0 + by);
                    out.clear();
                    timers.expire(now, &mut out);
                    let mut due = Vec::new();
                    model.retain(|slot, at| {
                        let later = *at > now.0 / TICK_NANOS;
                        if !later {
                            due.push(*slot);
                        }
                        later
                    });
                    out.sort_unstable();
                    prop_assert_eq!(&out, &due);
                    continue;
                }
            };
            timers.set(slot, at);
            model.insert(slot, at.0.div_ceil(TICK_NANOS));
            let first = Time(model.values().min().unwrap() * TICK_NANOS);
            let next = timers.next().unwrap();
            prop_assert!(next <= first.max(now));
            prop_assert_eq!(timers.len(), model.len());
        }
    }
}
