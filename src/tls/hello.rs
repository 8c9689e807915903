//! A look at the client's first bytes, before any TLS state exists for it: is it a complete
//! `ClientHello`, and which name does it ask for?
//!
//! The bytes are only looked at; the same bytes then go to the session. Nothing is allocated. The
//! work of one call is bounded by the bytes given: headers of records are walked on each call, the
//! message itself is parsed once, when its last record is there.

use rustls_pki_types::ServerName as AnyName;

use crate::limits::{CLIENT_HELLO_RECORDS_MAX, RECORD_PAYLOAD_BYTES_MAX, SERVER_NAME_BYTES_MAX};

const RECORD_HEADER_BYTES: usize = 5;
const MESSAGE_HEADER_BYTES: usize = 4;
/// The same bound as the session's: what it refuses need not be collected.
const MESSAGE_BODY_BYTES_MAX: usize = 0xffff;

const CONTENT_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
const EXTENSION_SESSION_TICKET: u16 = 35;
const EXTENSION_PRE_SHARED_KEY: u16 = 41;
const EXTENSION_SUPPORTED_VERSIONS: u16 = 43;
/// TLS 1.3 (RFC 8446).
pub const TLS13: u16 = 0x0304;
/// TLS 1.2 (RFC 5246).
pub const TLS12: u16 = 0x0303;

/// How a plain HTTP request may begin: the methods of RFC 9110 section 9 and RFC 5789, and the
/// preface of HTTP/2 (RFC 9113 section 3.4).
const HTTP_BEGINNINGS: [&[u8]; 10] = [
    b"GET ",
    b"POST ",
    b"HEAD ",
    b"PUT ",
    b"OPTIONS ",
    b"CONNECT ",
    b"DELETE ",
    b"PATCH ",
    b"TRACE ",
    b"PRI * HTTP/2",
];

/// What a client's first bytes are.
#[derive(Debug, Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "lives on the stack for one call; a box would allocate per connection"
)]
pub enum Peek<'a> {
    /// So far nothing is wrong; more bytes are needed to tell.
    Incomplete,
    /// A whole `ClientHello`, and every record it came in.
    Complete(Hello<'a>),
    /// A plain HTTP request.
    PlainHttp,
    /// Neither a TLS record nor plain HTTP.
    NotTls,
    /// It began like TLS, and breaks its rules.
    Malformed(Fault),
}

/// What of a `ClientHello` is needed before a session exists.
#[derive(Debug, Clone)]
pub struct Hello<'a> {
    /// The host name asked for; `None` when none was sent or [`Hello::named_address`].
    pub server_name: Option<ServerName>,
    /// An IP address stood where a host name belongs. RFC 6066 section 3 forbids it, clients do it
    /// all the same; like the session, we take it for no name at all.
    pub named_address: bool,
    /// What the client is able to.
    pub client: ClientTraits,
    /// Bytes of the records that the message came in, headers included.
    pub record_bytes: usize,
    alpn: Option<Cursor<'a>>,
}

/// What a client is able to, as far as it decides how it resumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientTraits {
    /// The newest version that we know and the client offers, in `supported_versions` or, without
    /// it, in the message itself: 0x0304 is TLS 1.3 (RFC 8446 section 4.2.1).
    pub newest_version: u16,
    /// It takes session tickets of TLS 1.2 (RFC 5077 section 3.2).
    pub takes_tickets: bool,
    /// It offers to go on with an earlier session: by ticket, by pre-shared key, or, where it does
    /// not speak TLS 1.3 (which sends one for looks), by session ID. Whether that is any good is
    /// for the session to say.
    pub offers_session: bool,
}

impl Hello<'_> {
    /// Whether the client offers this application protocol (RFC 7301 section 3.1).
    pub fn alpn_contains(&self, protocol: &[u8]) -> bool {
        let Some(mut list) = self.alpn.clone() else {
            return false;
        };
        while let Some(offered) = list.length_8().and_then(|length| list.split(length)) {
            if offered.equals(protocol) {
                return true;
            }
        }
        false
    }
}

/// A host name as the client sent it in `server_name`, in lower case; letters, digits, `-`, `_`
/// and dots only. A trailing dot, forbidden by RFC 6066 section 3, is kept as the session keeps it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ServerName {
    bytes: [u8; SERVER_NAME_BYTES_MAX],
    len: u8,
}

impl ServerName {
    /// The name.
    pub fn as_str(&self) -> &str {
        // Checked to be a DNS name, thus ASCII, when it was made.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl std::fmt::Debug for ServerName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

/// Which rule was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A handshake record without content (RFC 8446 section 5.1).
    EmptyRecord,
    /// A record longer than 2^14 bytes (RFC 8446 section 5.1).
    RecordTooLong,
    /// A later record whose version is not 3.x.
    RecordVersion,
    /// More than [`CLIENT_HELLO_RECORDS_MAX`] records.
    TooManyRecords,
    /// Another message, or another kind of record, before the `ClientHello` is complete.
    UnexpectedMessage,
    /// The message says that it is longer than 65,535 bytes.
    MessageTooLong,
    /// More bytes in the `ClientHello`'s last record: a second message cannot be there yet.
    TrailingData,
    /// A length within the message contradicts another.
    Decode,
    /// An extension twice (RFC 8446 section 4.2).
    RepeatedExtension,
    /// `server_name` is neither a host name nor an IP address, or names two hosts.
    ServerName,
}

impl Fault {
    /// The alert that tells the client (RFC 8446 section 6.2).
    pub const fn alert(self) -> u8 {
        match self {
            Self::RecordTooLong => 22,
            Self::EmptyRecord | Self::TooManyRecords | Self::MessageTooLong | Self::Decode => 50,
            Self::RecordVersion => 70,
            Self::UnexpectedMessage | Self::TrailingData => 10,
            Self::RepeatedExtension | Self::ServerName => 47,
        }
    }
}

/// A whole plaintext record that carries a fatal alert, such as 112, `unrecognized_name`.
///
/// # Source
/// RFC 8446 sections 5.1 and 6; every version from TLS 1.0 on understands it.
pub const fn alert_record(description: u8) -> [u8; 7] {
    const ALERT: u8 = 21;
    const FATAL: u8 = 2;
    [ALERT, 3, 3, 0, 2, FATAL, description]
}

/// Says what a client's bytes are, from its very first byte on.
///
/// Call it again with all bytes from the first whenever more have come, until the answer is not
/// [`Peek::Incomplete`]. How many bytes to wait for at most is the caller's to bound.
pub fn peek(bytes: &[u8]) -> Peek<'_> {
    match bytes.first() {
        None => return Peek::Incomplete,
        Some(&CONTENT_HANDSHAKE) => {}
        Some(_) => return peek_plain(bytes),
    }
    match bytes.get(1) {
        None => return Peek::Incomplete,
        Some(3) => {}
        Some(_) => return Peek::NotTls,
    }
    match frame(bytes) {
        Ok(Some(framed)) => match parse(bytes, framed) {
            Ok(hello) => Peek::Complete(hello),
            Err(fault) => Peek::Malformed(fault),
        },
        Ok(None) => Peek::Incomplete,
        Err(fault) => Peek::Malformed(fault),
    }
}

fn peek_plain(bytes: &[u8]) -> Peek<'_> {
    if HTTP_BEGINNINGS.iter().any(|begin| bytes.starts_with(begin)) {
        Peek::PlainHttp
    } else if HTTP_BEGINNINGS.iter().any(|begin| begin.starts_with(bytes)) {
        Peek::Incomplete
    } else {
        Peek::NotTls
    }
}

/// Extent of a complete message.
#[derive(Debug, Clone, Copy)]
struct Framed {
    message_bytes: usize,
    record_bytes: usize,
}

/// Walks the records until the message is complete; `None`: it is not.
//= https://www.rfc-editor.org/rfc/rfc8446#section-5.1
fn frame(bytes: &[u8]) -> Result<Option<Framed>, Fault> {
    let mut rest = bytes;
    let mut message_bytes = 0;
    let mut header = [0_u8; MESSAGE_HEADER_BYTES];
    for _ in 0..CLIENT_HELLO_RECORDS_MAX {
        let Some(record_len) = record_len(rest)? else {
            return Ok(None);
        };
        let payload = rest.get(RECORD_HEADER_BYTES..).unwrap_or_default();
        let received = payload.get(..record_len).unwrap_or(payload);
        for (to, from) in header.iter_mut().skip(message_bytes).zip(received) {
            *to = *from;
        }
        let known = message_bytes + received.len();
        let expected = expected_bytes(header, known)?;
        if expected.is_some_and(|expected| message_bytes + record_len > expected) {
            return Err(Fault::TrailingData);
        }
        if received.len() < record_len {
            return Ok(None);
        }
        message_bytes += record_len;
        rest = payload.get(record_len..).unwrap_or_default();
        if expected == Some(message_bytes) {
            return Ok(Some(Framed { message_bytes, record_bytes: bytes.len() - rest.len() }));
        }
    }
    // As many as may be, and the message is not complete: the next one is refused when it begins.
    if rest.is_empty() { Ok(None) } else { Err(Fault::TooManyRecords) }
}

/// Payload length of the record that begins here; `None`: its header is not complete.
fn record_len(rest: &[u8]) -> Result<Option<usize>, Fault> {
    if rest.first().is_some_and(|kind| *kind != CONTENT_HANDSHAKE) {
        return Err(Fault::UnexpectedMessage);
    }
    if rest.get(1).is_some_and(|major| *major != 3) {
        return Err(Fault::RecordVersion);
    }
    let Some([_, _, _, high, low]) = rest.first_chunk::<RECORD_HEADER_BYTES>() else {
        return Ok(None);
    };
    match usize::from(u16::from_be_bytes([*high, *low])) {
        0 => Err(Fault::EmptyRecord),
        len if len > RECORD_PAYLOAD_BYTES_MAX => Err(Fault::RecordTooLong),
        len => Ok(Some(len)),
    }
}

/// Bytes of the message, its header included, once enough of the header is known.
fn expected_bytes(
    header: [u8; MESSAGE_HEADER_BYTES],
    known: usize,
) -> Result<Option<usize>, Fault> {
    let [kind, high, middle, low] = header;
    if known >= 1 && kind != CLIENT_HELLO {
        return Err(Fault::UnexpectedMessage);
    }
    if known < MESSAGE_HEADER_BYTES {
        return Ok(None);
    }
    let body = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
    if body > MESSAGE_BODY_BYTES_MAX {
        return Err(Fault::MessageTooLong);
    }
    Ok(Some(MESSAGE_HEADER_BYTES + body))
}

/// Reads a complete `ClientHello`.
//= https://www.rfc-editor.org/rfc/rfc8446#section-4.1.2
fn parse(bytes: &[u8], framed: Framed) -> Result<Hello<'_>, Fault> {
    let mut hello = Hello {
        server_name: None,
        named_address: false,
        client: ClientTraits { newest_version: 0, takes_tickets: false, offers_session: false },
        record_bytes: framed.record_bytes,
        alpn: None,
    };
    let mut message = Cursor::new(bytes, framed.message_bytes);
    message.split(MESSAGE_HEADER_BYTES).ok_or(Fault::Decode)?;
    hello.client.newest_version = message.u16().ok_or(Fault::Decode)?.min(TLS12);
    let (session_id_len, extensions) = extensions(&mut message).ok_or(Fault::Decode)?;
    let Some(mut extensions) = extensions else {
        hello.client.offers_session = session_id_len > 0;
        return Ok(hello);
    };
    let mut seen_name = false;
    let mut seen_versions = false;
    while !extensions.is_empty() {
        let kind = extensions.u16().ok_or(Fault::Decode)?;
        let body = extensions.vector_16().ok_or(Fault::Decode)?;
        let repeated = match kind {
            EXTENSION_SERVER_NAME => {
                read_server_name(body, &mut hello)?;
                std::mem::replace(&mut seen_name, true)
            }
            EXTENSION_ALPN => {
                let list = protocols(body).ok_or(Fault::Decode)?;
                hello.alpn.replace(list).is_some()
            }
            EXTENSION_SESSION_TICKET => {
                hello.client.offers_session |= !body.is_empty();
                std::mem::replace(&mut hello.client.takes_tickets, true)
            }
            EXTENSION_PRE_SHARED_KEY => {
                hello.client.offers_session = true;
                false
            }
            EXTENSION_SUPPORTED_VERSIONS => {
                hello.client.newest_version = newest_version(body).ok_or(Fault::Decode)?;
                std::mem::replace(&mut seen_versions, true)
            }
            // The session judges all others.
            _ => false,
        };
        if repeated {
            return Err(Fault::RepeatedExtension);
        }
    }
    hello.client.offers_session |= session_id_len > 0 && hello.client.newest_version < TLS13;
    Ok(hello)
}

/// Skips from behind the version to the extensions, and returns the session ID's length on the way.
/// Without extensions, as TLS 1.2 allows, there is no cursor; `None`: the message is broken.
fn extensions<'a>(message: &mut Cursor<'a>) -> Option<(usize, Option<Cursor<'a>>)> {
    const RANDOM_BYTES: usize = 32;
    message.split(RANDOM_BYTES)?;
    let session_id_len = message.length_8()?;
    message.split(session_id_len)?;
    message.vector_16()?; // cipher_suites
    let compressions = message.length_8()?;
    message.split(compressions)?;
    if message.is_empty() {
        return Some((session_id_len, None));
    }
    let extensions = message.vector_16()?;
    message.is_empty().then_some((session_id_len, Some(extensions)))
}

/// Reads the extension `server_name`: one host name; unknown kinds of names end the list, because
/// their length cannot be known.
//= https://www.rfc-editor.org/rfc/rfc6066#section-3
fn read_server_name(mut body: Cursor<'_>, hello: &mut Hello<'_>) -> Result<(), Fault> {
    const HOST_NAME: u8 = 0;
    let mut list = body.vector_16().ok_or(Fault::Decode)?;
    if list.is_empty() || !body.is_empty() {
        return Err(Fault::Decode);
    }
    let mut found = false;
    while let Some(HOST_NAME) = list.u8() {
        let mut raw = list.vector_16().ok_or(Fault::Decode)?;
        if raw.is_empty() {
            return Err(Fault::Decode);
        }
        if found {
            return Err(Fault::ServerName);
        }
        found = true;
        let mut name = ServerName {
            bytes: [0; SERVER_NAME_BYTES_MAX],
            len: u8::try_from(raw.left).map_err(|_| Fault::ServerName)?,
        };
        raw.copy_to(&mut name.bytes);
        name.bytes.make_ascii_lowercase();
        match AnyName::try_from(name.as_bytes()) {
            Ok(AnyName::DnsName(_)) => hello.server_name = Some(name),
            Ok(AnyName::IpAddress(_)) => hello.named_address = true,
            Ok(_) | Err(_) => return Err(Fault::ServerName),
        }
    }
    if found { Ok(()) } else { Err(Fault::ServerName) }
}

/// The list within the extension ALPN, checked to be one.
//= https://www.rfc-editor.org/rfc/rfc7301#section-3.1
fn protocols(mut body: Cursor<'_>) -> Option<Cursor<'_>> {
    let list = body.vector_16()?;
    let mut rest = list.clone();
    while !rest.is_empty() {
        let len = rest.length_8()?;
        rest.split(len)?;
    }
    (body.is_empty() && !list.is_empty()).then_some(list)
}

//= https://www.rfc-editor.org/rfc/rfc8446#section-4.2.1
fn newest_version(mut body: Cursor<'_>) -> Option<u16> {
    let len = body.length_8()?;
    let mut list = body.split(len)?;
    let mut newest = 0;
    while !list.is_empty() {
        // GREASE values (RFC 8701) and drafts lie above the versions that we know.
        newest = Some(list.u16()?).filter(|version| *version <= TLS13).unwrap_or(0).max(newest);
    }
    body.is_empty().then_some(newest)
}

/// Reads a message through the headers of the records that it is spread over.
#[derive(Debug, Clone)]
struct Cursor<'a> {
    /// What is left of the current record.
    record: &'a [u8],
    /// The records behind it.
    behind: &'a [u8],
    /// Bytes of the message that may still be read.
    left: usize,
}

impl<'a> Cursor<'a> {
    /// At the first byte of a message of which [`frame`] has seen every record.
    fn new(records: &'a [u8], left: usize) -> Self {
        Self { record: &[], behind: records, left }
    }

    fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// The next bytes that lie together, at most `max`; empty only at the end.
    fn chunk(&mut self, max: usize) -> &'a [u8] {
        if self.record.is_empty() && self.left > 0 {
            let len = record_len(self.behind).ok().flatten().unwrap_or_default();
            let payload = self.behind.get(RECORD_HEADER_BYTES..).unwrap_or_default();
            (self.record, self.behind) = payload.split_at_checked(len).unwrap_or_default();
        }
        let len = max.min(self.left).min(self.record.len());
        let (chunk, record) = self.record.split_at_checked(len).unwrap_or_default();
        self.record = record;
        self.left -= chunk.len();
        chunk
    }

    fn u8(&mut self) -> Option<u8> {
        self.chunk(1).first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.u8()?, self.u8()?]))
    }

    fn length_8(&mut self) -> Option<usize> {
        self.u8().map(usize::from)
    }

    /// The next `len` bytes as a message of their own.
    fn split(&mut self, len: usize) -> Option<Self> {
        if len > self.left {
            return None;
        }
        let part = Self { left: len, ..self.clone() };
        let mut skip = len;
        while skip > 0 {
            match self.chunk(skip).len() {
                0 => return None,
                skipped => skip -= skipped,
            }
        }
        Some(part)
    }

    /// A vector with a length of two bytes.
    fn vector_16(&mut self) -> Option<Self> {
        let len = usize::from(self.u16()?);
        self.split(len)
    }

    /// Copies as much as there is and fits.
    fn copy_to(&mut self, mut target: &mut [u8]) {
        loop {
            let chunk = self.chunk(target.len());
            if chunk.is_empty() {
                return;
            }
            let Some((head, tail)) = target.split_at_mut_checked(chunk.len()) else {
                return;
            };
            head.copy_from_slice(chunk);
            target = tail;
        }
    }

    fn equals(mut self, mut other: &[u8]) -> bool {
        if self.left != other.len() {
            return false;
        }
        while !other.is_empty() {
            let chunk = self.chunk(other.len());
            match other.strip_prefix(chunk) {
                Some(rest) if !chunk.is_empty() => other = rest,
                Some(_) | None => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests;
