//! A worker's timers: one hierarchical wheel in user space instead of a kernel timeout per
//! connection.
//!
//! Time is counted in ticks of 8 ms. A level has 64 slots, each as long as the whole level below:
//! 8 ms, 512 ms, 33 s, 35 min, 37 h, 99 days. An entry lies in the lowest level at which its tick
//! and the wheel's differ, and moves down as the wheel comes nearer.
//!
//! Each slot has one entry at most, linked into its list in both directions, so that it moves and
//! leaves at once. A deadline that is put off need not move its entry each time: the owner notes
//! it, and when the entry is handed out, looks whether the deadline has come, and if not, sets it
//! again.

use std::time::Duration;

use crate::io::Time;
use crate::sys::slots::Slots;

/// The wheel's resolution: an entry is handed out no earlier than its time, and one tick late at
/// most, as long as [`Timers::expire`] is called when [`Timers::next`] says so.
pub const TICK: Duration = Duration::from_millis(8);

/// Entries that one [`Timers::expire`] touches at most, handing them out or moving them down.
pub const TOUCHED_PER_CALL_MAX: usize = 128;

const TICK_NANOS: u64 = 8_000_000;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const LEVELS: usize = 6;
/// The last tick of the top level's revolution: 17 years.
const REVOLUTION: u64 = (1 << (SLOT_BITS * 6)) - 1;
/// The end of a list; as what comes before: not in a list.
const NONE: u32 = u32::MAX;
/// What comes before the first of a list: this and the list's number.
#[expect(clippy::cast_possible_truncation, reason = "384")]
const HEADS: u32 = NONE - (LEVELS * SLOTS) as u32;

const _: () = assert!(TICK.as_nanos() == TICK_NANOS as u128);

/// Pending deadlines of one worker's connections, by slot.
#[derive(Debug)]
pub struct Timers {
    /// Every entry due before this tick has been handed out.
    tick: u64,
    levels: [Level; LEVELS],
    nodes: Slots<Node>,
    len: usize,
}

#[derive(Debug)]
struct Level {
    /// One bit per slot that holds entries.
    occupied: u64,
    /// First entry of each slot's list.
    heads: [u32; SLOTS],
}

/// A connection's slot's place in the wheel.
#[derive(Debug, Clone, Copy)]
struct Node {
    due: u64,
    before: u32,
    next: u32,
}

impl Default for Node {
    fn default() -> Self {
        Self { due: 0, before: NONE, next: NONE }
    }
}

impl Timers {
    /// No entries; for slots below `slots`.
    pub fn with_capacity(slots: u32) -> Self {
        Self {
            tick: 0,
            levels: std::array::from_fn(|_| Level { occupied: 0, heads: [NONE; SLOTS] }),
            nodes: Slots::reserve(slots),
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

    /// Asks to be given `slot` at `at`, and no more at the time asked for before; a time in the
    /// past means the next [`Timers::expire`].
    ///
    /// # Limits
    /// An entry further away than the top level's revolution (17 years) comes early.
    pub fn set(&mut self, slot: u32, at: Time) {
        debug_assert!(slot < HEADS, "no worker has so many slots");
        self.unlink(slot);
        let due = at.0.div_ceil(TICK_NANOS).max(self.tick);
        self.link(slot, due.min(self.tick | REVOLUTION));
    }

    /// Asks for `slot` no more.
    pub fn forget(&mut self, slot: u32) {
        self.unlink(slot);
        self.nodes.clear(slot);
    }

    /// Whether it has memory to give back.
    pub fn is_large(&self) -> bool {
        self.nodes.is_large()
    }

    /// Gives back the memory that nobody has needed since the last call.
    pub fn trim(&mut self) {
        self.nodes.trim();
    }

    /// Appends to `out` what is due at `now`, in no particular order within a tick.
    ///
    /// # Limits
    /// Touches [`TOUCHED_PER_CALL_MAX`] entries at most, however far the clock has jumped; then
    /// [`Timers::next`] is not after `now`, and another call goes on. Meanwhile entries come later
    /// than [`TICK`] promises: by as many calls as it takes to touch those before them.
    pub fn expire(&mut self, now: Time, out: &mut Vec<u32>) {
        let target = (now.0 / TICK_NANOS).max(self.tick);
        let mut touches = TOUCHED_PER_CALL_MAX;
        loop {
            for level in (1..LEVELS).rev() {
                while let Some((slot, node)) = self.unlink_here(level, touches) {
                    touches -= 1;
                    self.link(slot, node.due);
                }
            }
            while let Some((slot, node)) = self.unlink_here(0, touches) {
                touches -= 1;
                debug_assert!(node.due <= target, "handed out early");
                out.push(slot);
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

    /// Puts a slot's entry into the list that its distance asks for.
    fn link(&mut self, slot: u32, due: u64) {
        debug_assert!(due >= self.tick, "due before the wheel's tick");
        let differing_bits = u64::BITS - (due ^ self.tick).leading_zeros();
        let level = (differing_bits.saturating_sub(1) / SLOT_BITS) as usize;
        debug_assert!(level < LEVELS, "beyond the top level's revolution");
        let position = slot_of(due, level);
        let Some((head, occupied)) = self.list(level, position) else {
            return;
        };
        let next = std::mem::replace(head, slot);
        *occupied |= 1 << position;
        *self.nodes.entry(slot) = Node { due, before: head_of(level, position), next };
        if let Some(next) = self.nodes.get_mut(next) {
            next.before = slot;
        }
        self.len += 1;
    }

    /// Takes a slot's entry out of its list, if it is in one.
    fn unlink(&mut self, slot: u32) -> Option<Node> {
        let node = self.nodes.get_mut(slot).filter(|node| node.before != NONE)?;
        let was = std::mem::take(node);
        if let Some(next) = self.nodes.get_mut(was.next) {
            next.before = was.before;
        }
        if let Some(list) = was.before.checked_sub(HEADS) {
            let (level, position) = (list as usize / SLOTS, list as usize % SLOTS);
            let (head, occupied) = self.list(level, position)?;
            *head = was.next;
            if was.next == NONE {
                *occupied &= !(1 << position);
            }
        } else if let Some(before) = self.nodes.get_mut(was.before) {
            before.next = was.next;
        }
        self.len -= 1;
        Some(was)
    }

    /// Takes an entry out of the slot of `level` that the wheel stands in; none when `touches` is
    /// used up.
    fn unlink_here(&mut self, level: usize, touches: usize) -> Option<(u32, Node)> {
        let first = *self.list(level, slot_of(self.tick, level))?.0;
        if touches == 0 { None } else { Some((first, self.unlink(first)?)) }
    }

    /// The head of a list, and the bits that say which lists of its level are not empty.
    fn list(&mut self, level: usize, position: usize) -> Option<(&mut u32, &mut u64)> {
        let Level { occupied, heads } = self.levels.get_mut(level)?;
        Some((heads.get_mut(position)?, occupied))
    }
}

/// What comes before the first entry of a list.
#[expect(clippy::cast_possible_truncation, reason = "a list's number is below 384")]
fn head_of(level: usize, position: usize) -> u32 {
    HEADS + (level * SLOTS + position) as u32
}

/// The slot of a level that a tick falls into.
fn slot_of(tick: u64, level: usize) -> usize {
    let [low, ..] = (tick >> (level * SLOT_BITS as usize)).to_le_bytes();
    usize::from(low) % SLOTS
}

#[cfg(test)]
mod tests;
