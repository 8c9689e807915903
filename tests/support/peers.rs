//! Real programs as peers. One that is missing skips its test with a message; under CI (where
//! `CI` is set) it fails, so that nothing is skipped unseen.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::process::Process;
use super::{address, eventually};

/// The path of an installed program; without it, says that the test is skipped.
#[track_caller]
pub(crate) fn peer(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|file| file.is_file());
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "{program} is not installed, and in CI no test may be skipped"
        );
        eprintln!("skipped: {program} not installed");
    }
    found
}

/// A server program that answers on an address.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// What it serves files from, and where its logs are.
    pub(crate) dir: tempfile::TempDir,
    _process: Process,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.address.fmt(f)
    }
}

impl Peer {
    fn start(dir: tempfile::TempDir, address: SocketAddr, command: &mut Command) -> Self {
        super::process::raise_descriptor_limit();
        let log = std::fs::File::create(dir.path().join("output")).unwrap();
        let mut process =
            Process::spawn(command.stdout(log.try_clone().unwrap()).stderr(Stdio::from(log)));
        eventually("listening peer", || {
            if let Some(status) = process.ended() {
                let output = std::fs::read_to_string(dir.path().join("output"));
                panic!("{command:?} ended: {status} {output:?}");
            }
            TcpStream::connect(address).ok()
        });
        Self { address, dir, _process: process }
    }
}

/// An nginx whose one server listens on a free address with `listen` options and holds `body`.
pub(crate) fn nginx(program: &Path, listen: &str, body: &str) -> Peer {
    let dir = tempfile::tempdir().unwrap();
    let address = address::free();
    let mut config = String::from(
        "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log error.log;\n\
         events { worker_connections 8192; }\nhttp {\n access_log off;\n \
         client_body_temp_path temp_body;\n proxy_temp_path temp_proxy;\n \
         fastcgi_temp_path temp_fastcgi;\n uwsgi_temp_path temp_uwsgi;\n \
         scgi_temp_path temp_scgi;\n keepalive_requests 1000000;\n",
    );
    write!(
        config,
        " server {{\n  listen {address} {listen} backlog=4096;\n  root files;\n  {body}\n }}\n}}\n"
    )
    .unwrap();
    std::fs::create_dir(dir.path().join("files")).unwrap();
    let file = dir.path().join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(program);
    command.arg("-p").arg(dir.path()).arg("-c").arg(&file).args(["-e", "error.log"]);
    Peer::start(dir, address, &mut command)
}

/// An haproxy with one HTTP frontend on a free address with `bind` options and the rules of `body`.
pub(crate) fn haproxy(program: &Path, bind: &str, body: &str) -> Peer {
    let dir = tempfile::tempdir().unwrap();
    let address = address::free();
    let file = dir.path().join("haproxy.cfg");
    std::fs::write(
        &file,
        format!(
            "global\n maxconn 4000\ndefaults\n mode http\n timeout client 60s\n \
             timeout server 60s\n timeout connect 5s\nfrontend front\n \
             bind {address} {bind}\n{body}\n"
        ),
    )
    .unwrap();
    let mut command = Command::new(program);
    command.arg("-db").arg("-f").arg(&file);
    Peer::start(dir, address, &mut command)
}
