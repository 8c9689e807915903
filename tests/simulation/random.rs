//! The one source of chance: `SplitMix64` (Steele, Lea, Flood 2014), so that a seed says it all.

use std::time::Duration;

/// A seeded generator of numbers.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// Uniform in `low..=high`.
    pub(crate) fn range(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "an empty range");
        low + self.bits() % (high - low + 1)
    }

    /// Uniform in `low..=high`, as a size.
    pub(crate) fn size(&mut self, low: usize, high: usize) -> usize {
        usize::try_from(self.range(low as u64, high as u64)).unwrap()
    }

    /// A size from `low` to `high` where each order of magnitude is as likely as the next.
    pub(crate) fn magnitude(&mut self, low: usize, high: usize) -> usize {
        let orders = u64::from((high / low.max(1)).max(1).ilog2());
        let top = low.max(1) << self.range(0, orders);
        self.size(low, (2 * top).min(high).max(low))
    }

    /// True with `per_mille` in a thousand. Nothing is drawn at 0.
    pub(crate) fn chance(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.range(1, 1000) <= u64::from(per_mille)
    }

    /// One of `choices`.
    pub(crate) fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.size(0, choices.len() - 1)].clone()
    }

    /// A time between `low` and `high` microseconds.
    pub(crate) fn micros(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_micros(self.range(low, high))
    }

    /// A generator of its own, so that one consumer's draws do not shift another's.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.bits())
    }
}

/// Finalizer of `SplitMix64`: every input bit changes half of the output bits.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_kept_and_seeds_repeat() {
        let (mut one, mut other) = (Random::new(7), Random::new(7));
        for _ in 0..1000 {
            let size = one.magnitude(3, 100_000);
            assert!((3..=100_000).contains(&size));
            assert_eq!(size, other.magnitude(3, 100_000));
            assert!(!one.clone().chance(0));
            assert!(one.clone().chance(1000));
        }
    }
}
