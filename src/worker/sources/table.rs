//! A table of sources that cannot grow, for all workers, without a lock.
//!
//! A source belongs to one of many sets, by a hash under a key that nobody outside knows; a set has
//! eight places, on two cache lines, and whoever looks for a source looks at those eight and
//! nowhere else. So a million sources cost neither memory nor time: the next one finds a place in
//! its set that nobody needs (nothing open, nothing owed), or none, and is then not counted.
//!
//! A place is one word with the source's tag (the rest of the hash) and its counts, so that both
//! change at once or not at all, and another that says when the source's bucket is full again.
//! Whoever holds a [`Handle`] is among the counts, so that the place stays its source's.
//!
//! What is not exact, and does no harm: two sources of one set whose tags are equal count as one
//! (in a full table, one chance in a thousand that there are two); and two workers that meet a new
//! source at one moment, while a place comes free, may each give it one, until one is empty again.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::time::Duration;

use crate::config::PerSource;
use crate::io::Time;
use crate::limits::{SOURCE_CONNECTIONS_MAX, SOURCE_HANDSHAKES_MAX};

use super::rate::CAPACITY_NANOS;

/// Places of a set.
pub const WAYS: usize = 8;

/// Lost races after which a source is not counted: each was won by somebody, so that this many in a
/// row are not to be expected, and a bound is a bound.
const TRIES_MAX: usize = 64;

/// Sources by hash.
#[derive(Debug)]
pub struct Table {
    sets: Box<[Set]>,
    hasher: RandomState,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Set {
    counts: [AtomicU64; WAYS],
    /// Nanoseconds of [`Time`] at which each bucket is full again.
    full_at: [AtomicU64; WAYS],
}

/// A source that is counted, for as long as the connection that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle(NonZeroU32);

/// What one source may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Most {
    /// Connections.
    pub connections: u32,
    /// Handshakes under way.
    pub handshakes: u32,
    /// Whether its bucket counts.
    pub spends: bool,
}

impl Most {
    /// As configured; what is not limited is bounded by what can be counted.
    pub fn of(limits: &PerSource) -> Self {
        Self {
            connections: limits.connections.unwrap_or(SOURCE_CONNECTIONS_MAX),
            handshakes: limits.handshakes.unwrap_or(SOURCE_HANDSHAKES_MAX),
            spends: limits.handshake_cpu.is_some(),
        }
    }
}

/// Why a connection is not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// The source has as many connections as it may.
    Connections,
    /// The source has as many handshakes under way as it may.
    Handshakes,
    /// The source's bucket is empty.
    Spent,
    /// Every place of its set is needed by another source.
    NoPlace,
}

/// A place's first word: tag (28 bits), connections (20), handshakes (16). 0: nobody's yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts(u64);

impl Counts {
    const HANDSHAKE: u64 = 1;
    const CONNECTION: u64 = 1 << 16;
    const TAG_SHIFT: u32 = 36;

    fn first(tag: u64) -> Self {
        Self(tag << Self::TAG_SHIFT | Self::CONNECTION | Self::HANDSHAKE)
    }

    fn tag(self) -> u64 {
        self.0 >> Self::TAG_SHIFT
    }

    fn connections(self) -> u64 {
        self.0 >> 16 & u64::from(SOURCE_CONNECTIONS_MAX)
    }

    fn handshakes(self) -> u64 {
        self.0 & u64::from(SOURCE_HANDSHAKES_MAX)
    }

    /// With one connection and its handshake more.
    fn and_one(self, most: Most) -> Result<Self, Denial> {
        if self.connections() >= u64::from(most.connections) {
            return Err(Denial::Connections);
        }
        if self.handshakes() >= u64::from(most.handshakes) {
            return Err(Denial::Handshakes);
        }
        Ok(Self(self.0 + Self::CONNECTION + Self::HANDSHAKE))
    }
}

impl Table {
    /// Room for `sources`, rounded up to whole sets; 0: for none.
    pub fn new(sources: u32) -> Self {
        let sets = (sources as usize).div_ceil(WAYS);
        Self {
            sets: std::iter::repeat_with(Set::default).take(sets).collect(),
            hasher: RandomState::new(),
        }
    }

    /// Bytes that the table takes.
    pub fn bytes(sources: u32) -> usize {
        (sources as usize).div_ceil(WAYS) * size_of::<Set>()
    }

    /// Counts one connection and one handshake more for a source.
    ///
    /// # Errors
    /// Why not; then nothing has changed.
    pub fn enter(&self, source: IpAddr, most: Most, now: Time) -> Result<Handle, Denial> {
        let (number, tag) = self.place_of(source).ok_or(Denial::NoPlace)?;
        let set = self.sets.get(number).ok_or(Denial::NoPlace)?;
        for _ in 0..TRIES_MAX {
            let found = set.find(tag, now)?;
            let wanted = match found {
                Found::There { way, counts } => {
                    let wanted = counts.and_one(most)?;
                    if most.spends && set.is_spent(way, now) {
                        return Err(Denial::Spent);
                    }
                    wanted
                }
                Found::Free { .. } => Counts::first(tag),
            };
            let (Found::There { way, counts } | Found::Free { way, counts }) = found;
            if set.replace(way, counts, wanted) {
                return Handle::new(number, way).ok_or(Denial::NoPlace);
            }
        }
        Err(Denial::NoPlace)
    }

    /// Counts a source's handshake no more.
    pub fn handshake_ended(&self, handle: Handle) {
        let was = self.subtract(handle, Counts::HANDSHAKE);
        debug_assert!(was.is_none_or(|was| was.handshakes() > 0), "a handshake ended twice");
    }

    /// Counts a source's connection no more.
    pub fn leave(&self, handle: Handle) {
        let was = self.subtract(handle, Counts::CONNECTION);
        debug_assert!(was.is_none_or(|was| was.connections() > 0), "a connection left twice");
    }

    /// Takes a cost from a source's bucket.
    pub fn charge(&self, handle: Handle, cost: Duration, a_second: Duration, now: Time) {
        let cost = nanos(cost).saturating_mul(CAPACITY_NANOS) / nanos(a_second).max(1);
        if let Some(full_at) = self.set(handle).and_then(|set| set.full_at.get(handle.way())) {
            let later = |full_at: u64| Some(full_at.max(now.0).saturating_add(cost));
            let _always = full_at.fetch_update(Relaxed, Relaxed, later);
        }
    }

    /// Whether a source's bucket is empty.
    pub fn is_spent(&self, handle: Handle, now: Time) -> bool {
        self.set(handle).is_some_and(|set| set.is_spent(handle.way(), now))
    }

    /// Connections and handshakes counted.
    pub fn totals(&self) -> (u64, u64) {
        let counts = self.sets.iter().flat_map(|set| &set.counts);
        let counts = counts.map(|counts| Counts(counts.load(Acquire)));
        counts.fold((0, 0), |(connections, handshakes), counts| {
            (connections + counts.connections(), handshakes + counts.handshakes())
        })
    }

    /// The set and the tag of a source; `None`: there are no sets. Set and tag come from different
    /// bits of the hash.
    fn place_of(&self, source: IpAddr) -> Option<(usize, u64)> {
        let hash = self.hasher.hash_one(source);
        let sets = u64::try_from(self.sets.len()).ok().filter(|sets| *sets > 0)?;
        let number = usize::try_from(((hash & u64::from(u32::MAX)) * sets) >> 32).ok()?;
        Some((number, (hash >> Counts::TAG_SHIFT).max(1)))
    }

    fn set(&self, handle: Handle) -> Option<&Set> {
        self.sets.get(handle.set())
    }

    fn subtract(&self, handle: Handle, one: u64) -> Option<Counts> {
        let counts = self.set(handle)?.counts.get(handle.way())?;
        Some(Counts(counts.fetch_sub(one, AcqRel)))
    }
}

/// Where in its set a source is counted, or may be from now on, and what stands there.
enum Found {
    There { way: usize, counts: Counts },
    Free { way: usize, counts: Counts },
}

impl Set {
    /// Looks at every place once.
    fn find(&self, tag: u64, now: Time) -> Result<Found, Denial> {
        let mut free = None;
        for (way, counts) in self.counts.iter().enumerate() {
            let counts = Counts(counts.load(Acquire));
            if counts.tag() == tag {
                return Ok(Found::There { way, counts });
            }
            if free.is_none() && counts.connections() == 0 && self.is_full(way, now) {
                free = Some(Found::Free { way, counts });
            }
        }
        free.ok_or(Denial::NoPlace)
    }

    fn replace(&self, way: usize, counts: Counts, wanted: Counts) -> bool {
        let place = self.counts.get(way);
        place.is_some_and(|place| {
            place.compare_exchange(counts.0, wanted.0, AcqRel, Relaxed).is_ok()
        })
    }

    fn full_at(&self, way: usize) -> u64 {
        self.full_at.get(way).map_or(0, |full_at| full_at.load(Relaxed))
    }

    /// A full bucket is like one that was never used, so that a place needs no clearing.
    fn is_full(&self, way: usize, now: Time) -> bool {
        self.full_at(way) <= now.0
    }

    fn is_spent(&self, way: usize, now: Time) -> bool {
        self.full_at(way).saturating_sub(now.0) >= CAPACITY_NANOS
    }
}

impl Handle {
    fn new(set: usize, way: usize) -> Option<Self> {
        let index = u32::try_from(set * WAYS + way).ok()?;
        NonZeroU32::new(index.checked_add(1)?).map(Self)
    }

    fn index(self) -> usize {
        self.0.get() as usize - 1
    }

    fn set(self) -> usize {
        self.index() / WAYS
    }

    fn way(self) -> usize {
        self.index() % WAYS
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

const _: () = assert!(size_of::<Set>() == 16 * WAYS);
const _: () = assert!(Counts::CONNECTION == SOURCE_HANDSHAKES_MAX as u64 + 1);
const _: () =
    assert!(Counts::CONNECTION * (SOURCE_CONNECTIONS_MAX as u64 + 1) == 1 << Counts::TAG_SHIFT);
