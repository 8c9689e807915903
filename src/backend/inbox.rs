//! Messages to one worker: written by any, read by that one; no thread waits for another.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

/// No message (yet).
const EMPTY: u64 = 0;

/// A bounded queue whose users see to it that it never overflows.
pub(super) struct Inbox {
    cells: Box<[AtomicU64]>,
    /// Moved by the reader.
    head: AtomicUsize,
    tail: AtomicUsize,
    /// Messages that are on their way or may come: changed by the reader.
    awaited: AtomicU32,
}

impl Inbox {
    /// Room for `messages`; rounded up to a power of two.
    pub(super) fn new(messages: usize) -> Self {
        let cells = messages.next_power_of_two();
        Self {
            cells: std::iter::repeat_with(AtomicU64::default).take(cells).collect(),
            head: AtomicUsize::new(0),
            tail: AtomicUsize::new(0),
            awaited: AtomicU32::new(0),
        }
    }

    #[expect(clippy::indexing_slicing, reason = "masked by the ring's length, a power of two")]
    fn cell(&self, place: usize) -> &AtomicU64 {
        &self.cells[place & (self.cells.len() - 1)]
    }

    /// Messages that may come.
    pub(super) fn awaited(&self) -> &AtomicU32 {
        &self.awaited
    }

    /// Leaves a message.
    pub(super) fn push(&self, message: u64) {
        debug_assert_ne!(message, EMPTY);
        let place = self.tail.fetch_add(1, SeqCst);
        debug_assert!(
            place.wrapping_sub(self.head.load(SeqCst)) < self.cells.len(),
            "it overflows"
        );
        self.cell(place).store(message, SeqCst);
    }

    /// The oldest message. Behind one that is being written others wait; its writer wakes the
    /// reader afterwards.
    pub(super) fn pop(&self) -> Option<u64> {
        let head = self.head.load(SeqCst);
        let message = self.cell(head).load(SeqCst);
        if message == EMPTY {
            return None;
        }
        self.cell(head).store(EMPTY, SeqCst);
        self.head.store(head.wrapping_add(1), SeqCst);
        Some(message)
    }

    /// Messages that are here.
    pub(super) fn len(&self) -> usize {
        let head = self.head.load(SeqCst);
        self.tail.load(SeqCst).wrapping_sub(head)
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("messages", &self.len()).finish_non_exhaustive()
    }
}
