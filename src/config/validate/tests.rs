//! Tests of what a configuration file may say, and of what its errors say.

use std::path::Path;

use super::*;
use crate::config::{
    BackendQueue, ClientAuthMode, ConfigError, Connect, Limits, Network, PerSource, Refuse,
    ServerAddress, UnknownName,
};

const SMALLEST: &str = r#"
[[listener]]
name = "https"
bind = ["0.0.0.0:443", "[::]:443"]
backend = "app"
[[listener.certificate]]
chain = "/etc/portcullis/fullchain.pem"
key = "privkey.pem"
[[backend]]
name = "app"
[[backend.server]]
address = "127.0.0.1:8080"
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/etc/p/portcullis.toml"))
}

/// The report for the smallest file with one text replaced.
fn report(from: &str, to: &str) -> String {
    assert!(SMALLEST.contains(from));
    report_of(&SMALLEST.replace(from, to))
}

/// The report for the smallest file with a text after it.
fn report_with(more: &str) -> String {
    report_of(&format!("{SMALLEST}{more}"))
}

fn report_of(text: &str) -> String {
    parse(text).expect_err("has a problem").to_string()
}

#[test]
fn smallest_file_gets_every_default() {
    let config = parse(SMALLEST).expect("valid");
    assert_eq!(config.workers, Workers { count: None, cpus: None, steering: Steering::Hash });
    let listener = &config.listeners[0];
    assert_eq!(listener.bind.len(), 2);
    assert_eq!((listener.backend, listener.backlog, listener.defer_accept), (0, None, None));
    assert_eq!(listener.unknown_name, UnknownName::Default);
    assert!(listener.alpn.is_empty());
    assert!(listener.client_auth.is_none());
    assert_eq!(config.backends[0].servers[0].max_connections, None);
    assert_eq!(config.tls.versions, [TlsVersion::Tls12, TlsVersion::Tls13]);
    assert_eq!(config.tls.cipher_suites, None);
    assert_eq!(config.tls.record_layer, RecordLayer::Lean);
    assert_eq!(config.limits.client_hello_bytes, 16 * 1024);
    assert_eq!(config.limits.connection_rate, None);
    assert!(!config.limits.per_source.is_on(), "nobody is limited unasked");
    assert_eq!(config.timeouts.idle, Duration::from_mins(5));
    assert_eq!(config.admin, None);
    assert_eq!(config.log.level, tracing::Level::INFO);
}

#[test]
fn relative_paths_start_at_the_configuration_file() {
    let config = parse(SMALLEST).expect("valid");
    let files = &config.listeners[0].certificates[0];
    assert_eq!(files.key, Path::new("/etc/p/privkey.pem"));
    assert_eq!(files.chain, Path::new("/etc/portcullis/fullchain.pem"));
    assert_eq!(files.key_at.key, "listener[0].certificate[0].key");
    assert_eq!(files.key_at.line, 8);
}

#[test]
fn unknown_backend_names_file_line_key_value_and_choices() {
    assert_eq!(
        report("backend = \"app\"", "backend = \"ap\""),
        "/etc/p/portcullis.toml:5: listener[0].backend = \"ap\": no backend has this name; \
         backends are: \"app\""
    );
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_the_file() {
    let text = SMALLEST.replace("0.0.0.0:443", "0.0.0.0") + "[timeouts]\nidle = \"5\"\nidel = 3\n";
    let report = report_of(&text);
    let paragraphs: Vec<&str> = report.split("\n\n").collect();
    assert_eq!(paragraphs.len(), 3, "{report}");
    assert!(paragraphs[0].contains(":4: listener[0].bind[0] = \"0.0.0.0\": "), "{report}");
    assert!(paragraphs[1].contains(":14: timeouts.idle = \"5\": "), "{report}");
    assert!(paragraphs[1].contains("\"10ms\" to \"7d\""), "{report}");
    assert!(paragraphs[2].contains("unknown key; did you mean \"idle\"?"), "{report}");
}

#[test]
fn syntax_errors_name_their_line() {
    let report = report_of("[tls]\nversions = [\n\n[log]\nlevel = nope\n");
    assert!(report.contains("portcullis.toml:5: not TOML: "), "{report}");
}

#[test]
fn an_empty_file_says_what_is_missing() {
    let report = report_of("");
    assert!(report.contains("listener: is missing"), "{report}");
    assert!(report.contains("backend: is missing"), "{report}");
}

#[test]
fn missing_keys_are_named_at_their_table() {
    let report = report("chain = \"/etc/portcullis/fullchain.pem\"\n", "");
    assert!(report.contains(":6: listener[0].certificate[0].chain: is missing"), "{report}");
    let report = report_of("[[listener]]\n[[backend]]\n[admin]\n");
    for key in [
        "listener[0].name",
        "listener[0].bind",
        "listener[0].backend",
        "listener[0].certificate",
        "backend[0].name",
        "backend[0].server",
        "admin.bind",
    ] {
        assert!(report.contains(&format!(" {key}: is missing")), "{key}: {report}");
    }
}

#[test]
fn whatever_stands_twice_is_refused() {
    let twice = "\"0.0.0.0:443\", \"0.0.0.0:443\"";
    assert!(report("\"0.0.0.0:443\"", twice).contains("this address is taken"));
    assert!(
        report_with("[admin]\nbind = \"0.0.0.0:443\"").contains("listener[0].bind[0] in line 4")
    );
    let again = "[[backend]]\nname = \"app\"\n[[backend.server]]\naddress = \"a:1\"\n";
    assert!(report_with(again).contains("this name is taken by line 10"));
    let again = "[[backend.server]]\naddress = \"127.0.0.1:8080\"\n";
    assert!(report_with(again).contains("twice"));
    assert!(report_with("[tls]\ngroups = [\"X25519\", \"X25519\"]").contains("twice"));
    let names = "key = \"k\"\nnames = [\"a.example\", \"A.example.\"]";
    assert!(report("key = \"privkey.pem\"", names).contains("names[1]"));
    let listener = SMALLEST.split("[[backend]]").next().expect("first part");
    assert!(
        report_with(&listener.replace(":443", ":444")).contains("this name is taken by line 3")
    );
}

/// The smallest file with a section `[listener.client_auth]`.
fn with_client_auth(keys: &str) -> String {
    SMALLEST.replace("[[backend]]", &format!("[listener.client_auth]\n{keys}[[backend]]"))
}

#[test]
fn client_auth_is_read_with_its_files_and_their_places() {
    let text = with_client_auth("mode = \"optional\"\nca = \"ca.pem\"\ncrl = \"/etc/crl.pem\"\n");
    let config = parse(&text).expect("valid");
    let client_auth = config.listeners[0].client_auth.as_ref().expect("there");
    assert_eq!(client_auth.mode, ClientAuthMode::Optional);
    assert_eq!(client_auth.ca.path, Path::new("/etc/p/ca.pem"));
    assert_eq!(client_auth.ca.at.key, "listener[0].client_auth.ca");
    assert_eq!(client_auth.ca.at.line, 11);
    let crl = client_auth.crl.as_ref().expect("there");
    assert_eq!((crl.path.as_path(), crl.at.line), (Path::new("/etc/crl.pem"), 12));
    let text = with_client_auth("mode = \"required\"\nca = \"ca.pem\"\n");
    let client_auth = parse(&text).expect("valid").listeners.remove(0).client_auth.expect("there");
    assert_eq!(client_auth.mode, ClientAuthMode::Required);
    assert!(client_auth.crl.is_none());
}

#[test]
fn client_auth_without_mode_or_authorities_is_refused() {
    for (keys, told) in [
        ("ca = \"ca.pem\"\n", ":9: listener[0].client_auth.mode: is missing; expected one of"),
        ("mode = \"required\"\n", ":9: listener[0].client_auth.ca: is missing; expected the path"),
        (
            "mode = \"on\"\nca = \"ca.pem\"\n",
            ":10: listener[0].client_auth.mode = \"on\": expected one of \"required\", \
             \"optional\"",
        ),
        ("mode = \"required\"\nca = \"\"\n", "client_auth.ca = \"\": expected the path"),
        (
            "mode = \"required\"\nca = \"ca.pem\"\ncrl = 3\n",
            "client_auth.crl = 3: expected the path of a PEM file",
        ),
        (
            "mode = \"required\"\nca = \"ca.pem\"\ncrls = \"x\"\n",
            "client_auth.crls: unknown key; did you mean \"crl\"?",
        ),
    ] {
        let report = report_of(&with_client_auth(keys));
        assert!(report.contains(told), "{keys}: {report}");
        assert!(!report.contains("\n\n"), "one problem only: {report}");
    }
    let text = SMALLEST.replace("backend = \"app\"", "backend = \"app\"\nclient_auth = \"yes\"");
    let report = report_of(&text);
    assert!(report.contains("client_auth = \"yes\": expected a table, written"), "{report}");
}

/// What is written, how the report shows it, and what it says is accepted.
const OUT_OF_RANGE: &[(&str, &str, &str)] = &[
    ("[workers]\ncount = 0", "workers.count = 0", "from 1 to 1024"),
    ("[workers]\ncount = \"many\"", "workers.count = \"many\"", "\"auto\" or a number"),
    ("[workers]\ncount = -1", "workers.count = -1", "from 1 to 1024"),
    ("[workers]\ncpus = \"3-1\"", "workers.cpus = \"3-1\"", "2-7,10"),
    ("[workers]\ncpus = 3", "workers.cpus = 3", "2-7,10"),
    ("[workers]\ncount = 3\ncpus = \"0,1\"", "workers.cpus", "names 2 CPUs"),
    ("[limits]\nclient_hello_bytes = \"1KiB\"", "= \"1KiB\"", "\"2KiB\""),
    ("[limits]\nclient_hello_bytes = 4096", "= 4096", "\"2KiB\""),
    ("[limits]\nconnections_per_worker = 524289", "= 524289", "524288"),
    ("[limits]\nconnection_rate = 0", "limits.connection_rate = 0", "from 1 to 1000000"),
    ("[limits]\nrefuse = \"drop\"", "limits.refuse = \"drop\"", "\"reset\", \"close\""),
    ("[limits]\nper_source = 3", "limits.per_source = 3", "[limits.per_source]"),
    ("[limits.per_source]\nconnections = 0", ".connections = 0", "from 1 to 1048575"),
    ("[limits.per_source]\nhandshakes = 65536", "= 65536", "from 1 to 65535"),
    ("[limits.per_source]\nhandshake_cpu = \"0s\"", "= \"0s\"", "\"1ms\" to \"1m\""),
    ("[limits.per_source]\nipv4_prefix = 33", "ipv4_prefix = 33", "from 1 to 32"),
    ("[limits.per_source]\nipv6_prefix = 129", "ipv6_prefix = 129", "from 1 to 128"),
    ("[limits.per_source]\nsources = 1", "sources = 1", "from 64 to 16777216"),
    ("[limits.per_source]\nallow = \"::1\"", "allow = \"::1\"", "a list of networks"),
    ("[limits.per_source]\nallow = [\"10.0.0.1/8\"]", "allow[0]", "\"10.0.0.0/8\""),
    ("[limits.per_source]\nallow = [\"::1\", \"::1/128\"]", "allow[1]", "twice"),
    ("[limits.per_source]\nconections = 5", "per_source.conections", "\"connections\"?"),
    ("[timeouts]\nhandshake = \"0s\"", "timeouts.handshake = \"0s\"", "\"10ms\" to \"5m\""),
    ("[timeouts]\ndrain = 5", "timeouts.drain = 5", "\"0s\" to \"7d\""),
    ("[tls]\nversions = []", "tls.versions = []", "must not be empty"),
    ("[tls]\nversions = [\"1.1\"]", "tls.versions[0] = \"1.1\"", "\"1.2\" and \"1.3\""),
    ("[tls]\nrecord_layer = \"boring\"", "tls.record_layer = \"boring\"", "\"lean\", \"rustls\""),
    ("[tls]\ngroups = [\"X448\"]", "tls.groups[0] = \"X448\"", "X25519MLKEM768"),
    ("[tls]\ncipher_suites = [\"RC4\"]", "= \"RC4\"", "TLS_AES_128_GCM_SHA256"),
    ("[tls]\ngroups = [\"X25519MLKEM768\"]", "tls.groups", "no group of TLS 1.2"),
    (
        "[tls]\ncipher_suites = [\"TLS_AES_128_GCM_SHA256\"]",
        "tls.cipher_suites",
        "no suite of TLS 1.2",
    ),
    ("[log]\nlevel = \"trace\"", "log.level = \"trace\"", "\"debug\""),
    ("[access_log]\npath = \"\"", "access_log.path", "standard output"),
    ("log = 1", "server[0].log", "unknown key"),
    ("max_connections = 0", "server[0].max_connections = 0", "from 1 to 1000000"),
    ("max_connections = \"2\"", "server[0].max_connections = \"2\"", "from 1 to 1000000"),
    ("[backend.queue]\nmax = 65537", "backend[0].queue.max = 65537", "from 0 to 65536"),
    ("[backend.queue]\ntimeout = 5", "backend[0].queue.timeout = 5", "\"10ms\" to \"5m\""),
    ("[backend.queue]\nsize = 5", "backend[0].queue.size", "max, timeout"),
];

#[test]
fn values_out_of_range_name_what_is_accepted() {
    for (more, key, accepted) in OUT_OF_RANGE {
        let report = report_with(more);
        assert!(report.contains(key), "{more}: {report}");
        assert!(report.contains(accepted), "{more}: {report}");
        assert!(!report.contains("\n\n"), "one problem only: {report}");
    }
}

#[test]
fn addresses_that_cannot_work_are_refused() {
    for (bad, why) in [
        ("*:443", "ip:port"),
        ("0.0.0.0:0", "port 0"),
        ("[::ffff:10.0.0.1]:443", "IPv4 address itself"),
    ] {
        assert!(report("0.0.0.0:443", bad).contains(why), "{bad}");
    }
    for (bad, why) in [
        ("127.0.0.1", "host:port"),
        ("::1:80", "[ip]:port"),
        ("[nope]:80", "brackets"),
        ("host:0", "1 to 65535"),
        ("host:70000", "1 to 65535"),
        ("unix:relative", "absolute path"),
        ("unix:@abstract", "absolute path"),
        ("http://host:80", "host:port"),
    ] {
        assert!(report("127.0.0.1:8080", bad).contains(why), "{bad}");
    }
}

#[test]
fn addresses_of_every_kind_are_accepted() {
    for (text, host) in [("app.internal:80", "app.internal"), ("[::1]:80", "::1")] {
        let config = parse(&SMALLEST.replace("127.0.0.1:8080", text)).expect("valid");
        let address = &config.backends[0].servers[0].address;
        let host = host.to_owned();
        assert_eq!(*address, ServerAddress::Host { host, port: 80 });
    }
    let config = parse(&SMALLEST.replace("127.0.0.1:8080", "unix:/run/app.sock")).expect("valid");
    let address = &config.backends[0].servers[0].address;
    assert_eq!(*address, ServerAddress::Unix("/run/app.sock".into()));
}

/// A file with every key, none of them at its default.
fn every_key() -> String {
    SMALLEST.replace("name = \"app\"", "name = \"app\"\nconnect = \"on_first_byte\"").replace(
        "backend = \"app\"",
        "backend = \"app\"\nalpn = [\"h2\"]\n\
             backlog = 7\ndefer_accept = \"5s\"\nunknown_name = \"refuse\"\n\
             connection_rate = 8",
    ) + "[workers]\ncount = 2\ncpus = \"2-3\"\n\
        [tls]\nversions = [\"1.3\"]\ncipher_suites = [\"TLS_AES_256_GCM_SHA384\"]\n\
        groups = [\"P-256\"]\nrecord_layer = \"rustls\"\n\
        [limits]\nconnections_per_worker = 9\nclient_hello_bytes = \"4KiB\"\n\
        min_rate = \"0B\"\n\
        connection_rate = 10\nrefuse = \"close\"\n\
        [limits.per_source]\nconnections = 11\nhandshakes = 12\nhandshake_cpu = \"13ms\"\n\
        ipv4_prefix = 24\nipv6_prefix = 56\nallow = [\"10.0.0.0/8\", \"2001:db8::/32\"]\n\
        sources = 1000\n\
        [timeouts]\nhandshake = \"1s\"\nclient_hello = \"6s\"\nstalled = \"7s\"\n\
        connect = \"2s\"\nidle = \"3s\"\n\
        rest = \"20ms\"\nhalf_closed = \"4s\"\ndrain = \"0s\"\n\
        [admin]\nbind = \"127.0.0.1:9443\"\n[access_log]\npath = \"-\"\n\
        [log]\nlevel = \"debug\"\n"
}

#[test]
fn every_key_is_read() {
    let text = every_key().replace(
        ":8080\"\n",
        ":8080\"\nmax_connections = 3\n[backend.queue]\nmax = 5\ntimeout = \"6s\"\n",
    );
    let config = parse(&text).expect("valid");
    assert_eq!(
        config.workers,
        Workers { count: Some(2), cpus: Some(vec![2, 3]), steering: Steering::Hash }
    );
    let listener = &config.listeners[0];
    assert_eq!((listener.backlog, listener.unknown_name), (Some(7), UnknownName::Refuse));
    assert_eq!(listener.defer_accept, Some(Duration::from_secs(5)));
    assert_eq!(listener.alpn, ["h2"]);
    assert_eq!(listener.connection_rate, Some(8));
    assert_eq!(config.backends[0].connect, Connect::OnFirstByte);
    assert_eq!(config.backends[0].servers[0].max_connections, Some(3));
    let queue = BackendQueue { max: 5, timeout: Duration::from_secs(6) };
    assert_eq!(config.backends[0].queue, queue);
    assert_eq!(
        config.tls,
        Tls {
            versions: vec![TlsVersion::Tls13],
            cipher_suites: Some(vec!["TLS_AES_256_GCM_SHA384".to_owned()]),
            groups: vec!["P-256".to_owned()],
            record_layer: RecordLayer::Rustls,
        }
    );
    let networks = ["10.0.0.0/8", "2001:db8::/32"];
    let per_source = PerSource {
        connections: Some(11),
        handshakes: Some(12),
        handshake_cpu: Some(Duration::from_millis(13)),
        ipv4_prefix: 24,
        ipv6_prefix: 56,
        allow: networks.map(|network| Network::parse(network).expect(network)).into(),
        sources: 1000,
    };
    let limits = Limits {
        connections_per_worker: Some(9),
        client_hello_bytes: 4096,
        min_rate: 0,
        connection_rate: Some(10),
        refuse: Refuse::Close,
        per_source,
    };
    assert_eq!(config.limits, limits);
    let seconds = Duration::from_secs;
    assert_eq!(
        config.timeouts,
        Timeouts {
            handshake: seconds(1),
            client_hello: seconds(6),
            connect: seconds(2),
            idle: seconds(3),
            rest: Duration::from_millis(20),
            half_closed: seconds(4),
            stalled: seconds(7),
            drain: seconds(0)
        }
    );
    assert_eq!(config.admin, Some(Admin { bind: "127.0.0.1:9443".parse().expect("address") }));
    assert_eq!(config.access_log, Some(AccessLog { path: "-".into() }));
    assert_eq!(config.log.level, tracing::Level::DEBUG);
}

/// The example with every optional key written out means what it means with all of them left out.
#[test]
fn example_file_shows_the_defaults() {
    let example = include_str!("../../../portcullis.example.toml");
    let as_is = parse(example).unwrap_or_else(|error| panic!("{error}"));
    let lines: Vec<&str> =
        example.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line)).collect();
    let commented_in = lines.join(
        "
",
    ) + "
";
    assert_ne!(commented_in, example, "optional keys are marked with \"#: \"");
    let all = parse(&commented_in).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(as_is.workers, all.workers);
    assert_eq!(as_is.tls, all.tls);
    assert_eq!(as_is.limits, all.limits);
    assert_eq!(as_is.timeouts, all.timeouts);
    assert_eq!(as_is.log, all.log);
    let smallest = parse(SMALLEST).expect("valid");
    assert_eq!(as_is.timeouts, smallest.timeouts);
    assert_eq!(as_is.limits, smallest.limits);
    for config in [&as_is, &all] {
        assert_eq!(config.backends[0].connect, Connect::Eager);
        assert_eq!(config.backends[0].queue, BackendQueue::default());
        assert!(!config.backends[0].is_limited());
        let listener = &config.listeners[0];
        assert_eq!((listener.backlog, listener.defer_accept), (None, None));
        assert_eq!(listener.unknown_name, UnknownName::Default);
        assert!(listener.alpn.is_empty());
    }
}

#[test]
fn example_file_documents_every_key() {
    let example = include_str!("../../../portcullis.example.toml");
    let has = |key: &str| {
        example.lines().any(|line| {
            let line = line.trim_start_matches(['#', ':', ' ']);
            line.split_once(" = ").is_some_and(|(written, _)| written == key)
        })
    };
    for key in [
        "count",
        "cpus",
        "name",
        "bind",
        "backend",
        "alpn",
        "backlog",
        "defer_accept",
        "unknown_name",
        "chain",
        "key",
        "names",
        "mode",
        "ca",
        "crl",
        "address",
        "max_connections",
        "max",
        "timeout",
        "send_proxy_protocol",
        "versions",
        "cipher_suites",
        "groups",
        "record_layer",
        "connections_per_worker",
        "client_hello_bytes",
        "min_rate",
        "connection_rate",
        "refuse",
        "connections",
        "handshakes",
        "handshake_cpu",
        "ipv4_prefix",
        "ipv6_prefix",
        "allow",
        "sources",
        "handshake",
        "client_hello",
        "connect",
        "idle",
        "rest",
        "half_closed",
        "stalled",
        "drain",
        "path",
        "level",
    ] {
        assert!(has(key), "{key}");
    }
}

#[test]
fn keys_of_the_kernels_queue_name_what_they_accept() {
    let listener = |line: &str| report("backend = \"app\"", &format!("backend = \"app\"\n{line}"));
    for line in ["backlog = 0", "backlog = \"most\"", "backlog = 65536"] {
        assert!(listener(line).contains("\"auto\" or a number from 1 to 65535"), "{line}");
    }
    for line in ["defer_accept = \"0s\"", "defer_accept = \"on\"", "defer_accept = \"2m\""] {
        let report = listener(line);
        assert!(report.contains("listener[0].defer_accept"), "{report}");
        assert!(report.contains("expected \"off\", or \"1s\" to \"1m\""), "{report}");
    }
    let report = report_with("[limits]\nmin_rate = \"2MiB\"");
    assert!(report.contains("expected \"0B\" (none) to \"1MiB\" a second"), "{report}");
}
