//! A pooled send buffer: bytes are appended at its end and leave from its front.

use crate::limits::{LAST_WORDS_BYTES_MAX, SEND_BUFFER_BYTES, SMALL_SEND_BUFFER_BYTES};

/// A fixed-size buffer with a filled part, of which a prefix has been sent. A handle of one word:
/// there is room for two in each slot.
pub struct Buffer(Box<Contents>);

struct Contents {
    memory: Box<[u8]>,
    sent: usize,
    filled: usize,
    /// In a [`Chain`]: the next.
    behind: Chain,
}

impl Buffer {
    /// A new buffer of so many bytes; a worker takes one from its [`Pool`] instead.
    fn allocate(bytes: usize) -> Self {
        let memory = vec![0; bytes].into_boxed_slice();
        Self(Box::new(Contents { memory, sent: 0, filled: 0, behind: Chain::default() }))
    }

    /// A buffer that holds `bytes` and has no room for more.
    fn holding(bytes: &[u8]) -> Self {
        let (memory, filled) = (bytes.into(), bytes.len());
        Self(Box::new(Contents { memory, sent: 0, filled, behind: Chain::default() }))
    }

    /// Bytes not sent yet.
    pub fn unsent(&self) -> &[u8] {
        self.0.memory.get(self.0.sent..self.0.filled).unwrap_or_default()
    }

    /// Room at the end.
    pub fn spare(&mut self) -> &mut [u8] {
        let Contents { memory, filled, .. } = &mut *self.0;
        memory.get_mut(*filled..).unwrap_or_default()
    }

    /// Counts `bytes` written into [`Buffer::spare`].
    ///
    /// # Panics
    /// When more are counted than there was room for.
    pub fn fill(&mut self, bytes: usize) {
        let Contents { memory, filled, .. } = &mut *self.0;
        assert!(bytes <= memory.len() - *filled, "filled past the end of the buffer");
        *filled += bytes;
    }

    /// Counts `bytes` sent.
    ///
    /// # Panics
    /// When more are counted than were unsent.
    pub fn advance(&mut self, bytes: usize) {
        assert!(bytes <= self.0.filled - self.0.sent, "sent more than there was");
        self.0.sent += bytes;
    }

    /// Appends as much of `bytes` as fits and returns how much that was.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        let spare = self.spare();
        let len = bytes.len().min(spare.len());
        if let (Some(to), Some(from)) = (spare.get_mut(..len), bytes.get(..len)) {
            to.copy_from_slice(from);
        }
        self.fill(len);
        len
    }

    /// Nothing left to send.
    pub fn is_empty(&self) -> bool {
        self.0.sent == self.0.filled
    }

    fn is_shrunk(&self) -> bool {
        self.0.memory.len() < SMALL_SEND_BUFFER_BYTES
    }

    fn clear(&mut self) {
        (self.0.sent, self.0.filled) = (0, 0);
    }
}

impl std::fmt::Debug for Buffer {
    // Never the bytes: they may be a client's plaintext.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer")
            .field("sent", &self.0.sent)
            .field("filled", &self.0.filled)
            .finish_non_exhaustive()
    }
}

/// A few buffers in order, in one word and no memory besides theirs: each has the next one. The end
/// is found by walking, since a connection's queue is rarely longer than two.
#[derive(Debug, Default)]
pub struct Chain(Option<Buffer>);

impl Chain {
    /// No buffer.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The last buffer.
    pub fn back_mut(&mut self) -> Option<&mut Buffer> {
        let mut last = self.0.as_mut()?;
        while !last.0.behind.is_empty() {
            last = last.0.behind.0.as_mut()?;
        }
        Some(last)
    }

    /// Puts a buffer before all others.
    pub fn push_front(&mut self, mut buffer: Buffer) {
        buffer.0.behind = std::mem::take(self);
        self.0 = Some(buffer);
    }

    /// Puts a buffer behind all others.
    pub fn push_back(&mut self, buffer: Buffer) {
        match self.back_mut() {
            Some(last) => last.0.behind.0 = Some(buffer),
            None => self.0 = Some(buffer),
        }
    }

    /// Takes the first buffer out.
    pub fn pop_front(&mut self) -> Option<Buffer> {
        let mut first = self.0.take()?;
        *self = std::mem::take(&mut first.0.behind);
        Some(first)
    }

    /// Takes the last buffer out.
    pub fn pop_back(&mut self) -> Option<Buffer> {
        let mut last = self;
        while last.0.as_ref().is_some_and(|buffer| !buffer.0.behind.is_empty()) {
            last = &mut last.0.as_mut()?.0.behind;
        }
        last.0.take()
    }
}

/// A worker's free send buffers, of [`SEND_BUFFER_BYTES`] and of [`SMALL_SEND_BUFFER_BYTES`].
#[derive(Debug, Default)]
pub struct Pool {
    large: Free,
    small: Free,
    lent: usize,
}

/// Free buffers of one size, last returned first: the one most likely still in the cache.
#[derive(Debug, Default)]
struct Free {
    buffers: Vec<Buffer>,
    /// Of them, those that nobody has needed since the last [`Free::trim`].
    unused: usize,
}

impl Free {
    fn take(&mut self) -> Option<Buffer> {
        let buffer = self.buffers.pop();
        self.unused = self.unused.min(self.buffers.len());
        buffer
    }

    fn keep(&mut self, buffer: Buffer) {
        if self.buffers.len() < Pool::KEPT_MAX {
            self.buffers.push(buffer);
        }
    }

    fn trim(&mut self) {
        self.buffers.truncate(self.buffers.len().saturating_sub(self.unused));
        self.buffers.shrink_to_fit();
        self.unused = self.buffers.len();
    }
}

impl Pool {
    /// Free buffers kept of each size; more are given back to the allocator, so that a storm's
    /// memory returns.
    pub const KEPT_MAX: usize = 256;

    /// A free buffer with room for `bytes`, or a new one.
    pub fn take(&mut self, bytes: usize) -> Buffer {
        self.lent += 1;
        let (free, bytes) = if bytes <= SMALL_SEND_BUFFER_BYTES {
            (&mut self.small, SMALL_SEND_BUFFER_BYTES)
        } else {
            (&mut self.large, SEND_BUFFER_BYTES)
        };
        free.take().unwrap_or_else(|| Buffer::allocate(bytes))
    }

    /// Takes a buffer back.
    ///
    /// # Panics
    /// When more come back than were lent.
    pub fn give(&mut self, buffer: Buffer) {
        assert!(self.lent > 0, "a buffer came back that this pool never lent");
        self.lent -= 1;
        self.keep(buffer);
    }

    /// Exchanges a buffer that has to wait for one of its contents' size, if it holds no more than
    /// [`LAST_WORDS_BYTES_MAX`]: thousands may wait.
    pub fn shrink(&mut self, buffer: Buffer) -> Buffer {
        if buffer.unsent().len() > LAST_WORDS_BYTES_MAX || buffer.is_shrunk() {
            return buffer;
        }
        let small = Buffer::holding(buffer.unsent());
        self.keep(buffer);
        small
    }

    fn keep(&mut self, mut buffer: Buffer) {
        buffer.clear();
        match buffer.0.memory.len() {
            SEND_BUFFER_BYTES => self.large.keep(buffer),
            SMALL_SEND_BUFFER_BYTES => self.small.keep(buffer),
            _ => {}
        }
    }

    /// Whether anything is kept.
    pub fn is_large(&self) -> bool {
        !self.large.buffers.is_empty() || !self.small.buffers.is_empty()
    }

    /// Gives what nobody has needed since the last call back to the allocator.
    pub fn trim(&mut self) {
        self.large.trim();
        self.small.trim();
    }

    /// Buffers lent and not yet returned.
    pub fn lent(&self) -> usize {
        self.lent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_gives_its_buffers_back_in_order_from_both_ends() {
        let mut chain = Chain::default();
        let buffer = |name: u8| Buffer::holding(&[name]);
        assert!(chain.pop_back().is_none() && chain.back_mut().is_none());
        chain.push_back(buffer(2));
        chain.push_front(buffer(1));
        chain.push_back(buffer(3));
        chain.push_back(buffer(4));
        assert_eq!(chain.back_mut().unwrap().unsent(), [4]);
        assert_eq!(chain.pop_back().unwrap().unsent(), [4]);
        for name in 1..=3 {
            let first = chain.pop_front().unwrap();
            assert_eq!(first.unsent(), [name]);
            assert!(first.0.behind.is_empty());
        }
        assert!(chain.is_empty() && chain.pop_front().is_none());
        assert_eq!(size_of::<Chain>(), size_of::<usize>());
    }

    #[test]
    fn thousands_of_last_words_wait_in_little_memory() {
        let mut pool = Pool::default();
        let mut waiting: Vec<_> = (0..1000)
            .map(|_| {
                let mut buffer = pool.take(15);
                buffer.append(b"lost!last words");
                buffer.advance(5);
                pool.shrink(buffer)
            })
            .collect();
        let free = |pool: &Pool| (pool.small.buffers.len(), pool.large.buffers.len());
        assert_eq!((pool.lent(), free(&pool)), (1000, (1, 0)), "one was enough for all");
        for buffer in &mut waiting {
            assert_eq!(buffer.unsent(), b"last words");
            assert!(buffer.spare().is_empty());
        }
        waiting.drain(..).for_each(|buffer| pool.give(buffer));
        assert_eq!((pool.lent(), free(&pool)), (0, (1, 0)), "only whole ones are kept");

        let mut full = pool.take(SEND_BUFFER_BYTES);
        full.append(&[1; LAST_WORDS_BYTES_MAX + 1]);
        let kept = pool.shrink(full);
        assert!(!kept.is_shrunk(), "that much is not copied");
        pool.give(kept);
    }

    #[test]
    fn a_pool_keeps_what_is_needed_again_and_again_and_nothing_else() {
        for bytes in [1, SEND_BUFFER_BYTES] {
            let mut pool = Pool::default();
            let burst = |count: usize, pool: &mut Pool| {
                let lent: Vec<_> = (0..count).map(|_| pool.take(bytes)).collect();
                for buffer in lent {
                    pool.give(buffer);
                }
            };
            let free = |pool: &Pool| pool.small.buffers.len() + pool.large.buffers.len();
            burst(100, &mut pool);
            pool.trim();
            for _ in 0..3 {
                burst(60, &mut pool);
                pool.trim();
                assert_eq!(free(&pool), 60);
            }
            assert!(pool.is_large());
            pool.trim();
            assert!(!pool.is_large(), "{} are kept for nobody", free(&pool));
            burst(Pool::KEPT_MAX + 9, &mut pool);
            assert_eq!(free(&pool), Pool::KEPT_MAX);
        }
    }

    #[test]
    fn a_buffer_has_the_room_that_was_asked_for() {
        let mut pool = Pool::default();
        for bytes in [0, 1, SMALL_SEND_BUFFER_BYTES, SMALL_SEND_BUFFER_BYTES + 1, SEND_BUFFER_BYTES]
        {
            // New, and again from what is kept.
            for _ in 0..2 {
                let mut buffer = pool.take(bytes);
                assert!(buffer.spare().len() >= bytes, "{bytes}");
                pool.give(buffer);
            }
        }
    }
}
