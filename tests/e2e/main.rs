//! The real binary against real peers, one module per topic.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, and its helpers stand outside #[test] functions"
)]
#![expect(
    clippy::float_cmp,
    reason = "metrics are whole numbers below 2^53, which f64 holds exactly"
)]

#[path = "../support/mod.rs"]
mod support;

mod apart;
mod bad_input;
mod client_auth;
mod content;
mod handshake;
mod http;
mod idle;
mod kernel;
mod limits;
mod load;
mod observability;
mod proxy_protocol;
mod queue;
mod relay;
mod resumption;
mod shutdown;
mod slow;
mod sources;
mod start_up;
mod tune;
mod workers;
