//! Handshakes with clients that are not ours: what is offered is negotiated, what is not is
//! refused with the alert that the RFC names, and both are counted.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::kx_group;

use crate::support::backend::Backend;
use crate::support::certificates::{Kind, authority_file};
use crate::support::client;
use crate::support::peers::peer;
use crate::support::process::{all, run};
use crate::support::server::{NAME, Server, Setup};

const LIMIT: Duration = Duration::from_secs(60);

/// Says hello to every client and ends.
fn greeter() -> Backend {
    Backend::new(|mut stream| {
        use std::io::Write;
        _ = stream.write_all(b"hello from behind\n");
    })
}

/// Runs `openssl s_client` with `args` until the server ends the connection; its whole output.
fn s_client(openssl: &Path, server: &Server, args: &[&str]) -> String {
    let authority = authority_file(server.dir());
    let mut command = Command::new(openssl);
    command
        .args(["s_client", "-connect", &server.address.to_string(), "-CAfile"])
        .arg(authority)
        .args(["-verify_return_error", "-ign_eof"])
        .args(args);
    if !args.contains(&"-servername") && !args.contains(&"-noservername") {
        command.args(["-servername", NAME]);
    }
    all(&run(&mut command, b"", LIMIT))
}

#[track_caller]
fn assert_greeted(output: &str) {
    assert!(output.contains("hello from behind"), "{output}");
    assert!(output.contains("Verify return code: 0 (ok)"), "{output}");
}

#[test]
fn openssl_negotiates_each_version_and_suite_and_the_metrics_name_it() {
    let Some(openssl) = peer("openssl") else {
        return;
    };
    let server = Setup::new(greeter()).certificate(Kind::Rsa, &[NAME]).start();
    let tls13 =
        ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];
    for suite in tls13 {
        let output = s_client(&openssl, &server, &["-tls1_3", "-ciphersuites", suite]);
        assert_greeted(&output);
        assert!(output.contains(&format!("TLSv1.3, Cipher is {suite}")), "{output}");
        server.wait_metric(
            &format!("portcullis_handshakes_by_suite_total{{suite=\"{suite}\"}}"),
            1.0,
        );
    }
    let tls12 = [
        ("ECDHE-ECDSA-AES128-GCM-SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
        ("ECDHE-ECDSA-AES256-GCM-SHA384", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
        ("ECDHE-ECDSA-CHACHA20-POLY1305", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"),
        ("ECDHE-RSA-AES128-GCM-SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
        ("ECDHE-RSA-AES256-GCM-SHA384", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"),
        ("ECDHE-RSA-CHACHA20-POLY1305", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"),
    ];
    for (openssl_name, suite) in tls12 {
        let output = s_client(&openssl, &server, &["-tls1_2", "-cipher", openssl_name]);
        assert_greeted(&output);
        assert!(output.contains(&format!("TLSv1.2, Cipher is {openssl_name}")), "{output}");
        server.wait_metric(
            &format!("portcullis_handshakes_by_suite_total{{suite=\"{suite}\"}}"),
            1.0,
        );
    }
    server.wait_metric("portcullis_handshakes_by_version_total{version=\"TLSv1.3\"}", 3.0);
    server.wait_metric("portcullis_handshakes_by_version_total{version=\"TLSv1.2\"}", 6.0);
    server.wait_handshakes("ok", 9);
}

#[test]
fn openssl_negotiates_each_group_in_both_versions() {
    let Some(openssl) = peer("openssl") else {
        return;
    };
    let server = Server::before(greeter());
    for version in ["-tls1_3", "-tls1_2"] {
        for (group, shown) in
            [("X25519", "X25519"), ("P-256", "ECDH, prime256v1"), ("P-384", "ECDH, secp384r1")]
        {
            // OpenSSL reads the certificate's curve from the same list in TLS 1.2, so P-256 is
            // offered too, last.
            let groups = if group == "P-256" || version == "-tls1_3" {
                group.to_owned()
            } else {
                format!("{group}:P-256")
            };
            let output = s_client(&openssl, &server, &[version, "-groups", &groups]);
            assert_greeted(&output);
            if version == "-tls1_3" {
                assert!(output.contains(&format!("Server Temp Key: {shown}")), "{output}");
            }
        }
    }
    let metrics = server.metrics();
    for group in ["X25519", "P-256", "P-384"] {
        let count =
            metrics.get(&format!("portcullis_handshakes_by_group_total{{group=\"{group}\"}}"));
        assert!(count >= 1.0, "{group}: {count}");
    }
}

#[test]
fn the_hybrid_group_is_negotiated_and_counted() {
    let server = Server::before(Backend::echo());
    let mut provider = client::provider();
    provider.kx_groups = vec![kx_group::X25519MLKEM768];
    let config = Arc::new(client::config_with(provider, &[&rustls::version::TLS13]));
    let mut tls = client::try_connect(&config, server.address, NAME).unwrap();
    client::echo(&mut tls, b"post-quantum");
    assert_eq!(
        tls.conn.negotiated_key_exchange_group().unwrap().name(),
        rustls::NamedGroup::X25519MLKEM768
    );
    client::finish(tls);
    server.wait_metric("portcullis_handshakes_by_group_total{group=\"X25519MLKEM768\"}", 1.0);
}

#[test]
fn a_group_that_needs_a_retry_request_is_negotiated() {
    // The client's key share is X25519, the server wants P-384: HelloRetryRequest.
    let server = Setup::new(Backend::echo()).tables("[tls]\ngroups = [\"P-384\"]").start();
    let mut provider = client::provider();
    provider.kx_groups = vec![kx_group::X25519, kx_group::SECP384R1];
    let config = Arc::new(client::config_with(provider, &[&rustls::version::TLS13]));
    let mut tls = client::try_connect(&config, server.address, NAME).unwrap();
    client::echo(&mut tls, b"second hello");
    client::finish(tls);
    server.wait_metric("portcullis_handshakes_by_group_total{group=\"P-384\"}", 1.0);
}

#[test]
fn a_client_gets_the_certificate_it_can_verify_and_ecdsa_first() {
    let Some(openssl) = peer("openssl") else {
        return;
    };
    let server = Setup::new(greeter()).certificate(Kind::Rsa, &[NAME]).start();
    for (algorithms, shown) in [
        ("ECDSA+SHA256:RSA-PSS+SHA256", "Peer signature type: ECDSA"),
        ("RSA-PSS+SHA256:ECDSA+SHA256", "Peer signature type: ECDSA"),
        ("ECDSA+SHA256", "Peer signature type: ECDSA"),
        ("RSA-PSS+SHA256", "Peer signature type: RSA-PSS"),
    ] {
        // `-verify_return_error` would also check the authority's ECDSA signature against the
        // list; s_client verifies by its own trust store, not by the list, so it stays in force.
        let output = s_client(&openssl, &server, &["-tls1_3", "-sigalgs", algorithms]);
        assert!(output.contains("hello from behind"), "{algorithms}: {output}");
        assert!(output.contains(shown), "{algorithms}: {output}");
    }
}

#[test]
fn no_certificate_for_the_clients_signature_algorithms_is_refused_and_counted() {
    let Some(openssl) = peer("openssl") else {
        return;
    };
    let server = Server::before(greeter());
    let output = s_client(&openssl, &server, &["-tls1_3", "-sigalgs", "RSA-PSS+SHA256"]);
    assert!(output.contains("SSL alert number 40"), "{output}");
    server.wait_handshakes("no_shared_certificate", 1);
}

/// The common name of the certificate that a client who asks for `name` gets.
fn subject(openssl: &Path, server: &Server, name: Option<&str>) -> String {
    let args = match name {
        Some(name) => vec!["-servername", name],
        None => vec!["-noservername"],
    };
    let output = s_client(openssl, server, &args);
    assert!(output.contains("hello from behind"), "{name:?}: {output}");
    output
        .lines()
        .find_map(|line| line.strip_prefix("subject=CN = "))
        .unwrap_or_else(|| panic!("no subject: {output}"))
        .to_owned()
}

#[test]
fn the_server_name_selects_the_certificate_exact_before_wildcard_before_default() {
    let Some(openssl) = peer("openssl") else {
        return;
    };
    let server = Setup::new(greeter())
        .certificate(Kind::Ecdsa, &["*.wild.test"])
        .certificate(Kind::Ecdsa, &["exact.wild.test"])
        .start();
    for (asked, got) in [
        (Some("exact.wild.test"), "exact.wild.test"),
        (Some("EXACT.Wild.test"), "exact.wild.test"),
        (Some("other.wild.test"), "*.wild.test"),
        // A wildcard stands for one label (RFC 6125 section 6.4.3).
        (Some("too.deep.wild.test"), NAME),
        (Some("unknown.test"), NAME),
        (None, NAME),
    ] {
        assert_eq!(subject(&openssl, &server, asked), got, "{asked:?}");
    }
}

#[test]
fn configured_names_replace_those_of_the_certificate() {
    let Some(openssl) = peer("openssl") else {
        return;
    };
    let mut setup = Setup::new(greeter()).certificate(Kind::Ecdsa, &["inside.test"]);
    setup.certificates[1].1 = vec!["configured.test".to_owned()];
    let server = setup.start();
    assert_eq!(subject(&openssl, &server, Some("configured.test")), "inside.test");
    assert_eq!(subject(&openssl, &server, Some("inside.test")), NAME);
}

#[test]
fn an_unknown_name_is_refused_with_its_alert_where_so_configured() {
    let Some(openssl) = peer("openssl") else {
        return;
    };
    let server = Setup::new(greeter()).listener("unknown_name = \"refuse\"").start();
    assert_greeted(&s_client(&openssl, &server, &[]));
    for version in ["-tls1_3", "-tls1_2"] {
        for name in [&["-servername", "unknown.test"][..], &["-noservername"]] {
            let args: Vec<&str> = [version].iter().chain(name).copied().collect();
            let output = s_client(&openssl, &server, &args);
            assert!(output.contains("SSL alert number 112"), "{args:?}: {output}");
        }
    }
    server.wait_handshakes("unrecognized_name", 4);
    server.wait_closed("handshake_failed", 4);
}

#[test]
fn alpn_follows_the_servers_order_and_is_left_out_without_being_asked() {
    let Some(openssl) = peer("openssl") else {
        return;
    };
    let server = Setup::new(greeter()).listener("alpn = [\"h2\", \"http/1.1\"]").start();
    for (asked, shown) in [
        ("http/1.1,h2", "ALPN protocol: h2"),
        ("h2", "ALPN protocol: h2"),
        ("http/1.1,spdy/1", "ALPN protocol: http/1.1"),
    ] {
        let output = s_client(&openssl, &server, &["-alpn", asked]);
        assert_greeted(&output);
        assert!(output.contains(shown), "{asked}: {output}");
    }
    let output = s_client(&openssl, &server, &[]);
    assert_greeted(&output);
    assert!(output.contains("No ALPN negotiated"), "{output}");
}

#[test]
fn alpn_without_overlap_gets_its_alert() {
    let Some(openssl) = peer("openssl") else {
        return;
    };
    let server = Setup::new(greeter()).listener("alpn = [\"h2\", \"http/1.1\"]").start();
    for version in ["-tls1_3", "-tls1_2"] {
        let output = s_client(&openssl, &server, &[version, "-alpn", "spdy/1"]);
        assert!(output.contains("SSL alert number 120"), "{version}: {output}");
    }
    server.wait_handshakes("no_application_protocol", 2);
}

#[test]
fn a_version_that_is_not_offered_gets_protocol_version() {
    let Some(openssl) = peer("openssl") else {
        return;
    };
    let server = Server::before(greeter());
    let legacy = ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"];
    let output = s_client(&openssl, &server, &legacy);
    assert!(output.contains("SSL alert number 70"), "{output}");
    server.wait_handshakes("no_shared_version", 1);

    let server = Setup::new(greeter()).tables("[tls]\nversions = [\"1.3\"]").start();
    assert_greeted(&s_client(&openssl, &server, &["-tls1_3"]));
    let output = s_client(&openssl, &server, &["-tls1_2"]);
    assert!(output.contains("SSL alert number 70"), "{output}");
    server.wait_handshakes("no_shared_version", 1);
}

#[test]
fn no_shared_suite_and_no_shared_group_are_told_apart() {
    let Some(openssl) = peer("openssl") else {
        return;
    };
    let server = Setup::new(greeter()).tables("[tls]\ngroups = [\"X25519\"]").start();
    let output = s_client(&openssl, &server, &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA"]);
    assert!(output.contains("SSL alert number 40"), "{output}");
    server.wait_handshakes("no_shared_cipher", 1);
    for version in ["-tls1_2", "-tls1_3"] {
        let output = s_client(&openssl, &server, &[version, "-groups", "P-384"]);
        assert!(output.contains("SSL alert number 40"), "{version}: {output}");
    }
    server.wait_handshakes("no_shared_group", 2);
}

#[test]
fn the_configured_suites_are_the_only_ones() {
    let Some(openssl) = peer("openssl") else {
        return;
    };
    let server = Setup::new(greeter())
        .tables(
            "[tls]\ncipher_suites = [\"TLS_AES_256_GCM_SHA384\", \
             \"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384\"]",
        )
        .start();
    let output = s_client(&openssl, &server, &["-tls1_3"]);
    assert!(output.contains("Cipher is TLS_AES_256_GCM_SHA384"), "{output}");
    let output = s_client(&openssl, &server, &["-tls1_2"]);
    assert!(output.contains("Cipher is ECDHE-ECDSA-AES256-GCM-SHA384"), "{output}");
    let output =
        s_client(&openssl, &server, &["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"]);
    assert!(output.contains("SSL alert number 40"), "{output}");
    server.wait_handshakes("no_shared_cipher", 1);
}

#[test]
fn openssl_receives_close_notify_in_both_versions() {
    let Some(openssl) = peer("openssl") else {
        return;
    };
    let server = Server::before(greeter());
    for version in ["-tls1_3", "-tls1_2"] {
        let output = s_client(&openssl, &server, &[version, "-msg"]);
        assert_greeted(&output);
        let received = output.lines().any(|line| {
            line.starts_with("<<<") && line.contains("Alert") && line.contains("close_notify")
        });
        assert!(received, "{version}: {output}");
    }
}

#[test]
fn both_record_layers_relay_with_every_suite_and_change_their_keys() {
    let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i % 251).to_le_bytes()[0]).collect();
    for layer in ["lean", "rustls"] {
        let server = Setup::new(Backend::echo())
            .certificate(Kind::Rsa, &[NAME])
            .tables(&format!("[tls]\nrecord_layer = \"{layer}\""))
            .start();
        for suite in client::provider().cipher_suites {
            let mut provider = client::provider();
            provider.cipher_suites = vec![suite];
            let version = [suite.version()];
            let config = Arc::new(client::config_with(provider, &version));
            let mut tls = client::try_connect(&config, server.address, NAME).unwrap();
            client::echo(&mut tls, &bytes);
            if suite.tls13().is_some() {
                // rustls asks for our new keys along with its own.
                tls.conn.refresh_traffic_keys().unwrap();
            }
            for len in [1, 16_384, 16_385] {
                client::echo(&mut tls, &bytes[..len]);
            }
            client::finish(tls);
        }
        server.wait_metric("portcullis_connections_closed_total{reason=\"finished\"}", 9.0);
    }
}

#[test]
fn gnutls_verifies_the_chain_and_negotiates_each_version() {
    let Some(gnutls) = peer("gnutls-cli") else {
        return;
    };
    let server = Server::before(greeter());
    let authority = authority_file(server.dir());
    let (ip, port) = (server.address.ip().to_string(), server.address.port().to_string());
    for (priority, shown) in [
        ("NORMAL:-VERS-ALL:+VERS-TLS1.3", "(TLS1.3"),
        ("NORMAL:-VERS-ALL:+VERS-TLS1.2", "(TLS1.2"),
        ("NORMAL:-GROUP-ALL:+GROUP-SECP384R1", "SECP384R1"),
        ("NORMAL:-GROUP-ALL:+GROUP-SECP256R1", "SECP256R1"),
    ] {
        let mut command = Command::new(&gnutls);
        command
            .args(["--x509cafile"])
            .arg(&authority)
            .args(["--priority", priority, "--port", &port])
            .args(["--sni-hostname", NAME, "--verify-hostname", NAME, &ip]);
        let output = all(&run(&mut command, b"", LIMIT));
        assert!(output.contains("The certificate is trusted"), "{priority}: {output}");
        assert!(output.contains("hello from behind"), "{priority}: {output}");
        assert!(output.contains(shown), "{priority}: {output}");
        assert!(!output.contains("was not properly terminated"), "{priority}: {output}");
    }
}
