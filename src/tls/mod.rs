//! TLS: the only user of the rustls crate on the data plane.

pub mod client;
pub mod client_auth;
pub mod failure;
pub mod first_step;
pub mod hello;
pub mod provider;
mod record;
pub mod rehearsal;
pub mod resolver;
pub mod resumption;
pub mod session;
pub mod terms;
