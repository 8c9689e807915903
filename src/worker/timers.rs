//! A worker's timers: one hierarchical wheel in user space instead of a kernel timeout per
//! connection.
//!
//! Time is counted in ticks of 8 ms. A level has 64 slots, each as long as the whole level below:
//! 8 ms, 512 ms, 33 s, 35 min, 37 h, 99 days. An entry lies in the lowest level at which its tick
//! and the wheel's differ, and moves down as the wheel comes nearer.
//!
//! There is no cancel. The owner notes its deadline, and when an entry is handed out, looks
//! whether that deadline has come; if it was put off meanwhile, it inserts again.
//!
//! Entries live in one arena, linked into lists: its memory follows the number of entries, not
//! which slots they have been in, and after it has grown once nothing is allocated.

use std::time::Duration;

use crate::io::Time;

/// The wheel's resolution: an entry is handed out no earlier than its time, and one tick late at
/// most, as long as [`Timers::expire`] is called when [`Timers::next`] says so.
pub const TICK: Duration = Duration::from_millis(8);

/// Entries that one [`Timers::expire`] touches at most, handing them out or moving them down.
pub const TOUCHED_PER_CALL_MAX: usize = 1024;

const TICK_NANOS: u64 = 8_000_000;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const LEVELS: usize = 6;
/// The last tick of the top level's revolution: 17 years.
const REVOLUTION: u64 = (1 << (SLOT_BITS * 6)) - 1;
/// The end of a list.
const NONE: u32 = u32::MAX;

const _: () = assert!(TICK.as_nanos() == TICK_NANOS as u128);

/// Pending deadlines of one worker's connections.
#[derive(Debug)]
pub struct Timers {
    /// Every entry due before this tick has been handed out.
    tick: u64,
    levels: [Level; LEVELS],
    nodes: Vec<Node>,
    /// List of unused nodes.
    free: u32,
    len: usize,
}

#[derive(Debug)]
struct Level {
    /// One bit per slot that holds entries.
    occupied: u64,
    /// First node of each slot's list.
    heads: [u32; SLOTS],
}

#[derive(Debug, Clone, Copy)]
struct Node {
    due: u64,
    slot: u32,
    generation: u32,
    next: u32,
}

impl Timers {
    /// No entries; room for this many before anything is allocated again.
    pub fn with_capacity(entries: usize) -> Self {
        Self {
            tick: 0,
            levels: std::array::from_fn(|_| Level { occupied: 0, heads: [NONE; SLOTS] }),
            nodes: Vec::with_capacity(entries),
            free: NONE,
            len: 0,
        }
    }

    /// Entries not handed out yet.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is pending.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Asks to be given `(slot, generation)` at `at`; a time in the past means the next
    /// [`Timers::expire`].
    ///
    /// # Limits
    /// 2^32 - 1 entries, four for each slot that a worker can have; more are not kept. An entry
    /// further away than the top level's revolution (17 years) comes early.
    pub fn insert(&mut self, slot: u32, generation: u32, at: Time) {
        let due = at.0.div_ceil(TICK_NANOS).max(self.tick);
        let node = Node { due: due.min(self.tick | REVOLUTION), slot, generation, next: NONE };
        let index = if let Some(unused) = self.node(self.free) {
            std::mem::replace(&mut self.free, unused.next)
        } else {
            let Ok(index) = u32::try_from(self.nodes.len()) else {
                debug_assert!(false, "more timers than slots can have");
                return;
            };
            self.nodes.push(node);
            index
        };
        self.len += 1;
        self.link(index, node);
    }

    /// Appends to `out` what is due at `now`, in no particular order within a tick.
    ///
    /// # Limits
    /// Touches [`TOUCHED_PER_CALL_MAX`] entries at most, however far the clock has jumped; then
    /// [`Timers::next`] is not after `now`, and another call goes on. Meanwhile entries come later
    /// than [`TICK`] promises: by as many calls as there are thousands of entries to move.
    pub fn expire(&mut self, now: Time, out: &mut Vec<(u32, u32)>) {
        let target = (now.0 / TICK_NANOS).max(self.tick);
        let mut touches = TOUCHED_PER_CALL_MAX;
        loop {
            for level in (1..LEVELS).rev() {
                while let Some((index, node)) = self.unlink(level, touches) {
                    touches -= 1;
                    self.link(index, node);
                }
            }
            while let Some((index, node)) = self.unlink(0, touches) {
                touches -= 1;
                debug_assert!(node.due <= target, "handed out early");
                out.push((node.slot, node.generation));
                self.set(index, Node { next: self.free, ..node });
                self.free = index;
                self.len -= 1;
            }
            if touches == 0 || self.tick >= target {
                return;
            }
            self.tick = self.tick_of_next_slot().unwrap_or(target).min(target);
        }
    }

    /// When to call [`Timers::expire`] next; `None` while nothing is pending.
    ///
    /// It may be early, when entries have to be moved down first, and is never later than one
    /// [`TICK`] after the earliest entry's time.
    pub fn next(&self) -> Option<Time> {
        if self.is_empty() {
            return None;
        }
        let here = (0..LEVELS).any(|level| self.is_occupied_here(level));
        let tick = if here { self.tick } else { self.tick_of_next_slot()? };
        Some(Time(tick.saturating_mul(TICK_NANOS)))
    }

    /// First tick of the next slot with entries, not counting the slots the wheel stands in.
    fn tick_of_next_slot(&self) -> Option<u64> {
        // What lies in a level is due before anything in a level above it.
        (0_u32..).zip(&self.levels).find_map(|(level, Level { occupied, .. })| {
            let shift = level * SLOT_BITS;
            let here = self.tick >> shift;
            let position = u32::try_from(here % SLOTS as u64).ok()?;
            let ahead = occupied.checked_shr(position + 1).unwrap_or(0);
            let distance = u64::from(ahead.trailing_zeros()) + 1;
            (ahead != 0).then(|| (here + distance) << shift)
        })
    }

    fn is_occupied_here(&self, level: usize) -> bool {
        let position = slot_of(self.tick, level);
        self.levels.get(level).is_some_and(|level| level.occupied >> position & 1 == 1)
    }

    /// Puts a node into the slot that its distance asks for.
    fn link(&mut self, index: u32, node: Node) {
        debug_assert!(node.due >= self.tick, "due before the wheel's tick");
        let differing_bits = u64::BITS - (node.due ^ self.tick).leading_zeros();
        let level = (differing_bits.saturating_sub(1) / SLOT_BITS) as usize;
        debug_assert!(level < LEVELS, "beyond the top level's revolution");
        let position = slot_of(node.due, level);
        let Some(level) = self.levels.get_mut(level) else {
            return;
        };
        let Some(head) = level.heads.get_mut(position) else {
            return;
        };
        let next = std::mem::replace(head, index);
        level.occupied |= 1 << position;
        self.set(index, Node { next, ..node });
    }

    /// Takes a node out of the slot of `level` that the wheel stands in; none when `touches` is
    /// used up.
    fn unlink(&mut self, level: usize, touches: usize) -> Option<(u32, Node)> {
        if touches == 0 {
            return None;
        }
        let position = slot_of(self.tick, level);
        let index = *self.levels.get(level)?.heads.get(position)?;
        let node = self.node(index)?;
        let level = self.levels.get_mut(level)?;
        *level.heads.get_mut(position)? = node.next;
        if node.next == NONE {
            level.occupied &= !(1 << position);
        }
        Some((index, node))
    }

    fn node(&self, index: u32) -> Option<Node> {
        self.nodes.get(index as usize).copied()
    }

    fn set(&mut self, index: u32, node: Node) {
        if let Some(place) = self.nodes.get_mut(index as usize) {
            *place = node;
        }
    }
}

/// The slot of a level that a tick falls into.
fn slot_of(tick: u64, level: usize) -> usize {
    let [low, ..] = (tick >> (level * SLOT_BITS as usize)).to_le_bytes();
    usize::from(low) % SLOTS
}

#[cfg(test)]
mod tests;
