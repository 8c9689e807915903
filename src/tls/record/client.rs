//! The client's records behind the handshake, for `portcullis load`: keys and counters, and no
//! more, so that a million of them fit.
//!
//! rustls is gone by then and with it the key schedule: a server that changes its keys
//! (`KeyUpdate`) ends the session, and session tickets of TLS 1.3 are thrown away.

use aws_lc_rs::error::Unspecified;
use rustls::{AlertDescription, ExtractedSecrets};

use super::frame::{self, Record};
use super::keys::Keys;
use super::{Fault as ServersFault, WARNING};
use crate::io::buffer::Pool;
use crate::io::queue::Queue;
use crate::limits::{RECORD_OVERHEAD_BYTES_MAX, RECORD_PAYLOAD_BYTES_MAX};
use crate::tls::client::Fault;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
const MESSAGE_HEADER_BYTES: usize = 4;

/// The records of one established session, in both directions.
pub(in crate::tls) struct ClientRecords {
    inbound: Keys,
    outbound: Keys,
    tls13: bool,
    /// Bytes still to come of a message that is thrown away.
    skip: usize,
    server_closed: bool,
}

impl ClientRecords {
    /// Takes over with the secrets of a complete handshake; `None` for a cipher that is none of
    /// ours.
    pub(in crate::tls) fn new(secrets: ExtractedSecrets, tls13: bool) -> Option<Self> {
        Some(Self {
            inbound: Keys::new(secrets.rx, tls13)?,
            outbound: Keys::new(secrets.tx, tls13)?,
            tls13,
            skip: 0,
            server_closed: false,
        })
    }

    /// Gives the ciphers' state back: what is left are keys and counters.
    pub(in crate::tls) fn rest(&mut self) {
        self.inbound.rest();
        self.outbound.rest();
    }

    /// The server's `close_notify` has arrived.
    pub(in crate::tls) fn server_closed(&self) -> bool {
        self.server_closed
    }

    /// Opens the whole records at the front of `bytes` and returns how many bytes they were. Each
    /// goes through `scratch`, which has room for the longest.
    ///
    /// # Errors
    /// What the server broke, or its alert.
    pub(in crate::tls) fn open(
        &mut self,
        bytes: &[u8],
        scratch: &mut [u8],
        plaintext: &mut dyn FnMut(&[u8]),
    ) -> Result<usize, Fault> {
        let broken = |_: ServersFault| Fault::Record;
        let mut rest = bytes;
        while !self.server_closed {
            let record = frame::split(rest, self.tls13).map_err(broken)?;
            let Some(Record { header, body, rest: behind }) = record else {
                break;
            };
            let opened = self.inbound.open(header, body, scratch);
            let opened = opened.map_err(|Unspecified| Fault::Record)?;
            let opened = scratch.get(..opened).unwrap_or_default();
            let (kind, length) = frame::content(header, opened, self.tls13).map_err(broken)?;
            let content = opened.get(..length).unwrap_or_default();
            match kind {
                frame::APPLICATION_DATA => plaintext(content),
                frame::ALERT => self.alerted(content)?,
                frame::HANDSHAKE if self.tls13 => self.throw_away(content)?,
                // TLS 1.2: a wish to negotiate again, which a client may ignore (RFC 5246
                // section 7.4.1.1).
                frame::HANDSHAKE => {}
                _ => return Err(Fault::Record),
            }
            rest = behind;
        }
        Ok(bytes.len() - rest.len())
    }

    fn alerted(&mut self, content: &[u8]) -> Result<(), Fault> {
        let [level, description] = *content else {
            return Err(Fault::Record);
        };
        if AlertDescription::from(description) == AlertDescription::CloseNotify {
            self.server_closed = true;
            return Ok(());
        }
        let is_warning = !self.tls13 && level == WARNING;
        if is_warning { Ok(()) } else { Err(Fault::Alert(description)) }
    }

    /// Session tickets, which records may cut; nobody cuts a message's header.
    fn throw_away(&mut self, mut content: &[u8]) -> Result<(), Fault> {
        while !content.is_empty() {
            if self.skip == 0 {
                let Some(([kind, high, middle, low], _)) =
                    content.split_first_chunk::<MESSAGE_HEADER_BYTES>()
                else {
                    return Err(Fault::Record);
                };
                match *kind {
                    NEW_SESSION_TICKET => {}
                    KEY_UPDATE => return Err(Fault::KeyUpdate),
                    _ => return Err(Fault::Record),
                }
                let body = u32::from_be_bytes([0, *high, *middle, *low]);
                self.skip = MESSAGE_HEADER_BYTES + usize::try_from(body).unwrap_or(usize::MAX);
            }
            let skipped = self.skip.min(content.len());
            self.skip -= skipped;
            content = content.get(skipped..).unwrap_or_default();
        }
        Ok(())
    }

    /// Seals `plaintext` into records.
    ///
    /// # Errors
    /// When the keys have protected as many records as they may.
    pub(in crate::tls) fn seal(
        &mut self,
        plaintext: &[u8],
        records: &mut Queue,
        pool: &mut Pool,
    ) -> Result<(), Fault> {
        for payload in plaintext.chunks(RECORD_PAYLOAD_BYTES_MAX) {
            if self.outbound.records_left() <= 1 {
                return Err(Fault::KeysUsedUp);
            }
            self.write(frame::APPLICATION_DATA, payload, records, pool)?;
        }
        Ok(())
    }

    /// Queues the `close_notify` that ends our direction.
    pub(in crate::tls) fn close(&mut self, records: &mut Queue, pool: &mut Pool) {
        let alert = [WARNING, AlertDescription::CloseNotify.into()];
        // Where it cannot be sealed the server sees a cut, which is what it is.
        let _cut = self.write(frame::ALERT, &alert, records, pool);
    }

    fn write(
        &mut self,
        kind: u8,
        payload: &[u8],
        records: &mut Queue,
        pool: &mut Pool,
    ) -> Result<(), Fault> {
        let mut sealed = Err(Unspecified);
        records.write(payload.len() + RECORD_OVERHEAD_BYTES_MAX, pool, |out| {
            sealed = self.outbound.seal(kind, payload, out);
            sealed.unwrap_or(0)
        });
        sealed.map(|_| ()).map_err(|Unspecified| Fault::KeysUsedUp)
    }
}
