//! The fixed table of connections: slot and generation, so that a stale completion is dropped.

use super::paged::Paged;
use crate::connection::Connection;
use crate::io::Token;

/// What a slot is used for.
#[derive(Debug, Default)]
pub enum Entry {
    /// Nothing.
    #[default]
    Free,
    /// An accept is in flight for it.
    Accepting {
        /// On which listening socket.
        listener: u32,
        /// It has been cancelled, and still completes.
        cancelled: bool,
    },
    /// A connection.
    Open(Box<Connection>),
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    entry: Entry,
}

/// Slots that were used and are free: one bit each. The lowest is taken first, so that what is open
/// lies close together.
#[derive(Debug, Default)]
struct FreeSlots {
    /// 64 slots each.
    words: Vec<u64>,
    /// One bit for each word that is not 0.
    summary: Vec<u64>,
}

impl FreeSlots {
    const BITS: u32 = u64::BITS;

    fn insert(&mut self, slot: u32) {
        set_bit(&mut self.words, slot);
        set_bit(&mut self.summary, slot / Self::BITS);
    }

    fn take(&mut self) -> Option<u32> {
        let (at, summary) = (0..).zip(&mut self.summary).find(|(_, summary)| **summary != 0)?;
        let number = at * Self::BITS + summary.trailing_zeros();
        let word = self.words.get_mut(number as usize)?;
        let slot = number * Self::BITS + word.trailing_zeros();
        *word &= *word - 1;
        if *word == 0 {
            *summary &= *summary - 1;
        }
        Some(slot)
    }
}

fn set_bit(words: &mut Vec<u64>, bit: u32) {
    let at = (bit / u64::BITS) as usize;
    if words.len() <= at {
        words.resize(at + 1, 0);
    }
    if let Some(word) = words.get_mut(at) {
        *word |= 1 << (bit % u64::BITS);
    }
}

/// Slots by number; their memory follows how many are in use.
#[derive(Debug)]
pub struct Table {
    slots: Paged<Slot>,
    free: FreeSlots,
    /// Slots that have been used: the next one that nobody has had yet.
    touched: u32,
    /// Counts reservations, so that no two of a slot have one generation while anything of the
    /// former may still be on its way.
    generation: u32,
    capacity: u32,
    open: u32,
    accepting: u32,
}

impl Table {
    /// A table of `capacity` slots.
    pub fn new(capacity: u32) -> Self {
        Self {
            slots: Paged::with_capacity(capacity),
            free: FreeSlots::default(),
            touched: 0,
            generation: 0,
            capacity,
            open: 0,
            accepting: 0,
        }
    }

    /// Open connections.
    pub fn open(&self) -> u32 {
        self.open
    }

    /// Slots with an accept in flight.
    pub fn accepting(&self) -> u32 {
        self.accepting
    }

    /// Reserves a slot for an accept; `None` when every slot is taken.
    ///
    /// # Panics
    /// When a slot on the free list is in use: a defect of the table.
    pub fn reserve(&mut self, listener: u32) -> Option<(u32, u32)> {
        let slot = match self.free.take() {
            Some(slot) => slot,
            None if self.touched < self.capacity => {
                self.touched += 1;
                self.touched - 1
            }
            None => return None,
        };
        self.generation = (self.generation + 1) % Token::GENERATIONS;
        let entry = self.slots.entry(slot);
        assert!(matches!(entry.entry, Entry::Free), "a free slot is in use");
        entry.generation = self.generation;
        entry.entry = Entry::Accepting { listener, cancelled: false };
        self.accepting += 1;
        Some((slot, entry.generation))
    }

    /// The entry that a token names; `None` when the token is stale.
    pub fn entry(&mut self, token: Token) -> Option<&mut Entry> {
        let slot = self.slots.get_mut(token.slot)?;
        (slot.generation == token.generation).then_some(&mut slot.entry)
    }

    /// The connection that a slot and generation name; `None` when they are stale.
    pub fn connection(&mut self, slot: u32, generation: u32) -> Option<&mut Connection> {
        let slot = self.slots.get_mut(slot)?;
        match &mut slot.entry {
            Entry::Open(connection) if slot.generation == generation => Some(connection),
            _ => None,
        }
    }

    /// The generation of what has a slot now.
    pub fn generation(&self, slot: u32) -> Option<u32> {
        self.slots.get(slot).map(|slot| slot.generation)
    }

    /// The accept of a slot has succeeded.
    ///
    /// # Panics
    /// When the slot was not accepting.
    pub fn occupy(&mut self, slot: u32, connection: Box<Connection>) {
        let Some(entry) = self.slots.get_mut(slot) else {
            return;
        };
        assert!(matches!(entry.entry, Entry::Accepting { .. }), "a client without an accept");
        entry.entry = Entry::Open(connection);
        self.accepting -= 1;
        self.open += 1;
    }

    /// Frees a slot and returns what was in it.
    ///
    /// # Panics
    /// When it was free.
    pub fn release(&mut self, slot: u32) -> Entry {
        let was = self.slots.remove(slot).map_or(Entry::Free, |slot| slot.entry);
        match was {
            Entry::Free => {}
            Entry::Accepting { .. } => self.accepting -= 1,
            Entry::Open(_) => self.open -= 1,
        }
        assert!(!matches!(was, Entry::Free), "a free slot is freed");
        self.free.insert(slot);
        was
    }

    /// Every slot in use, with its generation.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32, &Entry)> {
        self.slots.iter().map(|(number, slot)| (number, slot.generation, &slot.entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn free_slots_are_taken_from_below(
            steps in proptest::collection::vec((0..9000_u32, any::<bool>()), 1..400),
        ) {
            let mut free = FreeSlots::default();
            let mut model = BTreeSet::new();
            for (slot, insert) in steps {
                if insert {
                    free.insert(slot);
                    model.insert(slot);
                } else {
                    prop_assert_eq!(free.take(), model.pop_first());
                }
            }
        }
    }
}
