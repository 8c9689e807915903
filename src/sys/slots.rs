//! A table by slot number whose memory follows the slots in use.
//!
//! Its addresses are reserved once, so that nothing in it ever moves and an entry is found by its
//! number alone. A page comes from the kernel when a slot on it is used for the first time, and
//! goes back, by [`Slots::trim`], when none on it has been for a while. The allocator has no part
//! in it: it would keep a record of each block there ever was, and more blocks than are used.

use std::alloc::{Layout, handle_alloc_error};
use std::mem::needs_drop;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::ptr::NonNull;
use std::sync::LazyLock;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, mprotect, munmap};
use nix::unistd::{SysconfVar, sysconf};

use crate::limits::{SLOT_PAGES_KEPT, SLOT_PAGES_PER_TRIM};

/// Bytes by which what may be touched grows: the kernel counts them as promised
/// (`vm.overcommit_memory`, proc(5)), which a whole reservation would be for nothing.
const STEP_BYTES: usize = 1024 * 1024;

static PAGE_BYTES: LazyLock<usize> = LazyLock::new(|| {
    let bytes = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    bytes.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(4096)
});

/// Entries by slot number; one that is not in use takes no memory unless a neighbour on its page
/// is.
#[derive(Debug)]
pub struct Slots<T> {
    /// The first entry; what is in use is initialized, and nothing else is ever read.
    start: NonNull<T>,
    /// Reserved, a multiple of the page's size.
    bytes: usize,
    /// Of these, from the start, what may be touched.
    accessible: usize,
    used: Bits,
    /// Pages without a slot in use that may have memory.
    vacant: Bits,
    /// Those of them that have been so since the last trim.
    rested: Bits,
}

impl<T> Slots<T> {
    /// Nothing in use; for slots below `slots`, for which it takes nothing but addresses and a bit
    /// or two each.
    ///
    /// # Panics
    /// Without so many free addresses the process ends, as it does without memory.
    pub fn reserve(slots: u32) -> Self {
        const { assert!(size_of::<T>() > 0 && align_of::<T>() <= 4096, "a page is aligned") };
        let bytes = (slots as usize).saturating_mul(size_of::<T>()).max(1);
        let bytes = bytes.div_ceil(*PAGE_BYTES).saturating_mul(*PAGE_BYTES);
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        let length = NonZeroUsize::new(bytes).unwrap_or(NonZeroUsize::MIN);
        // SAFETY: the kernel chooses the addresses, so that nothing else is there.
        let start = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_NONE, flags) };
        let Ok(start) = start else { no_memory(bytes) };
        // A huge page would take the memory of thousands of slots for one. EINVAL: the kernel
        // has none.
        // SAFETY: this only says how the mapping, which is ours, is to get its memory.
        let _has_none = unsafe { madvise(start, bytes, MmapAdvise::MADV_NOHUGEPAGE) };
        let pages = bytes / *PAGE_BYTES;
        Self {
            start: start.cast(),
            bytes,
            accessible: 0,
            used: Bits::new(bytes / size_of::<T>()),
            vacant: Bits::new(pages),
            rested: Bits::new(pages),
        }
    }

    /// The entry of a slot in use.
    pub fn get(&self, slot: u32) -> Option<&T> {
        // SAFETY: a slot in use lies in the reservation and is initialized, and `self` is borrowed
        // as long as the entry is.
        self.used.has(slot as usize).then(|| unsafe { &*self.at(slot) })
    }

    /// The entry of a slot in use, to be changed.
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        // SAFETY: likewise; nobody else can borrow any entry meanwhile.
        self.used.has(slot as usize).then(|| unsafe { &mut *self.at(slot) })
    }

    /// The entry of a slot, which is in use from now on.
    ///
    /// # Panics
    /// As [`Slots::insert`].
    pub fn entry(&mut self, slot: u32) -> &mut T
    where
        T: Default,
    {
        if !self.used.has(slot as usize) {
            self.insert(slot, T::default());
        }
        // SAFETY: as in `get_mut`; the slot is in use.
        unsafe { &mut *self.at(slot) }
    }

    /// Puts an entry into a slot, which is in use from now on, instead of what it had.
    ///
    /// # Panics
    /// When the slot is beyond what was reserved. Without memory the process ends.
    pub fn insert(&mut self, slot: u32, entry: T) {
        self.clear(slot);
        let end = (slot as usize + 1) * size_of::<T>();
        assert!(end <= self.bytes, "slot {slot} is beyond the table");
        if end > self.accessible {
            self.grow_to(end);
        }
        // SAFETY: the slot lies in what may be touched, and nothing is in it.
        unsafe { self.at(slot).write(entry) };
        self.used.insert(slot as usize);
        for page in pages_of::<T>(slot) {
            self.vacant.remove(page);
            self.rested.remove(page);
        }
    }

    /// Drops what a slot had, in its place; it is no longer in use.
    pub fn clear(&mut self, slot: u32) {
        if self.used.remove(slot as usize) {
            for page in pages_of::<T>(slot) {
                if self.used.none_of(slots_of::<T>(page)) {
                    self.vacant.insert(page);
                }
            }
            // SAFETY: it was in use, so that it is initialized, and is so no longer, whatever the
            // drop does.
            unsafe { self.at(slot).drop_in_place() };
        }
    }

    /// Slots in use.
    #[expect(clippy::cast_possible_truncation, reason = "slots have numbers of 32 bits")]
    pub fn len(&self) -> u32 {
        self.used.len as u32
    }

    /// Whether no slot is in use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every slot in use.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let slots = self.used.iter().filter_map(|slot| u32::try_from(slot).ok());
        slots.filter_map(|slot| Some((slot, self.get(slot)?)))
    }

    /// Whether more pages are vacant than are kept for what comes and goes.
    pub fn is_large(&self) -> bool {
        self.vacant.len > SLOT_PAGES_KEPT
    }

    /// Gives back the pages that nobody has needed since the last call.
    ///
    /// # Limits
    /// [`SLOT_PAGES_PER_TRIM`] at most; what is left goes with the calls to come.
    pub fn trim(&mut self) {
        let mut most = SLOT_PAGES_PER_TRIM;
        while let Some((first, pages)) = self.rested.first_run(most) {
            most -= pages;
            for page in first..first + pages {
                self.rested.remove(page);
                self.vacant.remove(page);
            }
            let (offset, length) = (first * *PAGE_BYTES, pages * *PAGE_BYTES);
            debug_assert!(offset + length <= self.bytes, "a page beyond the table");
            // SAFETY: a page of the table lies in the reservation.
            let start = unsafe { self.start.byte_add(offset) };
            // SAFETY: the pages are ours, and no slot on them is in use. What they have next is
            // zero, and is not read before it is written.
            let given = unsafe { madvise(start.cast(), length, MmapAdvise::MADV_DONTNEED) };
            debug_assert!(given.is_ok(), "{given:?}");
        }
        if most > 0 {
            self.rested.clone_from(&self.vacant);
        }
    }

    /// Lets what lies below `end` be touched, and a little more.
    #[cold]
    fn grow_to(&mut self, end: usize) {
        let accessible = end.next_multiple_of(STEP_BYTES).min(self.bytes);
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: this allows what was not, in a mapping that is ours.
        if unsafe { mprotect(self.start.cast(), accessible, access) }.is_err() {
            no_memory(accessible - self.accessible);
        }
        self.accessible = accessible;
    }

    /// Where a slot is, or would be.
    fn at(&self, slot: u32) -> *mut T {
        self.start.as_ptr().wrapping_add(slot as usize)
    }
}

impl<T> Drop for Slots<T> {
    fn drop(&mut self) {
        if needs_drop::<T>() {
            for slot in self.used.iter() {
                // SAFETY: it is in use, and nobody will ask for it again.
                unsafe { self.start.as_ptr().wrapping_add(slot).drop_in_place() };
            }
        }
        // SAFETY: nobody can have borrowed anything of it any more.
        let _always_unmapped = unsafe { munmap(self.start.cast(), self.bytes) };
    }
}

/// The pages that a slot lies on.
fn pages_of<T>(slot: u32) -> RangeInclusive<usize> {
    let first = slot as usize * size_of::<T>();
    first / *PAGE_BYTES..=(first + size_of::<T>() - 1) / *PAGE_BYTES
}

/// The slots that lie on a page, in whole or in part.
fn slots_of<T>(page: usize) -> RangeInclusive<usize> {
    let first = page * *PAGE_BYTES;
    first / size_of::<T>()..=(first + *PAGE_BYTES - 1) / size_of::<T>()
}

/// Ends the process with a line that names the bytes.
fn no_memory(bytes: usize) -> ! {
    handle_alloc_error(Layout::from_size_align(bytes, 1).unwrap_or(Layout::new::<u8>()))
}

/// One bit for each number below a bound.
#[derive(Debug, Clone)]
struct Bits {
    words: Vec<u64>,
    /// Bits that are set.
    len: usize,
}

impl Bits {
    fn new(bound: usize) -> Self {
        Self { words: vec![0; bound.div_ceil(64)], len: 0 }
    }

    fn has(&self, bit: usize) -> bool {
        self.words.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    fn insert(&mut self, bit: usize) {
        if let Some(word) = self.words.get_mut(bit / 64) {
            self.len += usize::from(*word >> (bit % 64) & 1 == 0);
            *word |= 1 << (bit % 64);
        }
    }

    /// Whether it was set.
    fn remove(&mut self, bit: usize) -> bool {
        let was = self.has(bit);
        if was && let Some(word) = self.words.get_mut(bit / 64) {
            *word &= !(1 << (bit % 64));
            self.len -= 1;
        }
        was
    }

    fn none_of(&self, bits: RangeInclusive<usize>) -> bool {
        let (first, last) = bits.into_inner();
        (first / 64..=last / 64).all(|at| {
            let low = first.saturating_sub(at * 64);
            let high = (last - at * 64).min(63);
            let mask = (u64::MAX >> (63 - high)) & (u64::MAX << low);
            self.words.get(at).is_none_or(|word| word & mask == 0)
        })
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                left &= left.checked_sub(1)?;
                Some(at * 64 + bit)
            })
        })
    }

    /// The first bits that are set, as many as follow each other within a word and `most` at most.
    fn first_run(&self, most: usize) -> Option<(usize, usize)> {
        if self.len == 0 || most == 0 {
            return None;
        }
        let (at, word) = self.words.iter().enumerate().find(|(_, word)| **word != 0)?;
        let first = word.trailing_zeros();
        let run = (word >> first).trailing_ones() as usize;
        Some((at * 64 + first as usize, run.min(most)))
    }

    fn clone_from(&mut self, other: &Self) {
        self.words.copy_from_slice(&other.words);
        self.len = other.len;
    }
}

#[cfg(test)]
mod tests;
