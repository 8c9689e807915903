//! The cache against a queue that does the same the slow way, and its links against each other.

use std::borrow::Borrow;
use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

fn id(number: u8) -> SessionId {
    SessionId([number; 32])
}

fn stored(mark: u8, len: usize, expires: u32) -> Stored {
    let binding = Binding { listener: [mark; 8], policy: [1; 8], name: [2; 8] };
    Stored { binding, expires, state: vec![mark; len].into_boxed_slice() }
}

/// What distinguishes one session from another.
fn essence(stored: impl Borrow<Stored>) -> (Binding, u32, Vec<u8>) {
    let stored = stored.borrow();
    (stored.binding, stored.expires, stored.state.to_vec())
}

/// Asserts that each slot is in exactly the places where it belongs.
fn check_links(cache: &Cache) {
    let mut forward = Vec::new();
    let mut slot = cache.node(HUB).newer;
    while slot != HUB {
        assert_eq!(cache.node(cache.node(slot).newer).older, slot, "a one-way link");
        forward.push(slot);
        slot = cache.node(slot).newer;
    }
    let used: BTreeSet<_> = forward.iter().copied().collect();
    assert_eq!(used.len(), cache.entries as usize);

    let mut chained = BTreeSet::new();
    for (bucket, head) in (0_u32..).zip(&cache.heads) {
        let mut slot = *head;
        while slot != HUB {
            assert!(chained.insert(slot), "in two chains");
            assert_eq!(cache.node(slot).bucket, bucket);
            assert_eq!(cache.bucket(&cache.node(slot).id), bucket);
            slot = cache.node(slot).next;
        }
    }
    assert_eq!(chained, used);

    let mut free = BTreeSet::new();
    let mut slot = cache.free;
    while slot != HUB {
        assert!(free.insert(slot), "freed twice");
        assert_eq!(cache.node(slot).stored.state.len(), 0, "a free slot keeps a secret");
        slot = cache.node(slot).next;
    }
    assert!(free.is_disjoint(&used));
    assert_eq!(1 + used.len() + free.len(), cache.nodes.len());
    assert!(cache.nodes.len() <= cache.entries_max as usize + 1, "the slab has grown");
    let bytes = forward.iter().map(|slot| cache.node(*slot).stored.bytes()).sum::<usize>();
    assert_eq!(bytes, cache.bytes);
}

/// IDs, the least recently used first.
fn order(cache: &Cache) -> Vec<SessionId> {
    let mut order = Vec::new();
    let mut slot = cache.oldest();
    while slot != HUB {
        order.push(cache.node(slot).id);
        slot = cache.node(slot).newer;
    }
    order
}

/// The reference: the least recently used in front.
struct Model {
    queue: VecDeque<(SessionId, Stored)>,
    entries_max: usize,
    bytes_max: usize,
    evicted: u64,
}

impl Model {
    fn bytes(&self) -> usize {
        self.queue.iter().map(|(_, stored)| stored.bytes()).sum()
    }

    fn remove(&mut self, id: SessionId) -> Option<Stored> {
        let at = self.queue.iter().position(|(other, _)| *other == id)?;
        self.queue.remove(at).map(|(_, stored)| stored)
    }

    fn take(&mut self, id: SessionId, now: u32) -> Result<Stored, Miss> {
        let stored = self.remove(id).ok_or(Miss::NotFound)?;
        if stored.expires > now { Ok(stored) } else { Err(Miss::Expired) }
    }

    fn get(&mut self, id: SessionId, now: u32) -> Result<Stored, Miss> {
        let stored = self.take(id, now)?;
        self.queue.push_back((id, stored.clone()));
        Ok(stored)
    }

    fn insert(&mut self, id: SessionId, stored: Stored, now: u32) -> Result<(), Refusal> {
        let alone = self.entries_max > 0 && stored.bytes() <= self.bytes_max;
        if !alone || stored.state.len() > SESSION_STATE_BYTES_MAX {
            return Err(Refusal::TooLarge);
        }
        self.remove(id);
        for _ in 0..2 {
            if self.queue.front().is_some_and(|(_, oldest)| oldest.expires <= now) {
                self.queue.pop_front();
            }
        }
        self.queue.push_back((id, stored));
        while self.queue.len() > self.entries_max || self.bytes() > self.bytes_max {
            self.queue.pop_front();
            self.evicted += 1;
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Step {
    Get(u8),
    Take(u8),
    Remove(u8),
    Insert { id: u8, len: usize, lifetime: u32 },
    Wait(u32),
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    let id = || 0_u8..24;
    let len = prop_oneof![
        8 => 0_usize..300,
        1 => 1000_usize..4000,
        1 => SESSION_STATE_BYTES_MAX - 1..SESSION_STATE_BYTES_MAX + 2,
    ];
    prop_oneof![
        20 => id().prop_map(Step::Get),
        4 => id().prop_map(Step::Take),
        4 => id().prop_map(Step::Remove),
        30 => (id(), len, 0_u32..40)
            .prop_map(|(id, len, lifetime)| Step::Insert { id, len, lifetime }),
        5 => (0_u32..15).prop_map(Step::Wait),
        1 => Just(Step::Clear),
    ]
}

proptest! {
    #[test]
    fn agrees_with_a_queue(
        entries in 0_u32..20,
        bytes in prop_oneof![0_usize..4000, Just(1 << 20)],
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let mut cache = Cache::new(entries, bytes);
        let mut model = Model {
            queue: VecDeque::new(),
            entries_max: entries as usize,
            bytes_max: bytes,
            evicted: 0,
        };
        let mut now = 1_700_000_000;
        for (mark, step) in (0_u8..).zip(steps) {
            match step {
                Step::Get(number) => prop_assert_eq!(
                    cache.get(&id(number), now).map(essence),
                    model.get(id(number), now).map(essence)
                ),
                Step::Take(number) => prop_assert_eq!(
                    cache.take(&id(number), now).map(essence),
                    model.take(id(number), now).map(essence)
                ),
                Step::Remove(number) => prop_assert_eq!(
                    cache.remove(&id(number)).map(essence),
                    model.remove(id(number)).map(essence)
                ),
                Step::Insert { id: number, len, lifetime } => {
                    let stored = stored(mark, len, now + lifetime);
                    prop_assert_eq!(
                        cache.insert(id(number), stored.clone(), now),
                        model.insert(id(number), stored, now)
                    );
                }
                Step::Wait(seconds) => now += seconds,
                Step::Clear => {
                    cache.clear();
                    model.queue.clear();
                }
            }
            check_links(&cache);
            let expected: Vec<_> = model.queue.iter().map(|(id, _)| *id).collect();
            prop_assert_eq!(order(&cache), expected);
            prop_assert_eq!(cache.bytes(), model.bytes());
            prop_assert_eq!(cache.entries() as usize, model.queue.len());
            prop_assert_eq!(cache.evicted(), model.evicted);
            prop_assert!(cache.entries() <= entries && cache.bytes() <= bytes);
        }
    }
}

#[test]
fn the_least_recently_used_leaves_first() {
    let mut cache = Cache::new(3, 1 << 20);
    for number in 0..3 {
        cache.insert(id(number), stored(number, 100, 10), 0).unwrap();
    }
    cache.get(&id(0), 0).unwrap();
    cache.insert(id(3), stored(3, 100, 10), 0).unwrap();
    assert_eq!(order(&cache), [id(2), id(0), id(3)]);
    assert_eq!(cache.get(&id(1), 0).err(), Some(Miss::NotFound));
    assert_eq!(cache.evicted(), 1);
}

#[test]
fn a_session_expires_in_its_last_second() {
    let mut cache = Cache::new(3, 1 << 20);
    cache.insert(id(0), stored(0, 100, 10), 0).unwrap();
    assert!(cache.get(&id(0), 9).is_ok());
    assert_eq!(cache.get(&id(0), 10).err(), Some(Miss::Expired));
    assert_eq!(cache.get(&id(0), 10).err(), Some(Miss::NotFound));
    assert_eq!((cache.entries(), cache.bytes(), cache.evicted()), (0, 0, 0));
}

#[test]
fn inserts_alone_get_rid_of_what_has_expired() {
    let mut cache = Cache::new(1000, 1 << 20);
    for number in 0..100 {
        cache.insert(id(number), stored(number, 100, 10), 0).unwrap();
    }
    for number in 100..150 {
        cache.insert(id(number), stored(number, 100, 20), 10).unwrap();
    }
    assert_eq!(order(&cache), (100..150).map(id).collect::<Vec<_>>());
    assert_eq!(cache.evicted(), 0);
}

#[test]
fn a_state_beyond_the_limit_is_refused_and_changes_nothing() {
    let mut cache = Cache::new(10, 1 << 20);
    cache.insert(id(0), stored(0, SESSION_STATE_BYTES_MAX, 10), 0).unwrap();
    let refused = cache.insert(id(0), stored(1, SESSION_STATE_BYTES_MAX + 1, 10), 0);
    assert_eq!(refused, Err(Refusal::TooLarge));
    assert_eq!(cache.get(&id(0), 0).unwrap().binding.listener, [0; 8]);

    let mut small = Cache::new(10, stored(0, 100, 10).bytes());
    small.insert(id(0), stored(0, 100, 10), 0).unwrap();
    assert_eq!(small.insert(id(1), stored(1, 200, 10), 0), Err(Refusal::TooLarge));
    assert_eq!(order(&small), [id(0)]);
}

#[test]
fn one_insert_evicts_no_more_than_it_says() {
    let mut cache = Cache::new(SESSIONS_MAX, 160 * ENTRY_BYTES);
    for number in 0..=u8::MAX {
        cache.insert(id(number), stored(number, 0, 10), 0).unwrap();
    }
    assert_eq!(cache.entries(), 160);
    let before = cache.evicted();
    cache.insert(SessionId([7; 32]), stored(0, SESSION_STATE_BYTES_MAX, 10), 0).unwrap();
    assert!((150..160).contains(&(cache.evicted() - before)), "{}", cache.evicted() - before);
}

#[test]
fn what_is_reserved_follows_the_tighter_bound() {
    let cache = Cache::new(u32::MAX, 1000 * ENTRY_BYTES);
    assert_eq!((cache.entries_max, cache.heads.len()), (1000, 1024));
    assert!(cache.nodes.capacity() < 2000);
}

#[test]
fn a_secret_is_not_shown() {
    let mut secret = stored(0, 0, 10);
    secret.state = Box::new([0xA5; 3]);
    let text = format!("{secret:?}");
    assert!(text.contains("expires: 10") && !text.contains("165"), "{text}");
}
