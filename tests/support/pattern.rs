//! A byte stream whose every byte tells its position, cheap to make and to verify.

use std::io::{Read, Write};

/// Length of the repeated block: a prime, so that no buffer or record size divides it and a piece
/// that is lost, doubled or swapped shifts everything behind it.
const PERIOD: usize = 1_000_003;

/// Bytes written or read at once, at most.
const PIECE: usize = 256 * 1024;

fn block() -> &'static [u8] {
    static BLOCK: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    BLOCK.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes: Vec<u8> = (0..PERIOD)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                state.to_be_bytes()[0]
            })
            .collect();
        // So that any piece that starts within the period is contiguous.
        bytes.extend_from_within(..PIECE);
        bytes
    })
}

/// The bytes at `position` of the stream, up to one piece and up to `end`.
fn piece(position: u64, end: u64) -> &'static [u8] {
    let start = usize::try_from(position % PERIOD as u64).unwrap();
    let left = usize::try_from(end - position).unwrap_or(usize::MAX);
    &block()[start..start + left.min(PIECE)]
}

/// Writes the first `length` bytes of the pattern.
pub(crate) fn write(to: &mut impl Write, length: u64) -> std::io::Result<()> {
    let mut position = 0;
    while position < length {
        let piece = piece(position, length);
        to.write_all(piece)?;
        position += piece.len() as u64;
    }
    to.flush()
}

/// Reads `length` bytes and compares them with the pattern, from its start.
#[track_caller]
pub(crate) fn verify(from: &mut impl Read, length: u64) {
    verify_from(from, 0, length);
}

/// Reads up to `end` and compares with the pattern from `position` on.
#[track_caller]
pub(crate) fn verify_from(from: &mut impl Read, mut position: u64, end: u64) {
    let mut buffer = vec![0; PIECE];
    while position < end {
        let left = usize::try_from(end - position).unwrap_or(usize::MAX);
        let count = match from.read(&mut buffer[..left.min(PIECE)]) {
            Ok(0) => panic!("the stream ended at byte {position} of {end}"),
            Ok(count) => count,
            Err(error) => panic!("at byte {position} of {end}: {error}"),
        };
        let expected = &piece(position, end)[..count];
        assert!(
            buffer[..count] == *expected,
            "byte {} of {end} differs",
            position
                + buffer.iter().zip(expected).take_while(|(got, want)| got == want).count() as u64
        );
        position += count as u64;
    }
}
