//! Simulated TCP: one [`Link`] is one connection between us and a peer, with two bounded byte
//! streams, end of stream, half-close and reset, as tcp(7) and Linux' sources define them.

use std::collections::VecDeque;

use portcullis::io::Errno;

use crate::random::Random;

/// One of a link's two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// The worker's socket.
    Ours,
    /// The model peer's socket.
    Peer,
}

impl End {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Ours => Self::Peer,
            Self::Peer => Self::Ours,
        }
    }
}

/// What a non-blocking read finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Bytes(usize),
    EndOfStream,
    Blocked,
    Failed(Errno),
}

#[derive(Debug)]
enum Segment {
    Bytes(Vec<u8>),
    Fin,
    Reset,
}

/// One direction, seen from its writer: bytes on the wire, then bytes in the reader's buffer.
#[derive(Debug, Default)]
struct Pipe {
    flying: VecDeque<Segment>,
    readable: VecDeque<u8>,
    /// Bytes flying and readable: never above the capacity.
    used: usize,
    fin_sent: bool,
    fin_arrived: bool,
    /// Segments that the event queue does not know of yet.
    launched: usize,
}

#[derive(Debug, Default)]
struct Socket {
    closed: bool,
    /// Reset by either end: nothing goes in or out any more.
    dead: bool,
    /// Reported once, to whichever call comes first; then a read finds the end of the stream and
    /// a write a broken pipe (Linux: `sock_error`, `tcp_recvmsg`, `sk_stream_error`).
    error: Option<Errno>,
}

/// One TCP connection.
#[derive(Debug)]
pub(crate) struct Link {
    capacity: usize,
    to_ours: Pipe,
    to_peer: Pipe,
    ours: Socket,
    peer: Socket,
    /// The peer has read: a blocked send of ours may go on.
    pub(crate) peer_made_room: bool,
    /// We have read: a blocked peer may go on.
    pub(crate) ours_made_room: bool,
}

impl Link {
    /// An established connection that holds `capacity` bytes in each direction.
    pub(crate) fn new(capacity: usize) -> Self {
        assert!(capacity > 0, "a link without room never moves a byte");
        Self {
            capacity,
            to_ours: Pipe::default(),
            to_peer: Pipe::default(),
            ours: Socket::default(),
            peer: Socket::default(),
            peer_made_room: false,
            ours_made_room: false,
        }
    }

    fn inbound(&mut self, end: End) -> &mut Pipe {
        match end {
            End::Ours => &mut self.to_ours,
            End::Peer => &mut self.to_peer,
        }
    }

    fn outbound(&mut self, end: End) -> &mut Pipe {
        self.inbound(end.other())
    }

    fn socket(&mut self, end: End) -> &mut Socket {
        match end {
            End::Ours => &mut self.ours,
            End::Peer => &mut self.peer,
        }
    }

    /// Room for bytes that `end` may write now.
    pub(crate) fn room(&mut self, end: End) -> usize {
        self.capacity - self.outbound(end).used
    }

    /// Takes what fits of `bytes`; `Ok(0)` when nothing does: try again when the peer has read.
    pub(crate) fn write(&mut self, end: End, bytes: &[u8]) -> Result<usize, Errno> {
        let socket = self.socket(end);
        assert!(!socket.closed, "a write to a closed socket");
        if socket.dead {
            return Err(socket.error.take().unwrap_or(Errno::BROKEN_PIPE));
        }
        if self.outbound(end).fin_sent {
            return Err(Errno::BROKEN_PIPE);
        }
        let taken = bytes.len().min(self.room(end));
        if taken > 0 {
            let pipe = self.outbound(end);
            pipe.used += taken;
            pipe.flying.push_back(Segment::Bytes(bytes[..taken].to_vec()));
            pipe.launched += 1;
        }
        Ok(taken)
    }

    /// Reads what is there into `into`.
    pub(crate) fn read(&mut self, end: End, into: &mut [u8]) -> Read {
        assert!(!into.is_empty(), "a read of nothing");
        assert!(!self.socket(end).closed, "a read from a closed socket");
        let pipe = self.inbound(end);
        if !pipe.readable.is_empty() {
            let len = into.len().min(pipe.readable.len());
            for (to, from) in into.iter_mut().zip(pipe.readable.drain(..len)) {
                *to = from;
            }
            pipe.used -= len;
            match end {
                End::Ours => self.ours_made_room = true,
                End::Peer => self.peer_made_room = true,
            }
            return Read::Bytes(len);
        }
        if pipe.fin_arrived {
            return Read::EndOfStream;
        }
        let socket = self.socket(end);
        match (socket.dead, socket.error.take()) {
            (true, Some(error)) => Read::Failed(error),
            (true, None) => Read::EndOfStream,
            (false, _) => Read::Blocked,
        }
    }

    /// Whether a read would find anything: bytes, the end or an error.
    pub(crate) fn is_readable(&mut self, end: End) -> bool {
        let dead = self.socket(end).dead;
        let pipe = self.inbound(end);
        dead || pipe.fin_arrived || !pipe.readable.is_empty()
    }

    /// Sends the end of the stream behind what was written.
    pub(crate) fn shutdown(&mut self, end: End) {
        let dead = self.socket(end).dead;
        let pipe = self.outbound(end);
        if !dead && !pipe.fin_sent {
            pipe.fin_sent = true;
            pipe.flying.push_back(Segment::Fin);
            pipe.launched += 1;
        }
    }

    /// close(2): a reset when bytes were left unread (RFC 2525 section 2.17), else end of stream.
    pub(crate) fn close(&mut self, end: End, random: &mut Random) {
        assert!(!self.socket(end).closed, "a socket closed twice");
        if self.inbound(end).readable.is_empty() {
            self.shutdown(end);
        } else {
            self.abort(end, random);
        }
        self.socket(end).closed = true;
    }

    /// Resets: what the wire has not taken yet is lost, and so is what was not read.
    pub(crate) fn abort(&mut self, end: End, random: &mut Random) {
        if self.socket(end).dead {
            return;
        }
        self.socket(end).dead = true;
        self.socket(end).error = Some(Errno::CONNECTION_RESET);
        let inbound = self.inbound(end);
        inbound.readable.clear();
        inbound.used = inbound.bytes_flying();
        let pipe = self.outbound(end);
        if random.chance(500) {
            pipe.used -= pipe.bytes_flying();
            pipe.flying.clear();
        }
        pipe.flying.push_back(Segment::Reset);
        pipe.launched += 1;
    }

    /// Segments written since the last call, in the direction towards `end`.
    pub(crate) fn take_launched(&mut self, end: End) -> usize {
        std::mem::take(&mut self.inbound(end).launched)
    }

    /// The oldest segment on its way to `end` arrives. Returns false when there is none: a reset
    /// had taken it, or it was rushed.
    pub(crate) fn arrive(&mut self, end: End, random: &mut Random) -> bool {
        let (dead, closed) = (self.socket(end).dead, self.socket(end).closed);
        let pipe = self.inbound(end);
        match pipe.flying.pop_front() {
            None => return false,
            Some(Segment::Bytes(bytes)) if dead || closed => {
                pipe.used -= bytes.len();
                if !dead {
                    // Nobody reads any more: the kernel answers with a reset (RFC 9293 3.10.7.1).
                    self.abort(end, random);
                }
            }
            Some(Segment::Bytes(bytes)) => pipe.readable.extend(bytes),
            Some(Segment::Fin) => pipe.fin_arrived |= !dead,
            Some(Segment::Reset) if !dead => self.reset_arrived(end, random),
            Some(Segment::Reset) => {}
        }
        true
    }

    fn reset_arrived(&mut self, end: End, random: &mut Random) {
        let after_fin = self.inbound(end).fin_arrived;
        let socket = self.socket(end);
        socket.dead = true;
        socket.error = Some(if after_fin { Errno::BROKEN_PIPE } else { Errno::CONNECTION_RESET });
        // Linux keeps what has arrived for the reader; other systems throw it away.
        if end == End::Peer && random.chance(500) {
            let pipe = self.inbound(end);
            pipe.used -= pipe.readable.len();
            pipe.readable.clear();
            pipe.fin_arrived = false;
        }
    }

    /// Whether a reset ended the link at `end`.
    pub(crate) fn is_dead(&self, end: End) -> bool {
        match end {
            End::Ours => self.ours.dead,
            End::Peer => self.peer.dead,
        }
    }
}

impl Pipe {
    fn bytes_flying(&self) -> usize {
        self.flying
            .iter()
            .map(|segment| match segment {
                Segment::Bytes(bytes) => bytes.len(),
                Segment::Fin | Segment::Reset => 0,
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deliver(link: &mut Link, random: &mut Random) {
        for end in [End::Ours, End::Peer] {
            for _ in 0..link.take_launched(end) {
                link.arrive(end, random);
            }
        }
    }

    #[test]
    fn a_full_pipe_takes_no_more_until_the_reader_has_read() {
        let (mut link, mut random) = (Link::new(4), Random::new(1));
        assert_eq!(link.write(End::Ours, b"abcdef"), Ok(4));
        assert_eq!(link.write(End::Ours, b"ef"), Ok(0));
        deliver(&mut link, &mut random);
        assert_eq!(link.write(End::Ours, b"ef"), Ok(0));
        let mut into = [0; 3];
        assert_eq!(link.read(End::Peer, &mut into), Read::Bytes(3));
        assert_eq!(&into, b"abc");
        assert!(link.peer_made_room);
        assert_eq!(link.write(End::Ours, b"ef"), Ok(2));
    }

    #[test]
    fn a_reset_is_reported_once_and_what_had_arrived_can_still_be_read() {
        let (mut link, mut random) = (Link::new(64), Random::new(1));
        link.write(End::Peer, b"last words").unwrap();
        deliver(&mut link, &mut random);
        link.abort(End::Peer, &mut random);
        deliver(&mut link, &mut random);
        let mut into = [0; 64];
        assert_eq!(link.read(End::Ours, &mut into), Read::Bytes(10));
        let reset = Errno::CONNECTION_RESET;
        assert_eq!(link.read(End::Ours, &mut into), Read::Failed(reset));
        assert_eq!(link.read(End::Ours, &mut into), Read::EndOfStream);
        assert_eq!(link.write(End::Ours, b"x"), Err(Errno::BROKEN_PIPE));
    }

    #[test]
    fn half_closed_the_other_direction_still_works() {
        let (mut link, mut random) = (Link::new(64), Random::new(1));
        link.shutdown(End::Peer);
        deliver(&mut link, &mut random);
        let mut into = [0; 64];
        assert_eq!(link.read(End::Ours, &mut into), Read::EndOfStream);
        assert_eq!(link.write(End::Ours, b"reply"), Ok(5));
        deliver(&mut link, &mut random);
        assert_eq!(link.read(End::Peer, &mut into), Read::Bytes(5));
        assert_eq!(link.read(End::Peer, &mut into), Read::Blocked);
    }

    #[test]
    fn bytes_for_a_closed_socket_are_answered_by_a_reset() {
        let (mut link, mut random) = (Link::new(64), Random::new(1));
        link.close(End::Peer, &mut random);
        deliver(&mut link, &mut random);
        assert_eq!(link.write(End::Ours, b"too late"), Ok(8));
        deliver(&mut link, &mut random);
        deliver(&mut link, &mut random);
        assert!(link.is_dead(End::Ours));
        assert_eq!(link.write(End::Ours, b"x"), Err(Errno::BROKEN_PIPE));
    }
}
