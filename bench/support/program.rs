//! The programs under test: what to run, and how it is told what to do.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Result;

/// A program that terminates TLS.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// Name in tables.
    pub(crate) name: String,
    /// What to run.
    pub(crate) path: PathBuf,
    /// Its arguments; [`super::server::Server::start`] replaces `@…@` in them.
    pub(crate) arguments: &'static [&'static str],
    /// Arguments that make it print its version.
    pub(crate) version_arguments: &'static [&'static str],
    /// File name in `bench/peers` of the template that its configuration is made from; `None`: it
    /// has all from its arguments.
    pub(crate) template: Option<&'static str>,
    /// What this program's template has besides what all have: `@…@`, and what replaces it.
    pub(crate) values: Vec<(&'static str, String)>,
}

/// The programs that Portcullis is compared with, by their names on the command line.
pub(crate) const PEERS: [&str; 4] = ["haproxy", "nginx", "hitch", "stunnel"];

impl Program {
    /// Portcullis as cargo built it for this benchmark, or another build of it.
    pub(crate) fn portcullis(name: &str, path: &Path) -> Self {
        Self {
            name: name.to_owned(),
            path: path.to_owned(),
            arguments: &["run", "--config", "@CONFIG@"],
            version_arguments: &["--version"],
            template: Some("portcullis.toml"),
            values: Vec::new(),
        }
    }

    /// One of [`PEERS`], in the foreground: from `path`, or else from the search path. `None`: not
    /// one of them.
    pub(crate) fn peer(name: &str, path: Option<PathBuf>) -> Option<Self> {
        type Arguments = &'static [&'static str];
        let (command, arguments, version_arguments, template): (_, Arguments, Arguments, _) =
            match name {
                "haproxy" => ("haproxy", &["-db", "-q", "-f", "@CONFIG@"], &["-v"], "haproxy.cfg"),
                "nginx" => (
                    "nginx",
                    &["-p", "@DIRECTORY@", "-e", "stderr", "-c", "@CONFIG@"],
                    &["-v"],
                    "nginx.conf",
                ),
                "hitch" => ("hitch", &["--config=@CONFIG@"], &["--version"], "hitch.conf"),
                "stunnel" => ("stunnel", &["@CONFIG@"], &["-version"], "stunnel.conf"),
                _ => return None,
            };
        Some(Self {
            name: name.to_owned(),
            path: path.unwrap_or_else(|| command.into()),
            arguments,
            version_arguments,
            template: Some(template),
            values: Vec::new(),
        })
    }

    /// Whether this is a build of Portcullis.
    pub(crate) fn is_ours(&self) -> bool {
        self.template == Some("portcullis.toml")
    }

    /// The first line with a number that the program prints about its version.
    ///
    /// # Errors
    /// The program is not installed or cannot be run.
    pub(crate) fn version(&self) -> Result<String> {
        let output = Command::new(&self.path).args(self.version_arguments).output()?;
        // Some print it on the standard error.
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().find(|line| line.contains(|c: char| c.is_ascii_digit()));
        Ok(line.unwrap_or("no version").trim().to_owned())
    }
}
