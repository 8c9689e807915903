//! TLS: the only user of the rustls crate on the data plane.

pub mod failure;
pub mod hello;
pub mod provider;
mod record;
pub mod resolver;
pub mod session;
pub mod terms;
