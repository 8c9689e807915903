//! A table by slot number whose memory follows the slots in use: it grows by one small page at a
//! time, without moving what is in it, and gives a page back when the last of its slots is free.

/// Entries of a page; one bit of a word each.
const PAGE: u32 = u64::BITS;

/// Entries by slot number; one that is not in use takes no memory unless a neighbour is.
#[derive(Debug)]
pub struct Paged<T> {
    pages: Vec<Option<Box<Page<T>>>>,
    /// One empty page is kept, so that a slot that comes and goes allocates nothing.
    spare: Option<Box<Page<T>>>,
}

#[derive(Debug)]
struct Page<T> {
    /// One bit per entry in use.
    used: u64,
    entries: [T; PAGE as usize],
}

impl<T: Default> Page<T> {
    fn new() -> Self {
        Self { used: 0, entries: std::array::from_fn(|_| T::default()) }
    }
}

impl<T: Default> Paged<T> {
    /// Nothing in use; slots below `slots` never make the list of pages grow.
    pub fn with_capacity(slots: u32) -> Self {
        Self { pages: Vec::with_capacity(slots.div_ceil(PAGE) as usize), spare: None }
    }

    /// The entry of a slot in use.
    pub fn get(&self, slot: u32) -> Option<&T> {
        let page = self.pages.get((slot / PAGE) as usize)?.as_ref()?;
        let entry = page.entries.get((slot % PAGE) as usize)?;
        (page.used >> (slot % PAGE) & 1 == 1).then_some(entry)
    }

    /// The entry of a slot in use, to be changed.
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        let page = self.pages.get_mut((slot / PAGE) as usize)?.as_mut()?;
        let entry = page.entries.get_mut((slot % PAGE) as usize)?;
        (page.used >> (slot % PAGE) & 1 == 1).then_some(entry)
    }

    /// The entry of a slot, which is in use from now on.
    pub fn entry(&mut self, slot: u32) -> &mut T {
        let number = (slot / PAGE) as usize;
        if self.pages.len() <= number {
            self.pages.resize_with(number + 1, || None);
        }
        let Some(place) = self.pages.get_mut(number) else { unreachable!("made just now") };
        let spare = &mut self.spare;
        let page =
            place.get_or_insert_with(|| spare.take().unwrap_or_else(|| Box::new(Page::new())));
        page.used |= 1 << (slot % PAGE);
        let Some(entry) = page.entries.get_mut((slot % PAGE) as usize) else {
            unreachable!("a remainder is below its divisor")
        };
        entry
    }

    /// Takes out what a slot had; it is no longer in use.
    pub fn remove(&mut self, slot: u32) -> Option<T> {
        let entry = std::mem::take(self.get_mut(slot)?);
        let place = self.pages.get_mut((slot / PAGE) as usize)?;
        let page = place.as_mut()?;
        page.used &= !(1 << (slot % PAGE));
        if page.used == 0 {
            self.spare = place.take();
        }
        Some(entry)
    }

    /// Every slot in use.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.pages.iter().zip(0_u32..).flat_map(|(page, number)| {
            page.iter().flat_map(move |page| {
                let slots = page.entries.iter().zip(number * PAGE..);
                slots
                    .filter(|(_, slot)| page.used >> (slot % PAGE) & 1 == 1)
                    .map(|(entry, slot)| (slot, entry))
            })
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
        assert_eq!(paged.pages.iter().flatten().count(), 1);
        assert_eq!(paged.iter().collect::<Vec<_>>(), [(3 * PAGE + 5, &(3 * PAGE + 5))]);
    }
}
