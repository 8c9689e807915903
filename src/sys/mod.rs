//! The kernel's side of the contract; the only folder with `unsafe` code.

pub mod mailbox;
pub mod probe;
pub mod socket;
pub mod start;
