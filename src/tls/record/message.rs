//! Handshake messages behind the handshake: a `KeyUpdate` in TLS 1.3 (RFC 8446 section 4.6.3), a
//! wish to begin again in TLS 1.2 (RFC 5246 section 7.4.1). Records may cut them anywhere.

use rustls::AlertDescription;

use super::Fault;

const CLIENT_HELLO: u8 = 1;
const KEY_UPDATE: u8 = 24;
const HEADER_BYTES: usize = 4;
const UPDATE_REQUESTED: u8 = 1;

/// Our `KeyUpdate`, which asks for none in return.
pub(super) const OUR_KEY_UPDATE: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 0];

/// What a complete message asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    /// The client's next record is sealed with new keys; whether ours shall be, too.
    KeyUpdate { ours_too: bool },
    /// A handshake from the beginning.
    Renegotiation,
}

/// A message of which a part has arrived. Its header is all that is kept.
#[derive(Debug, Default)]
pub(super) struct Message {
    header: [u8; HEADER_BYTES],
    have: u8,
    /// Bytes of the body still to come; of a TLS 1.2 `ClientHello` they are thrown away.
    body: u32,
}

impl Message {
    /// Whether the next record must go on with it (RFC 8446 section 5.1).
    pub(super) fn is_incomplete(&self) -> bool {
        self.have > 0
    }

    /// Takes one record's bytes in and returns what the message that ends there asks for. Of two
    /// messages in one record the last counts: only TLS 1.2 allows that, and both ask for the same.
    ///
    /// # Errors
    /// When it is no message that a client may send now.
    pub(super) fn take(&mut self, bytes: &[u8], tls13: bool) -> Result<Option<Asks>, Fault> {
        let mut asks = None;
        for byte in bytes {
            if tls13 && asks.is_some() {
                // New keys begin with a new record.
                return Err(Fault::bad_handshake(AlertDescription::UnexpectedMessage));
            }
            asks = self.take_byte(*byte, tls13)?.or(asks);
        }
        Ok(asks)
    }

    fn take_byte(&mut self, byte: u8, tls13: bool) -> Result<Option<Asks>, Fault> {
        if let Some(place) = self.header.get_mut(usize::from(self.have)) {
            *place = byte;
            self.have += 1;
            return self.look_at_header(tls13);
        }
        self.body = self.body.saturating_sub(1);
        if self.body > 0 {
            return Ok(None);
        }
        *self = Self::default();
        match (tls13, byte) {
            (false, _) => Ok(Some(Asks::Renegotiation)),
            (true, 0 | UPDATE_REQUESTED) => {
                Ok(Some(Asks::KeyUpdate { ours_too: byte == UPDATE_REQUESTED }))
            }
            (true, _) => Err(Fault::bad_handshake(AlertDescription::IllegalParameter)),
        }
    }

    /// Judges a message by what is there of its header.
    fn look_at_header(&mut self, tls13: bool) -> Result<Option<Asks>, Fault> {
        let [kind, high, middle, low] = self.header;
        if kind != if tls13 { KEY_UPDATE } else { CLIENT_HELLO } {
            return Err(Fault::bad_handshake(AlertDescription::UnexpectedMessage));
        }
        if usize::from(self.have) < HEADER_BYTES {
            return Ok(None);
        }
        self.body = u32::from_be_bytes([0, high, middle, low]);
        if self.body == 0 || (tls13 && self.body != 1) {
            return Err(Fault::bad_handshake(AlertDescription::DecodeError));
        }
        Ok(None)
    }
}
