//! The sessions that all workers share (L2), so that a client may come back to any of them.
//!
//! One [`Cache`] per shard, behind a lock that is only ever tried: whoever finds it taken has a
//! miss and goes on, so a worker that loses its core while it holds one makes nobody wait. As
//! nobody waits, letting go of it never calls the kernel either.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
#[expect(
    clippy::disallowed_types,
    reason = "only ever tried, so that no worker waits for another"
)]
use std::sync::{Mutex, TryLockError};

use super::cache::{Cache, Miss, Refusal, SessionId, Stored};

/// Shards, a power of two. Two workers meet in one of 64 look-ups that they make at the same
/// moment.
pub const SHARDS: usize = 64;

/// A bounded cache of sessions for many threads, none of which ever waits.
#[derive(Debug)]
pub struct Shared {
    shards: Box<[Shard]>,
}

/// Aligned so that workers busy with neighbours do not share a cache line, nor the pair of lines
/// that processors fetch together.
#[derive(Debug)]
#[repr(align(128))]
struct Shard {
    #[expect(clippy::disallowed_types, reason = "only ever tried")]
    cache: Mutex<Cache>,
    // Copies of the cache's figures, written under the lock, read without.
    entries: AtomicU32,
    bytes: AtomicUsize,
    evicted: AtomicU64,
}

impl Shared {
    /// An empty cache of at most `entries` sessions, which take `bytes` at most, counted by
    /// [`Stored::bytes`]. Each of [`SHARDS`] shards gets its part, so a session must fit into that
    /// part of `bytes`, and with less than one entry for each, some sessions find no place.
    pub fn new(entries: u32, bytes: usize) -> Self {
        let shards = (0..SHARDS).map(|shard| {
            let entries = part(entries as usize, shard);
            #[expect(clippy::disallowed_types, reason = "only ever tried")]
            Shard {
                cache: Mutex::new(Cache::new(
                    u32::try_from(entries).unwrap_or(u32::MAX),
                    part(bytes, shard),
                )),
                entries: AtomicU32::new(0),
                bytes: AtomicUsize::new(0),
                evicted: AtomicU64::new(0),
            }
        });
        Self { shards: shards.collect() }
    }

    /// A copy of the session with this ID, which becomes the most recently used of its shard.
    ///
    /// # Errors
    /// Any [`Miss`].
    pub fn get(&self, id: &SessionId, now: u32) -> Result<Stored, Miss> {
        self.with(id, |cache| cache.get(id, now).cloned()).unwrap_or(Err(Miss::Contended))
    }

    /// Removes the session with this ID and returns it: of all who ask, one gets it.
    ///
    /// # Errors
    /// Any [`Miss`].
    pub fn take(&self, id: &SessionId, now: u32) -> Result<Stored, Miss> {
        self.with(id, |cache| cache.take(id, now)).unwrap_or(Err(Miss::Contended))
    }

    /// Stores a session, see [`Cache::insert`].
    ///
    /// # Errors
    /// Any [`Refusal`]; then nothing has changed.
    pub fn insert(&self, id: SessionId, stored: Stored, now: u32) -> Result<(), Refusal> {
        self.with(&id, |cache| cache.insert(id, stored, now)).unwrap_or(Err(Refusal::Contended))
    }

    /// Removes the session with this ID, whether expired or not.
    ///
    /// # Errors
    /// [`Miss::NotFound`], or [`Miss::Contended`]: then it may still be there.
    pub fn remove(&self, id: &SessionId) -> Result<(), Miss> {
        let removed = self.with(id, |cache| cache.remove(id)).ok_or(Miss::Contended)?;
        removed.map(drop).ok_or(Miss::NotFound)
    }

    /// Sessions stored, expired ones included.
    pub fn entries(&self) -> u64 {
        self.shards.iter().map(|shard| u64::from(shard.entries.load(Ordering::Relaxed))).sum()
    }

    /// Bytes that they take, by [`Stored::bytes`].
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.bytes.load(Ordering::Relaxed)).sum()
    }

    /// Sessions that had to leave because of the bounds, since the cache was made.
    pub fn evicted(&self) -> u64 {
        self.shards.iter().map(|shard| shard.evicted.load(Ordering::Relaxed)).sum()
    }

    /// Does something with the cache that an ID belongs to; `None` if somebody else is at it.
    fn with<T>(&self, id: &SessionId, act: impl FnOnce(&mut Cache) -> T) -> Option<T> {
        let shard = self.shards.get(shard_of(id))?;
        let mut cache = match shard.cache.try_lock() {
            Ok(cache) => cache,
            Err(TryLockError::WouldBlock) => return None,
            Err(TryLockError::Poisoned(poisoned)) => {
                // Who panicked may have left links that lead nowhere.
                let mut cache = poisoned.into_inner();
                cache.clear();
                shard.cache.clear_poison();
                cache
            }
        };
        let result = act(&mut cache);
        shard.entries.store(cache.entries(), Ordering::Relaxed);
        shard.bytes.store(cache.bytes(), Ordering::Relaxed);
        shard.evicted.store(cache.evicted(), Ordering::Relaxed);
        Some(result)
    }
}

/// Our IDs are random, so any of their bits do. Whoever looks up IDs of one shard only, keeps that
/// one busy for the length of each look-up, and no other.
fn shard_of(id: &SessionId) -> usize {
    let SessionId([first, ..]) = id;
    usize::from(*first) % SHARDS
}

/// What shard number `shard` gets of a `whole`: the parts sum up to it and differ by one at most.
fn part(whole: usize, shard: usize) -> usize {
    whole / SHARDS + usize::from(shard < whole % SHARDS)
}

const _: () = assert!(SHARDS.is_power_of_two() && SHARDS <= 256);

#[cfg(test)]
mod tests;
