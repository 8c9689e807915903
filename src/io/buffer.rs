//! A pooled send buffer: bytes are appended at its end and leave from its front.

use crate::limits::SEND_BUFFER_BYTES;

/// A fixed-size buffer with a filled part, of which a prefix has been sent.
pub struct Buffer {
    memory: Box<[u8]>,
    sent: usize,
    filled: usize,
}

impl Buffer {
    /// A new buffer of [`SEND_BUFFER_BYTES`]; a worker takes one from its [`Pool`] instead.
    pub fn allocate() -> Self {
        Self { memory: vec![0; SEND_BUFFER_BYTES].into_boxed_slice(), sent: 0, filled: 0 }
    }

    /// Bytes not sent yet.
    pub fn unsent(&self) -> &[u8] {
        self.memory.get(self.sent..self.filled).unwrap_or_default()
    }

    /// Room at the end.
    pub fn spare(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.filled..).unwrap_or_default()
    }

    /// Counts `bytes` written into [`Buffer::spare`].
    ///
    /// # Panics
    /// When more are counted than there was room for.
    pub fn fill(&mut self, bytes: usize) {
        assert!(bytes <= self.memory.len() - self.filled, "filled past the end of the buffer");
        self.filled += bytes;
    }

    /// Counts `bytes` sent.
    ///
    /// # Panics
    /// When more are counted than were unsent.
    pub fn advance(&mut self, bytes: usize) {
        assert!(bytes <= self.filled - self.sent, "sent more than there was");
        self.sent += bytes;
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
        self.sent == self.filled
    }
}

impl std::fmt::Debug for Buffer {
    // Never the bytes: they may be a client's plaintext.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer")
            .field("sent", &self.sent)
            .field("filled", &self.filled)
            .finish_non_exhaustive()
    }
}

/// A worker's free send buffers, last returned first: the one most likely still in the cache.
#[derive(Debug, Default)]
pub struct Pool {
    free: Vec<Buffer>,
    lent: usize,
}

impl Pool {
    /// Free buffers kept; more are given back to the allocator, so that a storm's memory returns.
    pub const KEPT_MAX: usize = 256;

    /// A free buffer, or a new one.
    pub fn take(&mut self) -> Buffer {
        self.lent += 1;
        self.free.pop().unwrap_or_else(Buffer::allocate)
    }

    /// Takes a buffer back.
    ///
    /// # Panics
    /// When more come back than were lent.
    pub fn give(&mut self, mut buffer: Buffer) {
        assert!(self.lent > 0, "a buffer came back that this pool never lent");
        self.lent -= 1;
        if self.free.len() < Self::KEPT_MAX {
            buffer.sent = 0;
            buffer.filled = 0;
            self.free.push(buffer);
        }
    }

    /// Buffers lent and not yet returned.
    pub fn lent(&self) -> usize {
        self.lent
    }
}
