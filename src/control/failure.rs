//! Why Portcullis does not start or did not end well: what happened, and what to do about it.

use std::fmt::Write as _;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::config::ConfigError;
use crate::sys::probe::{MEMLOCK_BYTES_PER_WORKER, ProbeError, memlock};
use crate::sys::start::StartError;

use super::addresses::AddressError;
use super::certificates::{CertificateProblem, Fault};
use super::exit;
use super::rotation::RotationError;

/// One failure, with everything an operator needs.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The configuration, or a file it names, is wrong.
    #[error("{}", .problems.join("\n"))]
    Configuration {
        /// Each names file, line, key and what is accepted.
        problems: Vec<String>,
        /// 78, or 77 where only a permission is missing.
        exit_code: u8,
    },
    /// A listening address cannot be had.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The kernel does not let us make a ring.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The control thread's ring cannot be made.
    #[error("cannot set up io_uring for the control thread: {source}\n{}", ring_cure(.source))]
    ControlRing {
        /// Why.
        source: std::io::Error,
    },
    /// A worker could not start.
    #[error("worker {worker}: {source}{}", start_cure(.source))]
    Start {
        /// Worker's number.
        worker: u16,
        /// Why.
        source: StartError,
    },
    /// Worker threads ended or panicked while they should have served.
    #[error(
        "worker {} ended by a defect of Portcullis; the others were drained. Please report the \
         messages above",
        list(.workers)
    )]
    Workers {
        /// Their numbers.
        workers: Vec<u16>,
    },
    /// A file of ours cannot be opened.
    #[error("cannot open {} for {purpose}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What it is for, with its key.
        purpose: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A file of ours cannot be made.
    #[error("cannot make {} for {purpose}: {source}{}", .path.display(), exists_cure(.source))]
    NewFile {
        /// Which.
        path: PathBuf,
        /// What it is for.
        purpose: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The operating system refused something that it normally grants.
    #[error("cannot {what}: {source}")]
    Os {
        /// What we wanted.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

impl Failure {
    /// A configuration that does not fit this machine.
    pub fn configuration(problem: &impl ToString) -> Self {
        Self::Configuration { problems: vec![problem.to_string()], exit_code: exit::CONFIG }
    }

    /// A command line that cannot be obeyed.
    pub fn usage(problem: &str) -> Self {
        Self::Configuration { problems: vec![problem.to_owned()], exit_code: exit::USAGE }
    }

    /// Certificates or keys that cannot be used.
    pub fn certificates(problems: &[CertificateProblem]) -> Self {
        let forbidden = problems.iter().all(|problem| problem.fault == Fault::Permission);
        let exit_code = if forbidden { exit::PERMISSION } else { exit::CONFIG };
        let problems = problems.iter().map(ToString::to_string).collect();
        Self::Configuration { problems, exit_code }
    }

    /// Ticket keys that cannot be had.
    pub fn rotation(error: &RotationError) -> Self {
        let exit_code = match error {
            RotationError::Random => exit::OS,
            RotationError::File { .. } if error.is_permission() => exit::PERMISSION,
            RotationError::File { .. } => exit::CONFIG,
        };
        Self::Configuration { problems: vec![error.to_string()], exit_code }
    }

    /// The exit code of sysexits(3): 69 the kernel lacks what we need, 71 operating system error,
    /// 77 permission, 78 configuration.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Configuration { exit_code, .. } => *exit_code,
            Self::ControlRing { source }
            | Self::Start { source: StartError::Ring { source, .. }, .. } => ring_exit_code(source),
            Self::Address(AddressError { source, .. })
            | Self::Start {
                source: StartError::Listen { source, .. } | StartError::Files { source },
                ..
            }
            | Self::File { source, .. }
            | Self::NewFile { source, .. }
            | Self::Os { source, .. } => os_exit_code(source),
            Self::Probe(error) if !matches!(error, ProbeError::Memory { .. }) => exit::UNAVAILABLE,
            Self::Probe(_)
            | Self::Workers { .. }
            | Self::Start { source: StartError::Pin { .. }, .. } => exit::OS,
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let exit_code = match &error {
            ConfigError::Unreadable { source, .. } if is_forbidden(source) => exit::PERMISSION,
            ConfigError::Unreadable { .. } | ConfigError::Invalid(_) => exit::CONFIG,
        };
        Self::Configuration { problems: vec![error.to_string()], exit_code }
    }
}

fn is_forbidden(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::PermissionDenied
}

fn os_exit_code(error: &std::io::Error) -> u8 {
    if is_forbidden(error) { exit::PERMISSION } else { exit::OS }
}

/// A forbidden `io_uring` is a kernel that lacks it, whoever forbade it.
fn ring_exit_code(error: &std::io::Error) -> u8 {
    match errno(error) {
        Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE => exit::OS,
        _ => exit::UNAVAILABLE,
    }
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

fn start_cure(error: &StartError) -> String {
    match error {
        StartError::Ring { source, .. } => format!("\n{}", ring_cure(source)),
        StartError::Listen { address, source } => super::addresses::cure(*address, source)
            .map_or_else(String::new, |cure| format!("\n{cure}")),
        StartError::Pin { .. } => String::new(),
        StartError::Files { .. } => {
            "\nunshare(CLONE_FILES) is refused only by a seccomp filter: allow unshare(2)".into()
        }
    }
}

fn exists_cure(error: &std::io::Error) -> &'static str {
    if error.kind() == std::io::ErrorKind::AlreadyExists {
        "; machines that use it would no longer resume each other's sessions: remove it first, or \
         name another file"
    } else {
        ""
    }
}

/// What to do when the kernel refuses a ring (`io_uring_setup(2)`, section ERRORS).
fn ring_cure(error: &std::io::Error) -> String {
    let mut cure = String::new();
    match errno(error) {
        Errno::EPERM | Errno::EACCES => match io_uring_disabled().as_deref() {
            None | Some("0") => cure.push_str(
                "a seccomp filter forbids io_uring, as most containers' default does: allow \
                 io_uring_setup, io_uring_enter and io_uring_register in its profile",
            ),
            Some(value) => {
                // Writing into a String does not fail.
                let _infallible = write!(
                    cure,
                    "kernel.io_uring_disabled is {value}: `sysctl -w kernel.io_uring_disabled=0`, \
                     or with 1 add this user's group to kernel.io_uring_group"
                );
            }
        },
        Errno::ENOSYS => cure.push_str(
            "this kernel has no io_uring (CONFIG_IO_URING), or a container's seccomp filter hides \
             it: allow io_uring_setup, io_uring_enter and io_uring_register in its profile",
        ),
        Errno::EINVAL => cure.push_str(
            "this kernel does not know a flag that Portcullis needs: use Linux 6.1 or newer",
        ),
        Errno::ENOMEM => {
            let _infallible = write!(
                cure,
                "memory is exhausted: a worker's rings take {} KiB of locked memory, and \
                 RLIMIT_MEMLOCK allows this user {} KiB in all its processes, those that have \
                 just ended included; raise it (`LimitMEMLOCK=infinity` in the systemd unit, \
                 `ulimit -l unlimited` in root's shell), or the memory limit of the control group",
                MEMLOCK_BYTES_PER_WORKER.div_ceil(1024),
                memlock() / 1024
            );
        }
        Errno::EMFILE | Errno::ENFILE => cure.push_str(
            "descriptors are exhausted: raise `LimitNOFILE=` in the systemd unit (`ulimit -n` in a \
             shell) or fs.file-max, or lower limits.connections_per_worker",
        ),
        _ => cure.push_str("`dmesg` and `portcullis check` may tell more"),
    }
    cure
}

fn io_uring_disabled() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    Some(text.trim().to_owned())
}

fn list(workers: &[u16]) -> String {
    let workers: Vec<String> = workers.iter().map(u16::to_string).collect();
    workers.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(errno: Errno) -> Failure {
        Failure::Start {
            worker: 3,
            source: StartError::Ring { step: "setup", source: errno.into() },
        }
    }

    #[test]
    fn a_refused_ring_names_its_cure() {
        let memory = ring(Errno::ENOMEM);
        assert_eq!(memory.exit_code(), 71);
        assert!(memory.to_string().contains("LimitMEMLOCK"), "{memory}");
        assert!(memory.to_string().contains("792 KiB"), "{memory}");
        let old = ring(Errno::EINVAL);
        assert_eq!(old.exit_code(), 69);
        assert!(old.to_string().contains("6.1"), "{old}");
        let hidden = ring(Errno::ENOSYS);
        assert!(hidden.to_string().contains("seccomp"), "{hidden}");
    }

    #[test]
    fn a_forbidden_port_is_a_matter_of_permission() {
        let failure = Failure::Start {
            worker: 0,
            source: StartError::Listen {
                address: "0.0.0.0:443".parse().unwrap(),
                source: Errno::EACCES.into(),
            },
        };
        assert_eq!(failure.exit_code(), 77);
        assert!(failure.to_string().contains("cap_net_bind_service"), "{failure}");
    }
}
