//! Tests with certificates and keys made on the spot.

use std::process::Command;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_RSA_SHA256};
use tempfile::TempDir;

use super::*;

/// A directory with `chain.pem` and `key.pem` for `a.example`, issued by a test CA.
struct Site {
    directory: TempDir,
    leaf: String,
    root: String,
    key: String,
}

fn site() -> Site {
    let root_key = KeyPair::generate().expect("key");
    let mut root = CertificateParams::new(Vec::new()).expect("parameters");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.distinguished_name.push(rcgen::DnType::CommonName, "Test Root");
    let root_certificate = root.self_signed(&root_key).expect("root");
    let issuer = Issuer::new(root, root_key);
    let key = KeyPair::generate().expect("key");
    let mut leaf = CertificateParams::new(vec!["a.example".to_owned()]).expect("parameters");
    leaf.distinguished_name.push(rcgen::DnType::CommonName, "a.example");
    leaf.use_authority_key_identifier_extension = true;
    leaf.not_before = rcgen::date_time_ymd(2020, 1, 1);
    leaf.not_after = rcgen::date_time_ymd(2060, 1, 1);
    let leaf = leaf.signed_by(&key, &issuer).expect("leaf").pem();
    let root = root_certificate.pem();
    let site = Site {
        directory: TempDir::new().expect("directory"),
        key: key.serialize_pem(),
        leaf,
        root,
    };
    site.write("chain.pem", &format!("{}{}", site.leaf, site.root));
    site.write("key.pem", &site.key);
    site
}

impl Site {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("written");
    }

    fn config(&self, certificates: &[(&str, &str)], listener: &str) -> Config {
        let mut text = "[[backend]]\nname = \"app\"\n[[backend.server]]\naddress = \"a:1\"\n\
            [[listener]]\nname = \"x\"\nbind = [\"127.0.0.1:1\"]\nbackend = \"app\"\n"
            .to_owned();
        text.push_str(listener);
        for (chain, key) in certificates {
            let files = format!("[[listener.certificate]]\nchain = \"{chain}\"\nkey = \"{key}\"\n");
            text.push_str(&files);
        }
        Config::parse(&text, &self.path("portcullis.toml")).expect("valid")
    }

    fn problem(&self) -> CertificateProblem {
        let config = self.config(&[("chain.pem", "key.pem")], "");
        let mut problems = load(&config).expect_err("a problem");
        assert_eq!(problems.len(), 1, "{problems:?}");
        let problem = problems.remove(0);
        let shown = problem.to_string();
        for line in self.key.lines().filter(|line| !line.starts_with("-----")) {
            assert!(!shown.contains(line), "a key's bytes are shown: {shown}");
        }
        problem
    }

    /// Runs openssl here. `false`: it is not installed, and this is not CI.
    fn openssl(&self, arguments: &[&str]) -> bool {
        let output =
            Command::new("openssl").args(arguments).current_dir(self.directory.path()).output();
        match output {
            Ok(output) => {
                let errors = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{errors}");
                true
            }
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "openssl in CI: {error}");
                println!("skipped: openssl cannot be run: {error}");
                false
            }
        }
    }
}

#[test]
fn good_files_give_terms_and_a_description() {
    let site = site();
    let loaded = load(&site.config(&[("chain.pem", "key.pem")], "")).expect("loads");
    assert_eq!(loaded.terms.len(), 1);
    let description = &loaded.certificates[0];
    assert_eq!(description.names, ["a.example"]);
    assert_eq!(description.key, "ECDSA P-256");
    assert_eq!(description.issuer, "Test Root");
    assert_eq!((description.chain_length, description.self_signed), (2, false));
    let expiry = UNIX_EPOCH + Duration::from_secs(2_840_140_800); // 2060-01-01
    assert_eq!(description.days_left(expiry), 0);
    assert_eq!(description.days_left(expiry - Duration::from_hours(24 * 10)), 10);
    assert_eq!(description.days_left(expiry + Duration::from_secs(1)), -1);
}

#[test]
fn terms_refuse_unknown_names_only_where_configured() {
    let site = site();
    let files = [("chain.pem", "key.pem")];
    let lenient = load(&site.config(&files, "")).expect("loads");
    assert!(lenient.terms[0].recognizes(Some("b.example")));
    assert!(lenient.terms[0].recognizes(None));
    let strict = load(&site.config(&files, "unknown_name = \"refuse\"\n")).expect("loads");
    assert!(strict.terms[0].recognizes(Some("A.example.")));
    assert!(!strict.terms[0].recognizes(Some("b.example")));
    assert!(!strict.terms[0].recognizes(None));
}

#[test]
fn missing_file_is_named_with_line_and_key() {
    let site = site();
    std::fs::remove_file(site.path("key.pem")).expect("removed");
    let problem = site.problem();
    assert_eq!(problem.fault, Fault::Missing);
    let shown = problem.to_string();
    assert!(shown.contains("portcullis.toml:11: listener[0].certificate[0].key = "), "{shown}");
    assert!(shown.contains("key.pem"), "{shown}");
}

#[test]
fn unreadable_files_are_told_apart_from_missing_ones() {
    use std::os::unix::fs::PermissionsExt;
    let site = site();
    let closed = std::fs::Permissions::from_mode(0o000);
    std::fs::set_permissions(site.path("key.pem"), closed).expect("set");
    if std::fs::read(site.path("key.pem")).is_ok() {
        return; // root reads everything
    }
    assert_eq!(site.problem().fault, Fault::Permission);
}

#[test]
fn directory_in_place_of_a_file_is_refused() {
    let site = site();
    std::fs::remove_file(site.path("chain.pem")).expect("removed");
    std::fs::create_dir(site.path("chain.pem")).expect("made");
    assert_eq!(site.problem().fault, Fault::Unreadable);
}

#[test]
fn swapped_files_say_what_they_hold_instead() {
    let site = site();
    site.write("chain.pem", &site.key);
    let problem = site.problem();
    assert_eq!(problem.fault, Fault::NotInFile);
    assert!(problem.message.contains("only PRIVATE KEY"), "{problem}");
    site.write("chain.pem", &site.leaf);
    site.write("key.pem", &site.leaf);
    let problem = site.problem();
    assert_eq!(problem.fault, Fault::NotInFile);
    assert!(problem.message.contains("only CERTIFICATE"), "{problem}");
    site.write("key.pem", "");
    assert!(site.problem().message.contains("nor anything else in PEM"));
}

#[test]
fn keys_encrypted_either_way_get_the_command_that_decrypts_them() {
    for arguments in [
        &["pkcs8", "-topk8", "-in", "key.pem", "-out", "out.pem", "-passout", "pass:secret"][..],
        &["ec", "-aes128", "-in", "key.pem", "-out", "out.pem", "-passout", "pass:secret"],
    ] {
        let site = site();
        if !site.openssl(arguments) {
            return;
        }
        std::fs::rename(site.path("out.pem"), site.path("key.pem")).expect("moved");
        let problem = site.problem();
        assert_eq!(problem.fault, Fault::Encrypted, "{problem}");
        assert!(problem.message.contains("openssl pkey -in"), "{problem}");
    }
}

#[test]
fn sec1_and_pkcs1_keys_are_read() {
    let ec = site();
    if !ec.openssl(&["ec", "-in", "key.pem", "-out", "key.pem"]) {
        return;
    }
    assert!(std::fs::read_to_string(ec.path("key.pem")).expect("key").contains("BEGIN EC PRIVATE"));
    load(&ec.config(&[("chain.pem", "key.pem")], "")).expect("SEC1");
    let rsa = site();
    let made = rsa.openssl(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "key.pem",
        "-out",
        "chain.pem",
        "-subj",
        "/CN=r",
        "-addext",
        "subjectAltName=DNS:r.example,IP:127.0.0.1",
    ]);
    let converted = rsa.openssl(&["rsa", "-traditional", "-in", "key.pem", "-out", "key.pem"]);
    assert!(made && converted);
    let loaded = load(&rsa.config(&[("chain.pem", "key.pem")], "")).expect("PKCS#1");
    assert_eq!(loaded.certificates[0].key, "RSA 2048");
    assert_eq!(loaded.certificates[0].names, ["r.example"]);
    assert!(loaded.certificates[0].self_signed);
}

#[test]
fn damaged_keys_are_malformed() {
    let site = site();
    let body = site.key.lines().nth(1).expect("base64").to_owned();
    site.write("key.pem", &site.key.replace(&body, &format!("!{body}")));
    assert_eq!(site.problem().fault, Fault::Malformed);
    site.write("key.pem", &site.key.replace("-----END PRIVATE KEY-----", ""));
    assert_eq!(site.problem().fault, Fault::Malformed);
    site.write("key.pem", &site.key.replace(&body, ""));
    assert_eq!(site.problem().fault, Fault::Malformed);
}

#[test]
fn several_keys_in_one_file_are_refused() {
    let site = site();
    site.write("key.pem", &format!("{0}{0}", site.key));
    assert_eq!(site.problem().fault, Fault::SeveralKeys);
}

#[test]
fn key_of_another_certificate_is_refused() {
    let site = site();
    site.write("key.pem", &KeyPair::generate().expect("key").serialize_pem());
    let files_key = "listener[0].certificate[0].key";
    let problem = site.problem();
    assert_eq!(problem.fault, Fault::KeyMismatch);
    assert!(problem.at.key == files_key);
}

#[test]
fn chain_in_the_wrong_order_or_with_a_gap_is_refused() {
    let site = site();
    site.write("chain.pem", &format!("{}{}", site.root, site.leaf));
    let problem = site.problem();
    assert_eq!(problem.fault, Fault::ChainOrder);
    assert!(problem.message.contains("Test Root"), "{problem}");
    // A root of the same name, but not the one that issued.
    let other = self::site();
    site.write("chain.pem", &format!("{}{}", site.leaf, other.root));
    let problem = site.problem();
    assert_eq!(problem.fault, Fault::ChainOrder);
    assert!(problem.message.contains("another key"), "{problem}");
}

#[test]
fn certificates_outside_their_time_are_refused() {
    let site = site();
    let config = site.config(&[("chain.pem", "key.pem")], "");
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    let late = load_at(&config, at(2_900_000_000)).expect_err("expired");
    assert_eq!(late[0].fault, Fault::Expired);
    assert!(late[0].message.contains("2060"), "{}", late[0]);
    let early = load_at(&config, at(1_500_000_000)).expect_err("not yet");
    assert_eq!(early[0].fault, Fault::NotYetValid);
}

#[test]
fn name_twice_is_refused_for_one_kind_of_key_and_allowed_for_two() {
    let site = site();
    let second = self::site();
    site.write("chain2.pem", &second.leaf);
    site.write("key2.pem", &second.key);
    let files = [("chain.pem", "key.pem"), ("chain2.pem", "key2.pem")];
    let problems = load(&site.config(&files, "")).expect_err("twice");
    assert_eq!(problems[0].fault, Fault::NameTwice);
    assert_eq!(problems[0].at.line, 13);
    assert!(problems[0].message.contains("line 10"), "{}", problems[0]);

    let key = KeyPair::generate_for(&PKCS_RSA_SHA256).expect("key");
    let rsa = CertificateParams::new(vec!["a.example".to_owned()]).expect("parameters");
    site.write("chain2.pem", &rsa.self_signed(&key).expect("certificate").pem());
    site.write("key2.pem", &key.serialize_pem());
    load(&site.config(&files, "")).expect("ECDSA and RSA");
}

#[test]
fn certificate_without_names_serves_only_as_default() {
    let site = site();
    let key = KeyPair::generate().expect("key");
    let nameless = CertificateParams::new(Vec::new()).expect("parameters");
    site.write("chain.pem", &nameless.self_signed(&key).expect("certificate").pem());
    site.write("key.pem", &key.serialize_pem());
    let files = [("chain.pem", "key.pem")];
    load(&site.config(&files, "")).expect("as default");
    let strict = site.config(&files, "unknown_name = \"refuse\"\n");
    let problems = load(&strict).expect_err("nobody gets it");
    assert_eq!(problems[0].fault, Fault::Unreachable);
}

#[test]
fn every_problem_of_every_certificate_is_told() {
    let site = site();
    let files = [("chain.pem", "none.pem"), ("none.pem", "key.pem")];
    let problems = load(&site.config(&files, "")).expect_err("two");
    let lines: Vec<usize> = problems.iter().map(|problem| problem.at.line).collect();
    assert_eq!(lines, [11, 13]);
}
