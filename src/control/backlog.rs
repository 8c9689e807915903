//! How many clients may wait in the kernel until a worker accepts them, for each of its listening
//! sockets.
//!
//! No more than the worker can do handshakes within `handshake.queue_deadline`: whoever stands
//! further behind would be served when it has given up, or be dropped by the scheduler. A place
//! costs the kernel about 2.5 KB once it is taken.

use std::fmt;
use std::time::Duration;

use super::capacity;
use crate::config::{Config, show_duration};
use crate::telemetry::labels::KeyType;
use crate::tls::terms::Terms;

/// At least: a burst of clients that come back after a pause is no overload.
const CONNECTIONS_MIN: u32 = 1024;
/// At most: `net.core.somaxconn` has 16 bits on older kernels.
const CONNECTIONS_MAX: u32 = 32_768;

/// A listener's backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// Connections, as listen(2) is told.
    pub connections: u32,
    /// What they would be without `net.core.somaxconn`.
    wanted: u32,
    /// `net.core.somaxconn`; `None`: it cannot be read.
    somaxconn: Option<u32>,
    reason: Reason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// The configuration says so.
    Configured,
    /// `"auto"`.
    Auto { key: KeyType, per_second: u32, deadline: Duration },
}

/// The backlogs of all listeners, in the order of the configuration.
pub fn of(config: &Config, terms: &[std::sync::Arc<Terms>]) -> Vec<Backlog> {
    let somaxconn = capacity::sysctl("net/core/somaxconn");
    let somaxconn = somaxconn.map(|most| u32::try_from(most).unwrap_or(u32::MAX));
    let deadline = config.handshake.queue_deadline;
    let one = |(listener, terms): (&crate::config::Listener, &std::sync::Arc<Terms>)| match listener
        .backlog
    {
        Some(connections) => Backlog::configured(connections, somaxconn),
        None => Backlog::auto(&terms.key_types(), deadline, somaxconn),
    };
    config.listeners.iter().zip(terms).map(one).collect()
}

/// Full handshakes that one worker does in a second with a key of this type, at least: measured on
/// a virtual CPU of a server of 2023 (`bench/RESULTS.md`), and a fifth taken off.
fn full_handshakes_per_second(key: KeyType) -> u32 {
    match key {
        KeyType::EcdsaP256 | KeyType::Ed25519 => 5000,
        KeyType::EcdsaP384 | KeyType::Rsa2048 => 2000,
        KeyType::Rsa3072 => 800,
        KeyType::Rsa4096 | KeyType::Other | KeyType::None => 400,
    }
}

impl Backlog {
    pub(super) fn configured(connections: u32, somaxconn: Option<u32>) -> Self {
        Self { connections, wanted: connections, somaxconn, reason: Reason::Configured }
    }

    fn auto(keys: &[KeyType], deadline: Duration, somaxconn: Option<u32>) -> Self {
        let dearest = keys.iter().copied().min_by_key(|key| full_handshakes_per_second(*key));
        let key = dearest.unwrap_or(KeyType::Other);
        let per_second = full_handshakes_per_second(key);
        let handshakes = u128::from(per_second) * deadline.as_millis() / 1000;
        let handshakes = u32::try_from(handshakes).unwrap_or(u32::MAX);
        let power = 1_u32.checked_shl(handshakes.checked_ilog2().unwrap_or(0)).unwrap_or(u32::MAX);
        let wanted = power.clamp(CONNECTIONS_MIN, CONNECTIONS_MAX);
        let connections = wanted.min(somaxconn.unwrap_or(u32::MAX));
        Self { connections, wanted, somaxconn, reason: Reason::Auto { key, per_second, deadline } }
    }
}

impl fmt::Display for Backlog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, wanted, .. } = self;
        let somaxconn = self.somaxconn.filter(|most| most < wanted);
        write!(f, "{} connections", somaxconn.unwrap_or(*connections))?;
        match self.reason {
            Reason::Configured => write!(f, ", as listener.backlog says")?,
            Reason::Auto { key, per_second, deadline } => {
                let deadline = show_duration(deadline);
                write!(
                    f,
                    " (auto): a worker does at least {per_second} full handshakes a second with \
                     the dearest key here, {key}; those of handshake.queue_deadline = {deadline} \
                     make {wanted}"
                )?;
            }
        }
        match somaxconn {
            None => Ok(()),
            Some(somaxconn) => write!(
                f,
                ", which net.core.somaxconn = {somaxconn} cuts: sysctl -w \
                 net.core.somaxconn={wanted}, and start again"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(3);

    #[test]
    fn auto_is_what_the_dearest_key_allows_within_the_deadline() {
        for (keys, deadline, wanted) in [
            (&[KeyType::EcdsaP256][..], DEADLINE, 8192),
            (&[KeyType::EcdsaP256, KeyType::Rsa2048], DEADLINE, 4096),
            (&[KeyType::Rsa4096], DEADLINE, 1024),
            (&[KeyType::EcdsaP256], Duration::from_millis(10), 1024),
            (&[KeyType::EcdsaP256], Duration::from_mins(5), 32_768),
            (&[], DEADLINE, 1024),
        ] {
            let backlog = Backlog::auto(keys, deadline, Some(65_535));
            assert_eq!(backlog.connections, wanted, "{keys:?} {deadline:?}");
            assert!(!backlog.to_string().contains("somaxconn"), "{backlog}");
        }
    }

    #[test]
    fn what_the_kernel_cuts_is_told_with_the_command() {
        let backlog = Backlog::auto(&[KeyType::EcdsaP256], DEADLINE, Some(4096));
        assert_eq!(backlog.connections, 4096);
        let text = backlog.to_string();
        for part in [
            "4096 connections (auto)",
            "5000 full handshakes a second",
            "ecdsa_p256",
            "handshake.queue_deadline = 3s make 8192",
            "sysctl -w net.core.somaxconn=8192",
        ] {
            assert!(text.contains(part), "{part} not in: {text}");
        }
        let below_the_least = Backlog::auto(&[KeyType::Rsa4096], DEADLINE, Some(128));
        assert_eq!(below_the_least.connections, 128);
    }

    #[test]
    fn a_number_stays_a_number() {
        let backlog = Backlog::configured(7, Some(4096));
        assert_eq!(backlog.connections, 7);
        assert_eq!(backlog.to_string(), "7 connections, as listener.backlog says");
        let cut = Backlog::configured(10_000, Some(4096)).to_string();
        assert!(cut.starts_with("4096 connections, as listener.backlog says, which"), "{cut}");
        assert!(cut.contains("net.core.somaxconn=10000"), "{cut}");
        let unknown = Backlog::configured(10_000, None).to_string();
        assert!(!unknown.contains("somaxconn"), "{unknown}");
    }
}
