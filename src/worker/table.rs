//! The fixed table of connections: slot and generation, so that a stale completion is dropped.

use crate::connection::Connection;
use crate::io::Token;
use crate::sys::slots::Slots;

#[derive(Debug)]
struct Slot {
    generation: u32,
    connection: Connection,
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

/// Connections by slot; their memory follows how many there are.
#[derive(Debug)]
pub struct Table {
    slots: Slots<Slot>,
    free: FreeSlots,
    /// Slots that have been used: the next one that nobody has had yet.
    touched: u32,
    /// Counts reservations, so that no two of a slot have one generation while anything of the
    /// former may still be on its way.
    generation: u32,
    capacity: u32,
}

impl Table {
    /// A table of `capacity` slots.
    pub fn new(capacity: u32) -> Self {
        Self {
            slots: Slots::reserve(capacity),
            free: FreeSlots::default(),
            touched: 0,
            generation: 0,
            capacity,
        }
    }

    /// Open connections.
    pub fn open(&self) -> u32 {
        self.slots.len()
    }

    /// Reserves a slot, with a generation, for who is to come; it takes no memory until then.
    /// `None` when every slot is taken.
    ///
    /// # Panics
    /// When a slot on the free list is in use: a defect of the table.
    pub fn reserve(&mut self) -> Option<(u32, u32)> {
        let slot = match self.free.take() {
            Some(slot) => slot,
            None if self.touched < self.capacity => {
                self.touched += 1;
                self.touched - 1
            }
            None => return None,
        };
        assert!(self.slots.get(slot).is_none(), "a free slot is in use");
        self.generation = (self.generation + 1) % Token::GENERATIONS;
        Some((slot, self.generation))
    }

    /// Nobody comes to a slot that was reserved.
    ///
    /// # Panics
    /// When somebody has come.
    pub fn give_back(&mut self, slot: u32) {
        assert!(self.slots.get(slot).is_none(), "somebody has come");
        self.free.insert(slot);
    }

    /// The connection that a slot and generation name; `None` when they are stale.
    pub fn connection(&mut self, slot: u32, generation: u32) -> Option<&mut Connection> {
        let slot = self.slots.get_mut(slot)?;
        (slot.generation == generation).then_some(&mut slot.connection)
    }

    /// The generation of the connection that has a slot now.
    pub fn generation(&self, slot: u32) -> Option<u32> {
        self.slots.get(slot).map(|slot| slot.generation)
    }

    /// Somebody has come to a slot that was reserved.
    ///
    /// # Panics
    /// When somebody has come before.
    pub fn occupy(&mut self, slot: u32, generation: u32, connection: Connection) {
        assert!(self.slots.get(slot).is_none(), "a slot for two");
        self.slots.insert(slot, Slot { generation, connection });
    }

    /// Drops the connection that has a slot, where it is, and frees the slot.
    ///
    /// # Panics
    /// When it was free.
    pub fn release(&mut self, slot: u32) {
        assert!(self.slots.get(slot).is_some(), "a free slot is freed");
        self.slots.clear(slot);
        self.free.insert(slot);
    }

    /// Every connection, with its slot and generation.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32, &Connection)> {
        self.slots.iter().map(|(number, slot)| (number, slot.generation, &slot.connection))
    }

    /// Whether it has memory to give back.
    pub fn is_large(&self) -> bool {
        self.slots.is_large()
    }

    /// Gives back the memory that nobody has needed since the last call.
    pub fn trim(&mut self) {
        self.slots.trim();
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
