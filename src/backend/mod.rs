//! Backends: choosing a server, and the PROXY header it is greeted with.

pub mod balance;
pub mod proxy_protocol;
