//! Fixed-bucket histogram of durations, with one writer.

use std::time::Duration;

use super::counters::Counter;

/// Upper bounds of the buckets, in nanoseconds: 1-2.5-5 steps from 10 µs to 100 s.
pub const BOUNDS_NANOS: [u64; 22] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    25_000_000_000,
    50_000_000_000,
    100_000_000_000,
];

/// Durations by bucket. Written by one worker, read by anyone.
#[derive(Debug)]
pub struct Histogram {
    /// One per bound, and one for what lies above the last; not cumulative.
    buckets: [Counter; BOUNDS_NANOS.len() + 1],
    sum_nanos: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| Counter::default()), sum_nanos: Counter::default() }
    }
}

impl Histogram {
    /// Counts one duration. Only the owning worker calls it.
    pub fn observe(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_NANOS.partition_point(|bound| *bound < nanos);
        if let Some(counter) = self.buckets.get(bucket) {
            counter.add(1);
        }
        self.sum_nanos.add(nanos);
    }

    /// Counts per bucket (not cumulative), the last for what lies above every bound.
    pub fn buckets(&self) -> impl Iterator<Item = u64> + '_ {
        self.buckets.iter().map(Counter::get)
    }

    /// Sum of all durations, in nanoseconds.
    pub fn sum_nanos(&self) -> u64 {
        self.sum_nanos.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_lands_in_the_bucket_whose_bound_it_does_not_exceed() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_micros(10));
        histogram.observe(Duration::from_nanos(10_001));
        histogram.observe(Duration::from_secs(1000));
        let buckets: Vec<u64> = histogram.buckets().collect();
        assert_eq!(buckets[0], 1);
        assert_eq!(buckets[1], 1);
        assert_eq!(buckets[BOUNDS_NANOS.len()], 1);
        assert_eq!(buckets.iter().sum::<u64>(), 3);
    }
}
