//! The provided-buffer ring: a few buffers, each lent at most once, and scribbled over when it
//! comes back, so that a reader of returned memory is found out.

use std::collections::BTreeMap;

use portcullis::io::ReceivedAt;
use portcullis::limits::RECEIVE_BUFFER_BYTES;

/// The receive buffers of one simulated kernel.
pub(crate) struct ReceiveBuffers {
    memory: Vec<Vec<u8>>,
    free: Vec<u16>,
    /// Start and length of what is lent, by buffer.
    lent: BTreeMap<u16, (u32, u32)>,
}

impl ReceiveBuffers {
    pub(crate) fn new(count: u16) -> Self {
        Self {
            memory: vec![vec![0; RECEIVE_BUFFER_BYTES]; usize::from(count)],
            free: (0..count).rev().collect(),
            lent: BTreeMap::new(),
        }
    }

    pub(crate) fn exhausted(&self) -> bool {
        self.free.is_empty()
    }

    /// Lends a buffer that holds `bytes` from `start` on.
    pub(crate) fn lend(&mut self, start: usize, bytes: &[u8]) -> ReceivedAt {
        let buffer = self.free.pop().expect("a free buffer");
        self.memory[usize::from(buffer)][start..start + bytes.len()].copy_from_slice(bytes);
        let (start, len) = (u32::try_from(start).unwrap(), u32::try_from(bytes.len()).unwrap());
        self.lent.insert(buffer, (start, len));
        ReceivedAt { buffer, start, len }
    }

    fn assert_lent(&self, at: &ReceivedAt) {
        assert_eq!(
            self.lent.get(&at.buffer),
            Some(&(at.start, at.len)),
            "these bytes are not lent: {at:?}"
        );
    }

    pub(crate) fn bytes(&mut self, at: &ReceivedAt) -> &mut [u8] {
        self.assert_lent(at);
        let start = at.start as usize;
        &mut self.memory[usize::from(at.buffer)][start..start + at.len as usize]
    }

    pub(crate) fn recycle(&mut self, at: &ReceivedAt) {
        self.bytes(at).fill(0xDD);
        self.lent.remove(&at.buffer);
        self.free.push(at.buffer);
    }

    pub(crate) fn check_all_returned(&self) {
        assert!(self.lent.is_empty(), "received bytes were never recycled: {:?}", self.lent);
    }
}
