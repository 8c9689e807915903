//! TLS clients of our own, for what command-line peers cannot do.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::server::NAME;
use super::{STUCK, certificates};

/// A TLS connection.
pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

/// The provider with every suite and group.
pub(crate) fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

/// A configuration that trusts the test authority and never resumes.
pub(crate) fn config_with(
    provider: CryptoProvider,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(certificates::authority_der()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    config
}

/// The usual configuration: both versions, every suite and group.
pub(crate) fn config() -> ClientConfig {
    config_with(provider(), rustls::ALL_VERSIONS)
}

/// A TCP connection whose reads and writes cannot block for ever.
pub(crate) fn tcp(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, STUCK)?;
    stream.set_read_timeout(Some(STUCK))?;
    stream.set_write_timeout(Some(STUCK))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// [`tcp`] from an address of 127/8.
pub(crate) fn tcp_from(source: Ipv4Addr, address: SocketAddr) -> std::io::Result<TcpStream> {
    let SocketAddr::V4(address) = address else { panic!("{address} is not of IPv4") };
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    socket::bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0)))?;
    socket::connect(socket.as_raw_fd(), &SockaddrIn::from(address))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(STUCK))?;
    stream.set_write_timeout(Some(STUCK))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Connects and completes the handshake.
pub(crate) fn try_connect(
    config: &Arc<ClientConfig>,
    address: SocketAddr,
    name: &str,
) -> std::io::Result<Tls> {
    handshake(config, tcp(address)?, name)
}

/// Completes a handshake over a TCP connection.
pub(crate) fn handshake(
    config: &Arc<ClientConfig>,
    mut stream: TcpStream,
    name: &str,
) -> std::io::Result<Tls> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection =
        ClientConnection::new(Arc::clone(config), name).map_err(std::io::Error::other)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    // The client's Finished.
    while connection.wants_write() {
        connection.write_tls(&mut stream)?;
    }
    Ok(StreamOwned::new(connection, stream))
}

/// Connects to a server that must take us.
#[track_caller]
pub(crate) fn connect(address: SocketAddr) -> Tls {
    try_connect(&Arc::new(config()), address, NAME).unwrap()
}

/// Sends `bytes` and reads as many back from an echo server.
#[track_caller]
pub(crate) fn echo(stream: &mut (impl Read + Write), bytes: &[u8]) {
    try_echo(stream, bytes).unwrap();
}

/// Sends `bytes` and reads as many back from an echo server, which must be the same.
pub(crate) fn try_echo(stream: &mut (impl Read + Write), bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back)?;
    if back == bytes { Ok(()) } else { Err(std::io::Error::other("the echo differs")) }
}

/// Sends `close_notify` and leaves the other direction open.
pub(crate) fn end_sending(tls: &mut Tls) {
    tls.conn.send_close_notify();
    while tls.conn.wants_write() {
        tls.conn.write_tls(&mut tls.sock).unwrap();
    }
}

/// Ends both directions in order, and waits for the server's `close_notify`.
#[track_caller]
pub(crate) fn finish(mut tls: Tls) {
    end_sending(&mut tls);
    let mut rest = Vec::new();
    tls.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "unexpected {} bytes at the end", rest.len());
}

/// Makes the close of `stream` a reset.
pub(crate) fn reset_at_close(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    socket::setsockopt(stream, socket::sockopt::Linger, &linger).unwrap();
}
