//! Quantities as text: durations with units, sizes with units, lists of CPUs.

use std::time::Duration;

/// `"300ms"`, `"5s"`, `"1m"`, `"2h"`, `"1d"`: a whole number and its unit.
pub fn duration(text: &str) -> Result<Duration, &'static str> {
    const EXPECTED: &str =
        "expected a whole number and a unit (ms, s, m, h or d), such as \"300ms\" or \"5s\"";
    let (number, unit) = split(text).ok_or(EXPECTED)?;
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(EXPECTED),
    };
    let ms = number.checked_mul(unit_ms).ok_or(EXPECTED)?;
    Ok(Duration::from_millis(ms))
}

/// `"512B"`, `"16KiB"`, `"1MiB"`: a whole number and its unit.
pub fn size(text: &str) -> Result<u64, &'static str> {
    const EXPECTED: &str =
        "expected a whole number and a unit (B, KiB, MiB or GiB), such as \"16KiB\"";
    let (number, unit) = split(text).ok_or(EXPECTED)?;
    let unit_bytes: u64 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(EXPECTED),
    };
    number.checked_mul(unit_bytes).ok_or(EXPECTED)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit.trim_start()))
}

/// A duration in the largest unit that shows it whole.
pub fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (unit_ms, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")] {
        if ms > 0 && ms.is_multiple_of(unit_ms) {
            return format!("{}{unit}", ms / unit_ms);
        }
    }
    if ms == 0 { "0s".to_owned() } else { format!("{ms}ms") }
}

/// CPU numbers as taskset(1) writes them: `"2-7,10"`, with a stride `"0-31:2"`; order is kept.
pub fn cpu_list(text: &str, highest: usize) -> Result<Vec<usize>, String> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let bad = || {
            format!(
                "{part:?} is no CPU and no range; expected a list such as \"2-7,10\" or \"0-31:2\""
            )
        };
        let (range, stride) = match part.trim().split_once(':') {
            Some((range, stride)) => (range, stride.parse().map_err(|_| bad())?),
            None => (part.trim(), 1),
        };
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let first: usize = first.parse().map_err(|_| bad())?;
        let last: usize = last.parse().map_err(|_| bad())?;
        if first > last || stride == 0 {
            return Err(bad());
        }
        if last > highest {
            return Err(format!("CPU {last} is beyond the highest accepted, {highest}"));
        }
        for cpu in (first..=last).step_by(stride) {
            if cpus.contains(&cpu) {
                return Err(format!("names CPU {cpu} twice; each worker needs its own"));
            }
            cpus.push(cpu);
        }
    }
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit_and_whole_numbers() {
        assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(duration("2h"), Ok(Duration::from_hours(2)));
        for bad in ["5", "s", "", "1.5s", "-1s", "5 minutes", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(duration("9999999999999999d").is_err(), "overflow");
    }

    #[test]
    fn durations_are_shown_as_one_would_write_them() {
        assert_eq!(show_duration(Duration::from_mins(5)), "5m");
        assert_eq!(show_duration(Duration::from_secs(90)), "90s");
        assert_eq!(show_duration(Duration::from_millis(1500)), "1500ms");
        assert_eq!(show_duration(Duration::ZERO), "0s");
    }

    #[test]
    fn sizes_need_a_binary_unit() {
        assert_eq!(size("16KiB"), Ok(16 * 1024));
        assert_eq!(size("1 MiB"), Ok(1 << 20));
        for bad in ["16", "16KB", "16k", "KiB", "99999999999GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cpu_lists_read_as_taskset_reads_them() {
        assert_eq!(cpu_list("2-4,10", 63), Ok(vec![2, 3, 4, 10]));
        assert_eq!(cpu_list("0-7:3", 63), Ok(vec![0, 3, 6]));
        for bad in ["", "a", "3-1", "0-7:0", "1,1", "0-3,2", "64", "1,,2"] {
            assert!(cpu_list(bad, 63).is_err(), "{bad}");
        }
    }
}
