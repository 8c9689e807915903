//! The PROXY protocol's header, as a sender: what a server is told about the client before the
//! client's first byte.
//!
//! # Source
//! `proxy-protocol.txt` of `HAProxy`, versions 1 and 2; sections are those of that text.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::ProxyVersion;
use crate::limits::CLIENT_NAME_BYTES_MAX;
use crate::telemetry::labels::{Label, Suite, Version};

/// Bytes of a header, at most: version 2, IPv6, and every TLV as long as it can be.
pub const HEADER_BYTES_MAX: usize = PREFIX_BYTES
    + 2 * 16
    + 2 * 2
    + 2 * (TLV_HEADER_BYTES + FIELD_BYTES_MAX)
    + (TLV_HEADER_BYTES + SSL_FIXED_BYTES)
    + (TLV_HEADER_BYTES + CLIENT_NAME_BYTES_MAX)
    + 2 * (TLV_HEADER_BYTES + LABEL_BYTES_MAX);

/// The longest line of version 1 that we write (section 2.1).
const LINE_BYTES_MAX: usize = 104;
/// Signature, command, family and length (section 2.2).
const PREFIX_BYTES: usize = 16;
const TLV_HEADER_BYTES: usize = 3;
/// `client` and `verify` of `pp2_tlv_ssl` (section 2.2.6).
const SSL_FIXED_BYTES: usize = 5;
/// An ALPN protocol's length is one byte (RFC 7301); a name has 255 at most (RFC 1035).
const FIELD_BYTES_MAX: usize = 255;
/// The longest name of a version or suite is shorter.
const LABEL_BYTES_MAX: usize = 64;
/// The smallest segment that any path carries over IPv6: 1,280 less 40 and 20.
const SEGMENT_BYTES_MIN: usize = 1220;

const _: () = assert!(CLIENT_NAME_BYTES_MAX <= FIELD_BYTES_MAX);
const _: () = assert!(LINE_BYTES_MAX <= HEADER_BYTES_MAX);
// The receiver may insist on the header in one piece.
const _: () = assert!(HEADER_BYTES_MAX <= SEGMENT_BYTES_MIN);

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_2_PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
const TYPE_ALPN: u8 = 0x01;
const TYPE_AUTHORITY: u8 = 0x02;
const TYPE_SSL: u8 = 0x20;
const SUBTYPE_SSL_VERSION: u8 = 0x21;
const SUBTYPE_SSL_CN: u8 = 0x22;
const SUBTYPE_SSL_CIPHER: u8 = 0x23;
const CLIENT_SSL: u8 = 0x01;
/// The client showed a certificate on this connection.
const CLIENT_CERT_CONN: u8 = 0x02;
/// The client showed a certificate in this session, on this connection or an earlier one.
const CLIENT_CERT_SESS: u8 = 0x04;
/// `verify`: zero for a client certificate that was verified, else anything else.
const VERIFIED: [u8; 4] = 0_u32.to_be_bytes();
const NOT_VERIFIED: [u8; 4] = 1_u32.to_be_bytes();

/// What a server is told. Version 1 carries the addresses only.
#[derive(Debug, Clone, Copy)]
pub struct Header<'a> {
    /// Where the client comes from.
    pub client: SocketAddr,
    /// The address it reached. `None` is told as the unspecified address, port 0: the forms meant
    /// for it (`UNKNOWN`, `LOCAL`) would make the server forget the client's address too.
    pub local: Option<SocketAddr>,
    /// The negotiated application protocol.
    pub alpn: Option<&'a [u8]>,
    /// The server name that the client asked for.
    pub authority: Option<&'a str>,
    /// What was negotiated with the client; `None`: it did not speak TLS with us.
    pub tls: Option<Tls<'a>>,
}

/// What was negotiated with the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tls<'a> {
    /// Told as `TLSv1.2` or `TLSv1.3`.
    pub version: Version,
    /// Told by its OpenSSL name, see [`cipher_name`].
    pub suite: Suite,
    /// The client's certificate; `None`: it showed none.
    pub certificate: Option<Certificate<'a>>,
}

/// A client certificate that was verified; who shows a bad one comes no further than the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Certificate<'a> {
    /// The subject's common name, at most [`CLIENT_NAME_BYTES_MAX`].
    pub name: Option<&'a str>,
    /// It was shown when the session began, not on this connection.
    pub resumed: bool,
}

/// Writes the header to the front of `out` and returns its length.
///
/// `None`, with `out` in any state, when it does not fit; it always fits [`HEADER_BYTES_MAX`]
/// unless ALPN or authority are longer than 255 bytes, which TLS does not allow, or the client's
/// name is longer than [`CLIENT_NAME_BYTES_MAX`].
pub fn encode(version: ProxyVersion, header: &Header<'_>, out: &mut [u8]) -> Option<usize> {
    let mut writer = Writer { out, len: 0 };
    match version {
        ProxyVersion::V1 => line(header, &mut writer),
        ProxyVersion::V2 => binary(header, &mut writer),
    }?;
    Some(writer.len)
}

/// The suite's name in OpenSSL's spelling: the text's own example of a cipher is one, and it is
/// what servers get from `HAProxy` and therefore compare with. The suites of TLS 1.3 have the same
/// name everywhere. `None` when no suite was negotiated.
pub const fn cipher_name(suite: Suite) -> Option<&'static str> {
    Some(match suite {
        Suite::None => return None,
        Suite::Tls13Aes128GcmSha256 => "TLS_AES_128_GCM_SHA256",
        Suite::Tls13Aes256GcmSha384 => "TLS_AES_256_GCM_SHA384",
        Suite::Tls13Chacha20Poly1305Sha256 => "TLS_CHACHA20_POLY1305_SHA256",
        Suite::EcdheEcdsaAes128GcmSha256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        Suite::EcdheEcdsaAes256GcmSha384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        Suite::EcdheEcdsaChacha20Poly1305Sha256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        Suite::EcdheRsaAes128GcmSha256 => "ECDHE-RSA-AES128-GCM-SHA256",
        Suite::EcdheRsaAes256GcmSha384 => "ECDHE-RSA-AES256-GCM-SHA384",
        Suite::EcdheRsaChacha20Poly1305Sha256 => "ECDHE-RSA-CHACHA20-POLY1305",
    })
}

/// Both addresses in one family, as the header demands.
#[derive(Debug, Clone, Copy)]
enum Addresses {
    V4 { client: Ipv4Addr, local: Ipv4Addr },
    V6 { client: Ipv6Addr, local: Ipv6Addr },
}

impl Addresses {
    /// IPv4 when both are, also when a dual-stack socket shows them mapped; else IPv6, with an
    /// IPv4 address mapped (RFC 4291 section 2.5.5.2).
    fn of(client: IpAddr, local: Option<IpAddr>) -> Self {
        let client = client.to_canonical();
        let local = local.map(|local| local.to_canonical());
        match (client, local) {
            (IpAddr::V4(client), Some(IpAddr::V4(local))) => Self::V4 { client, local },
            (IpAddr::V4(client), None) => Self::V4 { client, local: Ipv4Addr::UNSPECIFIED },
            (client, local) => Self::V6 {
                client: in_ipv6(client),
                local: local.map_or(Ipv6Addr::UNSPECIFIED, in_ipv6),
            },
        }
    }
}

fn in_ipv6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn local_port(header: &Header<'_>) -> u16 {
    header.local.map_or(0, |local| local.port())
}

/// Section 2.1.
fn line(header: &Header<'_>, writer: &mut Writer<'_>) -> Option<()> {
    match Addresses::of(header.client.ip(), header.local.map(|local| local.ip())) {
        Addresses::V4 { client, local } => write!(writer, "PROXY TCP4 {client} {local}"),
        Addresses::V6 { client, local } => {
            write!(writer, "PROXY TCP6 {} {}", Groups(client), Groups(local))
        }
    }
    .ok()?;
    let (client_port, local_port) = (header.client.port(), local_port(header));
    write!(writer, " {client_port} {local_port}\r\n").ok()
}

/// An IPv6 address in groups of hexadecimal digits only: section 2.1 knows no dotted part, which
/// the usual form of a mapped address has.
struct Groups(Ipv6Addr);

impl std::fmt::Display for Groups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.to_ipv4_mapped().is_some() {
            let [.., high, low] = self.0.segments();
            write!(f, "::ffff:{high:x}:{low:x}")
        } else {
            write!(f, "{}", self.0)
        }
    }
}

/// Section 2.2.
fn binary(header: &Header<'_>, writer: &mut Writer<'_>) -> Option<()> {
    writer.put(&SIGNATURE)?;
    writer.put(&[VERSION_2_PROXY])?;
    let addresses = Addresses::of(header.client.ip(), header.local.map(|local| local.ip()));
    writer.put(&[match addresses {
        Addresses::V4 { .. } => TCP_OVER_IPV4,
        Addresses::V6 { .. } => TCP_OVER_IPV6,
    }])?;
    let length = writer.begin_length()?;
    match addresses {
        Addresses::V4 { client, local } => {
            writer.put(&client.octets())?;
            writer.put(&local.octets())?;
        }
        Addresses::V6 { client, local } => {
            writer.put(&client.octets())?;
            writer.put(&local.octets())?;
        }
    }
    writer.put(&header.client.port().to_be_bytes())?;
    writer.put(&local_port(header).to_be_bytes())?;
    if let Some(alpn) = header.alpn {
        writer.tlv(TYPE_ALPN, alpn)?;
    }
    if let Some(authority) = header.authority {
        writer.tlv(TYPE_AUTHORITY, authority.as_bytes())?;
    }
    if let Some(tls) = header.tls.filter(|tls| tls.version != Version::None) {
        ssl(tls, writer)?;
    }
    writer.end_length(length)
}

/// Section 2.2.6.
fn ssl(tls: Tls<'_>, writer: &mut Writer<'_>) -> Option<()> {
    writer.put(&[TYPE_SSL])?;
    let length = writer.begin_length()?;
    let (client, verify) = match tls.certificate {
        None => (CLIENT_SSL, NOT_VERIFIED),
        Some(Certificate { resumed: true, .. }) => (CLIENT_SSL | CLIENT_CERT_SESS, VERIFIED),
        Some(Certificate { resumed: false, .. }) => {
            (CLIENT_SSL | CLIENT_CERT_SESS | CLIENT_CERT_CONN, VERIFIED)
        }
    };
    writer.put(&[client])?;
    writer.put(&verify)?;
    writer.tlv(SUBTYPE_SSL_VERSION, tls.version.label().as_bytes())?;
    if let Some(name) = tls.certificate.and_then(|certificate| certificate.name) {
        writer.tlv(SUBTYPE_SSL_CN, name.as_bytes())?;
    }
    if let Some(cipher) = cipher_name(tls.suite) {
        writer.tlv(SUBTYPE_SSL_CIPHER, cipher.as_bytes())?;
    }
    writer.end_length(length)
}

struct Writer<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.len + bytes.len();
        self.out.get_mut(self.len..end)?.copy_from_slice(bytes);
        self.len = end;
        Some(())
    }

    fn tlv(&mut self, kind: u8, value: &[u8]) -> Option<()> {
        if value.len() > FIELD_BYTES_MAX {
            return None;
        }
        self.put(&[kind])?;
        let length = self.begin_length()?;
        self.put(value)?;
        self.end_length(length)
    }

    /// Leaves room for a length of two bytes and says where.
    fn begin_length(&mut self) -> Option<usize> {
        let at = self.len;
        self.put(&[0; 2])?;
        Some(at)
    }

    /// Fills that room with the number of bytes written since.
    fn end_length(&mut self, at: usize) -> Option<()> {
        let length = u16::try_from(self.len - (at + 2)).ok()?;
        self.out.get_mut(at..at + 2)?.copy_from_slice(&length.to_be_bytes());
        Some(())
    }
}

impl std::fmt::Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.put(text.as_bytes()).ok_or(std::fmt::Error)
    }
}

#[cfg(test)]
mod tests;
