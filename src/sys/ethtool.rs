//! How many queues a network card could have, as ethtool(8) asks: sysfs shows only those in use.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `struct ethtool_channels` of linux/ethtool.h.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// Receive queues at most: those that only receive, and those that do both.
///
/// # Errors
/// `EOPNOTSUPP`, when the driver has no such choice; `ENODEV`, when there is no such interface.
pub fn queues_max(interface: &str) -> io::Result<u32> {
    // SAFETY: an ifreq is numbers and pointers, of which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero and ends the name.
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
    request.ifr_ifru.ifru_data = (&raw mut channels).cast();
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: the request names a structure of the command's size that outlives the call.
    let result = unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    nix::errno::Errno::result(result)?;
    Ok(channels.max_rx.saturating_add(channels.max_combined))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_without_a_choice_of_queues_say_so() {
        let refused = |name: &str| queues_max(name).unwrap_err().raw_os_error();
        assert_eq!(refused("lo"), Some(libc::EOPNOTSUPP));
        assert_eq!(refused("no-such-card"), Some(libc::ENODEV));
        assert_eq!(refused("a-name-that-is-too-long"), None);
    }

    /// Where this machine has a card, it has at least the queues that are in use.
    #[test]
    fn a_card_may_have_as_many_queues_as_it_has() {
        for entry in std::fs::read_dir("/sys/class/net").unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let Ok(most) = queues_max(&name) else { continue };
            let queues = std::fs::read_dir(entry.path().join("queues")).unwrap().flatten();
            let rx = queues.filter(|queue| queue.file_name().to_str().unwrap().starts_with("rx-"));
            assert!(most as usize >= rx.count(), "{name}: {most}");
        }
    }
}
