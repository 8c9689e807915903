//! Tickets: a session's state, sealed so that the client may keep it.
//!
//! ```text
//! bytes    8          12        n        8          8        8      4        16
//!          key name │ nonce │ [ state │ listener │ policy │ name │ began ] │ tag
//!                             └──────────────── sealed ──────────────────┘
//! ```
//!
//! AES-256-GCM-SIV (RFC 8452): with keys that a whole fleet shares, random 96-bit nonces of plain
//! AES-GCM would have to be counted (RFC 8452 section 9); with SIV a repeated nonce tells no more
//! than that two tickets are equal, and no two sessions are.

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey};

use super::ratchet::Ratchet;
use super::{Binding, FINGERPRINT_BYTES};
use crate::limits::TICKET_BYTES_MAX;
use crate::telemetry::labels::ResumptionResult;

/// Bytes of a ticket key.
pub const KEY_BYTES: usize = 32;
/// Bytes of a ticket key's name.
pub const NAME_BYTES: usize = 8;

const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
const FOOTER_BYTES: usize = 3 * FINGERPRINT_BYTES + 4;

/// What a ticket has besides rustls's state.
pub const TICKET_OVERHEAD_BYTES: usize = NAME_BYTES + NONCE_BYTES + FOOTER_BYTES + TAG_BYTES;

/// The key of one epoch. aws-lc zeroises it when it is dropped.
pub struct TicketKey {
    key: Option<LessSafeKey>,
    name: [u8; NAME_BYTES],
}

impl TicketKey {
    /// A key and its public name.
    pub fn new(key: &[u8; KEY_BYTES], name: [u8; NAME_BYTES]) -> Self {
        // Fails only where memory is out; nothing is sealed then.
        let key = UnboundKey::new(&AES_256_GCM_SIV, key).ok().map(LessSafeKey::new);
        Self { key, name }
    }

    /// The name by which tickets say which key sealed them.
    pub fn name(&self) -> [u8; NAME_BYTES] {
        self.name
    }
}

impl std::fmt::Debug for TicketKey {
    // Never the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TicketKey({:016x})", u64::from_be_bytes(self.name))
    }
}

/// The keys that are good for tickets now: one seals, all open.
#[derive(Debug)]
pub struct Keys {
    current: TicketKey,
    /// For clients that got their ticket in the epoch before.
    previous: Option<TicketKey>,
    /// For clients that got their ticket from a box whose clock is ahead.
    next: TicketKey,
    /// Unix time, in seconds, at which the last key that opens what is sealed now is forgotten.
    accepted_until: u64,
}

/// What a ticket held.
#[derive(Debug)]
pub struct Opened {
    /// rustls's state.
    pub state: Vec<u8>,
    /// What the session is bound to.
    pub binding: Binding,
    /// Unix time of the full handshake that began the session, in seconds.
    pub began: u32,
    /// Sealed in this epoch, or by a clock that is ahead: it need not be renewed yet.
    pub is_fresh: bool,
}

impl Keys {
    /// The keys of `epoch`, the one before and the one after; `ratchet` is at the one before, or,
    /// where a process's secret began with `epoch`, at `epoch`. `None`: it is past `epoch`.
    pub fn derive(ratchet: &Ratchet, epoch: u64, epoch_seconds: u64) -> Option<Self> {
        let current = ratchet.at(epoch)?;
        Some(Self {
            previous: epoch.checked_sub(1).and_then(|epoch| Some(ratchet.at(epoch)?.ticket_key())),
            next: current.at(epoch + 1)?.ticket_key(),
            current: current.ticket_key(),
            accepted_until: (epoch + 2).saturating_mul(epoch_seconds),
        })
    }

    /// The key that seals now.
    pub fn current(&self) -> &TicketKey {
        &self.current
    }

    /// How long a ticket sealed now will be accepted, in seconds.
    pub fn accepted_for(&self, unix: u32) -> u32 {
        let seconds = self.accepted_until.saturating_sub(u64::from(unix));
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }

    /// Seals a session; `nonce` should be, and need not be, unique among the fleet.
    ///
    /// # Limits
    /// `None` above [`TICKET_BYTES_MAX`]: the client gets no ticket.
    pub fn seal(
        &self,
        nonce: [u8; NONCE_BYTES],
        state: &[u8],
        binding: &Binding,
        began: u32,
    ) -> Option<Vec<u8>> {
        let key = self.current.key.as_ref()?;
        let bytes = state.len() + TICKET_OVERHEAD_BYTES;
        if bytes > TICKET_BYTES_MAX {
            return None;
        }
        let mut ticket = Vec::with_capacity(bytes);
        ticket.extend_from_slice(&self.current.name);
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(state);
        for part in [&binding.listener, &binding.policy, &binding.name] {
            ticket.extend_from_slice(part);
        }
        ticket.extend_from_slice(&began.to_be_bytes());
        let sealed = ticket.get_mut(NAME_BYTES + NONCE_BYTES..)?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(self.current.name), sealed);
        ticket.extend_from_slice(tag.ok()?.as_ref());
        Some(ticket)
    }

    /// Opens a ticket, or what a client says is one.
    ///
    /// # Errors
    /// `UnknownEpoch` when no key that is good now has sealed it, `Malformed` when it is too short
    /// or too long or was changed.
    pub fn open(&self, ticket: &[u8]) -> Result<Opened, ResumptionResult> {
        const MALFORMED: ResumptionResult = ResumptionResult::Malformed;
        if ticket.len() < TICKET_OVERHEAD_BYTES || ticket.len() > TICKET_BYTES_MAX {
            return Err(MALFORMED);
        }
        let (name, rest) = ticket.split_first_chunk::<NAME_BYTES>().ok_or(MALFORMED)?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_BYTES>().ok_or(MALFORMED)?;
        let (sealed, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(MALFORMED)?;
        let keys = [Some(&self.current), self.previous.as_ref(), Some(&self.next)];
        let found = keys.into_iter().flatten().find(|key| key.name == *name);
        let key = found.ok_or(ResumptionResult::UnknownEpoch)?;
        let mut state = vec![0; sealed.len()];
        let nonce = Nonce::assume_unique_for_key(*nonce);
        key.key
            .as_ref()
            .ok_or(MALFORMED)?
            .open_separate_gather(nonce, Aad::from(*name), sealed, tag, &mut state)
            .map_err(|_| MALFORMED)?;
        let (binding, began) = take_footer(&mut state).ok_or(MALFORMED)?;
        let is_previous = self.previous.as_ref().is_some_and(|previous| previous.name == *name);
        Ok(Opened { state, binding, began, is_fresh: !is_previous })
    }
}

fn take_footer(state: &mut Vec<u8>) -> Option<(Binding, u32)> {
    let (rest, began) = state.split_last_chunk::<4>()?;
    let (rest, name) = rest.split_last_chunk::<FINGERPRINT_BYTES>()?;
    let (rest, policy) = rest.split_last_chunk::<FINGERPRINT_BYTES>()?;
    let (rest, listener) = rest.split_last_chunk::<FINGERPRINT_BYTES>()?;
    let binding = Binding { listener: *listener, policy: *policy, name: *name };
    let (began, len) = (u32::from_be_bytes(*began), rest.len());
    state.truncate(len);
    Some((binding, began))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::*;

    const EPOCH_SECONDS: u64 = 43_200;

    fn keys(epoch: u64) -> Keys {
        // Every box started with the same file, in epoch 9.
        let ratchet = Ratchet::new(9, Zeroizing::new([1; 32])).at(epoch - 1).unwrap();
        Keys::derive(&ratchet, epoch, EPOCH_SECONDS).unwrap()
    }

    fn binding() -> Binding {
        Binding { listener: [1; 8], policy: [2; 8], name: [3; 8] }
    }

    fn seal(keys: &Keys) -> Vec<u8> {
        keys.seal([5; 12], b"state", &binding(), 77).unwrap()
    }

    #[test]
    fn what_was_sealed_opens_unchanged_and_shows_nothing() {
        let ticket = seal(&keys(10));
        assert_eq!(ticket.len(), b"state".len() + TICKET_OVERHEAD_BYTES);
        assert!(!ticket.windows(5).any(|part| part == b"state"));
        let opened = keys(10).open(&ticket).unwrap();
        assert_eq!(opened.state, b"state");
        assert_eq!((opened.binding, opened.began), (binding(), 77));
    }

    proptest! {
        /// Two boxes whose clocks differ by at most an epoch understand each other; further apart
        /// they do not, and say why.
        #[test]
        fn tickets_are_good_for_the_epochs_beside(sealer in 10_u64..40, opener in 10_u64..40) {
            let result = keys(opener).open(&seal(&keys(sealer)));
            if sealer.abs_diff(opener) <= 1 {
                // What is of the epoch before is renewed.
                prop_assert_eq!(result.unwrap().is_fresh, sealer >= opener);
            } else {
                prop_assert_eq!(result.unwrap_err(), ResumptionResult::UnknownEpoch);
            }
        }

        #[test]
        fn no_bit_can_be_changed(bit in 0_usize..8 * (5 + TICKET_OVERHEAD_BYTES)) {
            let mut ticket = seal(&keys(10));
            ticket[bit / 8] ^= 1 << (bit % 8);
            let in_name = bit / 8 < NAME_BYTES;
            let why =
                if in_name { ResumptionResult::UnknownEpoch } else { ResumptionResult::Malformed };
            prop_assert_eq!(keys(10).open(&ticket).unwrap_err(), why);
        }

        #[test]
        fn anything_else_is_refused(garbage in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(keys(10).open(&garbage).is_err());
        }

        #[test]
        fn cut_tickets_are_malformed(length in 0_usize..5 + TICKET_OVERHEAD_BYTES) {
            let ticket = seal(&keys(10));
            let result = keys(10).open(&ticket[..length]);
            prop_assert_eq!(result.unwrap_err(), ResumptionResult::Malformed);
        }
    }

    #[test]
    fn a_ticket_is_bounded() {
        let state = vec![0; TICKET_BYTES_MAX - TICKET_OVERHEAD_BYTES];
        let ticket = keys(10).seal([0; 12], &state, &binding(), 0).unwrap();
        assert_eq!(ticket.len(), TICKET_BYTES_MAX);
        assert!(keys(10).open(&ticket).is_ok());
        let state = vec![0; state.len() + 1];
        assert!(keys(10).seal([0; 12], &state, &binding(), 0).is_none());
        let too_long = vec![0; TICKET_BYTES_MAX + 1];
        assert_eq!(keys(10).open(&too_long).unwrap_err(), ResumptionResult::Malformed);
    }

    #[test]
    fn a_ticket_is_accepted_until_the_end_of_the_next_epoch() {
        let unix = |epoch: u64, second: u64| u32::try_from(epoch * EPOCH_SECONDS + second).unwrap();
        assert_eq!(keys(10).accepted_for(unix(10, 0)), 86_400);
        assert_eq!(keys(10).accepted_for(unix(10, 43_199)), 43_201);
        // A worker that was not told in time of the new epoch promises less.
        assert_eq!(keys(10).accepted_for(unix(13, 0)), 0);
    }

    #[test]
    fn a_secret_that_begins_with_its_epoch_has_no_key_before() {
        let ratchet = Ratchet::new(9, Zeroizing::new([1; 32]));
        let first = Keys::derive(&ratchet, 9, EPOCH_SECONDS).unwrap();
        assert!(first.previous.is_none());
        assert!(first.open(&seal(&keys(10))).is_ok(), "what comes next is known");
        assert!(Keys::derive(&ratchet, 8, EPOCH_SECONDS).is_none());
    }
}
