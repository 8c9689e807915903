//! A table by slot number whose memory follows the slots in use: it grows by one small page at a
//! time, without moving what is in it, and gives a page back when the last of its slots is free.

/// Entries of a page; one bit of a word each.
const PAGE: u32 = u64::BITS;

/// Nothing but entries: of 16, 24 or 32 bytes each, they fill one of the allocator's sizes.
type Page<T> = Box<[T; PAGE as usize]>;

/// Entries by slot number; one that is not in use takes no memory unless a neighbour is.
#[derive(Debug)]
pub struct Paged<T> {
    places: Vec<Place<T>>,
    /// One empty page is kept, so that a slot that comes and goes allocates nothing.
    spare: Option<Page<T>>,
}

/// A page's place, and which of its slots are in use: one bit each.
#[derive(Debug)]
struct Place<T> {
    used: u64,
    page: Option<Page<T>>,
}

impl<T> Place<T> {
    const EMPTY: Self = Self { used: 0, page: None };

    fn has(&self, slot: u32) -> bool {
        self.used >> (slot % PAGE) & 1 == 1
    }
}

impl<T: Default> Paged<T> {
    /// Nothing in use; slots below `slots` never make the list of pages grow.
    pub fn with_capacity(slots: u32) -> Self {
        Self { places: Vec::with_capacity(slots.div_ceil(PAGE) as usize), spare: None }
    }

    /// The entry of a slot in use.
    pub fn get(&self, slot: u32) -> Option<&T> {
        let place = self.places.get((slot / PAGE) as usize)?;
        let entry = place.page.as_ref()?.get((slot % PAGE) as usize)?;
        place.has(slot).then_some(entry)
    }

    /// The entry of a slot in use, to be changed.
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        let place = self.places.get_mut((slot / PAGE) as usize)?;
        let is_used = place.has(slot);
        let entry = place.page.as_mut()?.get_mut((slot % PAGE) as usize)?;
        is_used.then_some(entry)
    }

    /// The entry of a slot, which is in use from now on.
    pub fn entry(&mut self, slot: u32) -> &mut T {
        let number = (slot / PAGE) as usize;
        if self.places.len() <= number {
            self.places.resize_with(number + 1, || Place::EMPTY);
        }
        let Some(place) = self.places.get_mut(number) else { unreachable!("made just now") };
        place.used |= 1 << (slot % PAGE);
        let spare = &mut self.spare;
        let page = place.page.get_or_insert_with(|| {
            spare.take().unwrap_or_else(|| Box::new(std::array::from_fn(|_| T::default())))
        });
        let Some(entry) = page.get_mut((slot % PAGE) as usize) else {
            unreachable!("a remainder is below its divisor")
        };
        entry
    }

    /// Takes out what a slot had; it is no longer in use.
    pub fn remove(&mut self, slot: u32) -> Option<T> {
        let entry = std::mem::take(self.get_mut(slot)?);
        let place = self.places.get_mut((slot / PAGE) as usize)?;
        place.used &= !(1 << (slot % PAGE));
        if place.used == 0 {
            self.spare = place.page.take();
        }
        Some(entry)
    }

    /// Every slot in use.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.places.iter().zip(0_u32..).flat_map(|(place, number)| {
            let entries = place.page.iter().flat_map(|page| page.iter());
            let slots = entries.zip(number * PAGE..).filter(|(_, slot)| place.has(*slot));
            slots.map(|(entry, slot)| (slot, entry))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_map(steps in proptest::collection::vec((0..300_u32, 0..3_u8), 1..400)) {
            let mut paged = Paged::<u32>::with_capacity(300);
            let mut model = BTreeMap::<u32, u32>::new();
            for ((slot, step), value) in steps.into_iter().zip(1_u32..) {
                match step {
                    0 => prop_assert_eq!(paged.remove(slot), model.remove(&slot)),
                    1 => {
                        *paged.entry(slot) += value;
                        *model.entry(slot).or_default() += value;
                    }
                    _ => prop_assert_eq!(paged.get_mut(slot), model.get_mut(&slot)),
                }
                prop_assert_eq!(paged.get(slot), model.get(&slot));
            }
            let all: Vec<_> = paged.iter().map(|(slot, value)| (slot, *value)).collect();
            prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn memory_follows_the_slots_in_use() {
        let mut paged = Paged::with_capacity(0);
        for slot in 0..10 * PAGE {
            *paged.entry(slot) = slot;
        }
        // One slot that stays holds one page.
        for slot in (0..10 * PAGE).filter(|slot| *slot != 3 * PAGE + 5) {
            paged.remove(slot);
        }
        assert_eq!(paged.places.iter().filter(|place| place.page.is_some()).count(), 1);
        assert_eq!(paged.iter().collect::<Vec<_>>(), [(3 * PAGE + 5, &(3 * PAGE + 5))]);
    }
}
