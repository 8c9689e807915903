//! Child processes: killed by their own id when dropped, and what the kernel says about them.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A child that does not outlive its owner.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    /// Starts `command` with its standard input closed.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        Self(
            command
                .stdin(Stdio::null())
                .spawn()
                .unwrap_or_else(|error| panic!("{}: {error}", command.get_program().display())),
        )
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }

    /// Waits for its end, and returns what it wrote to a piped standard output.
    pub(crate) fn output(&mut self) -> Vec<u8> {
        let mut output = Vec::new();
        if let Some(mut stdout) = self.0.stdout.take() {
            std::io::Read::read_to_end(&mut stdout, &mut output).unwrap();
        }
        self.0.wait().unwrap();
        output
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let id = i32::try_from(self.0.id()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), signal).unwrap();
    }

    /// CPU time its threads have used so far, user and system.
    pub(crate) fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
        // proc(5): the name in parentheses may hold anything; utime and stime are fields 14 and 15.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    /// Bytes of memory that are resident and back no file. From `status`, which stays readable
    /// when a process hides its memory maps from others.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        status
            .lines()
            .filter(|line| line.starts_with("RssAnon:") || line.starts_with("RssShmem:"))
            .map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap())
            .sum::<u64>()
            * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when the child has already ended, which is what is wanted.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

impl From<Child> for Process {
    fn from(child: Child) -> Self {
        Self(child)
    }
}

/// Raises the limit of open descriptors to the most that is allowed, for this process and its
/// children: shells start with 1,024, and some tests are clients a thousand times over.
pub(crate) fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    static RAISED: std::sync::Once = std::sync::Once::new();
    RAISED.call_once(|| {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    });
}

/// Whether `RLIMIT_MEMLOCK` does not bind this process and its children (`CAP_IPC_LOCK`).
pub(crate) fn locks_memory_freely() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    let effective = u64::from_str_radix(effective.trim(), 16).unwrap();
    effective & (1 << CAP_IPC_LOCK) != 0
}

/// Room for the rings of some workers. Kernels since 6.14 count them against `RLIMIT_MEMLOCK`, for
/// all processes of a user together, and its usual 8 MiB are ten workers.
#[derive(Debug)]
pub(crate) struct Room(usize);

static WORKERS: AtomicUsize = AtomicUsize::new(0);

impl Room {
    /// Waits until there is room; goes on without when none comes, as a test that needs several
    /// servers keeps what it has meanwhile.
    pub(crate) fn wait(workers: usize) -> Self {
        let most = most_workers();
        let deadline = Instant::now() + super::SOON;
        let fits = |taken: usize| {
            let fits =
                taken == 0 || taken.saturating_add(workers) <= most || Instant::now() >= deadline;
            fits.then_some(taken + workers)
        };
        while WORKERS.fetch_update(Relaxed, Relaxed, fits).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        Self(workers)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        WORKERS.fetch_sub(self.0, Relaxed);
    }
}

/// Half of what fits: the kernel frees the rings of a process a little after its end.
fn most_workers() -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    const WORKER_BYTES: u64 = 1 << 20;
    if locks_memory_freely() {
        return usize::MAX;
    }
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap();
    usize::try_from(soft / WORKER_BYTES / 2).unwrap_or(usize::MAX)
}

/// Runs `command` to its end with the given standard input, and fails when it takes longer than
/// `limit`. Standard output and error are collected whole.
pub(crate) fn run(command: &mut Command, input: &[u8], limit: Duration) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let (out, err, give) = (dir.path().join("out"), dir.path().join("err"), dir.path().join("in"));
    std::fs::write(&give, input).unwrap();
    let create = |path: &Path| std::fs::File::create(path).unwrap();
    let mut child = Process(
        command
            .stdin(std::fs::File::open(&give).unwrap())
            .stdout(create(&out))
            .stderr(create(&err))
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", command.get_program().display())),
    );
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.ended() {
            break status;
        }
        assert!(
            Instant::now() < deadline,
            "{command:?} still runs after {limit:?}\n{}\n{}",
            text(&std::fs::read(&out).unwrap()),
            text(&std::fs::read(&err).unwrap()),
        );
        std::thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: std::fs::read(&out).unwrap(), stderr: std::fs::read(&err).unwrap() }
}

/// Bytes as text, whatever they are.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Both outputs of a finished command, as text.
pub(crate) fn all(output: &Output) -> String {
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}
