//! The kernel's side of the contract; the only folder with `unsafe` code.
//!
//! # Safety contract
//! What an operation in flight points to is owned by `ring::Ring` and by nothing else:
//! - a send's buffer moves into the ring with the operation and moves out with its completion;
//! - an accept's and a connect's address stand in boxes of the slot, reused only after the
//!   operation's completion;
//! - receive buffers belong to `receive::ReceiveBuffers`, which lends one out only after the
//!   kernel has handed it over, and hands it back to the kernel only when it is no longer lent.
//!
//! A connection can therefore be dropped, or panic, at any time without the kernel writing to
//! memory that somebody else has got. A ring that is dropped first cancels what is in flight and
//! waits until it is (`IORING_REGISTER_SYNC_CANCEL`, Linux 6.0); then its memory goes.

mod address;
mod allocator;
pub mod enter;
pub mod ethtool;
pub mod mailbox;
pub mod probe;
mod receive;
pub mod ring;
pub mod slots;
pub mod sock_diag;
pub mod socket;
pub mod start;
