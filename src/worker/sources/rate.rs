//! A token bucket in one word: instead of its level, when it will be full again. It fills by
//! itself, and an idle one needs no upkeep.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::io::Time;

/// What a bucket holds when it is full: what may be taken in this time, all at once.
pub const CAPACITY_NANOS: u64 = 1_000_000_000;

/// So many things a second, and a second's worth of them at once. For any number of threads.
///
/// On cache lines of its own: every worker writes to it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Rate {
    /// Nanoseconds of [`Time`].
    full_at: AtomicU64,
}

impl Rate {
    /// Takes one of `a_second`; `false`: the bucket is empty.
    pub fn take(&self, a_second: u32, now: Time) -> bool {
        let one = nanos_of_one(a_second);
        let taken = self.full_at.fetch_update(Relaxed, Relaxed, |full_at| {
            let full_at = full_at.max(now.0).saturating_add(one);
            (full_at - now.0 <= CAPACITY_NANOS).then_some(full_at)
        });
        taken.is_ok()
    }

    /// Gives one back that was taken and not used.
    pub fn give_back(&self, a_second: u32) {
        self.full_at.fetch_sub(nanos_of_one(a_second), Relaxed);
    }
}

/// How long the bucket takes to fill by one.
fn nanos_of_one(a_second: u32) -> u64 {
    CAPACITY_NANOS / u64::from(a_second.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `tries` at one moment get one.
    fn taken(rate: &Rate, a_second: u32, tries: u32, now: Time) -> u32 {
        (0..tries).map(|_| u32::from(rate.take(a_second, now))).sum()
    }

    #[test]
    fn a_second_brings_a_second_s_worth_however_it_is_taken() {
        const SECOND: u64 = 1_000_000_000;
        for a_second in [1, 3, 100, 1000] {
            let rate = Rate::default();
            // As if it had always been full, also long after the start.
            for start in [0, 500 * SECOND] {
                assert_eq!(taken(&rate, a_second, 5000, Time(start)), a_second);
                assert_eq!(taken(&rate, a_second, 5000, Time(start)), 0);
                // A thousand times a second somebody asks.
                let later = (1..=10_000).map(|millis| Time(start + millis * 1_000_000));
                let got: u32 = later.map(|now| taken(&rate, a_second, 2, now)).sum();
                let wanted = 10 * a_second;
                assert!((wanted - 1..=wanted + 1).contains(&got), "{got} of {wanted}");
            }
        }
    }

    #[test]
    fn what_is_given_back_may_be_taken_again() {
        let rate = Rate::default();
        let now = Time(77);
        assert_eq!(taken(&rate, 10, 10, now), 10);
        rate.give_back(10);
        assert_eq!(taken(&rate, 10, 10, now), 1);
    }

    #[test]
    fn a_clock_that_lags_behind_another_worker_s_gains_nothing() {
        let rate = Rate::default();
        assert_eq!(taken(&rate, 10, 20, Time(5_000_000_000)), 10);
        assert_eq!(taken(&rate, 10, 20, Time(4_999_000_000)), 0);
    }
}
