//! What ethtool(8) asks a network card and sysfs does not show: how many queues it could have, and
//! to how many it spreads packets.

use std::collections::BTreeSet;
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

/// `ETHTOOL_GRXFHINDIR`: the table from a packet's hash to its queue (receive side scaling).
const ETHTOOL_GRXFHINDIR: u32 = 0x38;
/// Entries of a table that are read at most; cards have 64 to 4096.
const TABLE_ENTRIES_MAX: u32 = 65_536;

/// Receive queues at most: those that only receive, and those that do both.
///
/// # Errors
/// `EOPNOTSUPP`, when the driver has no such choice; `ENODEV`, when there is no such interface.
pub fn queues_max(interface: &str) -> io::Result<u32> {
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
    // SAFETY: the structure is that of the command.
    unsafe { ask(interface, (&raw mut channels).cast()) }?;
    Ok(channels.max_rx.saturating_add(channels.max_combined))
}

/// Receive queues that the card spreads packets to by their hash.
///
/// # Errors
/// `EOPNOTSUPP`, when the card has no such table; `ENODEV`, when there is no such interface.
pub fn rss_queues(interface: &str) -> io::Result<usize> {
    // `struct ethtool_rxfh_indir`: command, entries, and as many queues. With 0 entries the kernel
    // only says how many there are.
    let mut sizes = [ETHTOOL_GRXFHINDIR, 0];
    // SAFETY: the structure is that of the command, with room for 0 entries as it says.
    unsafe { ask(interface, sizes.as_mut_ptr().cast()) }?;
    let [_, entries] = sizes;
    let entries = entries.min(TABLE_ENTRIES_MAX);
    let mut table = vec![0_u32; entries as usize + sizes.len()];
    if let [command, size, ..] = table.as_mut_slice() {
        (*command, *size) = (ETHTOOL_GRXFHINDIR, entries);
    }
    // SAFETY: as above, with room for the entries that it says.
    unsafe { ask(interface, table.as_mut_ptr().cast()) }?;
    let queues: BTreeSet<u32> = table.into_iter().skip(sizes.len()).collect();
    Ok(queues.len())
}

/// Has the kernel fill in `data` for an interface.
///
/// # Safety
/// `data` must point to the structure that the command in its first field wants, writable, with
/// the room for what follows it that it says it has.
unsafe fn ask(interface: &str, data: *mut libc::c_char) -> io::Result<()> {
    // SAFETY: an ifreq is numbers and pointers, of which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero and ends the name.
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = data;
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: the request names a structure of the command's size that outlives the call.
    let result = unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    nix::errno::Errno::result(result)?;
    Ok(())
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
        assert_eq!(rss_queues("lo").unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
    }

    /// Where this machine has a card, it has at least the queues that are in use.
    #[test]
    fn a_card_may_have_as_many_queues_as_it_has() {
        for entry in std::fs::read_dir("/sys/class/net").unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let Ok(most) = queues_max(&name) else { continue };
            let queues = std::fs::read_dir(entry.path().join("queues")).unwrap().flatten();
            let rx = queues.filter(|queue| queue.file_name().to_str().unwrap().starts_with("rx-"));
            let queues = rx.count();
            assert!(most as usize >= queues, "{name}: {most}");
            let Ok(spread) = rss_queues(&name) else { continue };
            assert!((1..=queues).contains(&spread), "{name}: {spread} of {queues}");
        }
    }
}
