//! What this kernel's `io_uring` offers here: asked by doing it once, not by comparing versions,
//! because distributions backport and containers forbid.
//!
//! The call opens a ring, a socket and nothing else, and closes both. It is for start-up and
//! `check`, not for a worker.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, types};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::receive;
use super::ring::{COMPLETIONS, SUBMISSIONS};
use crate::limits::RECEIVE_BUFFERS;

/// The oldest kernel with everything that a worker needs.
pub const KERNEL_MIN: &str = "6.1";

/// Locked memory of one worker's rings, in bytes: 64 a submission and 4 for its place in the queue,
/// 16 a completion, 16 a receive buffer, and a page for the heads and tails (`io_uring_setup(2)`).
///
/// Kernels before 5.12 and since 6.14 count it against `RLIMIT_MEMLOCK`, for all processes of a
/// user together, unless the process has `CAP_IPC_LOCK`; those between count it to the control
/// group.
pub const MEMLOCK_BYTES_PER_WORKER: u64 =
    SUBMISSIONS as u64 * (64 + 4) + COMPLETIONS as u64 * 16 + RECEIVE_BUFFERS as u64 * 16 + 4096;

/// Locked memory of the rings besides the workers' (the control thread's, and the one that asks
/// for features), rounded up; unit bytes.
pub const MEMLOCK_BYTES_CONTROL: u64 = 64 * 1024;

/// Tries to make a ring while locked memory is exhausted: the kernel frees the rings of a process
/// that has ended a little later, so that a restart may find them still counted.
const RING_TRIES: u32 = 20;

/// Between two tries; 20 of them are a second.
const RING_RETRY_INTERVAL: Duration = Duration::from_millis(50);

const RING_ENTRIES: u32 = 8;
const BUFFER_GROUP: u16 = 0;
const BUFFERS: u16 = 8;
const URING_COMMAND: u8 = 46; // IORING_OP_URING_CMD

/// What is there.
#[derive(Debug, Clone)]
pub struct Report {
    /// Kernel release, as uname(2) gives it.
    pub kernel: String,
    /// Every feature asked for, in a fixed order.
    pub features: Vec<Feature>,
}

/// One feature and whether it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// The kernel's name for it.
    pub name: &'static str,
    /// What we use it for.
    pub purpose: &'static str,
    /// The first kernel that has it.
    pub since: &'static str,
    /// What its absence means.
    pub need: Need,
    /// It was tried, and works.
    pub available: bool,
}

/// What a feature's absence means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A worker cannot run.
    Needed,
    /// A worker does it another way.
    UsedWhenThere,
}

/// Why no worker can run here, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// `io_uring_setup(2)` does not exist.
    #[error(
        "kernel {kernel} has no io_uring: portcullis needs Linux {KERNEL_MIN} or newer, built with \
         CONFIG_IO_URING=y"
    )]
    Absent {
        /// Kernel release.
        kernel: String,
    },
    /// The sysctl forbids it.
    #[error(
        "io_uring is switched off by kernel.io_uring_disabled = {value}; allow it with \
         `sysctl -w kernel.io_uring_disabled=0`{}", group_cure(*.value)
    )]
    Disabled {
        /// The sysctl's value, 1 or 2.
        value: u32,
    },
    /// Something else forbids it.
    #[error(
        "io_uring is forbidden here: {} (kernel.io_uring_disabled does not forbid it); {ALLOW}",
        forbidder(*.filtered)
    )]
    Forbidden {
        /// `/proc/self/status` shows a seccomp filter.
        filtered: bool,
    },
    /// No memory for the rings.
    #[error(
        "no memory for the rings of {workers} worker(s): they need {} KiB of locked memory, {} \
         KiB each, and RLIMIT_MEMLOCK allows this user {} KiB in all its processes; {}",
        .needed.div_ceil(1024), MEMLOCK_BYTES_PER_WORKER.div_ceil(1024), .limit / 1024,
        memory_cure(*.needed, *.limit)
    )]
    Memory {
        /// Workers wanted.
        workers: usize,
        /// What they need, in bytes.
        needed: u64,
        /// The soft limit, in bytes.
        limit: u64,
    },
    /// A feature is missing that a worker cannot do without.
    #[error(
        "kernel {kernel} is too old: its io_uring lacks {} (Linux {}); portcullis needs Linux \
         {KERNEL_MIN} or newer", .feature.name, .feature.since
    )]
    TooOld {
        /// Kernel release.
        kernel: String,
        /// The first missing feature.
        feature: Feature,
    },
    /// Anything else.
    #[error("cannot ask the kernel about io_uring ({step}): {source}")]
    Other {
        /// What was tried.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// How to let the three system calls through.
const ALLOW: &str = "allow io_uring_setup, io_uring_enter and io_uring_register (docker and \
    podman: --security-opt seccomp=PROFILE.json with these three added; systemd: \
    SystemCallFilter=@system-service io_uring_setup io_uring_enter io_uring_register)";

fn group_cure(value: u32) -> &'static str {
    if value == 1 {
        ", or for this service alone: put its group's number into kernel.io_uring_group"
    } else {
        ""
    }
}

/// What makes room: as much again, because the kernel frees the rings of a process that has just
/// ended a little later than the process.
fn memory_cure(needed: u64, limit: u64) -> String {
    let mib = needed.saturating_mul(2).div_ceil(1 << 20);
    let fits = limit.saturating_sub(MEMLOCK_BYTES_CONTROL) / MEMLOCK_BYTES_PER_WORKER;
    let fewer =
        if fits > 0 { format!(", or lower workers.count to {fits}") } else { String::new() };
    format!(
        "raise it (systemd: LimitMEMLOCK={mib}M; shell, as root: ulimit -l {}){fewer}",
        mib * 1024
    )
}

fn forbidder(filtered: bool) -> &'static str {
    if filtered {
        "this process runs under a seccomp filter, as containers' processes do"
    } else {
        "a security module or the container refuses it"
    }
}

/// Locked memory and what so many workers need of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What the rings take, in bytes.
    pub needed: u64,
    /// `RLIMIT_MEMLOCK`, soft, in bytes; `None`: it does not bind this process.
    pub limit: Option<u64>,
}

/// Checks that the rings of `workers` fit `RLIMIT_MEMLOCK`.
///
/// Where they do not by the numbers they are made, to see whether this kernel counts them.
///
/// # Errors
/// [`ProbeError::Memory`]. Every other refusal is [`report`]'s to explain.
pub fn memory(workers: usize) -> Result<Memory, ProbeError> {
    let limit = memlock();
    let needed = memory_needed(workers);
    if limit == libc::RLIM_INFINITY {
        return Ok(Memory { needed, limit: None });
    }
    if limit >= needed {
        return Ok(Memory { needed, limit: Some(limit) });
    }
    let mut rings = Vec::new();
    for _ in 0..workers {
        match worker_ring() {
            Ok(ring) => rings.push(ring),
            Err(error) if is_no_memory(&error) => {
                return Err(ProbeError::Memory { workers, needed, limit });
            }
            Err(_) => break,
        }
    }
    Ok(Memory { needed, limit: None })
}

/// What the rings of so many workers take, in bytes.
pub fn memory_needed(workers: usize) -> u64 {
    let workers = u64::try_from(workers).unwrap_or(u64::MAX);
    workers.saturating_mul(MEMLOCK_BYTES_PER_WORKER).saturating_add(MEMLOCK_BYTES_CONTROL)
}

/// `RLIMIT_MEMLOCK`, soft, in bytes.
pub fn memlock() -> u64 {
    getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft)
}

/// Makes a ring; tries for a second when there is no memory for it. Blocks meanwhile.
///
/// # Errors
/// The last try's.
pub fn patiently<T, E>(
    mut make: impl FnMut() -> Result<T, E>,
    no_memory: impl Fn(&E) -> bool,
) -> Result<T, E> {
    for _ in 1..RING_TRIES {
        match make() {
            Err(error) if no_memory(&error) => std::thread::sleep(RING_RETRY_INTERVAL),
            result => return result,
        }
    }
    make()
}

/// Whether memory is exhausted.
pub fn is_no_memory(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOMEM)
}

fn worker_ring() -> io::Result<IoUring> {
    IoUring::builder().setup_cqsize(COMPLETIONS).build(SUBMISSIONS)
}

/// Opens a ring as a worker does, and tries every feature.
///
/// # Errors
/// When a worker could not run; each names the cause and the cure.
pub fn report() -> Result<Report, ProbeError> {
    let kernel = kernel_release();
    let mut ring = match patiently(|| ring(true), is_no_memory) {
        Ok(ring) => ring,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            // A ring without our flags says whether they are what is missing.
            drop(ring(false).map_err(|error| refusal(error, &kernel))?);
            return Err(ProbeError::TooOld { kernel, feature: setup_flags(false) });
        }
        Err(error) => return Err(refusal(error, &kernel)),
    };
    let mut features = vec![setup_flags(true)];
    features.extend(registrations(&mut ring));
    features.extend(opcodes(&ring)?);
    features.push(socket_options(&mut ring)?);
    features.push(bounded_receive(&mut ring)?);

    let missing =
        features.iter().find(|feature| feature.need == Need::Needed && !feature.available);
    match missing.cloned() {
        Some(feature) => Err(ProbeError::TooOld { kernel, feature }),
        None => Ok(Report { kernel, features }),
    }
}

fn needed(
    name: &'static str,
    purpose: &'static str,
    since: &'static str,
    available: bool,
) -> Feature {
    Feature { name, purpose, since, need: Need::Needed, available }
}

fn wanted(
    name: &'static str,
    purpose: &'static str,
    since: &'static str,
    available: bool,
) -> Feature {
    Feature { need: Need::UsedWhenThere, ..needed(name, purpose, since, available) }
}

fn setup_flags(available: bool) -> Feature {
    needed("IORING_SETUP_DEFER_TASKRUN", "completions come when the worker asks", "6.1", available)
}

fn ring(with_flags: bool) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    if with_flags {
        builder
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(4 * RING_ENTRIES);
    }
    builder.build(RING_ENTRIES)
}

fn registrations(ring: &mut IoUring) -> [Feature; 3] {
    let files = ring.submitter().register_files_sparse(RING_ENTRIES);
    let plain = buffer_ring(ring);
    let ring_fd = ring.submitter().register_ring_fd();
    [
        needed(
            "IORING_REGISTER_FILES2, sparse",
            "sockets without descriptors",
            "5.19",
            files.is_ok(),
        ),
        needed(
            "IORING_REGISTER_PBUF_RING",
            "an idle client holds no receive buffer",
            "5.19",
            plain,
        ),
        needed(
            "IORING_REGISTER_RING_FDS",
            "cheaper calls into the kernel",
            "5.18",
            ring_fd.is_ok(),
        ),
    ]
}

/// A page of the kernel's `io_uring_buf` entries.
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// Whether a provided-buffer ring with these flags can be registered.
fn buffer_ring(ring: &IoUring) -> bool {
    let page = Box::new(Page([0; 4096]));
    let address = (&raw const page.0) as u64;
    let submitter = ring.submitter();
    // SAFETY: `page` holds BUFFERS entries of 16 bytes, is aligned to a page, and is freed after
    // it was unregistered below; no operation that would select a buffer is submitted meanwhile.
    let registered =
        unsafe { submitter.register_buf_ring_with_flags(address, BUFFERS, BUFFER_GROUP, 0) };
    if registered.is_err() {
        return false;
    }
    let unregistered = submitter.unregister_buf_ring(BUFFER_GROUP);
    drop(page);
    unregistered.is_ok()
}

fn opcodes(ring: &IoUring) -> Result<Vec<Feature>, ProbeError> {
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|source| ProbeError::Other { step: "IORING_REGISTER_PROBE", source })?;
    let has = |code| probe.is_supported(code);
    let needed_ones = [
        ("IORING_OP_ACCEPT", opcode::Accept::CODE, "5.5", "a client comes"),
        ("IORING_OP_RECV", opcode::Recv::CODE, "5.6", "bytes come"),
        ("IORING_OP_SEND", opcode::Send::CODE, "5.6", "bytes go"),
        ("IORING_OP_SOCKET", opcode::Socket::CODE, "5.19", "a socket for a server"),
        ("IORING_OP_CONNECT", opcode::Connect::CODE, "5.5", "a server is connected"),
        ("IORING_OP_SHUTDOWN", opcode::Shutdown::CODE, "5.11", "a half-close is passed on"),
        ("IORING_OP_CLOSE", opcode::Close::CODE, "5.6", "a connection ends"),
        ("IORING_OP_ASYNC_CANCEL", opcode::AsyncCancel::CODE, "5.5", "what is armed is called off"),
    ];
    let mut features: Vec<_> = needed_ones
        .into_iter()
        .map(|(name, code, since, purpose)| needed(name, purpose, since, has(code)))
        .collect();
    features.push(wanted(
        "IORING_OP_URING_CMD",
        "carries the socket options below",
        "5.19",
        has(URING_COMMAND),
    ));
    features.push(wanted(
        "IORING_OP_FIXED_FD_INSTALL",
        "half-close; addresses for PROXY headers",
        "6.8",
        has(opcode::FixedFdInstall::CODE),
    ));
    Ok(features)
}

/// Sets an option of a socket through the ring.
fn socket_options(ring: &mut IoUring) -> Result<Feature, ProbeError> {
    static ON: libc::c_int = 1;
    const ON_BYTES: u32 = libc::c_int::BITS / 8;
    let other = |step| move |source| ProbeError::Other { step, source };
    let socket = tcp_socket().map_err(other("socket"))?;
    let (level, name) = (libc::SOL_SOCKET.cast_unsigned(), libc::SO_REUSEADDR.cast_unsigned());
    let entry = opcode::SetSockOpt::new(
        types::Fd(socket.as_raw_fd()),
        level,
        name,
        (&raw const ON).cast(),
        ON_BYTES,
    )
    .build();
    // SAFETY: the entry points to a static, and the socket outlives the wait below; should the
    // wait fail, the kernel holds its own reference to the socket.
    let pushed = unsafe { ring.submission().push(&entry) };
    pushed.map_err(|_| other("SOCKET_URING_OP_SETSOCKOPT")(io::ErrorKind::OutOfMemory.into()))?;
    ring.submit_and_wait(1).map_err(other("io_uring_enter"))?;
    let result = ring.completion().next().map(|completion| completion.result());
    Ok(wanted(
        "SOCKET_URING_OP_SETSOCKOPT",
        "TCP_NODELAY towards servers",
        "6.7",
        result == Some(0),
    ))
}

fn tcp_socket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)
}

fn bounded_receive(ring: &mut IoUring) -> Result<Feature, ProbeError> {
    let available = receive::is_bounded(ring)
        .map_err(|source| ProbeError::Other { step: "a bounded receive", source })?;
    let name = "IORING_OP_RECV, multishot with a limit";
    Ok(wanted(name, "one receive for many messages", "6.17", available))
}

fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| "unknown".to_owned(), |name| name.release().to_string_lossy().into_owned())
}

/// Why a ring was refused, from what can be read here.
fn refusal(error: io::Error, kernel: &str) -> ProbeError {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    classify(error, kernel, disabled, is_filtered(&status), memlock())
}

/// Whether `/proc/self/status` shows a seccomp filter (`proc_pid_status(5)`).
fn is_filtered(status: &str) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp:"))
        .is_some_and(|mode| mode.trim() == "2")
}

fn classify(
    error: io::Error,
    kernel: &str,
    disabled: u32,
    filtered: bool,
    memlock: u64,
) -> ProbeError {
    match error.raw_os_error() {
        // A filter may answer that there is no such call; without one there is none.
        Some(libc::ENOSYS) if filtered => ProbeError::Forbidden { filtered },
        Some(libc::ENOSYS) => ProbeError::Absent { kernel: kernel.to_owned() },
        Some(libc::EPERM) if disabled > 0 => ProbeError::Disabled { value: disabled },
        Some(libc::EPERM | libc::EACCES) => ProbeError::Forbidden { filtered },
        Some(libc::ENOMEM) => {
            ProbeError::Memory { workers: 1, needed: memory_needed(1), limit: memlock }
        }
        _ => ProbeError::Other { step: "io_uring_setup", source: error },
    }
}

#[cfg(test)]
mod tests;
