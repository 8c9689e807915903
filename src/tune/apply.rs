//! Doing it and taking it back. Each setting is written, read back, and accounted for; one that
//! fails stops nothing, and the account says what stands.
//!
//! What is about to be written is in the state file before it is written: a crash in between leaves
//! a note of something that did not happen, which `revert` sees and passes over.

use std::io;
use std::path::Path;

use serde::Serialize;

use super::detect;
use super::files::Persisted;
use super::goal::Wishes;
use super::knobs::{Group, Place, Scope};
use super::plan::{self, Advice, Row};
use super::root::{Root, sysctl_path};
use super::state::{self, File, Setting, State, StateError};
use super::value::Value;

/// What became of one setting or file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Done {
    /// The knob, or the file.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Written, and read back as written.
    Set {
        /// Before.
        from: String,
        /// Now.
        to: String,
    },
    /// It would have been set: a dry run.
    Would {
        /// Now.
        from: String,
        /// Then.
        to: String,
    },
    /// It was so already.
    Already,
    /// Left alone on purpose, or not to be set here, for this reason.
    Skipped(String),
    /// We may not.
    Forbidden(String),
    /// The kernel or file system refused, with this error.
    Refused(String),
    /// Somebody changed it since: not touched.
    Changed(String),
}

impl Outcome {
    /// In a table.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Set { .. } => "set",
            Self::Would { .. } => "would set",
            Self::Already => "already",
            Self::Skipped(_) => "skipped",
            Self::Forbidden(_) => "no permission",
            Self::Refused(_) => "refused",
            Self::Changed(_) => "changed since",
        }
    }
}

/// Where the state is, and whether anything is written at all.
#[derive(Debug, Clone, Copy)]
pub struct How<'a> {
    /// The tree.
    pub root: &'a Root,
    /// The state file.
    pub state: &'a Path,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// Sets what a plan proposes for some groups (none named: all), and writes `files`.
///
/// # Errors
/// The state file cannot be read or written; then nothing was set.
pub fn apply(
    how: How<'_>,
    wishes: &Wishes,
    plan: &[Row],
    groups: &[Group],
    files: &[Persisted],
) -> Result<Vec<Done>, StateError> {
    let rows = &plan::of_groups(plan, groups);
    let _others_wait = if how.dry_run { None } else { state::lock(how.state) };
    let mut state = State::load(how.state)?.unwrap_or_else(|| State::new(wishes.clone()));
    if how.dry_run {
        let done = rows.iter().map(|row| set_row(how.root, row, true));
        let files = files.iter().map(|file| write_file(how.root, file, true));
        return Ok(done.chain(files).collect());
    }
    state.wishes = wishes.clone();
    let unchanged = state.clone();
    let intended: Vec<Setting> = rows.iter().filter_map(setting).collect();
    for setting in &intended {
        state.note_setting(setting.clone());
    }
    for file in files {
        let before = how.root.path(&file.path);
        let before = std::fs::read_to_string(before).ok().filter(|text| *text != file.text);
        // A file that is as it should be was ours before, or is somebody's who wants the same.
        if before.is_some() || !how.root.exists(&file.path) {
            let (path, after) = (file.path.clone(), file.text.clone());
            state.note_file(File { path, before, after });
        }
    }
    if !state.is_empty() {
        state.save(how.state)?;
    }
    let mut done: Vec<Done> = rows.iter().map(|row| set_row(how.root, row, false)).collect();
    done.extend(files.iter().map(|file| write_file(how.root, file, false)));
    forget_failed(&mut state, &unchanged, &done);
    let is_left = |row: &&Row| {
        let is_set = state.settings.iter().any(|setting| setting.knob == row.knob.name);
        matches!(row.advice, Advice::Set(_)) && !is_set
    };
    state.left = plan.iter().filter(is_left).map(|row| row.knob.name.to_owned()).collect();
    state.save(how.state)?;
    Ok(done)
}

/// The note of what a row changes.
fn setting(row: &Row) -> Option<Setting> {
    let Advice::Set(after) = &row.advice else { return None };
    Some(Setting {
        knob: row.knob.name.to_owned(),
        path: path(row.knob.place)?,
        before: row.live.clone()?,
        after: after.clone(),
    })
}

/// Where a setting is written; `None`: not by us.
fn path(place: Place) -> Option<String> {
    match place {
        Place::Sysctl(name) => Some(sysctl_path(name)),
        Place::Choice(path) => Some(path.to_owned()),
        Place::Limit(_) | Place::Boot(..) => None,
    }
}

/// What did not come about is taken out of the notes, so that they say what stands.
fn forget_failed(state: &mut State, before: &State, done: &[Done]) {
    let failed = |name: &str| {
        done.iter().any(|done| {
            done.name == name && !matches!(done.outcome, Outcome::Set { .. } | Outcome::Already)
        })
    };
    let old = |path: &str| before.settings.iter().find(|setting| setting.path == path);
    state.settings = std::mem::take(&mut state.settings)
        .into_iter()
        .filter_map(|s| if failed(&s.knob) { old(&s.path).cloned() } else { Some(s) })
        .collect();
    let old = |path: &str| before.files.iter().find(|file| file.path == path);
    state.files = std::mem::take(&mut state.files)
        .into_iter()
        .filter_map(|file| if failed(&file.path) { old(&file.path).cloned() } else { Some(file) })
        .collect();
}

fn set_row(root: &Root, row: &Row, dry_run: bool) -> Done {
    let outcome = match (&row.advice, path(row.knob.place)) {
        (Advice::Already, _) => Outcome::Already,
        (Advice::Keep(reason), _) => Outcome::Skipped(reason.clone()),
        (Advice::Absent(reason), _) => Outcome::Skipped((*reason).to_owned()),
        (Advice::Set(value), None) => Outcome::Skipped(match row.knob.place {
            Place::Boot(word, _) => format!("add {word}={value} to the kernel's command line"),
            _ => format!("{value}: a limit of the service, written to its unit with --persist"),
        }),
        (Advice::Set(to), Some(path)) => {
            let from = row.live.as_ref().map(ToString::to_string).unwrap_or_default();
            if dry_run {
                Outcome::Would { from, to: to.to_string() }
            } else {
                set(root, row, &path, to, from)
            }
        }
    };
    Done { name: row.knob.name.to_owned(), outcome }
}

fn set(root: &Root, row: &Row, path: &str, to: &Value, from: String) -> Outcome {
    if let Err(error) = root.set(path, to) {
        let hosts = row.knob.scope == Scope::HostShown;
        return failure(&error, if hosts { "the host's, read-only here; " } else { "" });
    }
    match detect::read(root, row.knob.place) {
        Some(value) if value == *to => Outcome::Set { from, to: to.to_string() },
        Some(value) => Outcome::Refused(format!("wrote {to}, and it is {value}")),
        None => Outcome::Refused(format!("wrote {to}, and it cannot be read back")),
    }
}

fn failure(error: &io::Error, remark: &str) -> Outcome {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Outcome::Forbidden(format!("{remark}{error}"))
        }
        io::ErrorKind::NotFound => Outcome::Skipped("this kernel has no such setting".to_owned()),
        _ => Outcome::Refused(format!("{remark}{error}")),
    }
}

fn write_file(root: &Root, file: &Persisted, dry_run: bool) -> Done {
    let path = root.path(&file.path);
    let now = std::fs::read_to_string(&path).ok();
    let size = |text: &str| format!("{} lines", text.lines().count());
    let from = now.as_deref().map_or_else(|| "no file".to_owned(), size);
    let outcome = if now.is_none() && path.exists() {
        Outcome::Refused("what is there cannot be read, and would be lost".to_owned())
    } else if now.as_deref() == Some(&file.text) {
        Outcome::Already
    } else if dry_run {
        Outcome::Would { from, to: size(&file.text) }
    } else {
        match state::write_durably(&path, &file.text) {
            Ok(()) => Outcome::Set { from, to: size(&file.text) },
            Err(error) => match failure(&error, "") {
                Outcome::Skipped(_) => Outcome::Refused(error.to_string()),
                outcome => outcome,
            },
        }
    };
    Done { name: file.path.clone(), outcome }
}

/// Sets everything back that the state file notes, the last first. What somebody changed since is
/// left alone, unless `force`; it stays in the state file.
///
/// # Errors
/// The state file cannot be read or written.
pub fn revert(how: How<'_>, force: bool) -> Result<Vec<Done>, StateError> {
    let changes = !how.dry_run && how.state.exists();
    let _others_wait = if changes { state::lock(how.state) } else { None };
    let Some(mut state) = State::load(how.state)? else { return Ok(Vec::new()) };
    let mut done = Vec::new();
    for file in state.files.iter().rev() {
        let outcome = restore_file(how, file, force);
        done.push(Done { name: file.path.clone(), outcome });
    }
    for setting in state.settings.iter().rev() {
        let outcome = restore(how, setting, force);
        done.push(Done { name: setting.knob.clone(), outcome });
    }
    if !how.dry_run {
        let is_back = |name: &str| {
            done.iter().any(|done| {
                done.name == name && matches!(done.outcome, Outcome::Set { .. } | Outcome::Already)
            })
        };
        state.files.retain(|file| !is_back(&file.path));
        state.settings.retain(|setting| !is_back(&setting.knob));
        state.save(how.state)?;
    }
    Ok(done)
}

fn restore(how: How<'_>, setting: &Setting, force: bool) -> Outcome {
    let read = || {
        let text = how.root.text(&setting.path)?;
        Some(Value::chosen(&text).unwrap_or_else(|| Value::parse(&text)))
    };
    let Some(live) = read() else {
        return Outcome::Changed("it can no longer be read here".to_owned());
    };
    if live == setting.before {
        return Outcome::Already;
    }
    if live != setting.after && !force {
        return Outcome::Changed(format!(
            "we set {}, and it is {live}; --force sets {} all the same",
            setting.after, setting.before
        ));
    }
    let (from, to) = (live.to_string(), setting.before.to_string());
    if how.dry_run {
        return Outcome::Would { from, to };
    }
    if let Err(error) = how.root.set(&setting.path, &setting.before) {
        return failure(&error, "");
    }
    match read() {
        Some(value) if value == setting.before => Outcome::Set { from, to },
        other => Outcome::Refused(format!("wrote {to}, and it is {other:?}")),
    }
}

fn restore_file(how: How<'_>, file: &File, force: bool) -> Outcome {
    let path = how.root.path(&file.path);
    let now = std::fs::read_to_string(&path).ok();
    if now == file.before {
        return Outcome::Already;
    }
    if now.as_ref() != Some(&file.after) && !force {
        let what = if now.is_some() { "somebody edited it" } else { "somebody removed it" };
        return Outcome::Changed(format!("{what}; --force puts the former state back"));
    }
    let size = |text: &Option<String>| match text {
        Some(text) => format!("{} lines", text.lines().count()),
        None => "no file".to_owned(),
    };
    let (from, to) = (size(&now), size(&file.before));
    if how.dry_run {
        return Outcome::Would { from, to };
    }
    let restored = match &file.before {
        Some(text) => state::write_durably(&path, text),
        None => state::remove(&path),
    };
    match restored {
        Ok(()) => Outcome::Set { from, to },
        Err(error) => failure(&error, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree with one setting, and the state that an `apply` left which a crash had ended.
    fn tree(live: &str) -> (tempfile::TempDir, Root, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let path = root.path("/proc/sys/vm/swappiness");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, live).unwrap();
        let mut state = State::new(Wishes::default());
        state.note_setting(Setting {
            knob: "vm.swappiness".to_owned(),
            path: "/proc/sys/vm/swappiness".to_owned(),
            before: Value::parse("60"),
            after: Value::parse("10"),
        });
        let file = folder.path().join("state.json");
        state.save(&file).unwrap();
        (folder, root, file)
    }

    #[test]
    fn what_a_crash_kept_from_happening_is_passed_over() {
        let (_folder, root, state) = tree("60");
        let how = How { root: &root, state: &state, dry_run: false };
        let done = revert(how, false).unwrap();
        assert_eq!(done[0].outcome, Outcome::Already);
        assert!(!state.exists());
    }

    #[test]
    fn a_dry_run_of_revert_changes_nothing() {
        let (_folder, root, state) = tree("10");
        let how = How { root: &root, state: &state, dry_run: true };
        let would = Outcome::Would { from: "10".to_owned(), to: "60".to_owned() };
        assert_eq!(revert(how, false).unwrap()[0].outcome, would);
        assert_eq!(root.number("/proc/sys/vm/swappiness"), Some(10));
        assert!(state.exists());
        let how = How { dry_run: false, ..how };
        assert!(matches!(revert(how, false).unwrap()[0].outcome, Outcome::Set { .. }));
        assert_eq!(root.number("/proc/sys/vm/swappiness"), Some(60));
    }

    #[test]
    fn two_at_once_wait_for_each_other() {
        let (_folder, root, state) = tree("10");
        let how = How { root: &root, state: &state, dry_run: false };
        std::thread::scope(|scope| {
            let other = state::lock(&state).unwrap();
            let waits = scope.spawn(|| revert(how, false).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert_eq!(root.number("/proc/sys/vm/swappiness"), Some(10));
            drop(other);
            assert!(matches!(waits.join().unwrap()[0].outcome, Outcome::Set { .. }));
        });
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let path = root.path("/etc/sysctl.d/x.conf");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        let file = Persisted { path: "/etc/sysctl.d/x.conf".to_owned(), text: "a\n".to_owned() };
        let done = write_file(&root, &file, false);
        assert!(matches!(done.outcome, Outcome::Refused(_)), "{done:?}");
        assert_eq!(std::fs::read(path).unwrap(), [0xff, 0xfe]);
    }
}
