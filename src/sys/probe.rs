//! What this kernel's `io_uring` offers here: asked by doing it once, not by comparing versions,
//! because distributions backport and containers forbid.
//!
//! The call opens a ring, a socket and nothing else, and closes both. It is for start-up and
//! `check`, not for a worker.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{IoUring, Probe, opcode, types};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// The oldest kernel with everything that a worker needs.
pub const KERNEL_MIN: &str = "6.1";

/// `RLIMIT_MEMLOCK` that is always enough for the rings of one worker; unit bytes. Kernels since
/// 5.12 charge rings to the memory cgroup instead.
pub const MEMLOCK_BYTES_WANTED: u64 = 64 << 20;

const RING_ENTRIES: u32 = 8;
const BUFFER_GROUP: u16 = 0;
const BUFFERS: u16 = 8;
const BUFFERS_INCREMENTAL: u16 = 2; // IOU_PBUF_RING_INC
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
         CONFIG_IO_URING=y; in a container, its seccomp filter may hide it ({ALLOW})"
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
        "io_uring is forbidden here, though kernel.io_uring_disabled does not forbid it: {}; \
         {ALLOW}", forbidder(*.filtered)
    )]
    Forbidden {
        /// `/proc/self/status` shows a seccomp filter.
        filtered: bool,
    },
    /// No memory for a ring.
    #[error(
        "no memory for an io_uring: raise RLIMIT_MEMLOCK from {limit} to {MEMLOCK_BYTES_WANTED} \
         bytes (systemd: LimitMEMLOCK=64M; shell: ulimit -l 65536), or the memory limit of the \
         control group"
    )]
    Memory {
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

fn forbidder(filtered: bool) -> &'static str {
    if filtered {
        "this process runs under a seccomp filter"
    } else {
        "a security module or the container does"
    }
}

/// Opens a ring as a worker does, and tries every feature.
///
/// # Errors
/// When a worker could not run; each names the cause and the cure.
pub fn report() -> Result<Report, ProbeError> {
    let kernel = kernel_release();
    let mut ring = match ring(true) {
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
    features.push(wanted(
        "IORING_FEAT_MIN_TIMEOUT",
        "wait for several completions, but not for long",
        "6.12",
        ring.params().is_feature_min_timeout(),
    ));
    features.push(busy_poll(&ring));

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
    needed(
        "IORING_SETUP_SINGLE_ISSUER | DEFER_TASKRUN | SUBMIT_ALL | CQSIZE",
        "completions are handled when the worker asks, not in the middle of its work",
        "6.1",
        available,
    )
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

fn registrations(ring: &mut IoUring) -> [Feature; 4] {
    let files = ring.submitter().register_files_sparse(RING_ENTRIES);
    let plain = buffer_ring(ring, 0);
    let incremental = buffer_ring(ring, BUFFERS_INCREMENTAL);
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
            "receive buffers are taken when bytes are there, not while a client is idle",
            "5.19",
            plain,
        ),
        wanted("IOU_PBUF_RING_INC", "several receives share one buffer", "6.12", incremental),
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
fn buffer_ring(ring: &IoUring, flags: u16) -> bool {
    let page = Box::new(Page([0; 4096]));
    let address = (&raw const page.0) as u64;
    let submitter = ring.submitter();
    // SAFETY: `page` holds BUFFERS entries of 16 bytes, is aligned to a page, and is freed after
    // it was unregistered below; no operation that would select a buffer is submitted meanwhile.
    let registered =
        unsafe { submitter.register_buf_ring_with_flags(address, BUFFERS, BUFFER_GROUP, flags) };
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
        ("IORING_OP_ACCEPT", opcode::Accept::CODE, "5.5"),
        ("IORING_OP_RECV", opcode::Recv::CODE, "5.6"),
        ("IORING_OP_SEND", opcode::Send::CODE, "5.6"),
        ("IORING_OP_POLL_ADD", opcode::PollAdd::CODE, "5.1"),
        ("IORING_OP_SOCKET", opcode::Socket::CODE, "5.19"),
        ("IORING_OP_CONNECT", opcode::Connect::CODE, "5.5"),
        ("IORING_OP_SHUTDOWN", opcode::Shutdown::CODE, "5.11"),
        ("IORING_OP_CLOSE", opcode::Close::CODE, "5.6"),
        ("IORING_OP_ASYNC_CANCEL", opcode::AsyncCancel::CODE, "5.5"),
    ];
    let mut features: Vec<_> = needed_ones
        .into_iter()
        .map(|(name, code, since)| needed(name, "a connection's journey", since, has(code)))
        .collect();
    features.push(wanted("IORING_OP_URING_CMD", "commands to sockets", "5.19", has(URING_COMMAND)));
    features.push(wanted(
        "IORING_OP_FIXED_FD_INSTALL",
        "a direct descriptor becomes an ordinary one",
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
        "options of direct descriptors",
        "6.7",
        result == Some(0),
    ))
}

fn tcp_socket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)
}

fn busy_poll(ring: &IoUring) -> Feature {
    let submitter = ring.submitter();
    let mut napi = types::Napi::new();
    let available =
        submitter.register_napi(&mut napi).is_ok() && submitter.unregister_napi(&mut napi).is_ok();
    wanted(
        "IORING_REGISTER_NAPI",
        "the worker polls its network queue instead of waiting for an interrupt",
        "6.9",
        available,
    )
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
    let memlock = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    classify(error, kernel, disabled, is_filtered(&status), memlock)
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
        Some(libc::ENOSYS) => ProbeError::Absent { kernel: kernel.to_owned() },
        Some(libc::EPERM) if disabled > 0 => ProbeError::Disabled { value: disabled },
        Some(libc::EPERM | libc::EACCES) => ProbeError::Forbidden { filtered },
        Some(libc::ENOMEM) => ProbeError::Memory { limit: memlock },
        _ => ProbeError::Other { step: "io_uring_setup", source: error },
    }
}

#[cfg(test)]
mod tests;
