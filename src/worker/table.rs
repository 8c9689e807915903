//! The fixed table of connections: slot and generation, so that a stale completion is dropped.

use crate::connection::Connection;
use crate::io::Token;

/// What a slot is used for.
#[derive(Debug)]
pub enum Entry {
    /// Nothing.
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

#[derive(Debug)]
struct Slot {
    generation: u32,
    entry: Entry,
}

/// Slots by number. Memory is reserved at start and touched when a slot is first used.
#[derive(Debug)]
pub struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    capacity: u32,
    open: u32,
    accepting: u32,
}

impl Table {
    /// A table of `capacity` slots.
    pub fn new(capacity: u32) -> Self {
        Self {
            slots: Vec::with_capacity(capacity as usize),
            free: Vec::new(),
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
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < self.capacity as usize => {
                let slot = u32::try_from(self.slots.len()).ok()?;
                self.slots.push(Slot { generation: 0, entry: Entry::Free });
                slot
            }
            None => return None,
        };
        let entry = self.slots.get_mut(slot as usize)?;
        assert!(matches!(entry.entry, Entry::Free), "a free slot is in use");
        entry.generation = (entry.generation + 1) % Token::GENERATIONS;
        entry.entry = Entry::Accepting { listener, cancelled: false };
        self.accepting += 1;
        Some((slot, entry.generation))
    }

    /// The entry that a token names; `None` when the token is stale.
    pub fn entry(&mut self, token: Token) -> Option<&mut Entry> {
        let slot = self.slots.get_mut(token.slot as usize)?;
        (slot.generation == token.generation).then_some(&mut slot.entry)
    }

    /// The connection that a slot and generation name; `None` when they are stale.
    pub fn connection(&mut self, slot: u32, generation: u32) -> Option<&mut Connection> {
        let slot = self.slots.get_mut(slot as usize)?;
        match &mut slot.entry {
            Entry::Open(connection) if slot.generation == generation => Some(connection),
            _ => None,
        }
    }

    /// The accept of a slot has succeeded.
    ///
    /// # Panics
    /// When the slot was not accepting.
    pub fn occupy(&mut self, slot: u32, connection: Box<Connection>) {
        let Some(entry) = self.slots.get_mut(slot as usize) else {
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
        let Some(entry) = self.slots.get_mut(slot as usize) else {
            return Entry::Free;
        };
        let was = std::mem::replace(&mut entry.entry, Entry::Free);
        match was {
            Entry::Free => {}
            Entry::Accepting { .. } => self.accepting -= 1,
            Entry::Open(_) => self.open -= 1,
        }
        assert!(!matches!(was, Entry::Free), "a free slot is freed");
        self.free.push(slot);
        was
    }

    /// Every slot in use, with its generation.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32, &Entry)> {
        self.slots.iter().zip(0_u32..).filter_map(|(slot, number)| {
            let used = !matches!(slot.entry, Entry::Free);
            used.then_some((number, slot.generation, &slot.entry))
        })
    }

    /// Every slot in use, with its generation, to be changed in place.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, u32, &mut Entry)> {
        self.slots.iter_mut().zip(0_u32..).filter_map(|(slot, number)| {
            let used = !matches!(slot.entry, Entry::Free);
            used.then_some((number, slot.generation, &mut slot.entry))
        })
    }
}
