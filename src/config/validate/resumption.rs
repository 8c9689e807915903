//! `[resumption]`.

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use super::super::quantity::{self, show_duration};
use super::super::raw::{Reader, Table, quoted};
use super::super::{Position, Resumption, ResumptionMode};
use super::{DAY, choice, number, size, timeout};
use crate::limits;

/// Shorter epochs are for tests of rotation; the longest lets `lifetime` be used up.
const EPOCH: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(604_800);
const LIFETIME_SHORTEST: Duration = Duration::from_secs(1);
/// At least one session with many client certificates in each shard.
const SESSION_BYTES: RangeInclusive<u64> = 2 << 20..=64 << 30;

pub(super) fn resumption<'d>(reader: &mut Reader<'d>, root: &mut Table<'d>) -> Resumption {
    let mut table = root.table(reader, "resumption");
    let modes = [
        ("tickets", ResumptionMode::Tickets),
        ("cache", ResumptionMode::Cache),
        ("off", ResumptionMode::Off),
    ];
    let secret_file = table.string(reader, "secret_file", "the path of a file").map(|item| {
        if item.value.is_empty() {
            let message = "expected the path of a file that `portcullis secret` made";
            reader.refuse(&item.at, "\"\"", message);
        }
        let directory = item.at.file.parent().unwrap_or(Path::new(""));
        (directory.join(item.value), item.at)
    });
    let default = Resumption::default();
    let lifetimes = LIFETIME_SHORTEST..=7 * DAY;
    let sessions = 0..=limits::SESSIONS_MAX;
    let shared = limits::SHARED_SESSIONS_MIN..=limits::SESSIONS_MAX;
    let bytes = "\"2MiB\" to \"64GiB\"";
    let resumption = Resumption {
        mode: choice(reader, &mut table, "mode", &modes).unwrap_or(default.mode),
        secret_file,
        epoch: whole_seconds(reader, &mut table, "epoch", &EPOCH).unwrap_or(default.epoch),
        lifetime: whole_seconds(reader, &mut table, "lifetime", &lifetimes)
            .unwrap_or(default.lifetime),
        tickets_per_handshake: number(reader, &mut table, "tickets_per_handshake", &(0..=8))
            .and_then(|number| number.try_into().ok())
            .unwrap_or(default.tickets_per_handshake),
        sessions_per_worker: number(reader, &mut table, "sessions_per_worker", &sessions)
            .unwrap_or(default.sessions_per_worker),
        sessions: number(reader, &mut table, "sessions", &shared).unwrap_or(default.sessions),
        session_bytes: size(reader, &mut table, "session_bytes", &SESSION_BYTES, bytes)
            .unwrap_or(default.session_bytes),
    };
    table.finish(reader);
    resumption
}

/// The length of an epoch as the command line has it: what `resumption.epoch` accepts.
pub fn epoch(text: &str) -> Result<Duration, String> {
    let epoch = quantity::duration(text)?;
    if EPOCH.contains(&epoch) && epoch.subsec_nanos() == 0 {
        return Ok(epoch);
    }
    let (from, to) = (show_duration(*EPOCH.start()), show_duration(*EPOCH.end()));
    Err(format!("expected whole seconds from {from} to {to}"))
}

fn whole_seconds<'d>(
    reader: &mut Reader<'d>,
    table: &mut Table<'d>,
    key: &'static str,
    range: &RangeInclusive<Duration>,
) -> Option<Duration> {
    let duration = timeout(reader, table, key, range)?;
    if duration.subsec_nanos() == 0 {
        return Some(duration);
    }
    let at = Position { key: format!("{}.{key}", table.at().key), ..table.at().clone() };
    reader.refuse(&at, quoted(&format!("{duration:?}")), "expected whole seconds");
    None
}
