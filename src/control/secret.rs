//! The secret file of `resumption.secret_file`: the ticket ratchet of a fleet, on disk.
//!
//! It holds the secret of the oldest epoch whose tickets are still accepted, and moves on with it:
//! what it held before is not derivable from what it holds now.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::config::show_duration;
use crate::tls::resumption::ratchet::{Ratchet, SECRET_BYTES};

/// Only its owner reads and writes it.
const MODE: u32 = 0o600;
/// Readable by everyone on the machine: refused.
const MODE_OTHERS: u32 = 0o007;
/// Bytes of the file, at most; it has about 400.
const FILE_BYTES_MAX: u64 = 4096;
const VERSION: u32 = 1;
/// Seconds since 1970 at which an epoch may begin: tickets have 32 bits for the time.
const UNIX_MAX: u64 = u32::MAX as u64;

const HEADER: &str = "\
# Secret of Portcullis's session tickets, made by `portcullis secret`. Whoever reads it can open
# the tickets of the epoch below and of every later one, not of earlier ones. Portcullis moves it
# forward as epochs end. Copy it to the other machines of the fleet; keep it private (mode 0600).
";

/// What is wrong with a secret file.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// There is none.
    #[error("there is no such file; make it with: portcullis secret {}", .path.display())]
    Missing {
        /// Where.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot be read: {source}")]
    Unreadable {
        /// Why.
        source: io::Error,
    },
    /// It is a directory, a pipe or a device.
    #[error("is not a file; name one that `portcullis secret` made")]
    NotFile,
    /// Everyone may read it.
    #[error(
        "every user of this machine may use it (mode {mode:04o}); run: chmod 600 {}",
        .path.display()
    )]
    Public {
        /// Permission bits.
        mode: u32,
        /// Which file.
        path: PathBuf,
    },
    /// It is not what we write.
    #[error(
        "is no secret file of this version ({what}); restore it from another machine of the fleet, \
         or make a new one with: portcullis secret FILE"
    )]
    Malformed {
        /// Without any of its content.
        what: String,
    },
    /// It was made for epochs of another length.
    #[error(
        "was made for epochs of {0}, and resumption.epoch is {1}: set resumption.epoch = \"{0}\", \
         or make a new file with: portcullis secret --epoch {1} FILE",
        show_duration(*.file), show_duration(*.configured)
    )]
    Epoch {
        /// The file's.
        file: Duration,
        /// The configuration's.
        configured: Duration,
    },
}

impl SecretError {
    /// Only a permission is missing.
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Unreadable { source } => source.kind() == io::ErrorKind::PermissionDenied,
            _ => false,
        }
    }
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    epoch_seconds: u64,
    epoch: u64,
    secret: String,
}

/// Reads a secret file made for epochs of `epoch`.
pub fn read(path: &Path, epoch: Duration) -> Result<Ratchet, SecretError> {
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => SecretError::Missing { path: path.to_owned() },
        _ => SecretError::Unreadable { source },
    };
    // A pipe without a writer would be waited for.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(unreadable)?;
    let found = file.metadata().map_err(unreadable)?;
    if !found.is_file() {
        return Err(SecretError::NotFile);
    }
    let mode = found.permissions().mode() & 0o777;
    if mode & MODE_OTHERS != 0 {
        return Err(SecretError::Public { mode, path: path.to_owned() });
    }
    let mut text = Zeroizing::new(String::new());
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
    let malformed = |what: &str| SecretError::Malformed { what: what.to_owned() };
    // The parser's own message would quote the line, and with it the secret.
    let content: Content = toml::from_str(&text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let line = 1 + text.get(..at).unwrap_or_default().matches('\n').count();
        malformed(&format!("line {line} does not parse"))
    })?;
    let digits = Zeroizing::new(content.secret);
    if content.version != VERSION {
        return Err(malformed(&format!("version {}", content.version)));
    }
    if content.epoch_seconds != epoch.as_secs() {
        let file = Duration::from_secs(content.epoch_seconds);
        return Err(SecretError::Epoch { file, configured: epoch });
    }
    if content.epoch.checked_mul(content.epoch_seconds).is_none_or(|unix| unix > UNIX_MAX) {
        return Err(malformed(&format!("epoch {} is after the year 2106", content.epoch)));
    }
    let secret = decode(&digits).ok_or_else(|| malformed("secret is not 64 hex digits"))?;
    Ok(Ratchet::new(content.epoch, secret))
}

/// Makes a new secret file, readable by its owner only. An existing one is not touched.
pub fn create(path: &Path, epoch: Duration, ratchet: &Ratchet) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(path)?;
    file.write_all(encode(epoch, ratchet).as_bytes())?;
    file.sync_all()
}

/// Puts a later epoch's secret in the place of what the file holds. The old content is gone from
/// the file; what the disk keeps of it is for the disk to say.
pub fn advance(path: &Path, epoch: Duration, ratchet: &Ratchet) -> io::Result<()> {
    // Renaming over a link would leave the old secret where the link led to.
    let path = &fs::canonicalize(path)?;
    let before = fs::metadata(path)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // Two processes that share a file write the same, each to its own temporary.
    name.push(format!(".{}.new", std::process::id()));
    let temporary = path.with_file_name(name);
    // One that a crash left behind, or that somebody put there, would keep its own permissions.
    let _absent = fs::remove_file(&temporary);
    let written = (|| {
        let mode = before.permissions().mode() & 0o777 & !MODE_OTHERS;
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        if std::os::unix::fs::fchown(&file, Some(before.uid()), Some(before.gid())).is_err() {
            // Without the privilege the file becomes ours, which we could read before.
            tracing::debug!("the secret file's owner could not be kept");
        }
        file.write_all(encode(epoch, ratchet).as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // The name is safe only when its directory is.
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    })();
    if written.is_err() {
        let _absent = fs::remove_file(&temporary);
    }
    written
}

fn encode(epoch: Duration, ratchet: &Ratchet) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(1024));
    let (seconds, number) = (epoch.as_secs(), ratchet.epoch());
    let lines = format!("version = {VERSION}\nepoch_seconds = {seconds}\nepoch = {number}\n");
    text.push_str(HEADER);
    text.push_str(&lines);
    text.push_str("secret = \"");
    for byte in ratchet.secret() {
        // A String takes everything.
        let _written = write!(text, "{byte:02x}");
    }
    text.push_str("\"\n");
    text
}

fn decode(hex: &str) -> Option<Zeroizing<[u8; SECRET_BYTES]>> {
    let mut secret = Zeroizing::new([0; SECRET_BYTES]);
    if hex.len() != 2 * SECRET_BYTES || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in secret.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Duration = Duration::from_secs(43_200);

    fn ratchet(epoch: u64) -> Ratchet {
        Ratchet::new(3, Zeroizing::new([9; SECRET_BYTES])).at(epoch).unwrap()
    }

    fn made(directory: &tempfile::TempDir) -> PathBuf {
        let path = directory.path().join("tickets.secret");
        create(&path, EPOCH, &ratchet(3)).unwrap();
        path
    }

    fn why(path: &Path, epoch: Duration) -> String {
        let why = read(path, epoch).unwrap_err().to_string();
        assert!(!why.contains("0909"), "the secret is never shown: {why}");
        why
    }

    #[test]
    fn what_was_written_is_read_again_by_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = made(&directory);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let read = read(&path, EPOCH).unwrap();
        assert_eq!((read.epoch(), read.secret()), (3, ratchet(3).secret()));
    }

    #[test]
    fn an_advanced_file_holds_nothing_of_what_it_held() {
        let directory = tempfile::tempdir().unwrap();
        let path = made(&directory);
        let before = fs::read_to_string(&path).unwrap();
        advance(&path, EPOCH, &ratchet(5)).unwrap();
        let after = fs::read_to_string(&path).unwrap();
        let secret = before.lines().last().unwrap();
        assert!(!after.contains(secret));
        assert_eq!(read(&path, EPOCH).unwrap().secret(), ratchet(5).secret());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary is left");
    }

    #[test]
    fn an_existing_file_is_not_replaced_by_a_new_secret() {
        let directory = tempfile::tempdir().unwrap();
        let path = made(&directory);
        let error = create(&path, EPOCH, &ratchet(4)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(&path, EPOCH).unwrap().epoch(), 3);
    }

    #[test]
    fn a_link_stays_and_what_it_leads_to_moves_forward() {
        let directory = tempfile::tempdir().unwrap();
        let path = made(&directory);
        let links = tempfile::tempdir().unwrap();
        let link = links.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        advance(&link, EPOCH, &ratchet(5)).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(read(&path, EPOCH).unwrap().epoch(), 5, "the old secret is gone");
    }

    #[test]
    fn what_lies_in_the_temporarys_place_lends_it_no_permissions() {
        let directory = tempfile::tempdir().unwrap();
        let path = made(&directory);
        let left = directory.path().join(format!("tickets.secret.{}.new", std::process::id()));
        fs::write(&left, "from a process of the same number that was killed").unwrap();
        fs::set_permissions(&left, fs::Permissions::from_mode(0o644)).unwrap();
        advance(&path, EPOCH, &ratchet(5)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn only_a_file_is_read_and_nothing_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        for path in [directory.path(), &pipe] {
            let why = why(path, EPOCH);
            assert!(why.contains("not a file") && !why.contains("chmod"), "{why}");
        }
    }

    #[test]
    fn an_epoch_beyond_the_calendar_is_malformed() {
        let directory = tempfile::tempdir().unwrap();
        let path = made(&directory);
        let text = fs::read_to_string(&path).unwrap();
        for epoch in [u64::from(u32::MAX) / 43_200 + 1, i64::MAX as u64] {
            let epoch = format!("epoch = {epoch}");
            fs::write(&path, text.replacen("epoch = 3", &epoch, 1)).unwrap();
            assert!(why(&path, EPOCH).contains("2106"), "{}", why(&path, EPOCH));
        }
    }

    #[test]
    fn refusals_say_what_to_do_and_never_show_the_secret() {
        let directory = tempfile::tempdir().unwrap();
        let path = made(&directory);
        let other = Duration::from_secs(3600);
        assert!(
            why(&path, other).contains("portcullis secret --epoch 1h"),
            "{}",
            why(&path, other)
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(why(&path, EPOCH).contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for (from, to, what) in [
            ("version = 1", "version = 2", "version 2"),
            ("\"\n", "0\"\n", "64 hex"),
            ("epoch = 3", "epoch = x", "line 6"),
            ("secret = \"", "secret = ", "line 7"),
        ] {
            fs::write(&path, text.replacen(from, to, 1)).unwrap();
            assert!(why(&path, EPOCH).contains(what), "{what}: {}", why(&path, EPOCH));
        }
        fs::remove_file(&path).unwrap();
        assert!(why(&path, EPOCH).contains("portcullis secret "));
    }
}
