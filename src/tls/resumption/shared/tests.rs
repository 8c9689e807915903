//! What many threads may expect of the shared cache.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::AtomicBool;
use std::thread;

use super::super::Binding;
use super::super::cache::ENTRY_BYTES;
use super::*;

const THREADS: usize = 4;
const NOW: u32 = 1_700_000_000;

/// An ID whose first byte, thus its shard, runs through all values.
fn id(number: usize) -> SessionId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    SessionId(bytes)
}

fn stored(number: usize, expires: u32) -> Stored {
    let binding = Binding { listener: number.to_le_bytes(), policy: [1; 8], name: [2; 8] };
    Stored { binding, expires, state: number.to_le_bytes().repeat(15).into_boxed_slice() }
}

#[track_caller]
fn assert_is(stored: &Stored, number: usize) {
    assert_eq!(stored.binding.listener, number.to_le_bytes());
    assert_eq!(*stored.state, number.to_le_bytes().repeat(15));
}

/// Tries again until nobody else is in the way.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T, Miss>) -> Result<T, Miss> {
    loop {
        match attempt() {
            Err(Miss::Contended) => thread::yield_now(),
            other => return other,
        }
    }
}

fn insert_patiently(shared: &Shared, number: usize) {
    while let Err(refusal) = shared.insert(id(number), stored(number, NOW + 10), NOW) {
        assert_eq!(refusal, Refusal::Contended);
        thread::yield_now();
    }
}

/// Runs `work(thread)` on all threads at the same moment.
fn together<T: Send>(work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(THREADS);
    let run = &|thread| {
        barrier.wait();
        work(thread)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || run(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn what_all_insert_all_find() {
    const EACH: usize = 2000;
    let all = THREADS * EACH;
    let shared = Shared::new(u32::try_from(all).unwrap(), 1 << 30);
    together(|thread| {
        for number in (thread..all).step_by(THREADS) {
            insert_patiently(&shared, number);
        }
    });
    assert_eq!(shared.entries(), all as u64);
    assert_eq!(shared.bytes(), all * stored(0, 0).bytes());
    together(|_| {
        for number in 0..all {
            assert_is(&patiently(|| shared.get(&id(number), NOW)).unwrap(), number);
        }
    });
    assert_eq!(shared.evicted(), 0);
}

#[test]
fn each_session_is_taken_once() {
    const ALL: usize = 5000;
    let shared = Shared::new(1 << 20, 1 << 30);
    for number in 0..ALL {
        insert_patiently(&shared, number);
    }
    let mut taken: Vec<_> = together(|_| {
        let take = |number: &usize| {
            let taken = patiently(|| shared.take(&id(*number), NOW));
            assert!(taken.is_ok() || taken.as_ref().err() == Some(&Miss::NotFound));
            taken.is_ok_and(|stored| {
                assert_is(&stored, *number);
                true
            })
        };
        (0..ALL).filter(take).collect::<Vec<_>>()
    })
    .concat();
    taken.sort_unstable();
    assert!(taken.into_iter().eq(0..ALL));
    assert_eq!((shared.entries(), shared.bytes()), (0, 0));
}

#[test]
fn bounds_hold_while_all_insert() {
    const ENTRIES: u32 = 1000;
    let bytes_max = 900 * stored(0, 0).bytes();
    let shared = Shared::new(ENTRIES, bytes_max);
    let done = AtomicBool::new(false);
    let inserted: usize = thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert!(shared.entries() <= u64::from(ENTRIES) && shared.bytes() <= bytes_max);
                thread::yield_now();
            }
        });
        let inserted = together(|thread| {
            let insert =
                |number: &usize| shared.insert(id(*number), stored(*number, NOW + 10), NOW).is_ok();
            (thread * 5000..(thread + 1) * 5000).filter(insert).count()
        });
        done.store(true, Ordering::Relaxed);
        watcher.join().unwrap();
        inserted.iter().sum()
    });
    assert_eq!(shared.entries() + shared.evicted(), inserted as u64);
    assert!(shared.entries() >= 800, "{} entries of 1000", shared.entries());
}

#[test]
fn a_taken_lock_is_a_miss_of_its_shard_only() {
    let shared = Shared::new(1000, 1 << 20);
    let (here, beside, elsewhere) = (id(1), id(1 + SHARDS), id(2));
    for number in [1, 2] {
        insert_patiently(&shared, number);
    }
    shared
        .with(&here, |_| {
            assert_eq!(shared.get(&here, NOW).err(), Some(Miss::Contended));
            assert_eq!(shared.take(&here, NOW).err(), Some(Miss::Contended));
            assert_eq!(shared.remove(&here).err(), Some(Miss::Contended));
            let refused = shared.insert(beside, stored(1, NOW + 10), NOW);
            assert_eq!(refused, Err(Refusal::Contended));
            assert!(shared.get(&elsewhere, NOW).is_ok());
            assert_eq!(shared.entries(), 2);
        })
        .unwrap();
    assert!(shared.get(&here, NOW).is_ok());
}

#[test]
fn a_panic_costs_what_its_shard_held() {
    let shared = Shared::new(1000, 1 << 20);
    for number in [1, 2] {
        insert_patiently(&shared, number);
    }
    let panicked = catch_unwind(AssertUnwindSafe(|| shared.with(&id(1), |_| panic!("on purpose"))));
    assert!(panicked.is_err());
    assert_eq!(shared.get(&id(1), NOW).err(), Some(Miss::NotFound));
    assert!(shared.get(&id(2), NOW).is_ok());
    assert_eq!(shared.entries(), 1);
    insert_patiently(&shared, 1);
    assert!(shared.get(&id(1), NOW).is_ok());
}

#[test]
fn an_expired_session_is_said_to_be_and_gone() {
    let shared = Shared::new(1000, 1 << 20);
    for (number, look) in [Shared::get, Shared::take].into_iter().enumerate() {
        insert_patiently(&shared, number);
        assert!(shared.get(&id(number), NOW + 9).is_ok());
        assert_eq!(look(&shared, &id(number), NOW + 10).err(), Some(Miss::Expired));
        assert_eq!(look(&shared, &id(number), NOW + 10).err(), Some(Miss::NotFound));
    }
    insert_patiently(&shared, 5);
    assert_eq!(shared.remove(&id(5)), Ok(()));
    assert_eq!(shared.remove(&id(5)), Err(Miss::NotFound));
    assert_eq!((shared.entries(), shared.bytes()), (0, 0));
}

#[test]
fn shards_get_the_whole_between_them() {
    for whole in [0, 1, SHARDS - 1, SHARDS, 1000, 100_000] {
        let parts: Vec<_> = (0..SHARDS).map(|shard| part(whole, shard)).collect();
        assert_eq!(parts.iter().sum::<usize>(), whole);
        assert!(parts.iter().all(|part| part.abs_diff(whole / SHARDS) <= 1));
    }
    let shared = Shared::new(100, 1 << 20);
    for number in 0..1000 {
        let inserted = shared.insert(id(number), stored(number, NOW + 10), NOW);
        assert!(inserted.is_ok());
    }
    assert_eq!(shared.entries(), 100);
}

#[test]
fn a_state_larger_than_a_shard_is_refused() {
    let shared = Shared::new(1000, SHARDS * ENTRY_BYTES);
    assert_eq!(shared.insert(id(1), stored(1, NOW + 10), NOW), Err(Refusal::TooLarge));
    assert_eq!(shared.entries(), 0);
}
