//! What a record looks like: its header outside, its type and padding inside (RFC 8446 section 5).

use rustls::AlertDescription;

use super::Fault;
use crate::limits::RECORD_PAYLOAD_BYTES_MAX;

/// Bytes of a record's header.
pub(in crate::tls) const HEADER_BYTES: usize = 5;

/// Content types (RFC 8446 appendix B.1).
const CHANGE_CIPHER_SPEC: u8 = 20;
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const APPLICATION_DATA: u8 = 23;

/// Bytes that a record may have behind its header (RFC 8446 section 5.2, RFC 5246 section 6.2.3).
const TLS13_BODY_BYTES_MAX: usize = RECORD_PAYLOAD_BYTES_MAX + 256;
const TLS12_BODY_BYTES_MAX: usize = RECORD_PAYLOAD_BYTES_MAX + 2048;

/// A record's five bytes in the clear: type, version, length.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header([u8; HEADER_BYTES]);

impl Header {
    /// A TLS 1.3 record of `body` bytes; it hides its type. `None`: too long.
    pub(super) fn tls13(body: usize) -> Option<Self> {
        Self::tls12(APPLICATION_DATA, body)
    }

    /// A TLS 1.2 record of `body` bytes. `None`: too long.
    pub(super) fn tls12(kind: u8, body: usize) -> Option<Self> {
        let [high, low] = u16::try_from(body).ok()?.to_be_bytes();
        Some(Self([kind, 3, 3, high, low]))
    }

    pub(super) fn bytes(self) -> [u8; HEADER_BYTES] {
        self.0
    }

    fn kind(self) -> u8 {
        let [kind, ..] = self.0;
        kind
    }

    fn body_bytes(self) -> usize {
        let [.., high, low] = self.0;
        usize::from(u16::from_be_bytes([high, low]))
    }

    /// What TLS 1.2 authenticates besides the payload (RFC 5246 section 6.2.3.3).
    pub(super) fn tls12_aad(self, sequence: u64, payload: usize) -> [u8; 13] {
        let [s0, s1, s2, s3, s4, s5, s6, s7] = sequence.to_be_bytes();
        let [kind, major, minor, ..] = self.0;
        // A payload is no longer than its record, whose length has two bytes.
        let [high, low] = u16::try_from(payload).unwrap_or(u16::MAX).to_be_bytes();
        [s0, s1, s2, s3, s4, s5, s6, s7, kind, major, minor, high, low]
    }
}

/// A whole record, and what is behind it.
pub(super) struct Record<'a> {
    pub(super) header: Header,
    pub(super) body: &'a [u8],
    pub(super) rest: &'a [u8],
}

/// The record at the front of `bytes`; `None` while it is not whole.
///
/// # Errors
/// When its header is one that no record after the handshake has.
pub(super) fn split(bytes: &[u8], tls13: bool) -> Result<Option<Record<'_>>, Fault> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let header = Header(*header);
    let known = if tls13 {
        // Also what a middlebox would like to see: a change_cipher_spec is over by now.
        header.kind() == APPLICATION_DATA
    } else {
        matches!(header.kind(), ALERT | HANDSHAKE | APPLICATION_DATA)
    };
    if !known {
        return Err(Fault::bad_record(AlertDescription::UnexpectedMessage));
    }
    let most = if tls13 { TLS13_BODY_BYTES_MAX } else { TLS12_BODY_BYTES_MAX };
    if header.body_bytes() > most {
        return Err(Fault::bad_record(AlertDescription::RecordOverflow));
    }
    let split = rest.split_at_checked(header.body_bytes());
    Ok(split.map(|(body, rest)| Record { header, body, rest }))
}

/// How many bytes the record at the front of `bytes` has in all, if its header is there.
pub(in crate::tls) fn length(bytes: &[u8]) -> Option<usize> {
    let header = Header(*bytes.first_chunk()?);
    Some(HEADER_BYTES + header.body_bytes())
}

/// Whether the header at the front of `bytes` may be one of TLS, as far as it is there.
pub(in crate::tls) fn is_tls(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [kind, rest @ ..] if (CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(kind) => {
            rest.first().is_none_or(|major| *major == 3)
                && length(bytes).is_none_or(|length| length <= HEADER_BYTES + TLS12_BODY_BYTES_MAX)
        }
        _ => false,
    }
}

/// Type and length of what an opened record protected (RFC 8446 section 5.4: the last byte that is
/// not zero is the type).
///
/// # Errors
/// When it is too long, or of no type.
pub(super) fn content(header: Header, opened: &[u8], tls13: bool) -> Result<(u8, usize), Fault> {
    let overflow = Fault::bad_record(AlertDescription::RecordOverflow);
    let (kind, length) = if tls13 {
        if opened.len() > RECORD_PAYLOAD_BYTES_MAX + 1 {
            return Err(overflow);
        }
        let end = opened.iter().rposition(|byte| *byte != 0);
        let end = end.ok_or(Fault::bad_record(AlertDescription::UnexpectedMessage))?;
        (opened.get(end).copied().unwrap_or_default(), end)
    } else {
        (header.kind(), opened.len())
    };
    if length > RECORD_PAYLOAD_BYTES_MAX { Err(overflow) } else { Ok((kind, length)) }
}
