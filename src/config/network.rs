//! Networks: an address and how many of its leading bits count.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// All addresses that share their leading bits with one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    prefix: u8,
}

impl Network {
    /// Reads `"10.0.0.0/8"`, `"2001:db8::/32"`, or one address.
    ///
    /// # Errors
    /// What is accepted.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected a network or an address, such as \"10.0.0.0/8\", \
                                \"2001:db8::/32\" or \"192.0.2.1\"";
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| EXPECTED)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let digits = |text: &&str| text.bytes().all(|byte| byte.is_ascii_digit());
        let prefix = match prefix {
            None => bits,
            Some(prefix) => Some(prefix)
                .filter(digits)
                .and_then(|prefix| prefix.parse().ok())
                .filter(|prefix| *prefix <= bits)
                .ok_or_else(|| format!("expected a prefix of 0 to {bits} bits after the \"/\""))?,
        };
        if address.to_canonical() != address {
            return Err("IPv4 clients are known by their IPv4 address here; write that".to_owned());
        }
        let first = leading(address, prefix);
        if first != address {
            let network = Self { first, prefix };
            return Err(format!(
                "has bits behind its prefix; expected \"{network}\", or a longer prefix"
            ));
        }
        Ok(Self { first, prefix })
    }

    /// Whether an address belongs to it. An IPv4-mapped IPv6 address is an IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && leading(address, self.prefix) == self.first
    }
}

/// An address with all but its leading bits cleared.
pub fn leading(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix.into())).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(network: &str, address: &str) -> bool {
        Network::parse(network).expect(network).contains(address.parse().expect(address))
    }

    #[test]
    fn a_network_contains_what_shares_its_leading_bits() {
        for (network, address) in [
            ("10.0.0.0/8", "10.255.0.1"),
            ("10.0.0.0/8", "::ffff:10.1.2.3"),
            ("192.0.2.1", "192.0.2.1"),
            ("0.0.0.0/0", "203.0.113.9"),
            ("2001:db8::/32", "2001:db8:ffff::1"),
            ("::1", "::1"),
            ("::/0", "2001:db8::1"),
        ] {
            assert!(contains(network, address), "{network} {address}");
        }
        for (network, address) in [
            ("10.0.0.0/8", "11.0.0.0"),
            ("192.0.2.1", "192.0.2.2"),
            ("0.0.0.0/0", "2001:db8::1"),
            ("::/0", "10.0.0.1"),
            ("::/0", "::ffff:10.0.0.1"),
            ("2001:db8::/33", "2001:db8:8000::"),
        ] {
            assert!(!contains(network, address), "{network} {address}");
        }
    }

    #[test]
    fn what_is_no_network_says_what_is_accepted() {
        for (bad, told) in [
            ("", "such as \"10.0.0.0/8\""),
            ("example.com", "such as"),
            ("10.0.0.0/33", "0 to 32 bits"),
            ("10.0.0.0/", "0 to 32 bits"),
            ("10.0.0.0/+8", "0 to 32 bits"),
            ("2001:db8::/129", "0 to 128 bits"),
            ("10.0.0.1/8", "expected \"10.0.0.0/8\""),
            ("::ffff:10.0.0.0/104", "their IPv4 address"),
        ] {
            let why = Network::parse(bad).expect_err(bad);
            assert!(why.contains(told), "{bad}: {why}");
        }
    }
}
