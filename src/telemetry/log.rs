//! The log: one line an event, on standard error. Only the control plane writes it; what workers
//! have to say they count.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Starts logging, for the rest of the process's life. A second call changes nothing.
pub fn init(level: tracing::Level) {
    let started = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .try_init();
    if started.is_err() {
        tracing::debug!("logging was started before; the first settings stay");
    }
}

/// A stretch of time in which something goes on: says when it starts and when it has ended, and
/// nothing in between.
#[derive(Debug, Clone, Copy)]
pub struct Episode {
    quiet: Duration,
    last: Option<Instant>,
}

/// What an [`Episode`] has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It has just started.
    Started,
    /// It has not been seen for the quiet time.
    Ended,
    /// Nothing new.
    Same,
}

impl Episode {
    /// An episode that ends when nothing was seen for `quiet`.
    pub fn new(quiet: Duration) -> Self {
        Self { quiet, last: None }
    }

    /// Whether it has started and not ended.
    pub fn is_going_on(&self) -> bool {
        self.last.is_some()
    }

    /// Takes note of whether it was seen since the last call.
    pub fn observe(&mut self, seen: bool, now: Instant) -> Turn {
        match self.last {
            None if seen => {
                self.last = Some(now);
                Turn::Started
            }
            Some(_) if seen => {
                self.last = Some(now);
                Turn::Same
            }
            Some(last) if now.duration_since(last) >= self.quiet => {
                self.last = None;
                Turn::Ended
            }
            None | Some(_) => Turn::Same,
        }
    }
}

/// Sums events and lets one line through per interval, with how many it stands for.
#[derive(Debug, Clone, Copy)]
pub struct Sampled {
    interval: Duration,
    count: u64,
    last: Option<Instant>,
}

impl Sampled {
    /// At most one line per `interval`.
    pub fn new(interval: Duration) -> Self {
        Self { interval, count: 0, last: None }
    }

    /// Adds `count` events. `Some`: log one line now, for that many events.
    pub fn add(&mut self, count: u64, now: Instant) -> Option<u64> {
        self.count += count;
        let due = self.last.is_none_or(|last| now.duration_since(last) >= self.interval);
        if self.count == 0 || !due {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_episode_speaks_at_its_start_and_its_end_only() {
        let start = Instant::now();
        let mut episode = Episode::new(2 * SECOND);
        let turns: Vec<Turn> = [false, true, true, false, true, false, false, false]
            .into_iter()
            .zip(0..)
            .map(|(seen, second)| episode.observe(seen, start + second * SECOND))
            .collect();
        let mut wanted = [Turn::Same; 8];
        wanted[1] = Turn::Started;
        wanted[6] = Turn::Ended;
        assert_eq!(turns, wanted);
    }

    #[test]
    fn samples_lose_no_event() {
        let start = Instant::now();
        let mut sampled = Sampled::new(10 * SECOND);
        assert_eq!(sampled.add(0, start), None);
        assert_eq!(sampled.add(3, start), Some(3));
        assert_eq!(sampled.add(4, start + SECOND), None);
        assert_eq!(sampled.add(5, start + 9 * SECOND), None);
        assert_eq!(sampled.add(0, start + 10 * SECOND), Some(9));
        assert_eq!(sampled.add(0, start + 60 * SECOND), None);
    }
}
