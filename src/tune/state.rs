//! What `apply` did, so that `revert` can take it back and `verify` can watch over it: one JSON
//! file, replaced as a whole.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::goal::Wishes;
use super::value::Value;

/// Where it is, unless told otherwise.
pub const PATH: &str = "/var/lib/portcullis/tune.json";

const VERSION: u32 = 1;

/// What stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    /// What the plan was made for.
    pub wishes: Wishes,
    /// Settings of the kernel, in the order in which they were written.
    pub settings: Vec<Setting>,
    /// Files that were written.
    pub files: Vec<File>,
    /// Settings of the plan that were not set: of other groups, or not ours to set.
    pub left: Vec<String>,
}

/// A setting of the kernel that we changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// The knob.
    pub knob: String,
    /// Its file.
    pub path: String,
    /// Its value before us.
    pub before: Value,
    /// The value that we wrote.
    pub after: Value,
}

/// A file that we wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Where.
    pub path: String,
    /// Its text before us; `None`: there was no such file.
    pub before: Option<String>,
    /// Our text.
    pub after: String,
}

/// The state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be read or written.
    #[error("{}: cannot {what} what was set: {source}{}", .path.display(), cure(.source))]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// It is not ours, or damaged.
    #[error(
        "{}: not a state file of this version: {reason}; the values in it are readable text, to be \
         set back by hand, and then remove it", .path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

fn cure(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; be root, or name another file with --state",
        io::ErrorKind::ReadOnlyFilesystem => "; name a file elsewhere with --state",
        _ => "",
    }
}

impl State {
    /// Nothing done yet.
    pub fn new(wishes: Wishes) -> Self {
        Self { version: VERSION, wishes, settings: Vec::new(), files: Vec::new(), left: Vec::new() }
    }

    /// Whether there is nothing to take back.
    pub fn is_empty(&self) -> bool {
        self.settings.is_empty() && self.files.is_empty()
    }

    /// Reads the file; `None`: there is none.
    ///
    /// # Errors
    /// It is there, but cannot be read, or is not one.
    pub fn load(path: &Path) -> Result<Option<Self>, StateError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(StateError::Io { path: path.to_owned(), what: "read", source });
            }
        };
        let malformed = |reason| StateError::Malformed { path: path.to_owned(), reason };
        let state: Self = serde_json::from_str(&text).map_err(|e| malformed(e.to_string()))?;
        if state.version != VERSION {
            return Err(malformed(format!("version {}, expected {VERSION}", state.version)));
        }
        Ok(Some(state))
    }

    /// Writes the file, durably and as a whole; removes it when there is nothing to take back.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save(&self, path: &Path) -> Result<(), StateError> {
        let saved = if self.is_empty() { remove(path) } else { self.replace(path) };
        saved.map_err(|source| StateError::Io { path: path.to_owned(), what: "keep", source })
    }

    fn replace(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        write_durably(path, &format!("{text}\n"))
    }

    /// Notes that a setting is about to be changed. One that is still as we left it keeps the value
    /// that it had before us; one that somebody changed since begins anew.
    pub fn note_setting(&mut self, new: Setting) {
        match self.settings.iter_mut().find(|old| old.path == new.path) {
            Some(old) if old.after == new.before => old.after = new.after,
            Some(old) => *old = new,
            None => self.settings.push(new),
        }
    }

    /// Notes that a file is about to be written, likewise.
    pub fn note_file(&mut self, new: File) {
        match self.files.iter_mut().find(|old| old.path == new.path) {
            Some(old) if new.before.as_ref() == Some(&old.after) => old.after = new.after,
            Some(old) => *old = new,
            None => self.files.push(new),
        }
    }
}

/// Waits until no other `apply` or `revert` uses this state file, and keeps others waiting until
/// the result is dropped. `None`: there is no such folder and none can be made, which whoever
/// writes the state is told.
pub fn lock(path: &Path) -> Option<Flock<fs::File>> {
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).ok()?;
    // The folder, as the file itself is replaced.
    Flock::lock(fs::File::open(folder).ok()?, FlockArg::LockExclusive).ok()
}

/// Writes a file so that after a crash there is the old or the new one, never half of it. Makes its
/// folders.
///
/// # Errors
/// Those of the file system.
pub fn write_durably(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = folder.join(name);
    let mut file = fs::File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    fs::File::open(folder)?.sync_all()
}

/// Removes a file; it is no error that there is none.
///
/// # Errors
/// Those of the file system.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(before: &str, after: &str) -> Setting {
        Setting {
            knob: "k".to_owned(),
            path: "/proc/sys/k".to_owned(),
            before: Value::parse(before),
            after: Value::parse(after),
        }
    }

    #[test]
    fn the_value_before_us_outlives_a_second_apply() {
        let mut state = State::new(Wishes::default());
        state.note_setting(setting("1", "2"));
        state.note_setting(setting("2", "3"));
        assert_eq!(state.settings, [setting("1", "3")]);
        state.note_setting(setting("7", "3"));
        assert_eq!(state.settings, [setting("7", "3")], "somebody had set 7");
    }

    #[test]
    fn a_state_survives_its_file_and_an_empty_one_removes_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/tune.json");
        assert_eq!(State::load(&path).unwrap(), None);
        let mut state = State::new(Wishes { connections: Some(7), ..Wishes::default() });
        state.note_setting(setting("1", "2"));
        state.save(&path).unwrap();
        assert_eq!(State::load(&path).unwrap(), Some(state.clone()));
        state.settings.clear();
        state.save(&path).unwrap();
        assert!(!path.exists());
        state.save(&path).unwrap();
    }

    #[test]
    fn a_damaged_file_is_an_error_that_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tune.json");
        for text in [
            "",
            "{\"version\":1",
            "{\"version\":9,\"wishes\":{},\"settings\":[],\"files\":[],\"left\":[]}",
        ] {
            fs::write(&path, text).unwrap();
            let error = State::load(&path).unwrap_err().to_string();
            assert!(error.contains("tune.json") && error.contains("by hand"), "{error}");
        }
    }
}
