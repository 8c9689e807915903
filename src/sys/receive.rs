//! The provided-buffer ring: receive buffers that the kernel takes from when bytes arrive, so that
//! a connection that waits holds none.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fixed};
use io_uring::{IoUring, opcode, squeue};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::io::ReceivedAt;
use crate::limits::{
    RECEIVE_BUFFER_BYTES, RECEIVE_BUFFERS, RECEIVE_BUFFERS_AT_FIRST, RECEIVE_PIECES_BYTES,
};

/// The buffer group that receives name.
pub(super) const GROUP: u16 = 0;

const PAGE: usize = 4096;

/// Who may touch a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// The kernel may write to it at any time.
    Kernel,
    /// Lent to the worker, until recycled.
    Worker,
    /// Nobody, until the kernel needs more.
    Nobody,
}

/// A receive that goes on, message after message, until it has delivered [`RECEIVE_PIECES_BYTES`];
/// up to `each` bytes a time. The limit stands where other operations have their file index (Linux
/// 6.17, `optlen` of `io_uring_sqe`).
pub(super) fn bounded(file: Fixed, each: u32) -> squeue::Entry {
    const LIMIT_AT: usize = 44 / 4;
    let mut entry = opcode::RecvMulti::new(file, GROUP).len(each).build();
    let words: *mut u32 = (&raw mut entry).cast();
    // SAFETY: an entry is the kernel's 64 bytes (asserted below); byte 44 is within it.
    let limit = unsafe { words.add(LIMIT_AT) };
    #[expect(clippy::cast_possible_truncation, reason = "a few hundred KiB, see limits.rs")]
    let bytes = RECEIVE_PIECES_BYTES as u32;
    // SAFETY: aligned to four bytes, within the entry, which is ours alone.
    unsafe { limit.write(bytes) };
    entry
}

/// Tries a bounded receive on a descriptor that is not there: a kernel that knows bounds says so,
/// one that does not refuses the bound. Nothing else may be in flight.
///
/// # Errors
/// `io_uring_enter(2)`'s.
pub(super) fn is_bounded(ring: &mut IoUring) -> std::io::Result<bool> {
    // SAFETY: the entry points to no memory.
    let pushed = unsafe { ring.submission().push(&bounded(Fixed(0), 1)) };
    pushed.map_err(|_| std::io::ErrorKind::OutOfMemory)?;
    ring.submit_and_wait(1)?;
    let answer = ring.completion().next();
    Ok(answer.is_some_and(|entry| entry.result() == -libc::EBADF))
}

const _: () = assert!(size_of::<squeue::Entry>() == 64 && align_of::<squeue::Entry>() >= 4);

/// Buffers and the ring by which they travel to the kernel.
///
/// The kernel takes them in turn, so every buffer it holds is touched again and again whether it
/// is needed or not. It gets few at first, which stay in the cache, and more when it has run out.
///
/// # Invariants
/// A buffer has one [`Owner`] at a time. Only what the worker owns is turned into a slice.
pub(super) struct ReceiveBuffers {
    entries: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    tail: u16,
    owners: Vec<Owner>,
    /// The buffers that nobody owns.
    spare: Vec<u16>,
    /// Buffers meant for the kernel and the worker together.
    wanted: usize,
    /// Buffers that the worker owns now, and the most it has owned since the last trim.
    lent: usize,
    lent_most: usize,
    /// A buffer has gone back to nobody since the last trim.
    retired: bool,
}

impl ReceiveBuffers {
    const ENTRIES: usize = RECEIVE_BUFFERS as usize;
    const MEMORY_BYTES: usize = Self::ENTRIES * RECEIVE_BUFFER_BYTES;

    /// Allocates the buffers and registers them with `ring`, which must be dropped before them.
    /// Their memory is touched as they are used.
    ///
    /// # Errors
    /// `io_uring_register(2)`'s: ENOMEM when `RLIMIT_MEMLOCK` does not cover the ring's pages. And
    /// `mmap(2)`'s.
    pub(super) fn register(ring: &IoUring) -> std::io::Result<Self> {
        let entries = allocate(Self::entries_layout()).cast::<BufRingEntry>();
        let memory = map(Self::MEMORY_BYTES)?;
        let mut buffers = Self {
            entries,
            memory,
            tail: 0,
            owners: vec![Owner::Nobody; Self::ENTRIES],
            spare: (0..RECEIVE_BUFFERS).rev().collect(),
            wanted: 0,
            lent: 0,
            lent_most: 0,
            retired: false,
        };
        // SAFETY: the entries are page-aligned, zeroed, as many as told, and live until `drop`,
        // which the owner runs after the ring is closed.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                entries.as_ptr() as u64,
                RECEIVE_BUFFERS,
                GROUP,
                0,
            )?;
        }
        buffers.want(RECEIVE_BUFFERS_AT_FIRST.into());
        Ok(buffers)
    }

    /// A receive found no buffer: the kernel gets twice as many from now on. Of the receives that
    /// found none together the first asks for all, and the others try again with what it got.
    /// Whether there is a buffer to try again with.
    pub(super) fn hand_over_more(&mut self) -> bool {
        if self.at_kernel() == 0 {
            self.want(self.wanted * 2);
        }
        self.at_kernel() > 0
    }

    fn at_kernel(&self) -> usize {
        Self::ENTRIES - self.spare.len() - self.lent
    }

    fn want(&mut self, wanted: usize) {
        self.wanted = wanted.min(Self::ENTRIES);
        while Self::ENTRIES - self.spare.len() < self.wanted
            && let Some(buffer) = self.spare.pop()
        {
            self.hand_over(buffer);
        }
    }

    fn entries_layout() -> Layout {
        let bytes = Self::ENTRIES * size_of::<BufRingEntry>();
        Layout::from_size_align(bytes, PAGE).unwrap_or(Layout::new::<u8>())
    }

    /// The kernel has filled a buffer: it is the worker's until recycled.
    ///
    /// # Panics
    /// When it was lent already: the kernel or the books are wrong.
    pub(super) fn lend(&mut self, buffer: u16) {
        match self.owners.get_mut(usize::from(buffer)) {
            Some(owner) if *owner == Owner::Kernel => {
                *owner = Owner::Worker;
                self.lent += 1;
                self.lent_most = self.lent_most.max(self.lent);
            }
            _ => unreachable!("receive buffer {buffer} came from the kernel twice"),
        }
    }

    /// The bytes of a receive.
    ///
    /// # Panics
    /// When the buffer is not lent or the range is outside it.
    pub(super) fn bytes(&mut self, at: &ReceivedAt) -> &mut [u8] {
        assert!(
            self.is_lent(at.buffer),
            "a receive buffer is read that the kernel may be writing to"
        );
        let (start, len) = (at.start as usize, at.len as usize);
        assert!(start + len <= RECEIVE_BUFFER_BYTES, "a receive outside its buffer");
        let offset = usize::from(at.buffer) * RECEIVE_BUFFER_BYTES + start;
        // SAFETY: `offset + len` lies within the allocation by the two checks above.
        let first = unsafe { self.memory.add(offset) };
        // SAFETY: the range is initialised (zeroed at allocation), lent to us and not to the
        // kernel, and borrowed from `self` for as long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(first.as_ptr(), len) }
    }

    /// Gives a lent buffer back to the kernel.
    ///
    /// # Panics
    /// When it was not lent.
    pub(super) fn recycle(&mut self, buffer: u16) {
        assert!(self.is_lent(buffer), "a receive buffer is recycled twice");
        self.lent -= 1;
        if Self::ENTRIES - self.spare.len() <= self.wanted {
            self.hand_over(buffer);
            return;
        }
        if let Some(owner) = self.owners.get_mut(usize::from(buffer)) {
            *owner = Owner::Nobody;
        }
        self.spare.push(buffer);
        self.retired = true;
    }

    /// Whether more is kept than what there was at first.
    pub(super) fn is_large(&self) -> bool {
        self.retired || self.wanted > RECEIVE_BUFFERS_AT_FIRST.into()
    }

    /// Keeps twice as many buffers as were filled at once since the last call; the others go as
    /// they come back. What was touched goes back to the kernel. Nothing may be lent, and no
    /// receive's completion may wait to be looked at.
    pub(super) fn trim(&mut self) {
        let needed = (2 * std::mem::take(&mut self.lent_most)).next_power_of_two();
        self.wanted = self.wanted.min(needed.max(RECEIVE_BUFFERS_AT_FIRST.into()));
        self.retired = false;
        if self.lent > 0 {
            return;
        }
        // SAFETY: the range is the whole mapping, which stays mapped and is zeroed. Nobody holds a
        // slice of it: nothing is lent. And the kernel has nothing in it that is still wanted: with
        // DEFER_TASKRUN it fills buffers only while this thread is inside io_uring_enter, and what
        // it has filled there has been looked at.
        let result =
            unsafe { madvise(self.memory.cast(), Self::MEMORY_BYTES, MmapAdvise::MADV_DONTNEED) };
        debug_assert!(result.is_ok(), "the range is ours: {result:?}");
    }

    fn is_lent(&self, buffer: u16) -> bool {
        self.owners.get(usize::from(buffer)) == Some(&Owner::Worker)
    }

    fn hand_over(&mut self, buffer: u16) {
        if let Some(owner) = self.owners.get_mut(usize::from(buffer)) {
            *owner = Owner::Kernel;
        }
        let slot = usize::from(self.tail) % Self::ENTRIES;
        // SAFETY: `slot` is within the entries.
        let entry = unsafe { self.entries.add(slot) };
        // SAFETY: the buffer's number is within the memory: only such numbers have an owner.
        let first = unsafe { self.memory.add(usize::from(buffer) * RECEIVE_BUFFER_BYTES) };
        // SAFETY: the kernel reads an entry only once the tail below has passed it.
        let entry = unsafe { &mut *entry.as_ptr() };
        entry.set_addr(first.as_ptr() as u64);
        #[expect(clippy::cast_possible_truncation, reason = "a few hundred KiB, see limits.rs")]
        entry.set_len(RECEIVE_BUFFER_BYTES as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the ring's tail is inside its first entry, which we own.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: aligned, valid, and shared with the kernel only through atomic accesses.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        // Release: the kernel must see the entry before the tail that covers it.
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for ReceiveBuffers {
    fn drop(&mut self) {
        // SAFETY: mapped with the same length, and the kernel's ring is closed by now.
        let unmapped = unsafe { munmap(self.memory.cast(), Self::MEMORY_BYTES) };
        debug_assert!(unmapped.is_ok(), "the range is ours: {unmapped:?}");
        // SAFETY: allocated with the same layout, and the kernel's ring is closed by now.
        unsafe { dealloc(self.entries.as_ptr().cast(), Self::entries_layout()) };
    }
}

/// Zeroed pages that take no memory until they are touched.
fn map(bytes: usize) -> std::io::Result<NonNull<u8>> {
    let bytes = NonZeroUsize::new(bytes).ok_or(std::io::ErrorKind::InvalidInput)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping, at an address that the kernel chooses, concerns nobody.
    let mapped = unsafe { mmap_anonymous(None, bytes, access, MapFlags::MAP_PRIVATE) };
    Ok(mapped?.cast())
}

fn allocate(layout: Layout) -> NonNull<u8> {
    assert!(layout.size() > 1, "limits.rs makes the layout valid");
    // SAFETY: the layout has a size.
    let memory = unsafe { alloc_zeroed(layout) };
    NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receives_that_found_no_buffer_together_get_twice_as_many_for_all_of_them() {
        let ring = IoUring::new(8).unwrap();
        let mut buffers = ReceiveBuffers::register(&ring).unwrap();
        let at_first = usize::from(RECEIVE_BUFFERS_AT_FIRST);
        for buffer in 0..RECEIVE_BUFFERS_AT_FIRST {
            buffers.lend(buffer);
        }
        for _ in 0..20 {
            assert!(buffers.hand_over_more());
        }
        assert_eq!(buffers.at_kernel(), at_first);
        // The others as well, with none come back.
        for buffer in RECEIVE_BUFFERS_AT_FIRST..RECEIVE_BUFFERS {
            while buffers.at_kernel() == 0 {
                assert!(buffers.hand_over_more());
            }
            buffers.lend(buffer);
        }
        assert!(!buffers.hand_over_more(), "there are no more");
        buffers.recycle(0);
        assert!(buffers.hand_over_more());
    }
}
