//! Headers, byte by byte, against the text of the protocol.

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
    assert!(out[len..].iter().all(|byte| *byte == 0xee), "wrote behind the header");
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
    assert_eq!(bytes[32..48], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]);
}

#[test]
fn unknown_local_address_does_not_cost_the_client_s() {
    assert_eq!(v1("192.0.2.1:5", None), "PROXY TCP4 192.0.2.1 0.0.0.0 5 0\r\n");
    assert_eq!(v1("[2001:db8::2]:5", None), "PROXY TCP6 2001:db8::2 :: 5 0\r\n");
    let bytes = v2("192.0.2.1:5", None);
    assert_eq!(bytes[12..], [0x21, 0x11, 0, 12, 192, 0, 2, 1, 0, 0, 0, 0, 0, 5, 0, 0]);
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
        expected.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
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
                certificate: None,
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

/// The SSL TLV (section 2.2.6) of a client with this certificate.
fn ssl_value(certificate: Option<Certificate<'static>>) -> Vec<u8> {
    let tls = Tls { version: Version::Tls12, suite: Suite::None, certificate };
    let header = Header { tls: Some(tls), ..header("192.0.2.1:5", Some("192.0.2.2:443")) };
    encoded(ProxyVersion::V2, &header)[28..].to_vec()
}

#[test]
fn client_certificate_sets_flags_verify_and_name() {
    let version = b"\x21\x00\x07TLSv1.2";
    let without = ssl_value(None);
    assert_eq!(without, [&b"\x20\x00\x0f\x01\x00\x00\x00\x01"[..], version].concat());
    let alice = Certificate { name: Some("alice"), resumed: false };
    let here = ssl_value(Some(alice));
    let expected = [&b"\x20\x00\x17\x07\x00\x00\x00\x00"[..], version, b"\x22\x00\x05alice"];
    assert_eq!(here, expected.concat());
    // Shown when the session began: PP2_CLIENT_CERT_SESS without PP2_CLIENT_CERT_CONN.
    let earlier = ssl_value(Some(Certificate { resumed: true, ..alice }));
    assert_eq!((earlier[3], &earlier[4..]), (0x05, &here[4..]));
    let nameless = ssl_value(Some(Certificate { name: None, resumed: false }));
    assert_eq!(nameless, [&b"\x20\x00\x0f\x07\x00\x00\x00\x00"[..], version].concat());
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
            certificate: Some(Certificate { name: Some(longest), resumed: false }),
        }),
        ..header("[2001:db8::1]:1", address)
    };
    assert!(encoded(ProxyVersion::V2, &full).len() <= HEADER_BYTES_MAX);
    let too_long = Header { authority: Some(&text), ..full };
    assert_eq!(encode(ProxyVersion::V2, &too_long, &mut [0; 2000]), None);
}
