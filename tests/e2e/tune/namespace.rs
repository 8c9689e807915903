//! A network namespace that several commands share, with folders of `/etc` of its own and the
//! host's settings read-only.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::LIMIT;
use crate::support::eventually;
use crate::support::process::{Process, all, run};
use crate::support::server::BINARY;

/// Folders of `/etc` that stand for the namespace's own.
const FOLDERS: [&str; 5] = [
    "/etc/sysctl.d",
    "/etc/systemd/system",
    "/etc/modprobe.d",
    "/etc/modules-load.d",
    "/etc/tmpfiles.d",
];

/// A namespace, until dropped.
pub(super) struct Namespace {
    pub(super) dir: tempfile::TempDir,
    holder: Process,
}

impl Namespace {
    /// Makes one; `None`: this user may not, which the test says. In CI that is a failure.
    pub(super) fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut script = String::from("set -e\n");
        for folder in ["fs", "kernel", "vm"] {
            writeln!(script, "mount --bind /proc/sys/{folder} /proc/sys/{folder}").unwrap();
            writeln!(script, "mount -o remount,bind,ro /proc/sys/{folder}").unwrap();
        }
        for folder in FOLDERS.iter().filter(|folder| Path::new(folder).is_dir()) {
            let own = dir.path().join(folder.trim_start_matches('/').replace('/', "-"));
            std::fs::create_dir(&own).unwrap();
            writeln!(script, "mount --bind {} {folder}", own.display()).unwrap();
        }
        // Where /proc/sys is read-only, as in most containers, nothing can be tried.
        script += "echo 60 > /proc/sys/net/ipv4/tcp_fin_timeout\n";
        script += "ip link set lo up 2>/dev/null || true\n: > \"$0\"\nexec sleep 600\n";
        let ready = dir.path().join("ready");
        let mut command = Command::new("unshare");
        if !nix::unistd::geteuid().is_root() {
            command.arg("-Ur");
        }
        command.args(["-nm", "--propagation", "private", "sh", "-c", &script]).arg(&ready);
        let mut holder = Process::spawn(&mut command);
        let made = eventually("a namespace, or a refusal", || {
            if holder.ended().is_some() { Some(false) } else { ready.exists().then_some(true) }
        });
        if !made {
            assert!(
                std::env::var_os("CI").is_none(),
                "no namespace can be made, and in CI no test may be skipped"
            );
            eprintln!("skipped: this user may make no network namespace");
            return None;
        }
        Some(Self { dir, holder })
    }

    /// A command inside.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.holder.id().to_string(), "-n", "-m"]);
        if !nix::unistd::geteuid().is_root() {
            command.args(["-U", "--preserve-credentials"]);
        }
        command.arg(program);
        command
    }

    /// `portcullis tune` inside, with a state file of the namespace.
    pub(super) fn tune(&self, args: &[&str]) -> Output {
        let mut command = self.command(BINARY);
        command.args(["tune", "--state"]).arg(self.state()).args(args);
        run(&mut command, b"", LIMIT)
    }

    pub(super) fn state(&self) -> PathBuf {
        self.dir.path().join("state.json")
    }

    /// A folder of `/etc` as it is inside.
    pub(super) fn etc(&self, folder: &str) -> PathBuf {
        self.dir.path().join(format!("etc-{folder}"))
    }

    /// A sysctl inside.
    pub(super) fn read(&self, name: &str) -> String {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        let output = run(self.command("cat").arg(path), b"", LIMIT);
        assert!(output.status.success(), "{}", all(&output));
        all(&output).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Sets a sysctl inside, as somebody else would.
    pub(super) fn set(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        let output =
            run(self.command("sh").args(["-c", "echo \"$1\" > \"$0\"", &path, value]), b"", LIMIT);
        assert!(output.status.success(), "{}", all(&output));
    }

    /// All settings of the network that can be read.
    pub(super) fn snapshot(&self) -> String {
        let script = "find /proc/sys/net -type f | sort | while read -r f; do \
                      echo \"$f $(cat $f 2>/dev/null)\"; done";
        all(&run(self.command("sh").args(["-c", script]), b"", LIMIT))
    }
}
