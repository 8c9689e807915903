//! The kinds of work that are measured, with their stable names.

use rustls::ProtocolVersion;

/// How a client's handshakes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handshake {
    /// In full. The client takes tickets, as clients do, and forgets them.
    Full,
    /// Resumed from a ticket: RFC 5077 in TLS 1.2; in TLS 1.3 a PSK with a new key exchange
    /// (`psk_dhe_ke`, RFC 8446 section 4.2.9).
    Ticket,
    /// Resumed by a session ID that the server remembers (RFC 5246 section 7.3). The client does
    /// not offer tickets.
    SessionId,
}

/// One kind of work: what each connection asks and gets, over and over (closed loop).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    /// Name on the command line and in tables.
    pub(crate) name: &'static str,
    /// Connections at once.
    pub(crate) connections: usize,
    /// Bytes of one request; [`ENDLESS`]: the client never stops sending.
    pub(crate) request_bytes: u64,
    /// Bytes of one answer; [`ENDLESS`]: the origin never stops sending.
    pub(crate) answer_bytes: u64,
    /// Whether the client closes after each answer and opens a new connection.
    pub(crate) closes: bool,
    /// The one version of TLS that clients offer.
    pub(crate) version: ProtocolVersion,
    /// How clients connect.
    pub(crate) handshake: Handshake,
}

/// A request or an answer without end.
pub(crate) const ENDLESS: u64 = u64::MAX;

/// Full handshake, backend connect, one answer, close.
pub(crate) const FULL: Work = Work {
    name: "full",
    connections: 32,
    request_bytes: 100,
    answer_bytes: 100,
    closes: true,
    version: ProtocolVersion::TLSv1_3,
    handshake: Handshake::Full,
};

/// [`FULL`] in TLS 1.2.
pub(crate) const FULL12: Work = Work { name: "full12", version: ProtocolVersion::TLSv1_2, ..FULL };

/// [`FULL`], but resumed from a ticket.
pub(crate) const TICKET13: Work = Work { name: "ticket13", handshake: Handshake::Ticket, ..FULL };

/// [`FULL12`], but resumed from a ticket.
pub(crate) const TICKET12: Work = Work { name: "ticket12", handshake: Handshake::Ticket, ..FULL12 };

/// [`FULL12`], but resumed by a session ID.
pub(crate) const SESSION_ID12: Work =
    Work { name: "session_id12", handshake: Handshake::SessionId, ..FULL12 };

/// 1 KiB asked and 1 KiB answered on kept connections.
pub(crate) const REQUEST: Work = Work {
    name: "request",
    connections: 64,
    request_bytes: 1024,
    answer_bytes: 1024,
    closes: false,
    ..FULL
};

/// [`REQUEST`] with 16 KiB each way.
pub(crate) const REQUEST_16K: Work =
    Work { name: "request16k", request_bytes: 16 * 1024, answer_bytes: 16 * 1024, ..REQUEST };

/// All kinds of work, in the order they are measured and printed.
pub(crate) const ALL: [Work; 10] = [
    FULL,
    FULL12,
    TICKET13,
    TICKET12,
    SESSION_ID12,
    REQUEST,
    Work { name: "request1000", connections: 1000, ..REQUEST },
    REQUEST_16K,
    Work { name: "bulk_down", connections: 8, request_bytes: 1, answer_bytes: ENDLESS, ..REQUEST },
    Work { name: "bulk_up", connections: 8, request_bytes: ENDLESS, answer_bytes: 0, ..REQUEST },
];

impl Work {
    /// Whether progress is counted in bytes, not in operations.
    pub(crate) fn is_bulk(self) -> bool {
        self.request_bytes == ENDLESS || self.answer_bytes == ENDLESS
    }

    /// Whether connections are kept and ask again and again.
    pub(crate) fn is_kept(self) -> bool {
        !self.closes && !self.is_bulk()
    }

    /// Whether connections resume a session of an earlier one.
    pub(crate) fn resumes(self) -> bool {
        self.handshake != Handshake::Full
    }

    /// The handshake in a few words, for the head of a table.
    pub(crate) fn handshake_words(self) -> &'static str {
        let is_tls12 = self.version == ProtocolVersion::TLSv1_2;
        match self.handshake {
            Handshake::Full if is_tls12 => "TLS 1.2, full",
            Handshake::Full => "TLS 1.3, full",
            Handshake::Ticket if is_tls12 => "TLS 1.2, resumed from a ticket",
            Handshake::Ticket => "TLS 1.3, resumed from a ticket",
            Handshake::SessionId => "TLS 1.2, resumed by session ID",
        }
    }

    /// The unit of the cost printed for this work.
    pub(crate) fn unit(self) -> &'static str {
        if self.is_bulk() { "s/GiB" } else { "us/op" }
    }
}

impl std::str::FromStr for Work {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        ALL.into_iter().find(|work| work.name == name).ok_or_else(|| {
            let names: Vec<_> = ALL.iter().map(|work| work.name).collect();
            format!("no such work; there are {}", names.join(", "))
        })
    }
}
