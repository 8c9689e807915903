//! Resumption: a client that comes back continues its session, on whichever worker it lands, and
//! the certificate's private key is not used again.
//!
//! ```text
//!   ratchet.rs ── keys of three epochs ──► ticket.rs    sealed state, kept by the client
//!   cache.rs (L1, one per worker) ◄──────► shared.rs    state kept here, by session ID (L2)
//!                      bridge.rs: what rustls asks, answered from both, with the reason
//! ```
//!
//! Whatever is resumed carries its [`Binding`] and is refused where that is another: a session of
//! one listener, server name or client-authentication policy never resumes under another (the class
//! of CVE-2025-23419). Its lifetime counts from the full handshake that began it, however often it
//! is renewed. There is no early data.

pub mod bridge;
pub mod cache;
pub mod ratchet;
pub mod shared;
pub mod ticket;

use aws_lc_rs::digest;

/// Eight bytes that stand for a name or a policy, in tickets and in cached sessions.
pub type Fingerprint = [u8; FINGERPRINT_BYTES];

/// Bytes of a [`Fingerprint`]. Nobody but the operator chooses what is told apart by it, and rustls
/// compares the server name itself once more.
pub const FINGERPRINT_BYTES: usize = 8;

/// What a session is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// Of the listener's name.
    pub listener: Fingerprint,
    /// Of the listener's client-authentication policy.
    pub policy: Fingerprint,
    /// Of the server name that the client asked for, or of none.
    pub name: Fingerprint,
}

/// The beginning of the SHA-256 of `parts`, each behind its length, so that no two lists of parts
/// are one text.
pub fn fingerprint(parts: &[&[u8]]) -> Fingerprint {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut short = Fingerprint::default();
    for (to, from) in short.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    short
}

/// The fingerprint of the server name that a client asked for, as `hello::peek` gives it.
pub fn name_fingerprint(name: Option<&str>) -> Fingerprint {
    match name {
        Some(name) => fingerprint(&[b"name", name.as_bytes()]),
        None => fingerprint(&[b"no name"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_tell_names_from_none_and_lists_from_their_concatenation() {
        assert_ne!(name_fingerprint(None), name_fingerprint(Some("")));
        assert_ne!(name_fingerprint(Some("a.example")), name_fingerprint(Some("b.example")));
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
        // Boxes of a fleet that run different versions must agree.
        assert_eq!(fingerprint(&[]), [0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14]);
    }
}
