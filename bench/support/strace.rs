//! System calls of a process tree, counted by `strace -c`.
//!
//! strace stops the traced threads at each call, so that nothing else measured at the same time
//! means anything.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis::load::process;

use super::Result;

/// How long strace may take to attach to all threads.
const ATTACH_LIMIT: Duration = Duration::from_secs(10);

/// Whether there is an strace to run.
pub(crate) fn is_installed() -> bool {
    Command::new("strace").arg("-V").output().is_ok_and(|output| output.status.success())
}

/// Runs `act` and returns what it does, and the system calls that process `pid` and its children
/// made meanwhile.
///
/// # Errors
/// Those of `act`; strace cannot be run, or may not trace the process.
pub(crate) fn count<T>(pid: u32, act: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
    let directory = tempfile::tempdir()?;
    let (summary, said) = (directory.path().join("summary"), directory.path().join("said"));
    // `-f` follows threads, those of now and those to come, but no child that exists already.
    let processes = process::family(pid)?;
    let mut strace = Command::new("strace")
        .args(["-c", "-f", "-o"])
        .arg(&summary)
        .args(processes.iter().map(|process| format!("-p{process}")))
        .stdin(Stdio::null())
        .stderr(File::create(&said)?)
        .spawn()?;
    let acted = attached(&mut strace, &said, processes.len()).and_then(|()| act());
    // It detaches and writes its summary when it is interrupted.
    kill(Pid::from_raw(i32::try_from(strace.id())?), Signal::SIGINT)?;
    strace.wait()?;
    Ok((acted?, calls(&fs::read_to_string(&summary)?)?))
}

/// Waits until strace has attached to so many processes.
fn attached(strace: &mut Child, said: &Path, processes: usize) -> Result<()> {
    let started = Instant::now();
    loop {
        let text = fs::read_to_string(said)?;
        if text.lines().filter(|line| line.contains(" attached")).count() >= processes {
            return Ok(());
        }
        if strace.try_wait()?.is_some() || started.elapsed() > ATTACH_LIMIT {
            return Err(format!("strace cannot attach: {}", text.trim()).into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The sum of the column `calls`, the fourth.
fn calls(summary: &str) -> Result<u64> {
    let rows = summary.lines().filter(|line| !line.trim_end().ends_with(" total"));
    let calls = rows.filter_map(|line| line.split_ascii_whitespace().nth(3)?.parse::<u64>().ok());
    match calls.sum() {
        0 => Err(format!("strace has counted nothing: {}", summary.trim()).into()),
        calls => Ok(calls),
    }
}
