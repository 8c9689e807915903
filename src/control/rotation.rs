//! Ticket keys over time: which epoch it is, what the workers seal with, and when the secrets of
//! epochs that are over are forgotten.
//!
//! Nothing has to be told, sent or run from cron: every process with the same secret and nearly the
//! same clock comes to the same keys.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::secret::{self, SecretError};
use crate::config::{Position, Resumption};
use crate::limits::{CLOCK_JUMP, CLOCK_SETTLED};
use crate::telemetry::calendar::rfc3339_utc;
use crate::tls::resumption::ratchet::Ratchet;
use crate::tls::resumption::ticket::Keys;

/// Why there are no ticket keys.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// The secret file cannot be used.
    #[error(
        "{}:{}: {} = \"{}\": {source}", .at.file.display(), .at.line, .at.key, .path.display()
    )]
    File {
        /// The key of the configuration.
        at: Position,
        /// The file it names.
        path: PathBuf,
        /// Why.
        source: SecretError,
    },
    /// The operating system has no random numbers.
    #[error("cannot draw a random secret for tickets")]
    Random,
}

impl RotationError {
    /// Only a permission is missing.
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.is_permission())
    }
}

/// A random secret that begins with `epoch`.
pub fn random(epoch: u64) -> Result<Ratchet, RotationError> {
    Ratchet::random(epoch).ok_or(RotationError::Random)
}

/// The ticket keys of this process.
#[derive(Debug)]
pub struct Rotation {
    /// The oldest secret we still have. It is the one on disk, where there is a file.
    ratchet: Ratchet,
    file: Option<PathBuf>,
    length: Duration,
    /// The epoch whose keys the workers have.
    epoch: u64,
    clock: Clock,
    /// The file could not be moved forward, and the log says so.
    is_stuck: bool,
}

/// Two clocks, side by side.
#[derive(Debug)]
struct Clock {
    unix: Duration,
    steady: Instant,
    /// Since when they have agreed.
    agreed: Instant,
}

impl Rotation {
    /// The keys as of `unix`, the time since 1970.
    pub fn start(
        config: &Resumption,
        unix: Duration,
        steady: Instant,
    ) -> Result<Self, RotationError> {
        let epoch = number(unix, config.epoch);
        let (ratchet, file) = match &config.secret_file {
            None => (random(epoch)?, None),
            Some((path, at)) => {
                let ratchet = secret::read(path, config.epoch).map_err(|source| {
                    RotationError::File { at: at.clone(), path: path.clone(), source }
                })?;
                (ratchet, Some(path.clone()))
            }
        };
        Ok(Self {
            epoch: epoch.max(ratchet.epoch()),
            ratchet,
            file,
            length: config.epoch,
            clock: Clock { unix, steady, agreed: steady },
            is_stuck: false,
        })
    }

    /// What the workers seal and open with.
    #[expect(clippy::missing_panics_doc, reason = "the ratchet is never ahead of the epoch")]
    #[expect(clippy::expect_used, reason = "the ratchet is never ahead of the epoch")]
    pub fn keys(&self) -> Arc<Keys> {
        let keys = Keys::derive(&self.ratchet, self.epoch, self.length.as_secs());
        Arc::new(keys.expect("the ratchet is never ahead of the epoch"))
    }

    /// The epoch, as its number since 1970.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Unix time at which the epoch began, in seconds.
    pub fn began(&self) -> u64 {
        self.epoch.saturating_mul(self.length.as_secs())
    }

    /// For the log and for `check`: machines of a fleet that agree have the same key name.
    pub fn describe(&self) -> String {
        let time =
            |seconds| rfc3339_utc(UNIX_EPOCH + Duration::from_secs(seconds)).replace(".000Z", "Z");
        let name = u64::from_be_bytes(self.keys().current().name());
        let (from, until) = (time(self.began()), time(self.began() + self.length.as_secs()));
        format!("key {name:016x} seals from {from} until {until}")
    }

    /// The clock is before the first epoch of the secret: it is wrong here, or was where the secret
    /// was made.
    pub fn is_early(&self, unix: Duration) -> bool {
        number(unix, self.length) < self.ratchet.epoch()
    }

    /// Looks at the clock; new keys when another epoch has begun. Called about once a second.
    pub fn look(&mut self, unix: Duration, steady: Instant) -> Option<Arc<Keys>> {
        self.compare_clocks(unix, steady);
        let epoch = number(unix, self.length).max(self.ratchet.epoch());
        let changed = epoch != self.epoch;
        self.epoch = epoch;
        self.forget(steady);
        changed.then(|| self.keys())
    }

    fn compare_clocks(&mut self, unix: Duration, steady: Instant) {
        let passed = steady.saturating_duration_since(self.clock.steady);
        let expected = self.clock.unix + passed;
        let jump = unix.abs_diff(expected);
        if jump > CLOCK_JUMP {
            let way = if unix > expected { "forward" } else { "back" };
            tracing::warn!(
                "the clock jumped {way} by {jump:?}; ticket keys follow it, and the secrets of \
                 past epochs are kept until it has been steady for {:?}",
                self.settled_after()
            );
            self.clock.agreed = steady;
        }
        self.clock.unix = unix;
        self.clock.steady = steady;
    }

    /// A clock that is wrong for a moment, as at boot, must not cost the secrets of today.
    fn settled_after(&self) -> Duration {
        CLOCK_SETTLED.min(self.length / 4)
    }

    /// Forgets the secrets of epochs whose tickets are no longer accepted, here and on disk.
    fn forget(&mut self, steady: Instant) {
        let oldest = self.epoch.saturating_sub(1);
        let settled = steady.saturating_duration_since(self.clock.agreed) >= self.settled_after();
        if oldest <= self.ratchet.epoch() || !settled {
            return;
        }
        let Some(ratchet) = self.ratchet.at(oldest) else {
            return;
        };
        let moved = match &self.file {
            None => Ok(()),
            Some(path) => move_file(path, self.length, &ratchet),
        };
        match moved {
            Ok(()) => {
                self.ratchet = ratchet;
                self.is_stuck = false;
            }
            Err(why) if !self.is_stuck => {
                self.is_stuck = true;
                let path = self.file.as_deref().unwrap_or(Path::new("")).display();
                tracing::warn!(
                    "resumption.secret_file {path} {why}: ticket keys change all the same, but \
                     whoever gets the file can open the tickets of past epochs too; tried again \
                     every second"
                );
            }
            Err(_) => {}
        }
    }
}

/// The number of the epoch at a time.
fn number(unix: Duration, length: Duration) -> u64 {
    unix.as_secs() / length.as_secs().max(1)
}

/// Moves the file forward, unless another process has done so.
fn move_file(path: &Path, length: Duration, ratchet: &Ratchet) -> Result<(), String> {
    let found = secret::read(path, length).map_err(|error| error.to_string())?;
    // Whichever is later follows from the other, if they are of one secret.
    let later = found.epoch().max(ratchet.epoch());
    let is_ours = found
        .at(later)
        .zip(ratchet.at(later))
        .is_some_and(|(found, ours)| found.secret() == ours.secret());
    if !is_ours {
        return Err("holds another secret than at the start; restart to use it".to_owned());
    }
    if found.epoch() == later {
        return Ok(());
    }
    secret::advance(path, length, ratchet)
        .map_err(|error| format!("cannot be moved forward: {error}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::ResumptionMode;
    use crate::telemetry::labels::ResumptionResult;
    use crate::tls::resumption::Binding;

    const LENGTH: u64 = 3600;
    /// Some Tuesday.
    const START: u64 = 1_790_000_000;

    fn config(file: Option<&Path>) -> Resumption {
        let at = Position { file: "test".into(), line: 1, key: "resumption.secret_file".into() };
        Resumption {
            mode: ResumptionMode::Tickets,
            secret_file: file.map(|path| (path.to_owned(), at)),
            epoch: Duration::from_secs(LENGTH),
            lifetime: Duration::from_secs(86_400),
            tickets_per_handshake: 2,
            sessions_per_worker: 1,
            sessions: 1,
            session_bytes: 1,
        }
    }

    /// A process on a machine with its own clock.
    struct Machine {
        rotation: Rotation,
        keys: Arc<Keys>,
        started: Instant,
        unix: u64,
        passed: u64,
    }

    impl Machine {
        fn start(file: Option<&Path>, unix: u64) -> Self {
            let started = Instant::now();
            let unix_time = Duration::from_secs(unix);
            let rotation = Rotation::start(&config(file), unix_time, started).unwrap();
            Self { keys: rotation.keys(), rotation, started, unix, passed: 0 }
        }

        /// Time passes, and with it the clock, which then jumps.
        fn pass(&mut self, seconds: u64, jump: i64) {
            for _ in 0..seconds {
                self.passed += 1;
                self.unix += 1;
                self.look();
            }
            if jump != 0 {
                self.unix = self.unix.checked_add_signed(jump).unwrap();
                self.look();
            }
        }

        fn look(&mut self) {
            let steady = self.started + Duration::from_secs(self.passed);
            if let Some(keys) = self.rotation.look(Duration::from_secs(self.unix), steady) {
                self.keys = keys;
            }
        }

        fn seal(&self) -> Vec<u8> {
            let binding = Binding { listener: [0; 8], policy: [0; 8], name: [0; 8] };
            self.keys.seal([0; 12], b"state", &binding, 0).unwrap()
        }

        fn accepts(&self, ticket: &[u8]) -> Result<(), ResumptionResult> {
            self.keys.open(ticket).map(|_| ())
        }
    }

    fn shared(unix: u64) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let ratchet = random(unix / LENGTH - 1).unwrap();
        secret::create(&path, Duration::from_secs(LENGTH), &ratchet).unwrap();
        (directory, path)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Started at any time within an epoch, with clocks up to an epoch apart, two boxes with
        /// one file accept each other's tickets, now and after any time.
        #[test]
        fn boxes_with_one_secret_need_not_talk(
            a in START..START + 3 * LENGTH, skew in 0..LENGTH, later in 0..3 * LENGTH,
        ) {
            let (_directory, path) = shared(START);
            let mut one = Machine::start(Some(&path), a);
            let mut other = Machine::start(Some(&path), a + skew);
            for seconds in [0, later] {
                one.pass(seconds, 0);
                other.pass(seconds, 0);
                prop_assert_eq!(one.accepts(&other.seal()), Ok(()));
                prop_assert_eq!(other.accepts(&one.seal()), Ok(()));
            }
            // And one that starts only now, with what is on disk now.
            let late = Machine::start(Some(&path), one.unix);
            prop_assert_eq!(late.accepts(&one.seal()), Ok(()));
            prop_assert_eq!(one.accepts(&late.seal()), Ok(()));
        }

        /// A ticket is good for the rest of its epoch and all of the next, not longer.
        #[test]
        fn tickets_live_one_to_two_epochs(start in START..START + LENGTH, age in 0..4 * LENGTH) {
            let mut this = Machine::start(None, start);
            let ticket = this.seal();
            this.pass(age, 0);
            let epochs = this.unix / LENGTH - start / LENGTH;
            let wanted = if epochs <= 1 { Ok(()) } else { Err(ResumptionResult::UnknownEpoch) };
            prop_assert_eq!(this.accepts(&ticket), wanted);
        }

        /// However the clock jumps, there are keys; and once it is right again, they are those of
        /// the boxes whose clock was right all the time.
        #[test]
        fn a_clock_that_jumps_for_a_moment_costs_nothing(
            jump in -400_i64 * 86_400..400 * 86_400, moment in 0_u64..200,
        ) {
            let (_directory, path) = shared(START);
            let mut right = Machine::start(Some(&path), START + 10);
            let mut wrong = Machine::start(Some(&path), START + 10);
            right.pass(1000, 0);
            wrong.pass(1000, jump);
            prop_assert_eq!(wrong.accepts(&wrong.seal()), Ok(()));
            wrong.pass(moment, -jump);
            right.pass(moment, 0);
            prop_assert_eq!(wrong.accepts(&right.seal()), Ok(()));
            prop_assert_eq!(right.accepts(&wrong.seal()), Ok(()));
        }
    }

    #[test]
    fn the_file_moves_on_and_keeps_the_epoch_before() {
        let (_directory, path) = shared(START);
        let first = secret::read(&path, Duration::from_secs(LENGTH)).unwrap();
        let mut this = Machine::start(Some(&path), START);
        let epochs_first = first.epoch();
        this.pass(2 * LENGTH + 1000, 0);
        let found = secret::read(&path, Duration::from_secs(LENGTH)).unwrap();
        assert_eq!(found.epoch(), this.rotation.epoch() - 1);
        assert!(found.epoch() > epochs_first);
        assert_eq!(found.secret(), first.at(found.epoch()).unwrap().secret());
    }

    #[test]
    fn a_clock_that_is_wrong_at_the_start_does_not_move_the_file() {
        let (_directory, path) = shared(START);
        let before = std::fs::read(&path).unwrap();
        let mut this = Machine::start(Some(&path), START + 1000 * LENGTH);
        this.pass(100, -1000 * i64::try_from(LENGTH).unwrap());
        this.pass(1000, 0);
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_clock_before_the_secret_uses_its_first_epoch() {
        let (_directory, path) = shared(START);
        let early = Machine::start(Some(&path), START - 100 * LENGTH);
        assert!(early.rotation.is_early(Duration::from_secs(early.unix)));
        assert_eq!(early.accepts(&early.seal()), Ok(()));
    }

    #[test]
    fn a_secret_put_in_the_files_place_is_left_alone() {
        let (directory, path) = shared(START);
        let mut this = Machine::start(Some(&path), START);
        let (_other_directory, other) = shared(START);
        std::fs::rename(&other, &path).unwrap();
        let before = std::fs::read(&path).unwrap();
        this.pass(2 * LENGTH, 0);
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert!(this.rotation.is_stuck);
        drop(directory);
    }

    #[test]
    fn a_newer_secret_in_the_files_place_is_told_too() {
        let (_directory, path) = shared(START);
        let mut this = Machine::start(Some(&path), START);
        // Another process was started with it, and has moved it forward already.
        let (_other_directory, other) = shared(START + 4 * LENGTH);
        std::fs::rename(&other, &path).unwrap();
        this.pass(2 * LENGTH, 0);
        assert!(this.rotation.is_stuck);
    }

    #[test]
    fn processes_with_their_own_secrets_share_nothing() {
        let (one, other) = (Machine::start(None, START), Machine::start(None, START));
        assert_eq!(one.accepts(&other.seal()), Err(ResumptionResult::UnknownEpoch));
    }
}
