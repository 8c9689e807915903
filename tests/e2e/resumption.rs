//! Clients that come back: they resume on every worker and on every machine with the same secret,
//! and nowhere else; each that does not is counted with the reason.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::backend::Backend;
use crate::support::certificates::{Authority, authority_file};
use crate::support::client;
use crate::support::peers::peer;
use crate::support::process::{all, run};
use crate::support::server::{BINARY, NAME, Server, Setup};

const LIMIT: Duration = Duration::from_secs(120);

const KINDS: [&str; 3] = ["psk", "ticket", "session_id"];

/// Clients that come back in a test of many; more by the environment's `PORTCULLIS_RETURNS`.
fn returns() -> u32 {
    let wanted = std::env::var("PORTCULLIS_RETURNS");
    wanted.map_or(500, |count| count.parse().expect("PORTCULLIS_RETURNS is a number"))
}

/// Clients of one kind that come back with the session of the one before; what Python says.
fn come_back(python: &Path, kind: &str, name: &str, count: u32, to: &[SocketAddr]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/returning.py");
    let mut command = Command::new(python);
    command.arg(script).args([kind, name, &count.to_string()]);
    command.args(to.iter().map(ToString::to_string));
    all(&run(&mut command, b"", LIMIT))
}

fn resumptions(kind: &str, result: &str) -> String {
    format!("portcullis_resumptions_total{{kind=\"{kind}\",result=\"{result}\"}}")
}

#[test]
fn every_client_of_python_resumes_on_every_worker() {
    let Some(python) = peer("python3") else {
        return;
    };
    let server = Setup::new(Backend::echo()).workers(4).start();
    let count = returns();
    for kind in KINDS {
        let told = come_back(&python, kind, NAME, count, &[server.address]);
        assert!(told.contains(&format!("{count} of {count} resumed")), "{kind}: {told}");
        server.wait_metric(&resumptions(kind, "resumed"), f64::from(count));
    }
    let metrics = server.metrics();
    for worker in 0..4 {
        let here = metrics.get(&format!(
            "portcullis_resumptions_total{{worker=\"{worker}\",result=\"resumed\"}}"
        ));
        assert!(here > 0.0, "nobody came to worker {worker}");
    }
    assert_eq!(metrics.get("portcullis_resumptions_total"), f64::from(3 * count), "no miss");
}

/// Two processes that know nothing of each other but the secret file.
#[test]
fn two_machines_with_one_secret_accept_each_others_tickets_across_an_epoch() {
    let Some(python) = peer("python3") else {
        return;
    };
    let shared = tempfile::tempdir().unwrap();
    let secrets = ["one", "other"].map(|name| shared.path().join(name));
    let mut command = Command::new(BINARY);
    let made = run(command.args(["secret", "--epoch", "10s"]).arg(&secrets[0]), b"", LIMIT);
    assert!(made.status.success(), "{}", all(&made));
    std::fs::copy(&secrets[0], &secrets[1]).unwrap();
    let before = std::fs::read_to_string(&secrets[0]).unwrap();
    let [one, other] = secrets.each_ref().map(|secret| {
        let table = format!("[resumption]\nsecret_file = {secret:?}\nepoch = \"10s\"");
        Setup::new(Backend::echo()).tables(&table).start()
    });
    let both = [one.address, other.address];
    let begun = epoch();
    // At once, and then until another epoch has begun and its keys are in use.
    while epoch() < begun + 2 {
        for kind in ["psk", "ticket"] {
            let told = come_back(&python, kind, NAME, 20, &both);
            assert!(told.contains("20 of 20 resumed"), "{kind}: {told}\n{}", one.log());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(one.log().contains("a new epoch of ticket keys"), "{}", one.log());
    for secret in &secrets {
        let after = std::fs::read_to_string(secret).unwrap();
        let line = before.lines().last().unwrap();
        assert!(!after.contains(line), "the secret on disk is that of a past epoch: {after}");
    }
}

/// Number of the epoch of ten seconds.
fn epoch() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 10
}

#[test]
fn machines_with_secrets_of_their_own_do_not() {
    let Some(python) = peer("python3") else {
        return;
    };
    let [one, other] = [(); 2].map(|()| Server::before(Backend::echo()));
    for kind in KINDS {
        let told = come_back(&python, kind, NAME, 1, &[one.address]);
        assert!(told.contains("1 of 1 resumed"), "{kind}: {told}");
        let told = come_back(&python, kind, NAME, 4, &[one.address, other.address]);
        // One, other, one, other: only the first return finds the machine it knows.
        assert!(told.contains("1 of 4 resumed"), "{kind}: {told}");
    }
    other.wait_metric(&resumptions("psk", "unknown_epoch"), 2.0);
    other.wait_metric(&resumptions("ticket", "unknown_epoch"), 2.0);
    other.wait_metric(&resumptions("session_id", "not_found"), 2.0);
}

/// Whether a client of `openssl s_client` resumes, with a session from a file or into a file.
struct Openssl<'a> {
    program: PathBuf,
    server: &'a Server,
    session: PathBuf,
}

impl<'a> Openssl<'a> {
    fn new(server: &'a Server) -> Option<Self> {
        Some(Self { program: peer("openssl")?, server, session: server.dir().join("session") })
    }

    fn run(&self, address: SocketAddr, name: &str, args: &[&str]) -> String {
        let mut command = Command::new(&self.program);
        command.args(["s_client", "-connect", &address.to_string(), "-servername", name]);
        command.arg("-CAfile").arg(authority_file(self.server.dir())).args(args);
        // The answer comes behind the tickets; the server then ends.
        all(&run(command.arg("-ign_eof"), b"", LIMIT))
    }

    /// A full handshake, whose session goes into the file.
    #[track_caller]
    fn begin(&self, name: &str, args: &[&str]) {
        let session = self.session.to_str().unwrap();
        let output = self.run(self.server.address, name, &[args, &["-sess_out", session]].concat());
        assert!(output.contains("\nNew, TLS"), "{output}");
        assert!(self.session.exists(), "{output}");
    }

    /// Comes back with the session of the file.
    #[track_caller]
    fn resumes(&self, address: SocketAddr, name: &str, args: &[&str]) -> bool {
        let session = self.session.to_str().unwrap();
        let output = self.run(address, name, &[args, &["-sess_in", session]].concat());
        let (new, reused) = (output.contains("\nNew, TLS"), output.contains("\nReused, TLS"));
        assert!(new != reused, "{output}");
        assert!(output.contains("hello from behind"), "{output}");
        reused
    }
}

/// Says hello to every client and ends.
fn greeter() -> Backend {
    Backend::new(|mut stream| _ = stream.write_all(b"hello from behind\n"))
}

const OPENSSL: [(&str, &[&str]); 3] =
    [("psk", &["-tls1_3"]), ("ticket", &["-tls1_2"]), ("session_id", &["-tls1_2", "-no_ticket"])];

#[test]
fn openssl_resumes_from_a_file_on_four_workers() {
    let server = Setup::new(greeter()).workers(4).start();
    let Some(openssl) = Openssl::new(&server) else {
        return;
    };
    for (kind, args) in OPENSSL {
        openssl.begin(NAME, args);
        for _ in 0..12 {
            assert!(openssl.resumes(server.address, NAME, args), "{kind}");
        }
        server.wait_metric(&resumptions(kind, "resumed"), 12.0);
    }
}

/// `-reconnect` of TLS 1.3 is left out: OpenSSL reconnects before it has read a ticket.
#[test]
fn openssl_reconnects() {
    let server = Setup::new(Backend::echo()).workers(4).start();
    let Some(openssl) = Openssl::new(&server) else {
        return;
    };
    for (kind, args) in &OPENSSL[1..] {
        let mut command = Command::new(&openssl.program);
        command.args(["s_client", "-reconnect", "-connect", &server.address.to_string()]);
        let output = all(&run(command.args(["-servername", NAME]).args(*args), b"", LIMIT));
        assert_eq!(output.matches("Reused, TLSv1.2").count(), 5, "{kind}: {output}");
        server.wait_metric(&resumptions(kind, "resumed"), 5.0);
    }
}

/// The class of CVE-2025-23419: a session of one name or listener is shown at another.
#[test]
fn a_session_never_goes_on_under_another_name_or_at_another_listener() {
    let other = crate::support::address::free();
    let setup = Setup::new(greeter());
    let files = setup.certificates[0].0.clone();
    let table = format!(
        "[[listener]]\nname = \"other\"\nbind = [\"{other}\"]\nbackend = \"app\"\n\
         [[listener.certificate]]\nchain = {:?}\nkey = {:?}",
        files.chain, files.key
    );
    let server = setup.tables(&table).start();
    let Some(openssl) = Openssl::new(&server) else {
        return;
    };
    for (kind, args) in OPENSSL {
        openssl.begin(NAME, args);
        assert!(!openssl.resumes(server.address, "another.test", args), "{kind}");
        server.wait_metric(&resumptions(kind, "other_name"), 1.0);
        assert!(!openssl.resumes(other, NAME, args), "{kind}");
        server.wait_metric(&resumptions(kind, "other_listener"), 1.0);
        // It was not used up by that.
        assert!(openssl.resumes(server.address, NAME, args), "{kind}");
    }
}

/// The same listener's name and the same secret, and another rule about who is let in: a client
/// that began where none was asked for must not get in where one is, nor under another authority.
#[test]
fn a_session_never_goes_on_under_another_client_authentication_policy() {
    let shared = tempfile::tempdir().unwrap();
    let secret = shared.path().join("tickets.secret");
    let made = run(Command::new(BINARY).arg("secret").arg(&secret), b"", LIMIT);
    assert!(made.status.success(), "{}", all(&made));
    let start = |client_auth: &str| {
        let table = format!("[resumption]\nsecret_file = {secret:?}");
        let mut setup = Setup::new(greeter()).tables(&table);
        setup.client_auth = client_auth.to_owned();
        setup.start()
    };
    let policy = |mode: &str, authority: &Authority, name: &str| {
        let ca = shared.path().join(name);
        std::fs::write(&ca, authority.pem()).unwrap();
        format!("mode = \"{mode}\"\nca = {ca:?}\n")
    };
    let (ours, theirs) = (Authority::new("Ours"), Authority::new("Theirs"));
    let everyone = start("");
    let members = start(&policy("required", &ours, "ours.pem"));
    let others = start(&policy("optional", &theirs, "theirs.pem"));
    let Some(openssl) = Openssl::new(&everyone) else {
        return;
    };
    let member = ours.client(shared.path(), "member", |_| {});
    let identity = ["-cert", path(&member.chain), "-key", path(&member.key)];
    for (kind, args) in &OPENSSL[..2] {
        // Nobody in particular at the door of members: neither with a ticket nor without.
        openssl.begin(NAME, args);
        let session = openssl.session.to_str().unwrap();
        let output =
            openssl.run(members.address, NAME, &[args, &["-sess_in", session][..]].concat());
        assert!(!output.contains("hello from behind"), "{kind}: {output}");
        members.wait_metric(&resumptions(kind, "other_policy"), 1.0);
        assert!(!openssl.resumes(others.address, NAME, args), "{kind}");
        others.wait_metric(&resumptions(kind, "other_policy"), 1.0);

        // A member is one again on return, and not elsewhere.
        let as_member = [args, &identity[..]].concat();
        let output =
            openssl.run(members.address, NAME, &[&as_member[..], &["-sess_out", session]].concat());
        assert!(output.contains("hello from behind"), "{kind}: {output}");
        assert!(openssl.resumes(members.address, NAME, args), "{kind}");
        assert!(!openssl.resumes(others.address, NAME, args), "{kind}");
        assert!(!openssl.resumes(everyone.address, NAME, args), "{kind}");
    }
    let records = members.wait_records(6);
    for record in &records {
        let is_let_in = record["handshake"] == "ok";
        assert_eq!(record["client_verified"], is_let_in, "{record}");
        let name = if is_let_in { "member".into() } else { serde_json::Value::Null };
        assert_eq!(record["client_name"], name, "{record}");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_changed_ticket_gets_a_full_handshake_and_its_reason() {
    let server = Server::before(greeter());
    let Some(openssl) = Openssl::new(&server) else {
        return;
    };
    for (kind, args) in &OPENSSL[..2] {
        openssl.begin(NAME, args);
        let pem = std::fs::read_to_string(&openssl.session).unwrap();
        let whole = decode(&pem);
        let ticket = ticket_at(&whole);
        // As ARCHITECTURE.md has it: 120 bytes and the name in TLS 1.3, 136 in TLS 1.2.
        let expected = if *kind == "psk" { 120 } else { 136 } + NAME.len();
        assert_eq!(usize::from(whole[ticket - 1]), expected, "bytes of the ticket");
        for (at, why) in [(0, "unknown_epoch"), (30, "malformed")] {
            let mut changed = whole.clone();
            changed[ticket + at] ^= 1;
            std::fs::write(&openssl.session, encode(&changed)).unwrap();
            assert!(!openssl.resumes(server.address, NAME, args), "{kind} {why}");
            server.wait_metric(&resumptions(kind, why), 1.0);
        }
        std::fs::write(&openssl.session, encode(&whole)).unwrap();
        assert!(openssl.resumes(server.address, NAME, args), "{kind}");
    }
    let records = server.wait_records(8);
    let told: Vec<_> = records[..4]
        .iter()
        .map(|record| (record["resumption"].as_str(), record["resumption_result"].as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (None, None),
            (Some("psk"), Some("unknown_epoch")),
            (Some("psk"), Some("malformed")),
            (Some("psk"), Some("resumed")),
        ]
    );
}

/// The content of a PEM section, by openssl's own base64.
fn decode(pem: &str) -> Vec<u8> {
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => 0,
    };
    let padding = body.bytes().filter(|byte| *byte == b'=').count();
    let mut bytes: Vec<u8> = body
        .as_bytes()
        .chunks(4)
        .flat_map(|four| {
            let bits = four.iter().fold(0, |bits, byte| bits << 6 | u32::from(digit(*byte)));
            bits.to_be_bytes()[1..].to_vec()
        })
        .collect();
    bytes.truncate(bytes.len() - padding);
    bytes
}

fn encode(bytes: &[u8]) -> String {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let mut padded = [0; 4];
        padded[1..=three.len()].copy_from_slice(three);
        let bits = u32::from_be_bytes(padded);
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit) & 63) as usize;
            text.push(if digit <= three.len() { alphabet[index] as char } else { '=' });
        }
        if text.len() % 65 == 64 {
            text.push('\n');
        }
    }
    format!(
        "-----BEGIN SSL SESSION PARAMETERS-----\n{text}\n-----END SSL SESSION PARAMETERS-----\n"
    )
}

/// Where the ticket begins in OpenSSL's `SSL_SESSION`: field [10], an OCTET STRING
/// (`d2i_SSL_SESSION`).
fn ticket_at(session: &[u8]) -> usize {
    let is_field = |at: &usize| {
        let at = *at;
        session[at] == 0xaa && [0x81, 0x82].contains(&session[at + 1]) && {
            let inner = at + usize::from(session[at + 1] - 0x80) + 2;
            session.get(inner) == Some(&0x04)
        }
    };
    let field = (0..session.len() - 4).find(is_field).expect("a ticket in the session");
    let inner = field + usize::from(session[field + 1] - 0x80) + 2;
    inner + usize::from(session[inner + 1] - 0x80) + 2
}

/// A hundred pre-shared keys of garbage: four are looked at, and the handshake is a full one.
#[test]
fn a_huge_list_of_psks_is_answered_with_a_full_handshake() {
    const IDENTITIES: u16 = 100;
    let server = Server::before(greeter());
    let hello = with_garbage_psks(&hello(), IDENTITIES);
    let mut stream = client::tcp(server.address).unwrap();
    stream.write_all(&hello).unwrap();
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!((answer[0], answer[5]), (22, 2), "a ServerHello");
    drop(stream);
    server.wait_handshakes("client_reset", 1);
    let metrics = server.metrics();
    assert_eq!(metrics.get("portcullis_resumptions_total"), 1.0);
    assert_eq!(metrics.get(&resumptions("psk", "unknown_epoch")), 1.0);
}

/// A `ClientHello` as rustls sends it, of TLS 1.3 with X25519.
fn hello() -> Vec<u8> {
    let mut provider = client::provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let config = client::config_with(provider, &[&rustls::version::TLS13]);
    let name = rustls::pki_types::ServerName::try_from(NAME).unwrap();
    let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

/// Adds `pre_shared_key` (RFC 8446 section 4.2.11).
fn with_garbage_psks(hello: &[u8], identities: u16) -> Vec<u8> {
    let vector = |bytes: &[u8]| {
        let mut vector = u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
        vector.extend_from_slice(bytes);
        vector
    };
    let mut list = Vec::new();
    let mut binders = Vec::new();
    for number in 0..identities {
        let mut identity = [0xee; 80];
        identity[..2].copy_from_slice(&number.to_be_bytes());
        list.extend(vector(&identity));
        list.extend([0; 4]);
        binders.extend([32; 33]);
    }
    let mut extensions = vec![0, 41];
    extensions.extend(vector(&[vector(&list), vector(&binders)].concat()));
    let (record, body) = hello.split_at(5 + 4);
    // Version, random, session ID, suites, compression.
    let mut at = 2 + 32;
    at += 1 + usize::from(body[at]);
    at += 2 + usize::from(u16::from_be_bytes([body[at], body[at + 1]]));
    at += 1 + usize::from(body[at]);
    let mut message = body[..at].to_vec();
    message.extend(vector(&[&body[at + 2..], &extensions].concat()));
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let message = [&[1], &length[1..], &message].concat();
    [&record[..3], &vector(&message)].concat()
}

#[test]
fn kept_here_a_session_of_tls13_goes_on_once_and_one_of_tls12_often() {
    let server = Setup::new(greeter()).workers(2).tables("[resumption]\nmode = \"cache\"").start();
    let Some(openssl) = Openssl::new(&server) else {
        return;
    };
    openssl.begin(NAME, &["-tls1_3"]);
    assert!(openssl.resumes(server.address, NAME, &["-tls1_3"]));
    assert!(!openssl.resumes(server.address, NAME, &["-tls1_3"]));
    server.wait_metric(&resumptions("psk", "not_found"), 1.0);
    // The client offers to take tickets and gets none.
    openssl.begin(NAME, &["-tls1_2"]);
    for _ in 0..6 {
        assert!(openssl.resumes(server.address, NAME, &["-tls1_2"]));
    }
    server.wait_metric(&resumptions("session_id", "resumed"), 6.0);
    assert_eq!(server.metrics().get("portcullis_tickets_issued_total"), 0.0);
}

#[test]
fn where_resumption_is_off_nobody_resumes() {
    let Some(python) = peer("python3") else {
        return;
    };
    let server = Setup::new(Backend::echo()).tables("[resumption]\nmode = \"off\"").start();
    for kind in KINDS {
        let told = come_back(&python, kind, NAME, 3, &[server.address]);
        assert!(told.contains("0 of 3 resumed"), "{kind}: {told}");
    }
    assert_eq!(server.metrics().get("portcullis_tickets_issued_total"), 0.0);
}

#[test]
fn an_old_session_is_expired() {
    let server = Setup::new(greeter()).tables("[resumption]\nlifetime = \"2s\"").start();
    let Some(openssl) = Openssl::new(&server) else {
        return;
    };
    // OpenSSL does not offer a ticket of TLS 1.3 longer than we told it to.
    for (kind, args) in &OPENSSL[1..] {
        openssl.begin(NAME, args);
        assert!(openssl.resumes(server.address, NAME, args), "{kind}");
        std::thread::sleep(Duration::from_millis(2100));
        assert!(!openssl.resumes(server.address, NAME, args), "{kind}");
        server.wait_metric(&resumptions(kind, "expired"), 1.0);
    }
}

#[test]
fn curl_resumes() {
    let (Some(curl), Some(nginx)) = (peer("curl"), peer("nginx")) else {
        return;
    };
    let origin = crate::support::peers::nginx(&nginx, "", "return 200 hello;");
    let server = Setup::new(&origin).workers(2).start();
    let url = format!("https://{NAME}:{}/", server.address.port());
    for version in ["--tlsv1.3", "--tls-max=1.2"] {
        let mut command = Command::new(&curl);
        let version: Vec<&str> = version.split('=').collect();
        command.args(version).arg("--resolve").arg(format!(
            "{NAME}:{}:{}",
            server.address.port(),
            server.address.ip()
        ));
        command.args(["-sS", "-H", "Connection: close", "--cacert"]);
        command.arg(authority_file(server.dir())).args([&url, &url, &url]);
        let output = all(&run(&mut command, b"", LIMIT));
        assert_eq!(output.matches("hello").count(), 3, "{output}");
    }
    server.wait_metric(&resumptions("psk", "resumed"), 2.0);
    // curl takes no tickets of TLS 1.2.
    server.wait_metric(&resumptions("session_id", "resumed"), 2.0);
}

#[test]
fn gnutls_resumes() {
    let Some(gnutls) = peer("gnutls-cli") else {
        return;
    };
    let server = Setup::new(Backend::echo()).workers(2).start();
    for (kind, priority) in [
        ("psk", "NORMAL:-VERS-ALL:+VERS-TLS1.3"),
        ("ticket", "NORMAL:-VERS-ALL:+VERS-TLS1.2"),
        ("session_id", "NORMAL:-VERS-ALL:+VERS-TLS1.2:%NO_TICKETS"),
    ] {
        let mut command = Command::new(&gnutls);
        command.args([
            "--resume",
            "--waitresumption",
            "--no-ca-verification",
            "--sni-hostname",
            NAME,
        ]);
        command.args(["--priority", priority, "--port", &server.address.port().to_string()]);
        command.arg(server.address.ip().to_string());
        let output = all(&run(&mut command, b"", LIMIT));
        assert!(output.contains("This is a resumed session"), "{kind}: {output}");
        server.wait_metric(&resumptions(kind, "resumed"), 1.0);
    }
}

#[test]
fn the_secret_file_is_checked_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("tickets.secret");
    let table = format!("[resumption]\nsecret_file = {secret:?}\nepoch = \"1h\"");
    let setup = Setup::new(Backend::echo()).tables(&table);
    let config = setup.write();
    let check =
        || all(&run(Command::new(BINARY).args(["check", "--config"]).arg(&config), b"", LIMIT));
    let told = check().replace("\n    ", " ");
    assert!(told.contains("portcullis.toml:"), "{told}");
    assert!(told.contains(&format!("portcullis secret {}", secret.display())), "{told}");
    run(Command::new(BINARY).arg("secret").arg(&secret), b"", LIMIT);
    let told = check().replace("\n    ", " ");
    assert!(told.contains("was made for epochs of 12h"), "{told}");
    std::fs::remove_file(&secret).unwrap();
    run(Command::new(BINARY).args(["secret", "--epoch", "1h"]).arg(&secret), b"", LIMIT);
    assert!(check().contains("ticket keys from"), "{}", check());
    let again =
        run(Command::new(BINARY).args(["secret", "--epoch", "1h"]).arg(&secret), b"", LIMIT);
    assert!(!again.status.success(), "an existing secret is not replaced");
}
