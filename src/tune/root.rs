//! Everything below `/proc`, `/sys` and `/etc` is read and written through a [`Root`], so that a
//! tree copied from another machine, or made by a test, can stand in for this one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::value::Value;

/// The directory that stands for `/`.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

impl Root {
    /// A tree of its own; `/` is this machine.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Whether this is the running machine, so that it can be asked by system calls too.
    pub fn is_live(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// Where an absolute path is found.
    pub fn path(&self, absolute: &str) -> PathBuf {
        self.0.join(absolute.trim_start_matches('/'))
    }

    /// A file's text without white space at its ends; `None`: not there, or not readable.
    pub fn text(&self, path: &str) -> Option<String> {
        Some(fs::read_to_string(self.path(path)).ok()?.trim().to_owned())
    }

    /// A file that holds one number.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// Whether something is there.
    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// Names in a directory, `x2` before `x10`; none where it is not there.
    pub fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(path)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_by_cached_key(|name| (trailing_number(name), name.clone()));
        names
    }

    /// The last component of what a symbolic link points to.
    pub fn link_name(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// A sysctl's value, by its dotted name.
    pub fn sysctl(&self, name: &str) -> Option<Value> {
        self.text(&sysctl_path(name)).map(|text| Value::parse(&text))
    }

    /// Writes a file of the kernel's in one call, as it wants it.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set(&self, path: &str, value: &Value) -> io::Result<()> {
        use std::io::Write as _;
        let mut file = fs::OpenOptions::new().write(true).truncate(true).open(self.path(path))?;
        file.write_all(format!("{value}\n").as_bytes())
    }
}

/// Where a sysctl's file is. None of ours has a dot inside a component.
pub fn sysctl_path(name: &str) -> String {
    format!("/proc/sys/{}", name.replace('.', "/"))
}

fn trailing_number(name: &str) -> u64 {
    let digits = name.chars().rev().take_while(char::is_ascii_digit).count();
    let number = name.split_at_checked(name.len() - digits).map_or("", |(_, digits)| digits);
    number.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_stands_in_for_the_machine() {
        let tree = tempfile::tempdir().unwrap();
        let root = Root::new(tree.path());
        let folder = root.path("/proc/sys/net/ipv4");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("tcp_rmem"), "4096\t131072\t6291456\n").unwrap();
        assert_eq!(root.sysctl("net.ipv4.tcp_rmem"), Some(Value::parse("4096 131072 6291456")));
        root.set(&sysctl_path("net.ipv4.tcp_rmem"), &Value::parse("1 2 3")).unwrap();
        assert_eq!(root.text("/proc/sys/net/ipv4/tcp_rmem").as_deref(), Some("1 2 3"));
        assert!(!root.is_live());
        assert_eq!(root.sysctl("net.ipv4.tcp_wmem"), None);
        assert!(root.set("/proc/sys/net/ipv4/tcp_wmem", &Value::parse("1")).is_err());
    }

    #[test]
    fn names_are_sorted_as_people_count() {
        let tree = tempfile::tempdir().unwrap();
        for name in ["rx-10", "rx-2", "rx-0"] {
            fs::create_dir(tree.path().join(name)).unwrap();
        }
        assert_eq!(Root::new(tree.path()).names("/"), ["rx-0", "rx-2", "rx-10"]);
    }
}
