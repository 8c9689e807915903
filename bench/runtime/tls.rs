//! rustls's unbuffered API between two vectors: what an echo server does with its bytes on a
//! runtime that owns no buffers of ours.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};

use crate::support::Result;

/// Plaintext of one record, at most (RFC 8446 section 5.1).
const PAYLOAD_BYTES_MAX: usize = 16 * 1024;

/// Records on their way out: the first `filled` of `bytes`. The rest is room, which is not cleared
/// before each use.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) bytes: Vec<u8>,
    pub(crate) filled: usize,
}

/// Bytes written; or how much room is wanted, if that is what was missing.
type Written = std::result::Result<usize, Option<InsufficientSizeError>>;

impl Records {
    /// Lets `fill` write into so much `room` at the end, and once more with as much as it asks for.
    fn write(&mut self, mut room: usize, mut fill: impl FnMut(&mut [u8]) -> Written) -> Result<()> {
        loop {
            if self.bytes.len() < self.filled + room {
                self.bytes.resize(self.filled + room, 0);
            }
            match fill(self.bytes.get_mut(self.filled..).unwrap_or_default()) {
                Ok(written) => {
                    self.filled += written;
                    return Ok(());
                }
                Err(Some(InsufficientSizeError { required_size })) if required_size > room => {
                    room = required_size;
                }
                Err(_) => return Err("rustls has nothing to write".into()),
            }
        }
    }
}

/// A thread's free memory: a connection that waits has none.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    /// For the time between opening and sealing.
    plaintext: Vec<u8>,
    records: Vec<Vec<u8>>,
}

impl Spare {
    /// Takes the memory of records back.
    pub(crate) fn give(&mut self, bytes: Vec<u8>) {
        self.records.push(bytes);
    }
}

/// One connection's TLS.
pub(crate) struct Echo {
    tls: UnbufferedServerConnection,
    /// Ciphertext of a record whose rest has not arrived.
    partial: Vec<u8>,
}

impl Echo {
    pub(crate) fn new(config: Arc<ServerConfig>) -> Result<Self> {
        Ok(Self { tls: UnbufferedServerConnection::new(config)?, partial: Vec::new() })
    }

    /// Takes ciphertext in, and returns what is to be sent: the handshake's answers, and all
    /// plaintext back. Its memory is to be given back.
    ///
    /// # Errors
    /// The handshake or a record is wrong.
    pub(crate) fn receive(&mut self, bytes: &mut [u8], spare: &mut Spare) -> Result<Records> {
        let mut records = Records { bytes: spare.records.pop().unwrap_or_default(), filled: 0 };
        if self.partial.is_empty() {
            let used = self.process(bytes, &mut spare.plaintext, &mut records)?;
            self.partial.extend_from_slice(bytes.get(used..).unwrap_or_default());
        } else {
            let mut whole = std::mem::take(&mut self.partial);
            whole.extend_from_slice(bytes);
            let used = self.process(&mut whole, &mut spare.plaintext, &mut records)?;
            self.partial = whole.get(used..).unwrap_or_default().to_vec();
        }
        for payload in spare.plaintext.chunks(PAYLOAD_BYTES_MAX) {
            self.seal(payload, &mut records)?;
        }
        spare.plaintext.clear();
        Ok(records)
    }

    /// Processes whole records at the front of `bytes` and returns how many bytes they were.
    fn process(
        &mut self,
        bytes: &mut [u8],
        plaintext: &mut Vec<u8>,
        records: &mut Records,
    ) -> Result<usize> {
        let mut used = 0;
        loop {
            let rest = bytes.get_mut(used..).unwrap_or_default();
            let UnbufferedStatus { discard, state } = self.tls.process_tls_records(rest);
            let mut waits = false;
            match state? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        plaintext.extend_from_slice(record?.payload);
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    records.write(0, |out| {
                        data.encode(out).map_err(|error| match error {
                            EncodeError::InsufficientSize(size) => Some(size),
                            EncodeError::AlreadyEncoded => None,
                        })
                    })?;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                _ => waits = true,
            }
            used += discard;
            if waits {
                return Ok(used);
            }
        }
    }

    fn seal(&mut self, payload: &[u8], records: &mut Records) -> Result<()> {
        match self.tls.process_tls_records(&mut []).state? {
            ConnectionState::WriteTraffic(mut traffic) => {
                // A record's header, its type and its tag.
                let room = payload.len() + 5 + 1 + 16;
                records.write(room, |out| {
                    traffic.encrypt(payload, out).map_err(|error| match error {
                        EncryptError::InsufficientSize(size) => Some(size),
                        EncryptError::EncryptExhausted => None,
                    })
                })
            }
            _ => Err("plaintext on a connection that cannot send".into()),
        }
    }
}
