//! Resumption: what lets a client that comes back skip the dear part of a handshake.

pub mod cache;
pub mod shared;

/// What a session belongs to; it never resumes anywhere else (compare CVE-2025-23419).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// Digest of the listener.
    pub listener: [u8; 8],
    /// Digest of the client-authentication policy.
    pub policy: [u8; 8],
    /// Digest of the server name.
    pub name: [u8; 8],
}
