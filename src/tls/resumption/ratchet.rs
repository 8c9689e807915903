//! One secret, a key for each epoch, and no way back: every process that has the secret of an epoch
//! derives the keys of that epoch and of later ones, never of earlier ones.

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk};
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use super::ticket::TicketKey;

/// Bytes of the secret.
pub const SECRET_BYTES: usize = 32;

const INFO_NEXT: &[u8] = b"portcullis ticket ratchet v1: next epoch";
const INFO_KEY: &[u8] = b"portcullis ticket ratchet v1: ticket key";
const INFO_NAME: &[u8] = b"portcullis ticket ratchet v1: key name";

/// The secret of one epoch. Zeroised when dropped.
///
/// An epoch is a number: Unix time divided by the length of an epoch, rounded down. The secret of
/// the next epoch, this epoch's ticket key and the key's name are HKDF-Expand (RFC 5869 section
/// 2.3, SHA-256) of this epoch's secret, each with its own info text: whoever has the secret of an
/// epoch has all later ones, and would have to invert HMAC for an earlier one.
#[derive(Clone)]
pub struct Ratchet {
    epoch: u64,
    secret: Zeroizing<[u8; SECRET_BYTES]>,
}

impl Ratchet {
    /// The secret of `epoch`.
    pub fn new(epoch: u64, secret: Zeroizing<[u8; SECRET_BYTES]>) -> Self {
        Self { epoch, secret }
    }

    /// A random secret that begins with `epoch`; `None`: the system has no random numbers.
    pub fn random(epoch: u64) -> Option<Self> {
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        SystemRandom::new().fill(secret.as_mut_slice()).ok()?;
        Some(Self::new(epoch, secret))
    }

    /// The epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The secret; for the secret file only.
    pub fn secret(&self) -> &[u8; SECRET_BYTES] {
        &self.secret
    }

    /// The secret of `epoch`; `None` when that is over already. Half a microsecond per epoch.
    pub fn at(&self, epoch: u64) -> Option<Self> {
        if epoch < self.epoch {
            return None;
        }
        let mut ratchet = self.clone();
        while ratchet.epoch < epoch {
            ratchet.step();
        }
        Some(ratchet)
    }

    /// Forgets this epoch's secret for the next one's.
    fn step(&mut self) {
        self.secret = self.expand(INFO_NEXT);
        self.epoch += 1;
    }

    /// This epoch's ticket key.
    pub fn ticket_key(&self) -> TicketKey {
        TicketKey::new(&self.expand(INFO_KEY), *self.expand(INFO_NAME))
    }

    fn expand<const N: usize>(&self, info: &[u8]) -> Zeroizing<[u8; N]> {
        let mut out = Zeroizing::new([0; N]);
        let prk = Prk::new_less_safe(HKDF_SHA256, self.secret.as_slice());
        let filled = prk.expand(&[info], Bytes(N)).and_then(|okm| okm.fill(out.as_mut_slice()));
        debug_assert!(filled.is_ok(), "HKDF gives up to 255 blocks");
        out
    }
}

impl std::fmt::Debug for Ratchet {
    // Never the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ratchet").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// How many bytes HKDF is to give.
struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ratchet(epoch: u64) -> Ratchet {
        Ratchet::new(epoch, Zeroizing::new([7; SECRET_BYTES]))
    }

    proptest! {
        #[test]
        fn every_way_to_an_epoch_leads_to_one_key(
            start in 0_u64..1 << 40, a in 0_u64..50, b in 0_u64..50,
        ) {
            let from = ratchet(start);
            let straight = from.at(start + a + b).unwrap();
            let by_stages = from.at(start + a).unwrap().at(start + a + b).unwrap();
            prop_assert_eq!(straight.secret(), by_stages.secret());
            prop_assert_eq!(straight.ticket_key().name(), by_stages.ticket_key().name());
        }

        #[test]
        fn there_is_no_way_back(start in 1_u64..1 << 40, back in 1_u64..100) {
            prop_assert!(ratchet(start).at(start.saturating_sub(back)).is_none());
        }

        #[test]
        fn epochs_share_nothing(a in 0_u64..100, b in 0_u64..100) {
            prop_assume!(a != b);
            let (a, b) = (ratchet(0).at(a).unwrap(), ratchet(0).at(b).unwrap());
            prop_assert_ne!(a.secret(), b.secret());
            prop_assert_ne!(a.ticket_key().name(), b.ticket_key().name());
        }
    }

    /// A fleet's boxes run different versions for a while: what they derive must never change.
    /// Computed with Python: HMAC-SHA256(secret, info || 0x01), one block of HKDF-Expand.
    #[test]
    fn derivation_is_pinned() {
        let second = ratchet(0).at(1).unwrap();
        assert_eq!(second.secret()[..4], PINNED_SECRET);
        assert_eq!(second.ticket_key().name(), PINNED_NAME);
    }

    const PINNED_SECRET: [u8; 4] = [0xcc, 0xe7, 0x5b, 0x4e];
    const PINNED_NAME: [u8; 8] = [0x17, 0x4c, 0x4b, 0x1d, 0x94, 0xef, 0x39, 0xe4];
}
