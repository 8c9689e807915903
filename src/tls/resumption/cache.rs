//! Sessions by ID, bounded in entries and in bytes; the least recently used one leaves first.
//!
//! One of these is a worker's own cache (L1); [`super::shared`] puts a lock around many (L2).
//!
//! Entries lie in a slab and are linked into a circle by last use, and into one chain per bucket of
//! the hash table. Slab and table are reserved at once and touched as they fill: growing would
//! copy megabytes between two connections. For the same reason the table is chained and not open:
//! chains forget a removed entry, whereas a table with tombstones has to be rebuilt time and again
//! once the cache is full and each insert removes another entry.

use std::fmt;
use std::hash::{BuildHasher, RandomState};

use zeroize::Zeroize;

use super::Binding;
use crate::limits::{EXPIRED_PER_INSERT_MAX, SESSION_STATE_BYTES_MAX, SESSIONS_MAX};

/// Bytes that an entry takes besides its state: its place in the slab, and its share of the table,
/// which is two buckets at most.
pub const ENTRY_BYTES: usize = size_of::<Node>() + 2 * size_of::<u32>();

/// The slot where the circle of entries begins and ends; it holds none. In a chain: the end.
const HUB: u32 = 0;

/// A session's ID that we made: 32 random bytes (RFC 5246 section 7.4.1.2). One of another length
/// is not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionId(pub [u8; 32]);

impl TryFrom<&[u8]> for SessionId {
    type Error = std::array::TryFromSliceError;

    fn try_from(id: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self(id.try_into()?))
    }
}

/// A session that may be resumed. Its state is wiped when dropped.
#[derive(Clone)]
pub struct Stored {
    /// Where it may be resumed.
    pub binding: Binding,
    /// When it may no longer be, in seconds of Unix time.
    pub expires: u32,
    /// The session as the TLS library encodes it, with its master secret.
    pub state: Box<[u8]>,
}

impl Stored {
    fn has_expired(&self, now: u32) -> bool {
        self.expires <= now
    }

    /// Bytes that a cache accounts for this session: [`ENTRY_BYTES`], and the state as the
    /// allocator stores it, in a block of the next size class (jemalloc(3), "SIZE CLASSES").
    pub fn bytes(&self) -> usize {
        let spacing = match self.state.len() {
            ..=128 => 16,
            // Four classes between two powers of two.
            len => 1 << ((len - 1).ilog2() - 2),
        };
        ENTRY_BYTES + self.state.len().next_multiple_of(spacing)
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.state.zeroize();
    }
}

impl fmt::Debug for Stored {
    /// Without the state.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stored")
            .field("binding", &self.binding)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Why a look-up found no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    /// There is none with this ID.
    NotFound,
    /// There was one; its time is over, and it has been removed.
    Expired,
    /// Another worker was busy with the same shard (L2 only).
    Contended,
}

/// Why a session was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its state is longer than [`SESSION_STATE_BYTES_MAX`], or it is larger than the whole cache
    /// (in L2: than a shard).
    TooLarge,
    /// Another worker was busy with the same shard (L2 only).
    Contended,
}

/// A bounded cache of sessions with one owner.
#[derive(Debug)]
pub struct Cache {
    /// The hub, then entries and free slots. Never grows beyond what is reserved.
    nodes: Vec<Node>,
    /// First entry of each bucket's chain; a power of two of them.
    heads: Box<[u32]>,
    /// Chain of free slots.
    free: u32,
    /// Keyed, as clients choose the IDs that are looked up.
    hasher: RandomState,
    entries: u32,
    entries_max: u32,
    bytes: usize,
    bytes_max: usize,
    evicted: u64,
}

#[derive(Debug)]
struct Node {
    id: SessionId,
    stored: Stored,
    /// The one used next after this one; the hub for the newest.
    newer: u32,
    /// The one used last before this one; the hub for the oldest.
    older: u32,
    /// The next in the same chain.
    next: u32,
    /// Whose chain it is in, so that removing needs no hash.
    bucket: u32,
}

impl Node {
    fn vacant() -> Self {
        let binding = Binding { listener: [0; 8], policy: [0; 8], name: [0; 8] };
        let stored = Stored { binding, expires: 0, state: Box::default() };
        Self { id: SessionId([0; 32]), stored, newer: HUB, older: HUB, next: HUB, bucket: 0 }
    }
}

impl Cache {
    /// An empty cache of at most `entries` sessions, which take `bytes` at most, counted by
    /// [`Stored::bytes`]. With 0 of either it stores nothing.
    ///
    /// Reserves address space for all entries. Memory is used as the cache fills, and a slot is
    /// kept for the next session when one leaves.
    pub fn new(entries: u32, bytes: usize) -> Self {
        let entries_that_fit = u32::try_from(bytes / ENTRY_BYTES).unwrap_or(u32::MAX);
        let entries_max = entries.min(entries_that_fit).min(SESSIONS_MAX);
        let mut nodes = Vec::with_capacity(entries_max as usize + 1);
        nodes.push(Node::vacant());
        Self {
            nodes,
            heads: vec![HUB; entries_max.next_power_of_two() as usize].into_boxed_slice(),
            free: HUB,
            hasher: RandomState::new(),
            entries: 0,
            entries_max,
            bytes: 0,
            bytes_max: bytes,
            evicted: 0,
        }
    }

    /// The session with this ID, which becomes the most recently used.
    ///
    /// # Errors
    /// [`Miss::NotFound`] or [`Miss::Expired`].
    pub fn get(&mut self, id: &SessionId, now: u32) -> Result<&Stored, Miss> {
        let slot = self.find(id, self.bucket(id)).ok_or(Miss::NotFound)?;
        if self.node(slot).stored.has_expired(now) {
            self.release(slot);
            return Err(Miss::Expired);
        }
        self.unlink(slot);
        self.link(slot);
        Ok(&self.node(slot).stored)
    }

    /// Removes the session with this ID and returns it: it can be taken once.
    ///
    /// # Errors
    /// [`Miss::NotFound`] or [`Miss::Expired`].
    pub fn take(&mut self, id: &SessionId, now: u32) -> Result<Stored, Miss> {
        let stored = self.remove(id).ok_or(Miss::NotFound)?;
        if stored.has_expired(now) { Err(Miss::Expired) } else { Ok(stored) }
    }

    /// Removes the session with this ID, whether expired or not.
    pub fn remove(&mut self, id: &SessionId) -> Option<Stored> {
        let slot = self.find(id, self.bucket(id))?;
        Some(self.release(slot))
    }

    /// Stores a session as the most recently used one, in place of one with the same ID.
    ///
    /// First up to [`EXPIRED_PER_INSERT_MAX`] expired sessions leave from the cold end, then
    /// the coldest ones until it fits: one, if all are of a size, and fewer than 160, if it is of
    /// [`SESSION_STATE_BYTES_MAX`] and they are empty.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`]; then nothing has changed.
    pub fn insert(&mut self, id: SessionId, stored: Stored, now: u32) -> Result<(), Refusal> {
        let bytes = stored.bytes();
        let too_long = stored.state.len() > SESSION_STATE_BYTES_MAX;
        if too_long || bytes > self.bytes_max || self.entries_max == 0 {
            return Err(Refusal::TooLarge);
        }
        let bucket = self.bucket(&id);
        if let Some(slot) = self.find(&id, bucket) {
            self.release(slot);
        }
        for _ in 0..EXPIRED_PER_INSERT_MAX {
            let oldest = self.oldest();
            if oldest == HUB || !self.node(oldest).stored.has_expired(now) {
                break;
            }
            self.release(oldest);
        }
        while self.entries >= self.entries_max || self.bytes > self.bytes_max - bytes {
            self.release(self.oldest());
            self.evicted += 1;
        }
        let slot = self.vacant_slot();
        let next = std::mem::replace(self.head_mut(bucket), slot);
        *self.node_mut(slot) = Node { id, stored, newer: HUB, older: HUB, next, bucket };
        self.link(slot);
        self.entries += 1;
        self.bytes += bytes;
        Ok(())
    }

    /// Removes every session.
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.nodes.push(Node::vacant());
        self.heads.fill(HUB);
        self.free = HUB;
        self.entries = 0;
        self.bytes = 0;
    }

    /// Sessions stored, expired ones included.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Bytes that they take, by [`Stored::bytes`].
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Sessions that had to leave because of the bounds, since the cache was made.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn bucket(&self, id: &SessionId) -> u32 {
        let [a, b, c, d, ..] = self.hasher.hash_one(id.0).to_le_bytes();
        u32::from_le_bytes([a, b, c, d]) & (self.entries_max.next_power_of_two() - 1)
    }

    fn find(&self, id: &SessionId, bucket: u32) -> Option<u32> {
        let mut slot = self.head(bucket);
        while slot != HUB {
            let node = self.node(slot);
            if node.id == *id {
                return Some(slot);
            }
            slot = node.next;
        }
        None
    }

    /// The least recently used entry; the hub if there is none.
    fn oldest(&self) -> u32 {
        self.node(HUB).newer
    }

    /// A slot to be overwritten. There must be less than `entries_max` entries.
    fn vacant_slot(&mut self) -> u32 {
        if self.free != HUB {
            let slot = self.free;
            self.free = self.node(slot).next;
            return slot;
        }
        debug_assert!(self.nodes.len() < self.nodes.capacity(), "the slab would grow");
        self.nodes.push(Node::vacant());
        // Without free slots there is one for each entry, and they are numbered from 1.
        self.entries + 1
    }

    /// Empties an entry's slot and frees it.
    fn release(&mut self, slot: u32) -> Stored {
        self.unlink(slot);
        self.unchain(slot);
        let vacant = Node { next: self.free, ..Node::vacant() };
        let node = std::mem::replace(self.node_mut(slot), vacant);
        self.free = slot;
        self.entries -= 1;
        self.bytes -= node.stored.bytes();
        node.stored
    }

    /// Takes an entry out of its bucket's chain.
    fn unchain(&mut self, slot: u32) {
        let &Node { bucket, next, .. } = self.node(slot);
        let mut before = self.head(bucket);
        if before == slot {
            *self.head_mut(bucket) = next;
            return;
        }
        while self.node(before).next != slot {
            before = self.node(before).next;
        }
        self.node_mut(before).next = next;
    }

    /// Takes an entry out of the circle.
    fn unlink(&mut self, slot: u32) {
        let &Node { newer, older, .. } = self.node(slot);
        self.node_mut(newer).older = older;
        self.node_mut(older).newer = newer;
    }

    /// Puts an entry into the circle as the newest.
    fn link(&mut self, slot: u32) {
        let newest = std::mem::replace(&mut self.node_mut(HUB).older, slot);
        self.node_mut(newest).newer = slot;
        let node = self.node_mut(slot);
        node.newer = HUB;
        node.older = newest;
    }

    #[expect(clippy::indexing_slicing, reason = "links lead to slots of the slab")]
    fn node(&self, slot: u32) -> &Node {
        &self.nodes[slot as usize]
    }

    #[expect(clippy::indexing_slicing, reason = "links lead to slots of the slab")]
    fn node_mut(&mut self, slot: u32) -> &mut Node {
        &mut self.nodes[slot as usize]
    }

    #[expect(clippy::indexing_slicing, reason = "buckets are masked by the table's length")]
    fn head(&self, bucket: u32) -> u32 {
        self.heads[bucket as usize]
    }

    #[expect(clippy::indexing_slicing, reason = "buckets are masked by the table's length")]
    fn head_mut(&mut self, bucket: u32) -> &mut u32 {
        &mut self.heads[bucket as usize]
    }
}

#[cfg(test)]
mod tests;
