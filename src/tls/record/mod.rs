//! Our own record layer, which takes over from rustls when the handshake is complete: records are
//! opened from where the kernel put them straight into the queue they leave by, and sealed the same
//! way, without a copy and without an allocation.
//!
//! rustls has agreed on the keys; those that follow them (`KeyUpdate`) are ours to derive.

mod client;
mod frame;
mod keys;
mod message;
mod schedule;

use aws_lc_rs::error::Unspecified;
use rustls::AlertDescription;
use rustls::server::UnbufferedServerConnection;

use self::frame::Record;
use self::keys::Keys;
use self::message::{Asks, Message, OUR_KEY_UPDATE};
use super::failure::Failure;
use super::session::Sinks;
use crate::io::Time;
use crate::io::buffer::Pool;
use crate::io::queue::Queue;
use crate::limits::{
    EMPTY_RECORDS_MAX, KEY_UPDATE_EARNED_RECORDS, KEY_UPDATES_MAX, RECORD_OVERHEAD_BYTES_MAX,
    RECORD_PAYLOAD_BYTES_MAX, RENEGOTIATIONS_REFUSED_MAX, TINY_RECORD_BYTES,
    TINY_RECORDS_PER_SECOND_MAX, WARNING_ALERTS_MAX,
};
use crate::telemetry::labels::HandshakeOutcome;

pub(super) use self::client::ClientRecords;
pub(super) use self::frame::{HEADER_BYTES, is_tls, length};
pub(super) use self::schedule::{Listener, Secrets, listen};

const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// The records of one established session, in both directions.
pub(super) struct Records {
    inbound: Keys,
    outbound: Keys,
    /// What the keys that follow come from; TLS 1.2 has none.
    secrets: Option<Secrets>,
    message: Message,
    /// The client has asked us to change our keys; its answer goes before our next data.
    update_due: bool,
    client_closed: bool,
    /// Records without data since the last with some.
    empties: u8,
    /// Tiny records, in the second in which the last one came.
    tiny: u16,
    tiny_second: u32,
    warning_alerts: u8,
    renegotiations: u8,
    /// Records of data until a `KeyUpdate` is forgotten, for each that is not.
    key_updates: u16,
}

/// What the client broke, and the alert that tells it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fault {
    /// `None`: the client has said why it ends, and listens no more.
    alert: Option<AlertDescription>,
    outcome: HandshakeOutcome,
}

impl Fault {
    const INTERNAL: Self = Self {
        alert: Some(AlertDescription::InternalError),
        outcome: HandshakeOutcome::InternalError,
    };
    const CLIENT_ALERT: Self = Self { alert: None, outcome: HandshakeOutcome::ClientAlert };

    const fn bad_record(alert: AlertDescription) -> Self {
        Self { alert: Some(alert), outcome: HandshakeOutcome::BadRecord }
    }

    const fn bad_handshake(alert: AlertDescription) -> Self {
        Self { alert: Some(alert), outcome: HandshakeOutcome::BadHandshake }
    }
}

/// What an opened record brings besides data.
enum News {
    None,
    Alert { level: u8, description: AlertDescription },
    Message(Asks),
}

impl Records {
    /// Takes over from `tls`, which has completed its handshake, told `secrets` if they are of TLS
    /// 1.3, and given out all that it had to send.
    ///
    /// # Errors
    /// When its configuration keeps secrets in, or the cipher is none of ours.
    pub(super) fn take_over(
        tls: UnbufferedServerConnection,
        secrets: Option<Secrets>,
    ) -> Result<Self, Failure> {
        let internal = Failure::Handshake(HandshakeOutcome::InternalError);
        let tls13 = tls.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
        if tls13 != secrets.is_some() {
            return Err(internal);
        }
        let (keys, _key_schedule) =
            tls.dangerous_into_kernel_connection().map_err(|error| Failure::from(&error))?;
        Ok(Self {
            inbound: Keys::new(keys.rx, tls13).ok_or(internal)?,
            outbound: Keys::new(keys.tx, tls13).ok_or(internal)?,
            secrets,
            message: Message::default(),
            update_due: false,
            client_closed: false,
            empties: 0,
            tiny: 0,
            tiny_second: 0,
            warning_alerts: 0,
            renegotiations: 0,
            key_updates: 0,
        })
    }

    /// Gives the ciphers' state back: what is left are keys and counters.
    pub(super) fn rest(&mut self) {
        self.inbound.rest();
        self.outbound.rest();
    }

    /// Neither direction has a cipher's state.
    pub(super) fn is_resting(&self) -> bool {
        self.inbound.is_resting() && self.outbound.is_resting()
    }

    /// The client's `close_notify` has arrived.
    pub(super) fn client_closed(&self) -> bool {
        self.client_closed
    }

    /// Opens the whole records at the front of `bytes`, up to a `close_notify`, and returns how
    /// many bytes they were.
    ///
    /// # Errors
    /// What the client broke. The alert that tells it so is in `sinks.records` already.
    pub(super) fn open(&mut self, bytes: &[u8], sinks: &mut Sinks<'_>) -> Result<usize, Failure> {
        self.open_all(bytes, sinks).map_err(|fault| {
            if let Some(alert) = fault.alert {
                self.alert(FATAL, alert, sinks);
            }
            Failure::Handshake(fault.outcome)
        })
    }

    fn open_all(&mut self, bytes: &[u8], sinks: &mut Sinks<'_>) -> Result<usize, Fault> {
        let tls13 = self.is_tls13();
        let mut rest = bytes;
        while !self.client_closed {
            let Some(Record { header, body, rest: behind }) = frame::split(rest, tls13)? else {
                break;
            };
            let mut news = Ok(News::None);
            let now = sinks.now;
            // Once for each record: into the queue's own memory, of which only data is counted.
            sinks.plaintext.write(body.len(), sinks.pool, |out| {
                match self.open_into(header, body, out, now) {
                    Ok((data, other)) => {
                        news = Ok(other);
                        data
                    }
                    Err(fault) => {
                        news = Err(fault);
                        0
                    }
                }
            });
            match news? {
                News::None => {}
                News::Alert { level, description } => self.alerted(level, description)?,
                News::Message(asks) => self.asked(asks, sinks)?,
            }
            rest = behind;
        }
        Ok(bytes.len() - rest.len())
    }

    /// Opens one record into the front of `out`; returns how many bytes of data it brought.
    fn open_into(
        &mut self,
        header: frame::Header,
        body: &[u8],
        out: &mut [u8],
        now: Time,
    ) -> Result<(usize, News), Fault> {
        let tls13 = self.is_tls13();
        let forged = |_: Unspecified| Fault::bad_record(AlertDescription::BadRecordMac);
        let opened = self.inbound.open(header, body, out).map_err(forged)?;
        let opened = out.get(..opened).unwrap_or_default();
        let (kind, length) = frame::content(header, opened, tls13)?;
        let unexpected = Fault::bad_handshake(AlertDescription::UnexpectedMessage);
        if self.message.is_incomplete() && kind != frame::HANDSHAKE {
            return Err(unexpected);
        }
        if length == 0 {
            self.empties += 1;
            // Only data may come in empty records (RFC 8446 section 5.4).
            let allowed = kind == frame::APPLICATION_DATA && self.empties <= EMPTY_RECORDS_MAX;
            return if allowed { Ok((0, News::None)) } else { Err(unexpected) };
        }
        self.empties = 0;
        let content = opened.get(..length).unwrap_or_default();
        match kind {
            frame::APPLICATION_DATA => {
                self.key_updates = self.key_updates.saturating_sub(1);
                if length < TINY_RECORD_BYTES && !self.takes_tiny(now) {
                    return Err(unexpected);
                }
                Ok((length, News::None))
            }
            frame::HANDSHAKE => {
                let asks = self.message.take(content, tls13)?;
                Ok((0, asks.map_or(News::None, News::Message)))
            }
            frame::ALERT => {
                let [level, description] = *content else {
                    return Err(Fault::bad_record(AlertDescription::DecodeError));
                };
                Ok((0, News::Alert { level, description: description.into() }))
            }
            _ => Err(unexpected),
        }
    }

    /// Whether one more tiny record may come in this second: each costs as much as one of some
    /// hundred bytes.
    fn takes_tiny(&mut self, now: Time) -> bool {
        let second = u32::try_from(now.since(Time::default()).as_secs()).unwrap_or(u32::MAX);
        if second != self.tiny_second {
            (self.tiny_second, self.tiny) = (second, 0);
        }
        self.tiny = self.tiny.saturating_add(1);
        self.tiny <= TINY_RECORDS_PER_SECOND_MAX
    }

    /// RFC 8446 section 6, RFC 5246 section 7.2.
    fn alerted(&mut self, level: u8, description: AlertDescription) -> Result<(), Fault> {
        if level != WARNING && level != FATAL {
            return Err(Fault::bad_record(AlertDescription::IllegalParameter));
        }
        if description == AlertDescription::CloseNotify {
            self.client_closed = true;
            return Ok(());
        }
        // TLS 1.3 has kept one warning; the others end the session, whatever their level.
        if level == FATAL || (self.is_tls13() && description != AlertDescription::UserCanceled) {
            return Err(Fault::CLIENT_ALERT);
        }
        self.warning_alerts += 1;
        if self.warning_alerts > WARNING_ALERTS_MAX {
            return Err(Fault::bad_handshake(AlertDescription::UnexpectedMessage));
        }
        Ok(())
    }

    fn asked(&mut self, asks: Asks, sinks: &mut Sinks<'_>) -> Result<(), Fault> {
        match asks {
            Asks::KeyUpdate { ours_too } => {
                self.key_updates += KEY_UPDATE_EARNED_RECORDS;
                if self.key_updates > KEY_UPDATES_MAX * KEY_UPDATE_EARNED_RECORDS {
                    return Err(Fault::bad_handshake(AlertDescription::UnexpectedMessage));
                }
                // Answered by our next data and once only, however often it asks: a client that
                // does not read cannot fill our memory with answers.
                self.update_due |= ours_too;
                let secrets = self.secrets.as_mut().ok_or(Fault::INTERNAL)?;
                self.inbound.update(&mut secrets.client).map_err(|_| Fault::INTERNAL)?;
            }
            Asks::Renegotiation => {
                self.renegotiations += 1;
                if self.renegotiations > RENEGOTIATIONS_REFUSED_MAX {
                    return Err(Fault::bad_handshake(AlertDescription::UnexpectedMessage));
                }
                self.alert(WARNING, AlertDescription::NoRenegotiation, sinks);
            }
        }
        Ok(())
    }

    /// Seals `plaintext` into records.
    ///
    /// # Errors
    /// When the keys have protected as many records as they may, and TLS 1.2 has no others.
    pub(super) fn seal(
        &mut self,
        mut plaintext: &[u8],
        records: &mut Queue,
        pool: &mut Pool,
    ) -> Result<(), Failure> {
        while !plaintext.is_empty() {
            // The last record of the keys' life tells of those that follow.
            if self.update_due || self.outbound.records_left() <= 1 {
                self.update_keys(records, pool)?;
            }
            let (payload, rest) = plaintext.split_at(plaintext.len().min(RECORD_PAYLOAD_BYTES_MAX));
            self.write(frame::APPLICATION_DATA, payload, records, pool)?;
            plaintext = rest;
        }
        Ok(())
    }

    /// RFC 8446 sections 4.6.3 and 7.2.
    fn update_keys(&mut self, records: &mut Queue, pool: &mut Pool) -> Result<(), Failure> {
        if !self.is_tls13() {
            return Err(Failure::CannotSend);
        }
        self.write(frame::HANDSHAKE, &OUR_KEY_UPDATE, records, pool)?;
        let secrets = self.secrets.as_mut().ok_or(Failure::CannotSend)?;
        self.outbound.update(&mut secrets.server).map_err(|_| Failure::CannotSend)?;
        self.update_due = false;
        Ok(())
    }

    /// Queues the `close_notify` that ends our direction.
    pub(super) fn close(&mut self, records: &mut Queue, pool: &mut Pool) {
        let alert = [WARNING, AlertDescription::CloseNotify.into()];
        // Where it cannot be sealed the client sees a cut, which is what it is.
        let _cut = self.write(frame::ALERT, &alert, records, pool);
    }

    fn alert(&mut self, level: u8, description: AlertDescription, sinks: &mut Sinks<'_>) {
        // Nothing may follow our own `close_notify`.
        if !sinks.records.ended() {
            let alert = [level, description.into()];
            // The session ends with or without its alert.
            let _unsaid = self.write(frame::ALERT, &alert, sinks.records, sinks.pool);
        }
    }

    fn write(
        &mut self,
        kind: u8,
        payload: &[u8],
        records: &mut Queue,
        pool: &mut Pool,
    ) -> Result<(), Failure> {
        let room = payload.len() + RECORD_OVERHEAD_BYTES_MAX;
        let mut sealed = Err(Unspecified);
        records.write(room, pool, |out| {
            sealed = self.outbound.seal(kind, payload, out);
            sealed.unwrap_or(0)
        });
        sealed.map(|_| ()).map_err(|Unspecified| Failure::CannotSend)
    }

    fn is_tls13(&self) -> bool {
        self.secrets.is_some()
    }
}

impl std::fmt::Debug for Records {
    // Never keys or bytes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records")
            .field("client_closed", &self.client_closed)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
