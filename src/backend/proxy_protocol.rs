//! TEMP
use crate::telemetry::labels::*;
use std::net::SocketAddr;
/// H
pub struct Header<'a> {
    /// a
    pub client: SocketAddr,
    /// b
    pub local: Option<SocketAddr>,
    /// c
    pub alpn: Option<&'a [u8]>,
    /// d
    pub authority: Option<&'a str>,
    /// e
    pub version: Version,
    /// f
    pub suite: Suite,
}
/// M
pub const HEADER_BYTES_MAX: usize = 1024;
/// E
pub fn encode(_v: crate::config::ProxyVersion, _h: &Header<'_>, _o: &mut [u8]) -> Option<usize> {
    None
}
