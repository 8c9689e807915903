//! `io_uring_enter(2)` through the registered ring descriptor: the one system call of a worker's
//! steady path.

use std::os::fd::RawFd;
use std::time::Duration;

use crate::io::Errno;

const ENTER_GETEVENTS: u32 = 1 << 0;
const ENTER_EXT_ARG: u32 = 1 << 3;
const ENTER_REGISTERED_RING: u32 = 1 << 4;
const REGISTER_RING_FDS: u32 = 20;

/// How `io_uring_enter` names the ring.
#[derive(Debug, Clone, Copy)]
pub(super) struct RingFd {
    number: i32,
    flags: u32,
}

#[repr(C)]
struct RingUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

#[repr(C)]
struct GetEventsArg {
    sigmask: u64,
    sigmask_bytes: u32,
    min_wait_micros: u32,
    timespec: u64,
}

impl RingFd {
    /// Registers the ring's descriptor with the kernel, so that entering looks nothing up
    /// (`IORING_REGISTER_RING_FDS`, Linux 5.18). Without it, the descriptor itself serves.
    pub(super) fn register(fd: RawFd) -> Self {
        let mut update = RingUpdate {
            offset: u32::MAX,
            reserved: 0,
            data: u64::try_from(fd).unwrap_or(u64::MAX),
        };
        // SAFETY: one update structure of the kernel's layout, alive during the call.
        let registered = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                fd,
                REGISTER_RING_FDS,
                &raw mut update,
                1_u32,
            )
        };
        match i32::try_from(update.offset) {
            Ok(number) if registered == 1 => Self { number, flags: ENTER_REGISTERED_RING },
            _ => Self { number: fd, flags: 0 },
        }
    }

    /// Submits `to_submit` entries, runs deferred task work, and waits for `wanted` completions or
    /// for `timeout` (`None`: for ever).
    ///
    /// # Errors
    /// The kernel's; `ETIME` when the timeout came first.
    pub(super) fn enter(
        self,
        to_submit: u32,
        wanted: u32,
        timeout: Option<Duration>,
    ) -> Result<u32, Errno> {
        let timespec = timeout.map(|timeout| libc::timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        let argument = GetEventsArg {
            sigmask: 0,
            sigmask_bytes: 0,
            min_wait_micros: 0,
            timespec: timespec.as_ref().map_or(0, |timespec| std::ptr::from_ref(timespec) as u64),
        };
        // SAFETY: the argument and the timespec it points to live during the call; the ring's
        // number is the one the kernel gave us.
        let entered = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.number,
                to_submit,
                wanted,
                ENTER_GETEVENTS | ENTER_EXT_ARG | self.flags,
                &raw const argument,
                size_of::<GetEventsArg>(),
            )
        };
        match u32::try_from(entered) {
            Ok(submitted) => Ok(submitted),
            Err(_) => Err(Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))),
        }
    }
}
