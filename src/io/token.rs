//! User data of an operation: kind, generation, slot, packed into the 64 bits that the kernel
//! hands back with each completion. Packed and unpacked here only.

/// Which of a connection's operations. At most one of each kind is in flight per slot, so that
/// `(slot, generation, kind)` names an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A new client on a listener.
    Accept = 1,
    /// Address the client reached.
    LocalAddress,
    /// Bytes from the client.
    RecvClient,
    /// Bytes to the client.
    SendClient,
    /// No more bytes to the client.
    ShutdownClient,
    /// Abort towards the client.
    ResetClient,
    /// Give the client's descriptor back.
    CloseClient,
    /// End the client's receive.
    CancelRecvClient,
    /// End the client's send.
    CancelSendClient,
    /// Connection to a server.
    Connect,
    /// End the connection attempt.
    CancelConnect,
    /// Bytes from the server.
    RecvServer,
    /// Bytes to the server.
    SendServer,
    /// No more bytes to the server.
    ShutdownServer,
    /// Abort towards the server.
    ResetServer,
    /// Give the server's descriptor back.
    CloseServer,
    /// End the server's receive.
    CancelRecvServer,
    /// End the server's send.
    CancelSendServer,
    /// End an accept.
    CancelAccept,
    /// The control thread, or another worker, has left something.
    Mailbox,
    /// Tell the client that we have its bytes.
    AcknowledgeClient,
    /// Something to receive from the client.
    PollClient,
    /// End the client's poll.
    CancelPollClient,
    /// Something to receive from the server.
    PollServer,
    /// End the server's poll.
    CancelPollServer,
    /// Used inside an `Io` only; never seen by a worker.
    Internal,
    /// Look which CPU the client's packets come to; inside an `Io` only.
    SampleClient,
    /// Tell another worker that there is a message for it.
    Wake,
    /// A step of the handshake that another thread does.
    Compute,
}

const KINDS: [Kind; 29] = [
    Kind::Accept,
    Kind::LocalAddress,
    Kind::RecvClient,
    Kind::SendClient,
    Kind::ShutdownClient,
    Kind::ResetClient,
    Kind::CloseClient,
    Kind::CancelRecvClient,
    Kind::CancelSendClient,
    Kind::Connect,
    Kind::CancelConnect,
    Kind::RecvServer,
    Kind::SendServer,
    Kind::ShutdownServer,
    Kind::ResetServer,
    Kind::CloseServer,
    Kind::CancelRecvServer,
    Kind::CancelSendServer,
    Kind::CancelAccept,
    Kind::Mailbox,
    Kind::AcknowledgeClient,
    Kind::PollClient,
    Kind::CancelPollClient,
    Kind::PollServer,
    Kind::CancelPollServer,
    Kind::Internal,
    Kind::SampleClient,
    Kind::Wake,
    Kind::Compute,
];

/// Names one operation: 8 bits of kind, 24 of generation, 32 of slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    /// Index in the worker's table of connections.
    pub slot: u32,
    /// Counts the connections that used the slot, modulo 2^24: a stale completion does not match.
    pub generation: u32,
    /// Which operation of that connection.
    pub kind: Kind,
}

impl Token {
    /// Generations are counted modulo this.
    pub const GENERATIONS: u32 = 1 << 24;

    /// A token; the generation is taken modulo [`Token::GENERATIONS`].
    pub fn new(slot: u32, generation: u32, kind: Kind) -> Self {
        Self { slot, generation: generation % Self::GENERATIONS, kind }
    }

    /// Into user data.
    pub fn pack(self) -> u64 {
        (u64::from(self.kind as u8) << 56)
            | (u64::from(self.generation) << 32)
            | u64::from(self.slot)
    }

    /// From user data; `None` when no token packs to it.
    pub fn unpack(user_data: u64) -> Option<Self> {
        let [kind, g2, g1, g0, s3, s2, s1, s0] = user_data.to_be_bytes();
        let kind = *KINDS.get(usize::from(kind).checked_sub(1)?)?;
        Some(Self {
            slot: u32::from_be_bytes([s3, s2, s1, s0]),
            generation: u32::from_be_bytes([0, g2, g1, g0]),
            kind,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_packing() {
        for kind in KINDS {
            for (slot, generation) in [(0, 0), (1, 7), (u32::MAX, Token::GENERATIONS - 1)] {
                let token = Token::new(slot, generation, kind);
                assert_eq!(Token::unpack(token.pack()), Some(token));
            }
        }
        assert_eq!(Token::unpack(0), None);
        assert_eq!(Token::unpack(u64::MAX), None);
    }
}
