//! What the running kernel's ring can do.

use io_uring::{IoUring, opcode};

use crate::sys::receive;

/// Optional features of the running kernel that the ring uses when they are there.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is there or not, whatever the others")]
pub struct Features {
    /// `IORING_OP_FIXED_FD_INSTALL` (Linux 6.8): system calls that the ring lacks or does badly.
    pub descriptor_install: bool,
    /// A multishot receive with a limit (Linux 6.17): one operation for many messages.
    pub bounded_receive: bool,
    /// `SOCKET_URING_OP_SETSOCKOPT` (Linux 6.7): `TCP_NODELAY` towards servers.
    pub socket_options: bool,
    /// `IORING_OP_BIND` (Linux 6.11): connecting from an address of our choice.
    pub bind: bool,
}

impl Features {
    /// Asks the ring.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn of(ring: &mut IoUring) -> std::io::Result<Self> {
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        Ok(Self {
            descriptor_install: probe.is_supported(opcode::FixedFdInstall::CODE),
            // No opcode tells (it is a command of IORING_OP_URING_CMD); FIXED_FD_INSTALL came one
            // release later.
            socket_options: probe.is_supported(opcode::FixedFdInstall::CODE),
            bind: probe.is_supported(opcode::Bind::CODE),
            bounded_receive: receive::is_bounded(ring)?,
        })
    }
}
