//! Backends: choosing a server, waiting for one, and the PROXY header it is greeted with.

pub mod balance;
mod inbox;
mod line;
pub mod permits;
pub mod proxy_protocol;
