//! The access-log record: what a worker says about a connection at its close.

use std::net::SocketAddr;

use super::labels::{
    CloseReason, Group, HandshakeOutcome, ResumptionKind, ResumptionResult, Suite, Version,
};

/// One connection, told at its close. Owned and small; it crosses to the control thread, which
/// turns indexes into names and writes the line.
#[derive(Debug, Clone)]
pub struct Record {
    /// Worker's number.
    pub worker: u16,
    /// Index of the listener in the configuration.
    pub listener: u16,
    /// The client's address.
    pub client: SocketAddr,
    /// Server name the client asked for, if it sent one.
    pub server_name: Option<Box<str>>,
    /// Negotiated ALPN protocol.
    pub alpn: Option<Box<str>>,
    /// How the handshake ended.
    pub handshake: HandshakeOutcome,
    /// TLS version.
    pub version: Version,
    /// Cipher suite.
    pub suite: Suite,
    /// Key exchange group.
    pub group: Group,
    /// What the client offered to resume, and what came of it; `None`: it offered nothing.
    pub resumption: Option<(ResumptionKind, ResumptionResult)>,
    /// The client showed a certificate, and it was verified.
    pub client_verified: bool,
    /// The common name of that certificate's subject, at most
    /// [`crate::limits::CLIENT_NAME_BYTES_MAX`] bytes.
    pub client_name: Option<Box<str>>,
    /// Index of the backend, once routed.
    pub backend: Option<u16>,
    /// Index of the server within its backend that was tried last.
    pub server: Option<u16>,
    /// Why it ended.
    pub reason: CloseReason,
    /// Plaintext bytes from the client, opened for the server.
    pub inbound_bytes: u64,
    /// Plaintext bytes from the server, sealed for the client.
    pub outbound_bytes: u64,
    /// Nanoseconds from accept to the complete `ClientHello`.
    pub client_hello_nanos: u64,
    /// Nanoseconds from there to the client's Finished.
    pub handshake_nanos: u64,
    /// Nanoseconds in line for a server.
    pub queue_nanos: u64,
    /// Nanoseconds from the route to the connected server, without those in line.
    pub connect_nanos: u64,
    /// Nanoseconds from accept to close.
    pub total_nanos: u64,
}

/// A worker's end of the queue of its records.
pub type Sender = rtrb::Producer<Box<Record>>;
/// The access log's end of it.
pub type Receiver = rtrb::Consumer<Box<Record>>;
