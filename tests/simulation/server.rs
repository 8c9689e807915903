//! The model server: plain TCP behind the terminator, which follows a script and verifies what it
//! gets, a PROXY header included.

use std::time::Duration;

use portcullis::config::ProxyVersion;
use portcullis::io::Time;

use crate::client::{Peer, Turn};
use crate::faults::{Misbehaviour, Reply, ServerScript};
use crate::network::{End, Read};

/// A server; see [`ServerScript`].
pub(crate) struct Server {
    script: ServerScript,
    header: Option<(ProxyVersion, Vec<u8>)>,
    /// Which connect of its conversation it answered; a later one replaces it.
    answered: usize,
    busy_until: Time,
    deaf: bool,
    gone: bool,
    mute: bool,
}

impl Server {
    /// A server that expects a PROXY header of `version`, if any, before the first byte.
    pub(crate) fn new(
        script: ServerScript,
        version: Option<ProxyVersion>,
        answered: usize,
    ) -> Self {
        Self {
            script,
            header: version.map(|version| (version, Vec::new())),
            answered,
            busy_until: Time(0),
            deaf: false,
            gone: false,
            mute: false,
        }
    }

    fn receive(&mut self, turn: &mut Turn<'_>) -> bool {
        if self.deaf {
            return false;
        }
        let mut bytes = vec![0; self.script.pace.read_max];
        match turn.link.read(End::Peer, &mut bytes) {
            Read::Blocked => return false,
            Read::Bytes(len) => {
                let bytes = self.without_header(&bytes[..len], turn);
                let talk = &mut *turn.talk;
                talk.request.verify(talk.server.got, &bytes, "server");
                talk.server.got += bytes.len() as u64;
                talk.check_now();
            }
            Read::EndOfStream => {
                self.deaf = true;
                turn.talk.server.saw_end = true;
            }
            Read::Failed(_) => {
                (self.deaf, self.mute) = (true, true);
                turn.talk.server.saw_failure = true;
            }
        }
        true
    }

    /// Takes the PROXY header off; it has to name the client's address.
    fn without_header(&mut self, bytes: &[u8], turn: &Turn<'_>) -> Vec<u8> {
        let Some((version, header)) = &mut self.header else {
            return bytes.to_vec();
        };
        header.extend_from_slice(bytes);
        let len = match version {
            ProxyVersion::V1 => header.windows(2).position(|pair| pair == b"\r\n").map(|at| at + 2),
            ProxyVersion::V2 if header.len() < 16 => None,
            ProxyVersion::V2 => {
                Some(16 + usize::from(u16::from_be_bytes([header[14], header[15]])))
            }
        };
        let Some(len) = len.filter(|len| *len <= header.len()) else {
            return Vec::new();
        };
        let client = turn.talk.address;
        match version {
            ProxyVersion::V1 => {
                let line = std::str::from_utf8(&header[..len]).unwrap();
                let words: Vec<&str> = line.split_whitespace().collect();
                assert_eq!(words[..2], ["PROXY", "TCP4"], "{line}");
                assert_eq!(words[2], client.ip().to_string(), "{line}");
                assert_eq!(words[4], client.port().to_string(), "{line}");
            }
            ProxyVersion::V2 => {
                assert_eq!(&header[..12], b"\r\n\r\n\0\r\nQUIT\n");
                assert_eq!(header[12..14], [0x21, 0x11], "v2, PROXY, TCP over IPv4");
                let std::net::IpAddr::V4(ip) = client.ip() else {
                    panic!("simulated clients have IPv4 addresses")
                };
                assert_eq!(header[16..20], ip.octets());
                assert_eq!(header[24..26], client.port().to_be_bytes());
            }
        }
        let rest = header.split_off(len);
        self.header = None;
        rest
    }

    fn reply(&mut self, turn: &mut Turn<'_>) -> bool {
        if self.mute {
            return false;
        }
        let heard = &turn.talk.server;
        let due = match self.script.reply {
            Reply::Echo => heard.got,
            Reply::Source(len) => len,
            Reply::AfterEnd(len) if heard.saw_end => len,
            Reply::AfterEnd(_) => 0,
        };
        let complete = heard.saw_end || matches!(self.script.reply, Reply::Source(_));
        let left = due - heard.sent;
        if left == 0 {
            let ends = complete && (self.script.ends_first || heard.saw_end);
            if ends && !heard.ended {
                turn.talk.server.ended = true;
                turn.link.shutdown(End::Peer);
            }
            return false;
        }
        let len = turn.random.magnitude(1, self.script.pace.write_max);
        let len = len.min(usize::try_from(left).unwrap());
        let len = len.min(turn.link.room(End::Peer));
        let bytes = turn.talk.reply.bytes(heard.sent, len);
        let Ok(taken) = turn.link.write(End::Peer, &bytes) else {
            (self.deaf, self.mute) = (true, true);
            turn.talk.server.saw_failure = true;
            return true;
        };
        turn.talk.server.sent += taken as u64;
        taken > 0
    }

    fn misbehave(&mut self, turn: &mut Turn<'_>) -> bool {
        let moved = turn.talk.server.got + turn.talk.server.sent;
        let Some((_, how)) = self.script.misbehaves.filter(|(at, _)| moved >= *at && !self.mute)
        else {
            return false;
        };
        turn.talk.server.misbehaved = true;
        self.mute = true;
        match how {
            Misbehaviour::Silent | Misbehaviour::Garbage | Misbehaviour::Crawl => self.gone = true,
            Misbehaviour::Fin => {
                // On the wire a server that gives up looks like one that has said all.
                turn.talk.server.ended = true;
                turn.link.shutdown(End::Peer);
            }
            Misbehaviour::Close => {
                turn.talk.server.ended = true;
                self.leave(turn);
            }
            Misbehaviour::Reset => {
                turn.link.abort(End::Peer, turn.random);
                self.leave(turn);
            }
        }
        true
    }

    fn leave(&mut self, turn: &mut Turn<'_>) {
        self.gone = true;
        turn.link.close(End::Peer, turn.random);
    }
}

impl Peer for Server {
    fn poll(&mut self, turn: &mut Turn<'_>) -> Option<Duration> {
        if self.gone {
            return None;
        }
        if self.answered != turn.talk.tries {
            self.leave(turn);
            return None;
        }
        if turn.now < self.busy_until {
            return Some(self.busy_until.since(turn.now));
        }
        if !self.mute && self.misbehave(turn) && self.gone {
            return None;
        }
        let mut moved = self.receive(turn);
        moved |= self.reply(turn);
        if self.deaf && (self.mute || turn.talk.server.ended) {
            self.leave(turn);
        }
        let pause = self.script.pace.pause(turn.random);
        self.busy_until = turn.now + pause;
        (moved && !self.gone).then_some(pause)
    }
}
