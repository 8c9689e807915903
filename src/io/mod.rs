//! The contract between a connection's journey and whatever runs its operations: the kernel's
//! ring (`sys`) or the simulator (`tests/simulation`).
//!
//! Each connection owns a slot, and a slot owns two sockets: the client's and the server's.
//! Operations name a slot and a side, never a descriptor.

pub mod buffer;
pub mod errno;
pub mod operation;
pub mod queue;
pub mod task;
pub mod time;
pub mod token;

pub use buffer::Buffer;
pub use errno::Errno;
pub use operation::{Address, Connect, Operation, Side};
pub use task::Task;
pub use time::Time;
pub use token::{Kind, Token};

use crate::telemetry::labels::HandshakeStep;

/// One operation's end, or (with `more`) one of its results.
#[derive(Debug)]
pub struct Completion {
    /// Which operation.
    pub token: Token,
    /// Bytes moved, or the kernel's error.
    pub result: Result<u32, Errno>,
    /// The operation goes on: further completions follow.
    pub more: bool,
    /// What came with it.
    pub payload: Payload,
}

/// What a completion carries besides its result.
#[derive(Debug)]
pub enum Payload {
    /// Nothing.
    None,
    /// `Recv`: where the bytes are; valid until [`Io::recycle`].
    Received(ReceivedAt),
    /// `Send`: the buffer comes back to its owner.
    Sent(Buffer),
    /// `Accept`: the client's address. `LocalAddress`: the address the client reached.
    Peer(std::net::SocketAddr),
    /// `Compute`: what was to be done, done.
    Computed(Box<Task>),
}

/// A place in the receive buffers of an [`Io`].
#[derive(Debug)]
pub struct ReceivedAt {
    /// Buffer number.
    pub buffer: u16,
    /// Byte offset in the buffer.
    pub start: u32,
    /// Bytes.
    pub len: u32,
}

/// Runs operations. One worker owns one `Io`.
///
/// # The law of memory
/// A buffer handed over in an operation belongs to the `Io` until the operation's last completion
/// returns it, whatever happens to the connection meanwhile.
pub trait Io {
    /// Queues an operation. It is not started before [`Io::wait`].
    fn submit(&mut self, token: Token, operation: Operation);

    /// Starts what is queued, waits for at least one completion or until `deadline`, and appends
    /// what has completed to `completions`.
    fn wait(&mut self, deadline: Option<Time>, completions: &mut Vec<Completion>);

    /// The bytes of a receive. Each [`ReceivedAt`] must be recycled exactly once.
    fn received(&mut self, at: &ReceivedAt) -> &mut [u8];

    /// Gives received bytes' memory back.
    fn recycle(&mut self, at: ReceivedAt);

    /// A slot is free: nothing of it is in flight any more, and what was kept for it may go.
    fn forget(&mut self, _slot: u32) {}

    /// Whether [`Io::trim`] may have something to give back.
    fn is_large(&self) -> bool {
        false
    }

    /// Gives back memory that was not needed since the last call. A worker calls it when it has
    /// handled every completion, about once a second while there is something to give back.
    fn trim(&mut self) {}

    /// Closes the listening sockets; no accept is in flight any more. Called any number of times.
    fn stop_listening(&mut self) {}

    /// The clock; a worker reads it once per turn.
    fn now(&mut self) -> Time;

    /// The clock after a step of a handshake, which is how the worker knows what it cost; a
    /// simulator says what it would have.
    fn after_step(&mut self, _step: HandshakeStep) -> Time {
        self.now()
    }

    /// Unix time, in seconds until 2106: how old a ticket is. A worker reads it once per turn.
    fn unix(&mut self) -> u32;
}
