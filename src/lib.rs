//! Portcullis: a TLS edge terminator with one pinned `io_uring` worker per core.
//!
//! # Reading order
//! 1. [`connection`]: the journey of one connection, from accept to close, without I/O.
//! 2. [`io`]: the contract between the journey and what runs its operations.
//! 3. [`worker`]: the loop that drives connections; one per core.
//! 4. [`sys`]: the kernel's side of the contract, and all `unsafe` code.
//! 5. [`control`]: start-up, certificates, signals, metrics, logs; one thread, never a client byte.
//! 6. [`tune`]: what the kernel should be set to for this box, and how to take it back.
//!
//! The library is public for this package's own tests and benchmarks only.

// What a connection meets, in order.
pub mod connection;
pub mod tls;

pub mod backend;

// What drives it.
pub mod io;

pub mod worker;

#[expect(unsafe_code, reason = "the only folder that talks to the kernel")]
pub mod sys;

// What surrounds it.
pub mod cli;

pub mod config;
pub mod control;
pub mod limits;
pub mod telemetry;
pub mod tune;

// What stands on the other side, to measure.
pub mod load;
