//! Who sets keys on this machine: the files of sysctl.d(5) in their order, and programs that write
//! to `/proc/sys` on their own.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::tune::root::Root;
use crate::tune::value::Value;

/// Folders of sysctl.d(5); a file masks one of the same name in a later folder.
const FOLDERS: [&str; 4] =
    ["/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d"];

/// Programs that tune on their own, and the file that shows that they are at work.
const PROGRAMS: [(&str, &str); 4] = [
    ("tuned", "/etc/tuned/active_profile"),
    ("cloud-init", "/run/cloud-init/instance-data.json"),
    ("bpftune", "/run/bpftune.pid"),
    ("irqbalance", "/run/irqbalance"),
];

/// One line of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The file.
    pub file: String,
    /// The key, dotted; may hold `*`.
    pub key: String,
    /// What it sets.
    pub value: Value,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Lines in the order in which systemd-sysctl(8) reads them: of one key the last wins.
    pub lines: Vec<Line>,
    /// Programs, each with what their file says in its first line.
    pub programs: Vec<(String, String)>,
}

impl Settings {
    pub(super) fn read(root: &Root) -> Self {
        let mut files = BTreeMap::new();
        for folder in FOLDERS {
            let is_read = |name: &String| Path::new(name).extension().is_some_and(|e| e == "conf");
            for name in root.names(folder).into_iter().filter(is_read) {
                files.entry(name).or_insert(folder);
            }
        }
        let mut lines = Vec::new();
        for (name, folder) in &files {
            let file = format!("{folder}/{name}");
            lines.extend(parse(&file, &root.text(&file).unwrap_or_default()));
        }
        // systemd reads it through the link 99-sysctl.conf; procps, which Alpine and others start
        // with, reads it last.
        if !files.contains_key("99-sysctl.conf") {
            let file = "/etc/sysctl.conf";
            lines.extend(parse(file, &root.text(file).unwrap_or_default()));
        }
        Self { lines, programs: programs(root) }
    }

    /// The line that decides about a key at boot.
    pub fn decides(&self, key: &str) -> Option<&Line> {
        self.lines.iter().rev().find(|line| matches(&line.key, key))
    }
}

fn programs(root: &Root) -> Vec<(String, String)> {
    let at_work = |(name, path): &(&str, &str)| {
        if !root.exists(path) {
            return None;
        }
        let text = root.text(path).unwrap_or_default();
        let first = text.lines().next().unwrap_or_default();
        let says = if *name == "tuned" { format!("profile {first}") } else { String::new() };
        Some(((*name).to_owned(), says))
    };
    PROGRAMS.iter().filter_map(at_work).collect()
}

/// Lines `key = value`, `-key = value`; comments begin with `#` or `;`.
fn parse(file: &str, text: &str) -> Vec<Line> {
    let line = |line: &str| {
        let line = line.trim();
        if line.starts_with(['#', ';']) {
            return None;
        }
        let (key, value) = line.split_once('=')?;
        let key = dotted(key.trim().trim_start_matches('-'));
        Some(Line { file: file.to_owned(), key, value: Value::parse(value) })
    };
    text.lines().filter_map(line).collect()
}

/// A key whose first separator is a slash has slashes between its components (sysctl.d(5)).
fn dotted(key: &str) -> String {
    match key.find(['/', '.']) {
        Some(at) if key.split_at(at).1.starts_with('/') => key.replace('/', "."),
        _ => key.to_owned(),
    }
}

/// Whether a key, in which each `*` stands for anything within a component, names `key`.
fn matches(pattern: &str, key: &str) -> bool {
    let (pattern, key): (Vec<&str>, Vec<&str>) =
        (pattern.split('.').collect(), key.split('.').collect());
    let same = |(pattern, part): (&&str, &&str)| match pattern.split_once('*') {
        Some((start, end)) => {
            part.len() >= start.len() + end.len() && part.starts_with(start) && part.ends_with(end)
        }
        None => pattern == part,
    };
    pattern.len() == key.len() && pattern.iter().zip(&key).all(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_file_wins_and_a_masked_one_is_not_read() {
        let tree = tempfile::tempdir().unwrap();
        let root = Root::new(tree.path());
        let write = |path: &str, text: &str| {
            let path = root.path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("/usr/lib/sysctl.d/10-a.conf", "net.core.somaxconn = 1\n");
        write("/usr/lib/sysctl.d/90-b.conf", "net.core.somaxconn = 2\n");
        write("/etc/sysctl.d/90-b.conf", "# masks\n-net/core/somaxconn=3\n");
        write("/etc/sysctl.d/95-c.conf", "net.ipv4.conf.*.rp_filter = 1\n");
        let settings = Settings::read(&root);
        let line = settings.decides("net.core.somaxconn").unwrap();
        assert_eq!((line.file.as_str(), line.value.as_str()), ("/etc/sysctl.d/90-b.conf", "3"));
        assert_eq!(settings.lines.len(), 3);
        assert!(settings.decides("net.ipv4.conf.all.rp_filter").is_some());
        assert!(settings.decides("net.ipv4.tcp_mem").is_none());
    }
}
