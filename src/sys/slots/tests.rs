//! Tables of slots against a model, and what they take of memory.

use super::*;
use std::collections::BTreeMap;

use proptest::prelude::*;

proptest! {
    #[test]
    fn agrees_with_a_map(steps in proptest::collection::vec((0..300_u32, 0..4_u8), 1..400)) {
        let mut slots = Slots::<(u32, String)>::reserve(300);
        let mut model = BTreeMap::<u32, (u32, String)>::new();
        for ((slot, step), value) in steps.into_iter().zip(1_u32..) {
            match step {
                0 => {
                    slots.clear(slot);
                    model.remove(&slot);
                }
                1 => {
                    for entry in [slots.entry(slot), model.entry(slot).or_default()] {
                        entry.0 += value;
                        entry.1 += "x";
                    }
                }
                2 => slots.trim(),
                _ => prop_assert_eq!(slots.get_mut(slot), model.get_mut(&slot)),
            }
            prop_assert_eq!(slots.get(slot), model.get(&slot));
        }
        let all: Vec<_> = slots.iter().map(|(slot, value)| (slot, value.clone())).collect();
        prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
    }
}

/// Pages of the table that have memory (mincore(2)).
fn resident<T>(slots: &Slots<T>) -> usize {
    let mut pages = vec![0_u8; slots.bytes / *PAGE_BYTES];
    // SAFETY: the table is mapped, and there is a byte for each of its pages.
    let told =
        unsafe { libc::mincore(slots.start.as_ptr().cast(), slots.bytes, pages.as_mut_ptr()) };
    assert_eq!(told, 0);
    pages.iter().filter(|page| **page & 1 == 1).count()
}

#[test]
fn memory_follows_the_slots_in_use() {
    let per_page = u32::try_from(*PAGE_BYTES / 16).unwrap();
    let mut slots = Slots::<[u64; 2]>::reserve(1000 * per_page);
    assert_eq!(resident(&slots), 0);
    for slot in 0..100 * per_page {
        *slots.entry(slot) = [u64::from(slot); 2];
    }
    assert_eq!(resident(&slots), 100);
    // One slot that stays holds one page.
    let stays = 3 * per_page + 5;
    for slot in (0..100 * per_page).filter(|slot| *slot != stays) {
        slots.clear(slot);
    }
    assert!(slots.is_large());
    slots.trim();
    assert_eq!(resident(&slots), 100, "what has been needed a moment ago stays");
    // A page that is needed between two trims stays, too.
    slots.entry(per_page);
    slots.clear(per_page);
    slots.trim();
    assert_eq!(resident(&slots), 2);
    assert!(!slots.is_large());
    slots.trim();
    assert_eq!(resident(&slots), 1);
    assert_eq!(slots.iter().collect::<Vec<_>>(), [(stays, &[u64::from(stays); 2])]);
    // What comes back is new.
    assert_eq!(*slots.entry(0), [0; 2]);
}

/// Three and a bit to a page, so that some lie across two.
#[derive(Debug)]
struct Wide([u8; 1200]);

impl Default for Wide {
    fn default() -> Self {
        Self([1; 1200])
    }
}

#[test]
fn a_slot_across_two_pages_holds_both() {
    let mut slots = Slots::<Wide>::reserve(70);
    let across = u32::try_from(*PAGE_BYTES / 1200).unwrap();
    for slot in 0..70 {
        slots.entry(slot);
    }
    for slot in (0..70).filter(|slot| *slot != across) {
        slots.clear(slot);
    }
    slots.trim();
    slots.trim();
    assert_eq!(resident(&slots), 2);
    assert!(slots.get(across).is_some_and(|wide| wide.0 == [1; 1200]));
    slots.clear(across);
    slots.trim();
    slots.trim();
    assert_eq!(resident(&slots), 0);
}

#[test]
fn a_trim_gives_back_so_many_pages_at_most() {
    let per_page = u32::try_from(*PAGE_BYTES / 16).unwrap();
    let pages = u32::try_from(SLOT_PAGES_PER_TRIM).unwrap() + 100;
    let mut slots = Slots::<[u64; 2]>::reserve(pages * per_page);
    for page in 0..pages {
        slots.entry(page * per_page);
    }
    for page in 0..pages {
        slots.clear(page * per_page);
    }
    slots.trim();
    slots.trim();
    assert_eq!(resident(&slots), 100);
    slots.trim();
    assert_eq!(resident(&slots), 0);
}

#[test]
fn what_is_in_use_is_dropped_once() {
    let shared = std::rc::Rc::new(());
    let mut slots = Slots::<Option<std::rc::Rc<()>>>::reserve(9);
    for slot in 0..9 {
        *slots.entry(slot) = Some(std::rc::Rc::clone(&shared));
    }
    slots.clear(4);
    slots.clear(4);
    assert_eq!(std::rc::Rc::strong_count(&shared), 9);
    drop(slots);
    assert_eq!(std::rc::Rc::strong_count(&shared), 1);
}
