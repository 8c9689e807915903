//! Rules that neither rustfmt nor clippy can check: who may use what, and how a file looks.
//!
//! Each rule is one function from a file to complaints, and has a test that it does complain.
//! What only tests need is judged for its looks, not for what it uses.
//!
//! About `unsafe`: Cargo.toml denies `unsafe_code`, and only the line `mod sys` of lib.rs may lift
//! that. A child module can lift what its parent denies, and `forbid` in every file would rest on
//! nobody forgetting it; so the word itself is looked for here. main.rs, a crate of its own with
//! no `sys`, forbids it.

use std::fs;
use std::io;
use std::path::Path;

const LINES_MAX: usize = 600;
const COLUMNS_MAX: usize = 100;
const LONG_BECAUSE: &str = "//! Long because: ";
/// Written apart, so that this file passes its own rule.
const LEFTOVERS: [&str; 4] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("to", "do!"),
    concat!("unimple", "mented!"),
];

/// Modules that a folder (or file) of src must not use: what lies above it or beside it.
const ARROWS: [(&str, &[&str]); 11] = [
    ("connection", &["sys", "control", "cli", "load", "tune"]),
    ("tls", &["sys", "control", "cli", "load", "connection", "backend", "tune"]),
    ("backend", &["sys", "control", "cli", "load", "connection", "tls", "tune"]),
    ("worker", &["sys", "control", "cli", "load", "tune"]),
    (
        "io",
        &[
            "sys",
            "control",
            "cli",
            "load",
            "worker",
            "connection",
            "tls",
            "backend",
            "config",
            "tune",
        ],
    ),
    ("sys", &["control", "cli", "load", "tune"]),
    ("load", &["cli", "backend", "tune"]),
    ("config", &["sys", "control", "cli", "load", "worker", "connection", "tune"]),
    ("tune", &["cli", "load", "worker", "connection", "tls", "backend", "telemetry"]),
    (
        "telemetry",
        &[
            "sys",
            "control",
            "cli",
            "load",
            "worker",
            "connection",
            "tls",
            "backend",
            "config",
            "tune",
        ],
    ),
    (
        "limits.rs",
        &[
            "sys",
            "control",
            "cli",
            "load",
            "worker",
            "connection",
            "tls",
            "backend",
            "config",
            "io",
            "tune",
        ],
    ),
];

/// What those may use all the same: memory by slot, which knows no descriptor, no clock and no
/// other thread.
const MEMORY: &str = "crate::sys::slots";

/// A name, and the only places whose shipped code may contain it.
const PLACES: [(&str, &[&str]); 5] = [
    ("unsafe", &["src/sys/"]),
    ("libc::", &["src/sys/"]),
    ("io_uring::", &["src/sys/"]),
    ("aws_lc_rs::", &["src/tls/"]),
    ("rustls::", &["src/tls/", "src/control/certificates.rs", "src/cli/demo.rs"]),
];

/// Folders whose time comes from `Io::now`, so that the simulator can play it.
const CLOCKLESS: [&str; 5] =
    ["src/connection/", "src/tls/", "src/backend/", "src/worker/", "src/io/"];

/// A text file of this package.
struct File {
    /// Relative to the package, with `/`.
    path: String,
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        Path::new(&self.path).extension().is_some_and(|extension| extension == "rs")
    }

    /// Numbered lines of code that ships, comments removed: not the tests at the end of a file,
    /// nor a file of tests.
    fn shipped(&self) -> impl Iterator<Item = (usize, &str)> {
        let ships = self.path.starts_with("src/") && !self.path.ends_with("/tests.rs");
        let text = if ships { self.text.as_str() } else { "" };
        let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or(text);
        (1..).zip(code.lines().map(without_comment))
    }

    fn complaint(&self, line: usize, message: &str) -> String {
        format!("{}:{line}: {message}", self.path)
    }
}

fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with("//") {
        ""
    } else {
        line.split(" // ").next().unwrap_or_default()
    }
}

/// Whether `name` stands in `line` as a word of its own.
fn has_word(line: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(name).any(|(at, _)| {
        let (before, rest) = line.split_at(at);
        let after = rest.strip_prefix(name).unwrap_or_default();
        let ends = !name.ends_with(is_word) || !after.starts_with(is_word);
        ends && !before.ends_with(is_word)
    })
}

fn begins_with_its_purpose(file: &File, complaints: &mut Vec<String>) {
    if file.is_rust() && !file.text.starts_with("//! ") {
        complaints.push(file.complaint(1, "begin with `//! ` and what the file is for"));
    }
}

fn is_not_too_long(file: &File, complaints: &mut Vec<String>) {
    let excused = file.text.lines().any(|line| line.starts_with(LONG_BECAUSE));
    if file.is_rust() && !excused && file.text.lines().count() > LINES_MAX {
        let message = format!("more than {LINES_MAX} lines: split it, or say `{LONG_BECAUSE}...`");
        complaints.push(file.complaint(LINES_MAX + 1, &message));
    }
}

fn has_tidy_lines(file: &File, complaints: &mut Vec<String>) {
    for (index, line) in file.text.split('\n').enumerate() {
        let mut complain = |message: &str| complaints.push(file.complaint(index + 1, message));
        if file.is_rust() && line.chars().count() > COLUMNS_MAX {
            complain("more than 100 columns");
        }
        if line.contains('\t') && !file.path.ends_with("justfile") {
            complain("a tab");
        }
        if line.ends_with([' ', '\r']) {
            complain("a space or carriage return at the end of the line");
        }
    }
    if !file.text.ends_with('\n') || file.text.ends_with("\n\n") {
        complaints.push(file.complaint(file.text.lines().count(), "end with one newline"));
    }
}

fn leaves_nothing_over(file: &File, complaints: &mut Vec<String>) {
    for (index, line) in file.text.lines().enumerate() {
        if let Some(word) = LEFTOVERS.iter().find(|word| has_word(line, word)) {
            complaints.push(file.complaint(index + 1, &format!("left over: {word}")));
        }
    }
}

/// Line numbers are wrong after the next commit; a symbol is not. What a program prints may have
/// them, so of Rust files only comments count.
fn cites_no_line_numbers(file: &File, complaints: &mut Vec<String>) {
    for (index, line) in file.text.lines().enumerate() {
        if file.is_rust() && !line.trim_start().starts_with("//") {
            continue;
        }
        let cites = [".rs:", ".rs#L", ".toml:", ".md:"].iter().any(|suffix| {
            line.match_indices(suffix).any(|(at, _)| {
                let behind = line.split_at(at).1.strip_prefix(suffix).unwrap_or_default();
                behind.starts_with(|c: char| c.is_ascii_digit())
            })
        });
        if cites && file.path != "tests/tidy.rs" {
            complaints.push(file.complaint(index + 1, "cite file and symbol, not a line number"));
        }
    }
}

/// `expect` complains once its reason is gone; `allow` stays for ever.
fn expects_instead_of_allowing(file: &File, complaints: &mut Vec<String>) {
    for (index, line) in file.text.lines().enumerate() {
        let line = line.trim_start();
        // A module shared by several programs has parts that one of them does not use.
        let shared = file.path.ends_with("support/mod.rs") && line.contains("dead_code");
        if !shared && (line.starts_with("#[allow(") || line.starts_with("#![allow(")) {
            let message = "use #[expect(.., reason = \"..\")] instead of allow";
            complaints.push(file.complaint(index + 1, message));
        }
    }
}

fn follows_the_arrows(file: &File, complaints: &mut Vec<String>) {
    let inside = file.path.strip_prefix("src/").unwrap_or_default();
    let folder = inside.split('/').next().unwrap_or_default();
    let Some((_, forbidden)) = ARROWS.iter().find(|(name, _)| *name == folder) else {
        return;
    };
    for (number, line) in file.shipped() {
        if line.contains("crate::{") {
            complaints.push(file.complaint(number, "one `use crate::module` for each module"));
        }
        let line = line.replace(MEMORY, "");
        let used = |module: &&&str| has_word(&line, &format!("crate::{module}"));
        if let Some(module) = forbidden.iter().find(used) {
            let message = format!("{folder} must not use {module}: see ARCHITECTURE.md");
            complaints.push(file.complaint(number, &message));
        }
    }
}

fn keeps_names_in_their_places(file: &File, complaints: &mut Vec<String>) {
    for (number, line) in file.shipped() {
        for (name, places) in PLACES {
            let at_home = places.iter().any(|place| file.path.starts_with(place));
            if !at_home && has_word(line, name) {
                let message = format!("{name} belongs to {}", places.join(", "));
                complaints.push(file.complaint(number, &message));
            }
        }
    }
}

fn takes_time_from_the_turn(file: &File, complaints: &mut Vec<String>) {
    if !CLOCKLESS.iter().any(|folder| file.path.starts_with(folder)) {
        return;
    }
    for (number, line) in file.shipped() {
        if has_word(line, "Instant::now") || has_word(line, "SystemTime::now") {
            complaints.push(file.complaint(number, "the clock comes through Io::now"));
        }
    }
}

fn main_forbids_unsafe(file: &File, complaints: &mut Vec<String>) {
    let forbids = file.text.lines().any(|line| line == "#![forbid(unsafe_code)]");
    if file.path == "src/main.rs" && !forbids {
        complaints.push(file.complaint(1, "say #![forbid(unsafe_code)]"));
    }
}

const RULES: [fn(&File, &mut Vec<String>); 10] = [
    begins_with_its_purpose,
    is_not_too_long,
    has_tidy_lines,
    leaves_nothing_over,
    cites_no_line_numbers,
    expects_instead_of_allowing,
    follows_the_arrows,
    keeps_names_in_their_places,
    takes_time_from_the_turn,
    main_forbids_unsafe,
];

fn complaints(file: &File) -> Vec<String> {
    let mut complaints = Vec::new();
    for rule in RULES {
        rule(file, &mut complaints);
    }
    complaints
}

/// Adds every text file below `folder` that a person writes.
fn collect(root: &Path, folder: &Path, files: &mut Vec<File>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if name != "target" && name != ".git" {
                collect(root, &path, files)?;
            }
            continue;
        }
        let written = [".rs", ".md", ".toml", "justfile"];
        if written.iter().any(|suffix| name.ends_with(suffix)) {
            let relative = path.strip_prefix(root).unwrap_or(&path);
            files.push(File {
                path: relative.to_string_lossy().into_owned(),
                text: fs::read_to_string(&path)?,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_package_is_tidy() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = Vec::new();
        collect(root, root, &mut files).unwrap();
        assert!(files.iter().any(|file| file.path == "src/lib.rs"), "found no sources");
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let complaints: Vec<_> = files.iter().flat_map(complaints).collect();
        assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
    }

    fn told(path: &str, text: &str) -> String {
        complaints(&File { path: path.to_owned(), text: text.to_owned() }).join("\n")
    }

    #[track_caller]
    fn accepts(path: &str, code: &str) {
        assert_eq!(told(path, &format!("//! Purpose.\n{code}\n")), "");
    }

    #[track_caller]
    fn refuses(path: &str, code: &str, message: &str) {
        let told = told(path, &format!("//! Purpose.\n{code}\n"));
        assert!(told.contains(message), "{code}: {told}");
        assert!(told.starts_with(&format!("{path}:")), "{told}");
    }

    #[test]
    fn looks_are_judged() {
        accepts("src/tls/x.rs", "fn x() {}");
        assert!(told("src/tls/x.rs", "fn x() {}\n").contains("begin with"));
        refuses("src/tls/x.rs", &"x".repeat(101), "100 columns");
        accepts("src/tls/x.rs", &"ü".repeat(100));
        refuses("src/tls/x.rs", "\tx", "tab");
        refuses("src/tls/x.rs", "x ", "end of the line");
        refuses("src/tls/x.rs", "x\r", "end of the line");
        refuses("src/tls/x.rs", "x\n", "one newline");
        refuses("src/tls/x.rs", &"\n".repeat(LINES_MAX), "600 lines");
        accepts("src/tls/x.rs", &format!("{LONG_BECAUSE}a table.{}//", "\n".repeat(LINES_MAX)));
        refuses("README.md", "see worker.rs:12", "line number");
        accepts("README.md", "see worker.rs: it says so");
        for word in LEFTOVERS {
            refuses("tests/x.rs", &format!("// {word} x"), "left over");
        }
        refuses("tests/x.rs", "#[allow(dead_code)]", "expect");
        refuses("tests/x.rs", "    #![allow(dead_code)]", "expect");
    }

    #[test]
    fn arrows_are_judged() {
        refuses("src/connection/x.rs", "use crate::sys::start;", "must not use sys");
        refuses("src/connection/x.rs", "use crate::{io, sys};", "for each module");
        refuses("src/limits.rs", "use crate::io::Time;", "must not use io");
        refuses("src/sys/x.rs", "let x = crate::control::run();", "must not use control");
        accepts("src/connection/x.rs", "use crate::io::Time;");
        accepts("src/connection/x.rs", "// Not crate::sys::start.");
        accepts("src/connection/x.rs", "use crate::system::Time;");
        accepts("src/control/x.rs", "use crate::sys::start;");
        accepts("src/worker/x.rs", "use crate::sys::slots::Slots;");
    }

    #[test]
    fn places_are_judged() {
        for name in ["libc::c_int", "io_uring::IoUring", "unsafe {}"] {
            refuses("src/worker/x.rs", name, "belongs to src/sys/");
            accepts("src/sys/x.rs", name);
        }
        refuses("src/connection/x.rs", "rustls::Error", "belongs to src/tls/");
        refuses("src/control/x.rs", "use rustls::Error;", "belongs to src/tls/");
        for path in ["src/control/certificates.rs", "src/cli/demo.rs", "tests/x.rs"] {
            accepts(path, "use rustls::Error;");
        }
        accepts("src/control/x.rs", "use tokio_uring::net;");
        accepts("src/lib.rs", "#[expect(unsafe_code, reason = \"x\")]");
        accepts("src/worker/x.rs", "#[cfg(test)]\nmod tests {\n    use rustls::Error;\n}");
        refuses(
            "src/worker/x.rs",
            "#[cfg(test)]\nfn x() {}\nuse rustls::Error;",
            "belongs to src/tls/",
        );
        accepts("src/worker/x/tests.rs", "use rustls::Error;");
        assert!(told("src/main.rs", "//! X.\n").contains("forbid(unsafe_code)"));
        accepts("src/main.rs", "#![forbid(unsafe_code)]");
    }

    #[test]
    fn clocks_are_judged() {
        refuses("src/worker/x.rs", "let now = Instant::now();", "Io::now");
        refuses("src/tls/x.rs", "std::time::SystemTime::now()", "Io::now");
        accepts("src/sys/x.rs", "let now = Instant::now();");
    }
}
