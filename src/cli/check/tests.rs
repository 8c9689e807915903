//! Tests of the report, against files made on the spot.

use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use tempfile::TempDir;

use super::*;

/// A directory with a certificate for `a.example`, valid until 2060-01-01, and a configuration.
fn site(more: &str) -> (TempDir, PathBuf) {
    let directory = TempDir::new().expect("directory");
    let key = rcgen::KeyPair::generate().expect("key");
    let mut leaf = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).expect("names");
    leaf.not_before = rcgen::date_time_ymd(2020, 1, 1);
    leaf.not_after = rcgen::date_time_ymd(2060, 1, 1);
    let leaf = leaf.self_signed(&key).expect("certificate").pem();
    std::fs::write(directory.path().join("chain.pem"), leaf).expect("written");
    std::fs::write(directory.path().join("key.pem"), key.serialize_pem()).expect("written");
    let text = format!(
        "[[listener]]\nname = \"https\"\nbind = [\"127.0.0.1:8443\"]\nbackend = \"app\"\n\
         [[listener.certificate]]\nchain = \"chain.pem\"\nkey = \"key.pem\"\n\
         [[backend]]\nname = \"app\"\n[[backend.server]]\naddress = \"127.0.0.1:8080\"\n{more}"
    );
    let path = directory.path().join("portcullis.toml");
    std::fs::write(&path, text).expect("written");
    (directory, path)
}

#[test]
fn limits_of_servers_and_who_waits_are_shown() {
    let (_directory, path) = site("max_connections = 20\n[backend.queue]\nmax = 30\n");
    let report = report(&path, SystemTime::now());
    assert_eq!(report.exit_code, exit::OK, "{}", report.problems);
    for part in ["at most 20 connections", "30 clients wait in line, for 5s at most"] {
        assert!(report.text.contains(part), "{part}: {}", report.text);
    }
    fits_the_terminal(&report);
}

fn fits_the_terminal(report: &Report) {
    for line in report.text.lines().chain(report.problems.lines()) {
        let longest_word = line.split(' ').map(str::len).max().unwrap_or(0);
        assert!(
            line.chars().count() <= crate::tune::render::text::WIDTH.max(longest_word + 8),
            "{line}"
        );
    }
}

#[test]
fn good_configuration_is_shown_and_exits_with_zero() {
    let (_directory, path) = site("[limits]\nconnections_per_worker = 10\n");
    let report = report(&path, SystemTime::now());
    assert_eq!(report.problems, "");
    assert_eq!(report.exit_code, exit::OK);
    for part in [
        "names   a.example",
        "ECDSA P-256",
        "2060-01-01",
        "TLS_AES_128_GCM_SHA256",
        "X25519MLKEM768",
        "5000 full handshakes a second",
        "pinned to CPU",
        "RLIMIT_NOFILE",
    ] {
        assert!(report.text.contains(part), "{part}: {}", report.text);
    }
    assert!(!report.text.contains("warning"), "{}", report.text);
    fits_the_terminal(&report);
}

#[test]
fn limits_stand_in_the_order_in_which_they_bite() {
    let (_directory, path) = site("[limits]\nconnections_per_worker = 10\n");
    let report = report(&path, SystemTime::now());
    let (_, table) = report.text.split_once("live value").expect("the table");
    let rows = table.lines().skip(1).take(6);
    let allowed: Vec<u64> = rows
        .map(|row| row.split_whitespace().last().expect("a number").parse().expect("a number"))
        .collect();
    assert!(allowed.is_sorted(), "{allowed:?}");
    assert_eq!(allowed.len(), 6);
    let first = table.lines().nth(1).expect("a row");
    assert!(first.contains("limits.connections_per_worker"), "{first}");
}

#[test]
fn admission_shows_what_is_limited_and_what_handshakes_cost() {
    let seen = |more: &str| {
        let (_directory, path) = site(more);
        let report = report(&path, SystemTime::now());
        assert_eq!(report.problems, "");
        fits_the_terminal(&report);
        let (_, section) = report.text.split_once("Admission\n").expect("the section");
        let (section, _) = section.split_once("\n\n").expect("its end");
        section.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let unlimited = seen("");
    assert!(unlimited.contains("new connections: as many as come sources"), "{unlimited}");
    assert!(unlimited.contains("(no limits.per_source)"), "{unlimited}");
    assert!(unlimited.contains("measured just now: key full resumed ECDSA P-256"), "{unlimited}");
    let limited = seen(
        "[limits]\nconnection_rate = 77\nrefuse = \"close\"\n[limits.per_source]\n\
         connections = 66\nhandshakes = 55\nhandshake_cpu = \"44s\"\nipv6_prefix = 56\n\
         allow = [\"10.0.0.0/8\"]\nsources = 1024\n",
    );
    for part in [
        "new connections: 77 a second",
        "(IPv4 /32, IPv6 /56)",
        "66 connections",
        "55 handshakes under way",
        "44s of processor time",
        "not limited: 10.0.0.0/8",
        "1024 sources are counted side by side, in 16 KiB",
        "are closed, before any cryptography",
        " resumed a second",
    ] {
        assert!(limited.contains(part), "{part}: {limited}");
    }
}

#[test]
fn certificates_warn_from_two_weeks_before_their_expiry() {
    let (_directory, path) = site("");
    let expiry = UNIX_EPOCH + Duration::from_secs(2_840_140_800);
    let day = Duration::from_secs(86_400);
    let soon = report(&path, expiry - 13 * day);
    assert!(soon.text.contains("expires in 13 days"), "{}", soon.text);
    assert!(!report(&path, expiry - 14 * day).text.contains("warning: "));
    let late = report(&path, expiry + day);
    assert_eq!(late.exit_code, exit::CONFIG);
    assert!(late.problems.contains("expired"), "{}", late.problems);
}

#[test]
fn each_kind_of_failure_has_its_exit_code() {
    let now = SystemTime::now();
    let missing = report(Path::new("/nonexistent/portcullis.toml"), now);
    assert_eq!(missing.exit_code, exit::CONFIG);
    let (_directory, path) = site("[timeouts]\nidle = 5\n");
    let invalid = report(&path, now);
    assert_eq!(invalid.exit_code, exit::CONFIG);
    assert!(invalid.problems.contains("timeouts.idle = 5"), "{}", invalid.problems);
    let (directory, path) = site("");
    std::fs::remove_file(directory.path().join("key.pem")).expect("removed");
    let no_key = report(&path, now);
    assert_eq!(no_key.exit_code, exit::CONFIG);
    assert!(no_key.problems.contains("key.pem"), "{}", no_key.problems);
    assert!(no_key.text.contains("pinned to CPU"), "the rest is shown: {}", no_key.text);
    let (_directory, path) = site("[workers]\ncpus = \"8191\"\n");
    let foreign = report(&path, now);
    assert_eq!(foreign.exit_code, exit::CONFIG);
    assert!(foreign.problems.contains("CPU 8191"), "{}", foreign.problems);
    for report in [missing, invalid, no_key, foreign] {
        fits_the_terminal(&report);
    }
}

#[test]
fn names_that_the_certificate_does_not_cover_are_warned_of() {
    let (_directory, path) = site("");
    let text = std::fs::read_to_string(&path).expect("text");
    let named = "key = \"key.pem\"\nnames = [\"a.example\", \"b.example\"]";
    std::fs::write(&path, text.replace("key = \"key.pem\"", named)).expect("written");
    let report = report(&path, SystemTime::now());
    assert_eq!(report.exit_code, exit::OK);
    let text = report.text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("is to be served for b.example"), "{text}");
}

#[test]
fn client_certificates_are_shown_with_what_runs_out() {
    let (directory, path) = site("");
    assert!(!report(&path, SystemTime::now()).text.contains("Client certificates"));
    let year = |year| rcgen::date_time_ymd(year, 1, 1);
    let mut authorities = String::new();
    let mut list = String::new();
    for (name, until) in [("Clients", 2060), ("Others", 2050)] {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("names");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        (params.not_before, params.not_after) = (year(2020), year(until));
        authorities += &params.self_signed(&key).expect("certificate").pem();
        let issuer = rcgen::Issuer::new(params, key);
        let params = rcgen::CertificateRevocationListParams {
            this_update: year(2020),
            next_update: year(2040),
            crl_number: rcgen::SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        if list.is_empty() {
            list = params.signed_by(&issuer).expect("list").pem().expect("PEM");
        }
    }
    std::fs::write(directory.path().join("ca.pem"), authorities).expect("written");
    std::fs::write(directory.path().join("crl.pem"), list).expect("written");
    let text = std::fs::read_to_string(&path).expect("text");
    let section = "[listener.client_auth]\nmode = \"optional\"\nca = \"ca.pem\"\n";
    let seen = |more: &str, days_before: i64| {
        let with = text.replace("[[backend]]", &format!("{section}{more}[[backend]]"));
        std::fs::write(&path, with).expect("written");
        // Before 2040-01-01.
        let seconds = 2_208_988_800 - days_before * 86_400;
        let report = report(&path, UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs()));
        assert_eq!(report.problems, "");
        fits_the_terminal(&report);
        report.text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let shown = seen("crl = \"crl.pem\"\n", 10);
    for part in [
        "listener https: optional, issued by",
        "expires 2060-01-01",
        "of Clients: 0 revoked; next update 2040-01-01, 10 days left",
        "warning: listener.client_auth.crl has no list of Others",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(!shown.contains("has no list of Clients"), "{shown}");
    assert!(!shown.contains("counts for less than a day"), "{shown}");
    assert!(
        seen("crl = \"crl.pem\"\n", 0).contains("the list of Clients counts for less than a day")
    );
    let shown = seen("", -3650 + 10);
    assert!(shown.contains("revocation is not checked"), "{shown}");
    assert!(shown.contains("Others in") && shown.contains("expires in 13 days"), "{shown}");
}

#[test]
fn dates_are_those_of_the_calendar() {
    assert_eq!(date(0), "1970-01-01");
    assert_eq!(date(951_782_400), "2000-02-29");
    assert_eq!(date(2_840_140_800), "2060-01-01");
    assert_eq!(date(4_107_542_399), "2100-02-28");
    assert_eq!(date(4_107_542_400), "2100-03-01");
    assert_eq!(date(-1), "1970-01-01");
}
