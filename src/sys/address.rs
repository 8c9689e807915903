//! Socket addresses in the kernel's form, in memory that stays put while an operation uses it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::unix::ffi::OsStrExt;

use crate::io::Address;

// sockaddr(3type) stores in 16 bits what socket(2) takes as an int.
const FAMILY_V4: libc::sa_family_t = 2;
const FAMILY_V6: libc::sa_family_t = 10;
const FAMILY_UNIX: libc::sa_family_t = 1;
const _: () = assert!(FAMILY_V4 as i32 == libc::AF_INET);
const _: () = assert!(FAMILY_V6 as i32 == libc::AF_INET6);
const _: () = assert!(FAMILY_UNIX as i32 == libc::AF_UNIX);

/// Room for any address, and its length.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct SocketAddress {
    storage: Storage,
    length: libc::socklen_t,
}

#[derive(Clone, Copy)]
#[repr(C)]
union Storage {
    any: libc::sockaddr_storage,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
    unix: libc::sockaddr_un,
}

/// A path does not fit into a Unix socket address (108 bytes, unix(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PathTooLong;

impl Default for SocketAddress {
    fn default() -> Self {
        // SAFETY: every field of a sockaddr_storage may be zero.
        let any = unsafe { std::mem::zeroed() };
        Self { storage: Storage { any }, length: 0 }
    }
}

impl SocketAddress {
    /// Where accept(2) may write an address, and its length.
    pub(super) fn for_kernel(&mut self) -> (*mut libc::sockaddr, *mut libc::socklen_t) {
        self.length = length_of::<libc::sockaddr_storage>();
        ((&raw mut self.storage).cast(), &raw mut self.length)
    }

    /// The address to connect to, and its length.
    pub(super) fn filled(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        ((&raw const self.storage).cast(), self.length)
    }

    /// The address family, as socket(2) takes it.
    pub(super) fn family(&self) -> i32 {
        // SAFETY: every variant begins with the family, and all bytes are initialised.
        i32::from(unsafe { self.storage.any.ss_family })
    }

    /// Writes an address to connect to.
    ///
    /// # Errors
    /// When the path of a Unix socket is too long.
    pub(super) fn set(&mut self, address: &Address) -> Result<(), PathTooLong> {
        *self = Self::default();
        match address {
            Address::Inet(address) => self.set_inet(*address),
            Address::Unix(path) => {
                self.storage.unix = unix(path.as_os_str().as_bytes())?;
                self.length = length_of::<libc::sockaddr_un>();
            }
        }
        Ok(())
    }

    /// Writes an address of TCP.
    pub(super) fn set_inet(&mut self, address: SocketAddr) {
        *self = Self::default();
        match address {
            SocketAddr::V4(address) => {
                self.storage.v4 = v4(address);
                self.length = length_of::<libc::sockaddr_in>();
            }
            SocketAddr::V6(address) => {
                self.storage.v6 = v6(&address);
                self.length = length_of::<libc::sockaddr_in6>();
            }
        }
    }

    /// The address the kernel wrote, if it is one of TCP's.
    pub(super) fn get(&self) -> Option<SocketAddr> {
        match self.family() {
            libc::AF_INET => {
                // SAFETY: the family says which variant the kernel has written.
                let v4 = unsafe { self.storage.v4 };
                let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
                Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(v4.sin_port))))
            }
            libc::AF_INET6 => {
                // SAFETY: the family says which variant the kernel has written.
                let v6 = unsafe { self.storage.v6 };
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                let port = u16::from_be(v6.sin6_port);
                let (flow, scope) = (v6.sin6_flowinfo, v6.sin6_scope_id);
                Some(SocketAddr::V6(SocketAddrV6::new(ip, port, flow, scope)))
            }
            _ => None,
        }
    }
}

fn v4(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: FAMILY_V4,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    }
}

fn v6(address: &SocketAddrV6) -> libc::sockaddr_in6 {
    libc::sockaddr_in6 {
        sin6_family: FAMILY_V6,
        sin6_port: address.port().to_be(),
        sin6_flowinfo: address.flowinfo(),
        sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
        sin6_scope_id: address.scope_id(),
    }
}

fn unix(path: &[u8]) -> Result<libc::sockaddr_un, PathTooLong> {
    let mut address = libc::sockaddr_un { sun_family: FAMILY_UNIX, sun_path: [0; 108] };
    // One byte stays zero: the path's end.
    if path.len() >= address.sun_path.len() {
        return Err(PathTooLong);
    }
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = from.cast_signed();
    }
    Ok(address)
}

#[expect(clippy::cast_possible_truncation, reason = "at most 128 bytes")]
const fn length_of<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_kernels_form() {
        for text in ["127.0.0.1:443", "[2001:db8::1]:8443", "[fe80::1%3]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            let mut kernel = SocketAddress::default();
            kernel.set(&Address::Inet(address)).unwrap();
            assert_eq!(kernel.get(), Some(address));
        }
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused() {
        let mut kernel = SocketAddress::default();
        let fits = std::path::PathBuf::from("a".repeat(107));
        let long = std::path::PathBuf::from("a".repeat(108));
        assert_eq!(kernel.set(&Address::Unix(fits.into())), Ok(()));
        assert_eq!(kernel.family(), libc::AF_UNIX);
        assert_eq!(kernel.set(&Address::Unix(long.into())), Err(PathTooLong));
    }
}
