//! Operations as plain data: what a stage wants done, without a descriptor or a pointer.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use super::{Buffer, Task};

/// Which of a connection's two sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The TLS peer.
    Client,
    /// What stands behind us.
    Server,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP.
    Inet(SocketAddr),
    /// Unix stream socket.
    Unix(Arc<Path>),
}

/// What a connect is told.
#[derive(Debug)]
pub struct Connect {
    /// To where.
    pub address: Address,
    /// From where, port 0 for any; `None`: the kernel chooses.
    pub source: Option<SocketAddr>,
    /// Bytes wait to be sent as soon as it stands: the acknowledgement that completes it may
    /// travel with them instead of in a packet of its own.
    pub speaks: bool,
}

// Thousands wait in a worker's outbox when their clients leave together.
const _: () = assert!(size_of::<Operation>() <= 16);

/// One operation; the token it is submitted with says on which slot.
#[derive(Debug)]
pub enum Operation {
    /// Take one client from a listener into the slot's client socket.
    Accept {
        /// Index into the worker's listening sockets.
        listener: u32,
    },
    /// Ask for the address that the client reached.
    LocalAddress,
    /// Tell the client at once that we have its bytes, instead of waiting for something to send
    /// along. Without effect where the kernel does not let us.
    Acknowledge,
    /// Receive into buffers that the `Io` chooses; 0 bytes is the end of the stream. One operation
    /// may bring several completions, of [`crate::limits::RECEIVE_BUFFER_BYTES`] together at
    /// most; it is in flight until one comes without `more`.
    Recv {
        /// From which socket.
        side: Side,
        /// As much as a buffer holds, at once: the receive before this one was filled.
        streams: bool,
    },
    /// Wait until a receive would find bytes, the end of the stream or an error, and take nothing.
    /// It may complete although there is nothing.
    Poll {
        /// For which socket.
        side: Side,
    },
    /// Send the buffer's unsent bytes; fewer may go out than asked for.
    Send {
        /// To which socket.
        side: Side,
        /// Comes back with the completion.
        buffer: Buffer,
        /// The end of the stream follows as soon as this is sent, and may leave with it in one
        /// packet (`MSG_MORE`, send(2)).
        ends: bool,
    },
    /// Make the slot's server socket and connect it.
    Connect(Box<Connect>),
    /// Send the end of the stream after what was sent before.
    Shutdown {
        /// On which socket.
        side: Side,
    },
    /// Abort: what is queued is discarded and the peer gets a reset, where the protocol has one.
    Reset {
        /// Which socket.
        side: Side,
    },
    /// Give the descriptor back. Nothing else may be in flight on that socket.
    Close {
        /// Which socket.
        side: Side,
    },
    /// Have something done on another thread of the same core, one that lets this one go first
    /// whenever it has something to do. It cannot be cancelled; a worker has
    /// [`crate::limits::STEPS_BESIDE_MAX`] in flight at most.
    Compute(Box<Task>),
    /// Let another worker's [`super::Io::wait`] end with a completion of its mailbox. Tells nothing
    /// of its own end, and any number may be in flight.
    Wake {
        /// That worker's number.
        worker: u16,
    },
    /// End another operation of the same slot early. The target still completes, perhaps with
    /// success.
    Cancel {
        /// The operation to end.
        target: super::Kind,
    },
}
