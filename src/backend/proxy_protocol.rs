//! The PROXY protocol's header, as a sender: what a server is told about the client before the
//! client's first byte.
//!
//! # Source
//! `proxy-protocol.txt` of `HAProxy`, versions 1 and 2; sections are those of that text.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::ProxyVersion;
use crate::telemetry::labels::{Label, Suite, Version};

/// Bytes of a header, at most: version 2, IPv6, and every TLV as long as it can be.
pub const HEADER_BYTES_MAX: usize = PREFIX_BYTES
    + 2 * 16
    + 2 * 2
    + 2 * (TLV_HEADER_BYTES + FIELD_BYTES_MAX)
    + (TLV_HEADER_BYTES + SSL_FIXED_BYTES)
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
const SUBTYPE_SSL_CIPHER: u8 = 0x23;
const CLIENT_SSL: u8 = 0x01;
/// `verify`: anything but zero, which would claim a verified client certificate.
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
    pub tls: Option<Tls>,
}

/// What was negotiated with the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tls {
    /// Told as `TLSv1.2` or `TLSv1.3`.
    pub version: Version,
    /// Told by its OpenSSL name, see [`cipher_name`].
    pub suite: Suite,
}

/// Writes the header to the front of `out` and returns its length.
///
/// `None`, with `out` in any state, when it does not fit; it always fits [`HEADER_BYTES_MAX`]
/// unless ALPN or authority are longer than 255 bytes, which TLS does not allow.
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
            (IpAddr::V4(client), None) => Self::V4 {
                client,
                local: Ipv4Addr::UNSPECIFIED,
            },
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
fn ssl(tls: Tls, writer: &mut Writer<'_>) -> Option<()> {
    writer.put(&[TYPE_SSL])?;
    let length = writer.begin_length()?;
    writer.put(&[CLIENT_SSL])?;
    writer.put(&NOT_VERIFIED)?;
    writer.tlv(SUBTYPE_SSL_VERSION, tls.version.label().as_bytes())?;
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
        self.out
            .get_mut(at..at + 2)?
            .copy_from_slice(&length.to_be_bytes());
        Some(())
    }
}

impl std::fmt::Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.put(text.as_bytes()).ok_or(std::fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(client: &str, local: Option<&str>) -> Header<'static> {
        Header {
            client: client.parse().unwrap(),
            local: local.map(|local| local.parse().unwrap()),
            alpn: None,
            authority: None,
            tls: None,
        }
    }

    fn encoded(version: ProxyVersion, header: &Header<'_>) -> Vec<u8> {
        let mut out = [0xee; HEADER_BYTES_MAX];
        let len = encode(version, header, &mut out).unwrap();
        assert!(
            out[len..].iter().all(|byte| *byte == 0xee),
            "wrote behind the header"
        );
        for short in 0..len {
            assert_eq!(encode(version, header, &mut vec![0; short]), None);
        }
        out[..len].to_vec()
    }

    fn v1(client: &str, local: Option<&str>) -> String {
        String::from_utf8(encoded(ProxyVersion::V1, &header(client, local))).unwrap()
    }

    fn v2(client: &str, local: Option<&str>) -> Vec<u8> {
        encoded(ProxyVersion::V2, &header(client, local))
    }

    /// The text's own example of a line.
    #[test]
    fn line_for_ipv4() {
        assert_eq!(
            v1("192.168.0.1:56324", Some("192.168.0.11:443")),
            "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
        );
    }

    #[test]
    fn line_for_ipv6_has_no_scope_and_no_brackets() {
        assert_eq!(
            v1("[fe80::1%3]:1", Some("[2001:db8::2]:65535")),
            "PROXY TCP6 fe80::1 2001:db8::2 1 65535\r\n"
        );
    }

    #[test]
    fn mapped_addresses_of_a_dual_stack_socket_are_ipv4() {
        assert_eq!(
            v1("[::ffff:192.0.2.1]:5", Some("[::ffff:192.0.2.2]:443")),
            "PROXY TCP4 192.0.2.1 192.0.2.2 5 443\r\n"
        );
        assert_eq!(
            v2("[::ffff:192.0.2.1]:5", Some("192.0.2.2:443")),
            v2("192.0.2.1:5", Some("192.0.2.2:443"))
        );
    }

    #[test]
    fn families_that_differ_meet_in_ipv6() {
        assert_eq!(
            v1("192.0.2.1:5", Some("[2001:db8::2]:443")),
            "PROXY TCP6 ::ffff:c000:201 2001:db8::2 5 443\r\n"
        );
        let bytes = v2("[2001:db8::2]:5", Some("192.0.2.1:443"));
        assert_eq!(bytes[13..16], [0x21, 0, 36]);
        assert_eq!(
            bytes[32..48],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]
        );
    }

    #[test]
    fn unknown_local_address_does_not_cost_the_client_s() {
        assert_eq!(
            v1("192.0.2.1:5", None),
            "PROXY TCP4 192.0.2.1 0.0.0.0 5 0\r\n"
        );
        assert_eq!(
            v1("[2001:db8::2]:5", None),
            "PROXY TCP6 2001:db8::2 :: 5 0\r\n"
        );
        let bytes = v2("192.0.2.1:5", None);
        assert_eq!(
            bytes[12..],
            [0x21, 0x11, 0, 12, 192, 0, 2, 1, 0, 0, 0, 0, 0, 5, 0, 0]
        );
    }

    #[test]
    fn longest_line_has_the_length_that_the_text_gives() {
        let address = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
        assert_eq!(v1(address, Some(address)).len(), LINE_BYTES_MAX);
        let address = "255.255.255.255:65535";
        assert_eq!(v1(address, Some(address)).len(), 56);
    }

    #[test]
    fn binary_for_ipv4() {
        assert_eq!(
            v2("192.168.0.1:56324", Some("192.168.0.11:443")),
            [
                0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54,
                0x0a, // signature
                0x21, 0x11, 0x00, 0x0c, // version 2, PROXY; TCP over IPv4; 12 bytes follow
                0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8, 0x00, 0x0b, // addresses
                0xdc, 0x04, 0x01, 0xbb, // ports
            ]
        );
    }

    #[test]
    fn binary_for_ipv6() {
        let bytes = v2("[2001:db8::1]:1", Some("[2001:db8::2]:443"));
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00\x24".to_vec();
        for last in [1, 2] {
            expected.extend([
                0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last,
            ]);
        }
        expected.extend([0, 1, 1, 0xbb]);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn binary_tells_alpn_authority_and_tls() {
        let bytes = encoded(
            ProxyVersion::V2,
            &Header {
                alpn: Some(b"h2"),
                authority: Some("app.example"),
                tls: Some(Tls {
                    version: Version::Tls13,
                    suite: Suite::Tls13Aes128GcmSha256,
                }),
                ..header("192.168.0.1:56324", Some("192.168.0.11:443"))
            },
        );
        // 12 addresses, 3 + 2 ALPN, 3 + 11 authority, 3 + 5 TLS, 3 + 7 version, 3 + 22 cipher.
        assert_eq!(bytes[14..16], [0, 74]);
        assert_eq!(bytes.len(), 16 + 74);
        let expected = [
            &b"\x01\x00\x02h2"[..],
            b"\x02\x00\x0bapp.example",
            b"\x20\x00\x28\x01\x00\x00\x00\x01",
            b"\x21\x00\x07TLSv1.3",
            b"\x23\x00\x16TLS_AES_128_GCM_SHA256",
        ];
        assert_eq!(bytes[28..], expected.concat());
    }

    #[test]
    fn cipher_of_tls12_has_the_name_that_openssl_gives() {
        let suite = Suite::EcdheRsaAes128GcmSha256;
        assert_eq!(cipher_name(suite), Some("ECDHE-RSA-AES128-GCM-SHA256"));
        for suite in Suite::ALL {
            let name = cipher_name(*suite).unwrap_or_default();
            assert!(name.len() <= LABEL_BYTES_MAX);
            assert!(!name.contains("WITH"));
        }
    }

    #[test]
    fn longest_fields_fit_and_longer_ones_are_refused() {
        let text = "x".repeat(FIELD_BYTES_MAX + 1);
        let longest = &text[1..];
        let address = Some("[2001:db8::1]:1");
        let full = Header {
            alpn: Some(longest.as_bytes()),
            authority: Some(longest),
            tls: Some(Tls {
                version: Version::Tls12,
                suite: Suite::EcdheEcdsaAes256GcmSha384,
            }),
            ..header("[2001:db8::1]:1", address)
        };
        assert!(encoded(ProxyVersion::V2, &full).len() <= HEADER_BYTES_MAX);
        let too_long = Header {
            authority: Some(&text),
            ..full
        };
        assert_eq!(encode(ProxyVersion::V2, &too_long, &mut [0; 2000]), None);
    }
}
