//! Who is served first, and who is dropped.

use super::*;

const MS: u64 = 1_000_000;
const ALL: Queues = Queues([true; HandshakeQueue::COUNT]);
const DEADLINE: Duration = Duration::from_secs(2);

fn waiting(slot: u32, ms: u64) -> Waiting {
    Waiting { slot, generation: 7, since: Time(ms * MS) }
}

fn scheduler(max_pending: u32) -> Scheduler {
    Scheduler::new(max_pending, DEADLINE)
}

/// The slots served, at one time, until none waits.
fn order(scheduler: &mut Scheduler, ms: u64) -> Vec<u32> {
    std::iter::from_fn(|| scheduler.next(Time(ms * MS), ALL))
        .map(|next| match next {
            Next::Step(_, waiting) => waiting.slot,
            Next::Drop(waiting) => panic!("dropped {waiting:?}"),
        })
        .collect()
}

#[test]
fn those_under_way_come_first_then_those_that_come_back_then_the_new() {
    let mut scheduler = scheduler(100);
    scheduler.push(HandshakeQueue::New, waiting(1, 0));
    scheduler.push(HandshakeQueue::Resuming, waiting(2, 0));
    scheduler.push(HandshakeQueue::New, waiting(3, 1));
    scheduler.push(HandshakeQueue::UnderWay, waiting(4, 2));
    scheduler.push(HandshakeQueue::Resuming, waiting(5, 2));
    assert_eq!(scheduler.len(), 5);
    assert_eq!(order(&mut scheduler, 3), [4, 2, 5, 1, 3]);
    assert!(scheduler.is_empty());
}

#[test]
fn who_comes_back_does_not_keep_the_new_out() {
    let mut scheduler = scheduler(1000);
    scheduler.push(HandshakeQueue::New, waiting(0, 0));
    for slot in 1..100 {
        scheduler.push(HandshakeQueue::Resuming, waiting(slot, 0));
    }
    let order = order(&mut scheduler, 1);
    let place = order.iter().position(|slot| *slot == 0);
    assert_eq!(place, Some(RESUMING_IN_A_ROW_MAX as usize), "{order:?}");
}

#[test]
fn a_queue_whose_oldest_has_waited_long_is_served_newest_first() {
    let mut scheduler = scheduler(100);
    for (slot, ms) in [(1, 0), (2, 0), (3, 900), (4, 1000)] {
        scheduler.push(HandshakeQueue::New, waiting(slot, ms));
    }
    let mut step = |ms| match scheduler.next(Time(ms * MS), ALL) {
        Some(Next::Step(_, waiting)) => waiting.slot,
        other => panic!("{other:?}"),
    };
    assert_eq!(step(1000), 1, "in order at first");
    assert_eq!(step(1001), 4, "newest first when half of the deadline is over");
    assert_eq!(step(1002), 3);
    assert_eq!(step(1003), 2);
}

#[test]
fn who_has_waited_too_long_is_dropped_unless_the_handshake_is_under_way() {
    let mut scheduler = scheduler(100);
    scheduler.push(HandshakeQueue::UnderWay, waiting(1, 0));
    scheduler.push(HandshakeQueue::Resuming, waiting(2, 0));
    scheduler.push(HandshakeQueue::New, waiting(3, 0));
    scheduler.push(HandshakeQueue::New, waiting(4, 1000));
    let at = Time(2500 * MS);
    let all: Vec<Next> = std::iter::from_fn(|| scheduler.next(at, ALL)).collect();
    assert_eq!(
        all,
        [
            Next::Drop(waiting(3, 0)),
            Next::Drop(waiting(2, 0)),
            Next::Step(HandshakeQueue::UnderWay, waiting(1, 0)),
            Next::Step(HandshakeQueue::New, waiting(4, 1000)),
        ]
    );
}

#[test]
fn twice_as_many_as_may_wait_drop_the_oldest_new_ones() {
    let mut scheduler = scheduler(2);
    assert!(scheduler.has_room());
    for slot in 1..=5 {
        scheduler.push(HandshakeQueue::New, waiting(slot, u64::from(slot)));
    }
    assert!(scheduler.is_full() && !scheduler.has_room());
    assert_eq!(scheduler.next(Time(6 * MS), ALL), Some(Next::Drop(waiting(1, 1))));
    assert_eq!(order(&mut scheduler, 6), [2, 3, 4, 5]);
}

#[test]
fn only_what_is_wanted_is_served_and_who_is_late_is_dropped_all_the_same() {
    let mut scheduler = scheduler(100);
    let cheap = Queues::those(|queue| queue != HandshakeQueue::New);
    let new = Queues::those(|queue| queue == HandshakeQueue::New);
    scheduler.push(HandshakeQueue::New, waiting(1, 0));
    scheduler.push(HandshakeQueue::New, waiting(2, 1000));
    assert!(scheduler.has_work(ALL) && scheduler.has_work(new) && !scheduler.has_work(cheap));
    assert_eq!(scheduler.next(Time(0), cheap), None);
    for slot in 3..40 {
        scheduler.push(HandshakeQueue::Resuming, waiting(slot, 0));
    }
    for slot in 3..40 {
        let step = Some(Next::Step(HandshakeQueue::Resuming, waiting(slot, 0)));
        assert_eq!(scheduler.next(Time(1), cheap), step, "no new one is due among them");
    }
    assert_eq!(scheduler.next(Time(2500 * MS), cheap), Some(Next::Drop(waiting(1, 0))));
    assert_eq!(scheduler.next(Time(2500 * MS), cheap), None);
    scheduler.push(HandshakeQueue::UnderWay, waiting(40, 0));
    let step = Some(Next::Step(HandshakeQueue::New, waiting(2, 1000)));
    assert_eq!(scheduler.next(Time(2500 * MS), new), step);
    assert_eq!(scheduler.next(Time(2500 * MS), new), None);
}
