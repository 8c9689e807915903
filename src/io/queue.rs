//! One direction's bytes between the socket they came from and the socket they leave by.

use crate::io::Buffer;
use crate::io::buffer::{Chain, Pool};
use crate::limits::SEND_BUFFER_BYTES;

/// Pooled buffers in order, of which the first may be with the [`crate::io::Io`] right now.
///
/// # Limits
/// The source is not read while [`Queue::pending`] is at or above
/// [`crate::limits::QUEUE_HIGH_WATER_BYTES`]; ARCHITECTURE.md gives the bound that follows.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: Chain,
    waiting_bytes: u32,
    sending_bytes: u32,
    /// Bytes taken since the last [`Queue::mark`].
    taken: u32,
    /// Something has waited ever since the last [`Queue::mark`].
    has_waited: bool,
    /// No byte will be appended any more.
    ended: bool,
}

impl Queue {
    /// Bytes appended and not yet taken by the socket.
    pub fn pending(&self) -> usize {
        (self.waiting_bytes + self.sending_bytes) as usize
    }

    /// Everything appended has left.
    pub fn is_empty(&self) -> bool {
        self.pending() == 0
    }

    /// Whether the source has ended.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// The source has ended: what is queued is all there will be.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Nothing waits behind what is being sent.
    pub fn is_last(&self) -> bool {
        self.waiting_bytes == 0
    }

    /// Whether the source has ended and every byte has left.
    pub fn drained(&self) -> bool {
        self.ended && self.is_empty()
    }

    /// Appends all of `bytes`.
    ///
    /// # Panics
    /// After [`Queue::end`].
    pub fn append(&mut self, mut bytes: &[u8], pool: &mut Pool) {
        while !bytes.is_empty() {
            self.make_room(1, bytes.len(), pool);
            let written = self.write(1, pool, |spare| {
                let len = spare.len().min(bytes.len());
                if let (Some(to), Some(from)) = (spare.get_mut(..len), bytes.get(..len)) {
                    to.copy_from_slice(from);
                }
                len
            });
            bytes = bytes.get(written..).unwrap_or_default();
        }
    }

    /// Puts `bytes` before everything that waits; nothing may have been taken yet.
    ///
    /// # Panics
    /// When a buffer is being sent, and when `bytes` do not fit into one buffer.
    pub fn prepend(&mut self, bytes: &[u8], pool: &mut Pool) {
        assert!(self.sending_bytes == 0, "prepended behind bytes that are being sent");
        let mut buffer = pool.take(bytes.len());
        let appended = buffer.append(bytes);
        assert!(appended == bytes.len(), "prepended more than a buffer holds");
        self.waiting_bytes += count(appended);
        self.waiting.push_front(buffer);
    }

    /// Lets `fill` write into at least `room` bytes at the end and returns how many it wrote.
    ///
    /// # Panics
    /// After [`Queue::end`], and when `room` is more than a whole buffer.
    pub fn write(
        &mut self,
        room: usize,
        pool: &mut Pool,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) -> usize {
        assert!(!self.ended, "written behind the end of a direction");
        self.make_room(room, room, pool);
        let Some(last) = self.waiting.back_mut() else {
            return 0;
        };
        assert!(last.spare().len() >= room, "more room wanted than a buffer has");
        let written = fill(last.spare());
        last.fill(written);
        self.waiting_bytes += count(written);
        // A buffer in which nothing came to wait goes back at once.
        if last.is_empty()
            && let Some(empty) = self.waiting.pop_back()
        {
            pool.give(empty);
        }
        written
    }

    /// Puts a buffer behind the others if the last has not at least `room` bytes, for `expected`
    /// bytes. Where bytes wait more are likely to come, so that it gets a large one.
    fn make_room(&mut self, room: usize, expected: usize, pool: &mut Pool) {
        if self.waiting.back_mut().is_none_or(|last| last.spare().len() < room) {
            let bytes = if self.is_empty() { expected } else { SEND_BUFFER_BYTES };
            self.waiting.push_back(pool.take(bytes));
        }
    }

    /// The next buffer to send; `None` when nothing waits or one is being sent.
    pub fn take(&mut self) -> Option<Buffer> {
        if self.sending_bytes > 0 || self.waiting_bytes == 0 {
            return None;
        }
        let buffer = self.waiting.pop_front()?;
        self.sending_bytes = count(buffer.unsent().len());
        self.waiting_bytes -= self.sending_bytes;
        debug_assert!(self.sending_bytes > 0, "an empty buffer was queued");
        Some(buffer)
    }

    /// A buffer that [`Queue::take`] gave out comes back with `sent` of its bytes taken.
    pub fn sent(&mut self, mut buffer: Buffer, sent: usize, pool: &mut Pool) {
        debug_assert_eq!(
            count(buffer.unsent().len()),
            self.sending_bytes,
            "another buffer came back"
        );
        buffer.advance(sent);
        self.sending_bytes = 0;
        self.taken = self.taken.saturating_add(count(sent));
        if buffer.is_empty() {
            pool.give(buffer);
        } else {
            self.waiting_bytes += count(buffer.unsent().len());
            self.waiting.push_front(buffer);
        }
        self.has_waited &= !self.is_empty();
    }

    /// From now on it is watched how much is taken.
    pub fn mark(&mut self) {
        (self.taken, self.has_waited) = (0, !self.is_empty());
    }

    /// Whether something has waited ever since the last [`Queue::mark`].
    pub fn has_waited(&self) -> bool {
        self.has_waited
    }

    /// Whether something has waited ever since the last [`Queue::mark`], and fewer than `least`
    /// bytes were taken.
    pub fn is_slower_than(&self, least: u64) -> bool {
        self.has_waited && u64::from(self.taken) < least
    }

    /// Nothing waits, and no buffer is kept for what may.
    pub fn is_resting(&self) -> bool {
        self.is_empty() && self.waiting.is_empty()
    }

    /// Takes all that waits, in one piece; nothing may have been taken yet.
    pub fn drain(&mut self, pool: &mut Pool) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.pending());
        while let Some(buffer) = self.take() {
            let taken = buffer.unsent().len();
            bytes.extend_from_slice(buffer.unsent());
            self.sent(buffer, taken, pool);
        }
        bytes
    }

    /// Throws away what waits. What is being sent comes back through [`Queue::sent`] first.
    pub fn discard(&mut self, pool: &mut Pool) {
        self.waiting_bytes = 0;
        self.has_waited = false;
        while let Some(buffer) = self.waiting.pop_front() {
            pool.give(buffer);
        }
    }
}

/// Bytes of a buffer; a connection has two queues, and their counters are half as large this way.
fn count(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::SMALL_SEND_BUFFER_BYTES;

    #[test]
    fn bytes_leave_in_order_whatever_the_socket_takes() {
        let mut pool = Pool::default();
        let mut queue = Queue::default();
        let bytes: Vec<u8> =
            (0..3 * SEND_BUFFER_BYTES).map(|i| u8::try_from(i % 251).unwrap()).collect();
        queue.append(&bytes, &mut pool);
        assert_eq!(queue.pending(), bytes.len());
        queue.end();

        let mut out = Vec::new();
        let mut takes = [1, 7, 1000, SEND_BUFFER_BYTES].iter().cycle();
        while let Some(buffer) = queue.take() {
            assert!(queue.take().is_none(), "two buffers in flight");
            let take = buffer.unsent().len().min(*takes.next().unwrap());
            out.extend_from_slice(&buffer.unsent()[..take]);
            queue.sent(buffer, take, &mut pool);
        }
        assert_eq!(out, bytes);
        assert!(queue.drained());
        assert_eq!(pool.lent(), 0);
    }

    #[test]
    fn a_buffer_in_which_nothing_came_to_wait_goes_back() {
        let mut pool = Pool::default();
        let mut queue = Queue::default();
        assert_eq!(queue.write(100, &mut pool, |_| 0), 0);
        assert_eq!(pool.lent(), 0);
        queue.append(b"bytes", &mut pool);
        assert_eq!(queue.write(SEND_BUFFER_BYTES, &mut pool, |_| 0), 0);
        assert_eq!((pool.lent(), queue.pending()), (1, 5));
    }

    #[test]
    fn a_few_bytes_wait_in_a_small_buffer_and_those_behind_them_in_a_large_one() {
        let mut pool = Pool::default();
        let mut queue = Queue::default();
        queue.append(&[1; SMALL_SEND_BUFFER_BYTES], &mut pool);
        let mut sending = queue.take().unwrap();
        assert!(sending.spare().is_empty());
        queue.append(b"more", &mut pool);
        queue.sent(sending, SMALL_SEND_BUFFER_BYTES, &mut pool);
        assert_eq!(queue.take().unwrap().spare().len(), SEND_BUFFER_BYTES - 4);

        let mut much = Queue::default();
        much.append(&[1; SMALL_SEND_BUFFER_BYTES + 1], &mut pool);
        assert_eq!(much.take().unwrap().unsent().len(), SMALL_SEND_BUFFER_BYTES + 1);
    }

    #[test]
    fn discarding_gives_every_buffer_back() {
        let mut pool = Pool::default();
        let mut queue = Queue::default();
        queue.append(&vec![1; 2 * SEND_BUFFER_BYTES], &mut pool);
        let sending = queue.take().unwrap();
        queue.sent(sending, 5, &mut pool);
        queue.discard(&mut pool);
        assert!(queue.is_empty());
        assert_eq!(pool.lent(), 0);
    }

    #[test]
    fn who_takes_too_little_of_what_has_waited_all_the_time_is_slow() {
        let mut pool = Pool::default();
        let mut queue = Queue::default();
        let take = |queue: &mut Queue, bytes: usize, pool: &mut Pool| {
            let buffer = queue.take().unwrap();
            queue.sent(buffer, bytes, pool);
        };
        queue.mark();
        queue.append(&[1; 1000], &mut pool);
        assert!(!queue.is_slower_than(100), "nothing waited at first");
        queue.mark();
        assert!(queue.is_slower_than(100) && !queue.is_slower_than(0));
        take(&mut queue, 99, &mut pool);
        assert!(queue.is_slower_than(100));
        take(&mut queue, 1, &mut pool);
        assert!(!queue.is_slower_than(100));
        queue.mark();
        take(&mut queue, 900, &mut pool);
        queue.append(&[1; 10], &mut pool);
        assert!(!queue.is_slower_than(u64::MAX), "it was empty in between");
        queue.mark();
        queue.discard(&mut pool);
        assert!(!queue.is_slower_than(u64::MAX), "what waited is given up");
    }
}
