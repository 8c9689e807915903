//! TLS: the only user of the rustls crate on the data plane.

pub mod hello;
pub mod terms;
