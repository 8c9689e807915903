//! Position-dependent bytes: a lost, doubled, swapped or foreign byte shows at its place.

use crate::random::mix;

/// One direction's endless stream of bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pattern(u64);

impl Pattern {
    /// What conversation `conversation` of `seed` says in one direction.
    pub(crate) fn new(seed: u64, conversation: usize, reply: bool) -> Self {
        Self(mix(mix(seed) ^ (conversation as u64 * 2 + u64::from(reply))))
    }

    fn at(self, position: u64) -> u8 {
        mix(self.0 ^ (position / 8)).to_le_bytes()[(position % 8) as usize]
    }

    /// `len` bytes from `position` on.
    pub(crate) fn bytes(self, position: u64, len: usize) -> Vec<u8> {
        (position..position + len as u64).map(|position| self.at(position)).collect()
    }

    /// # Panics
    /// When `bytes` are not what stands at `position`.
    pub(crate) fn verify(self, position: u64, bytes: &[u8], who: &str) {
        for (position, byte) in (position..).zip(bytes) {
            assert_eq!(
                self.at(position),
                *byte,
                "{who}: another byte than was sent at position {position}"
            );
        }
    }
}
