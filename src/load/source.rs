//! Addresses that clients connect from: a network, used host by host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// A network's addresses, in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sources {
    first: IpAddr,
    /// How many there are, at least one.
    count: u64,
}

impl Sources {
    /// The `number`th connection's address; the kernel chooses the port.
    pub fn nth(&self, number: u64) -> SocketAddr {
        let step = number % self.count;
        let ip = match self.first {
            IpAddr::V4(first) => {
                // Within the network by construction, so that nothing is cut off.
                let step = u32::try_from(step).unwrap_or_default();
                IpAddr::V4(Ipv4Addr::from(u32::from(first).wrapping_add(step)))
            }
            IpAddr::V6(first) => {
                IpAddr::V6(Ipv6Addr::from(u128::from(first).wrapping_add(u128::from(step))))
            }
        };
        SocketAddr::new(ip, 0)
    }

    /// Whether they are of the family of `target`, so that it can be reached from them.
    pub fn can_reach(&self, target: SocketAddr) -> bool {
        self.first.is_ipv4() == target.is_ipv4()
    }
}

impl FromStr for Sources {
    type Err = String;

    /// Reads `127.0.0.0/24` (its 254 hosts) or a single address.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("{text:?} is no address and no network, such as 127.0.0.0/24 or 127.0.0.2");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u32>().map_err(|_| bad())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let free = bits - prefix.unwrap_or(bits).min(bits);
        if prefix.is_some_and(|prefix| prefix > bits) {
            return Err(bad());
        }
        let first = match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(free).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(u32::from(v4) & mask))
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(free).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask))
            }
        };
        let all = 1_u64.checked_shl(free).unwrap_or(u64::MAX);
        if free < 2 {
            return Ok(Self { first, count: all });
        }
        // Without the network's own address and the broadcast address.
        let first = Self { first, count: all }.nth(1).ip();
        Ok(Self { first, count: all - 2 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nth(network: &str, number: u64) -> String {
        network.parse::<Sources>().expect(network).nth(number).ip().to_string()
    }

    #[test]
    fn hosts_are_used_in_turn() {
        assert_eq!(nth("127.0.0.0/24", 0), "127.0.0.1");
        assert_eq!(nth("127.0.0.0/24", 253), "127.0.0.254");
        assert_eq!(nth("127.0.0.0/24", 254), "127.0.0.1");
        assert_eq!(nth("127.1.2.3/16", 256), "127.1.1.1");
        assert_eq!(nth("127.0.0.2", 5), "127.0.0.2");
        assert_eq!(nth("10.0.0.4/31", 1), "10.0.0.5");
        assert_eq!(nth("fd00::/120", 1), "fd00::2");
        assert_eq!(nth("0.0.0.0/0", 0), "0.0.0.1");
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for bad in ["", "x", "127.0.0.1/33", "127.0.0.1/", "127.0.0/24", "::1/129"] {
            assert!(bad.parse::<Sources>().is_err(), "{bad}");
        }
    }
}
