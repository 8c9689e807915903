//! TLS: the only user of the rustls crate on the data plane.

pub mod provider;
pub mod resolver;
pub mod terms;
