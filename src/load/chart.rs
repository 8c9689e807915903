//! Latencies as a picture of characters.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

const BAR_COLUMNS: u64 = 50;

/// Shares of the latencies by 1-2-5 steps, each with a bar; empty where nothing was counted.
pub(super) fn draw(nanos: &Histogram<u64>) -> String {
    let steps = steps(nanos);
    let largest = steps.iter().map(|(_, count)| *count).max().unwrap_or(0);
    let mut text = String::new();
    for (up_to, count) in steps {
        let columns = (count * BAR_COLUMNS).div_ceil(largest.max(1));
        let bar = "#".repeat(usize::try_from(columns).unwrap_or(0));
        #[expect(clippy::cast_precision_loss, reason = "a share for human eyes")]
        let share = 100.0 * count as f64 / nanos.len() as f64;
        // Writing into a String does not fail.
        let _infallible = writeln!(text, "{:>9} |{bar:<50} {share:6.2} %", show(up_to));
    }
    text
}

/// Upper bounds, in nanoseconds, and how many latencies lie up to each and above the one before.
fn steps(nanos: &Histogram<u64>) -> Vec<(u64, u64)> {
    let mut steps: Vec<(u64, u64)> = Vec::new();
    for value in nanos.iter_recorded() {
        // Of the latencies that the histogram does not tell apart this is the highest.
        let latency = nanos.lowest_equivalent(value.value_iterated_to());
        let mut bound = steps.last().map_or_else(|| first_bound(latency), |(bound, _)| *bound);
        while latency > bound {
            bound = next_bound(bound);
            steps.push((bound, 0));
        }
        if steps.is_empty() {
            steps.push((bound, 0));
        }
        if let Some((_, count)) = steps.last_mut() {
            *count += value.count_at_value();
        }
    }
    steps
}

fn first_bound(latency: u64) -> u64 {
    std::iter::successors(Some(1000), |bound| Some(next_bound(*bound)))
        .find(|bound| latency <= *bound)
        .unwrap_or(u64::MAX)
}

/// 1, 2, 5, 10, 20, 50 …
fn next_bound(bound: u64) -> u64 {
    let leading = bound / 10_u64.pow(bound.checked_ilog10().unwrap_or(0));
    if leading == 2 { bound / 2 * 5 } else { bound.saturating_mul(2) }
}

fn show(nanos: u64) -> String {
    match nanos {
        0..1_000_000 => format!("{} us", nanos / 1000),
        1_000_000..1_000_000_000 => format!("{} ms", nanos / 1_000_000),
        _ => format!("{} s", nanos / 1_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_is_in_one_bar() {
        let mut nanos = Histogram::new_with_bounds(1000, 1_000_000_000_000, 3).expect("bounds");
        for value in [1_500, 1_900, 30_000, 4_000_000] {
            nanos.record(value).expect("in bounds");
        }
        let steps = steps(&nanos);
        assert_eq!(steps.first(), Some(&(2_000, 2)));
        assert_eq!(steps.last(), Some(&(5_000_000, 1)));
        assert_eq!(steps.iter().map(|(_, count)| count).sum::<u64>(), 4);
        let drawn = draw(&nanos);
        assert!(drawn.contains("     2 us |####"), "{drawn}");
        assert!(drawn.contains("50.00 %"), "{drawn}");
        assert!(drawn.lines().all(|line| line.len() <= 80), "{drawn}");
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        let nanos = Histogram::new_with_bounds(1000, 1_000_000, 3).expect("bounds");
        assert_eq!(draw(&nanos), "");
    }
}
