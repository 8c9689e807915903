//! The model client: a real rustls client in memory, which follows a script.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use portcullis::io::Time;
use rustls::ClientConnection;

use crate::conversation::Conversation;
use crate::faults::{ClientEnd, ClientScript, Misbehaviour, Opening};
use crate::network::{End, Link, Read};
use crate::random::Random;

/// What a model peer may touch when it is its turn.
pub(crate) struct Turn<'a> {
    pub(crate) link: &'a mut Link,
    pub(crate) talk: &'a mut Conversation,
    pub(crate) random: &'a mut Random,
    pub(crate) now: Time,
}

/// The far end of a link.
pub(crate) trait Peer {
    /// Does what can be done now. Returns when to call again even if nothing arrives.
    fn poll(&mut self, turn: &mut Turn<'_>) -> Option<Duration>;
}

/// A client; see [`ClientScript`].
#[expect(clippy::struct_excessive_bools, reason = "what it has stopped doing, independently")]
pub(crate) struct Client {
    script: ClientScript,
    tls: ClientConnection,
    /// TLS bytes that the socket has not taken.
    out: VecDeque<u8>,
    written: u64,
    busy_until: Time,
    /// Nothing more comes from the terminator.
    deaf: bool,
    /// Nothing more goes to it.
    mute: bool,
    /// What goes to it is noise.
    babbles: bool,
    /// What goes to it is a byte at a time, with pauses.
    crawls: bool,
    /// Out of the conversation altogether.
    gone: bool,
}

impl Client {
    pub(crate) fn new(
        script: ClientScript,
        config: &Arc<rustls::ClientConfig>,
        random: &mut Random,
    ) -> Self {
        let name = "simulated.example".try_into().unwrap();
        let tls = ClientConnection::new(Arc::clone(config), name).unwrap();
        let out = match script.opening {
            Opening::Tls => VecDeque::new(),
            Opening::PlainHttp => {
                b"GET / HTTP/1.1\r\nHost: simulated.example\r\n\r\n".iter().copied().collect()
            }
            Opening::Noise => {
                let len = random.magnitude(1, 3000);
                noise(random, len)
            }
        };
        Self {
            script,
            tls,
            out,
            written: 0,
            busy_until: Time(0),
            deaf: false,
            mute: false,
            babbles: false,
            crawls: false,
            gone: false,
        }
    }

    fn speaks_tls(&self) -> bool {
        self.script.opening == Opening::Tls
    }

    /// Reads from the socket into TLS.
    fn receive(&mut self, turn: &mut Turn<'_>) -> bool {
        let established = !self.tls.is_handshaking();
        let stops = |until| until == 0 || (established && turn.talk.client.got >= until);
        if self.script.reads_until.is_some_and(stops) {
            turn.talk.client.misbehaved = true;
            return false;
        }
        if self.deaf {
            return false;
        }
        let mut bytes = vec![0; self.script.pace.read_max];
        match turn.link.read(End::Peer, &mut bytes) {
            Read::Blocked => return false,
            Read::Bytes(len) if self.speaks_tls() => self.decrypt(&bytes[..len], turn),
            Read::Bytes(_) => {}
            Read::EndOfStream => {
                self.deaf = true;
                turn.talk.client.saw_failure |= !turn.talk.client.saw_end;
            }
            Read::Failed(_) => {
                (self.deaf, self.mute) = (true, true);
                turn.talk.client.saw_failure = true;
            }
        }
        true
    }

    fn decrypt(&mut self, mut bytes: &[u8], turn: &mut Turn<'_>) {
        while !bytes.is_empty() && !self.deaf {
            self.tls.read_tls(&mut bytes).unwrap();
            let result = self.tls.process_new_packets();
            let mut plaintext = Vec::new();
            // Ends with WouldBlock when there is no more for now.
            let _result = self.tls.reader().read_to_end(&mut plaintext);
            let heard = &mut turn.talk.client;
            if !plaintext.is_empty() {
                assert!(!heard.saw_end, "bytes behind close_notify");
                turn.talk.reply.verify(heard.got, &plaintext, "client");
                heard.got += plaintext.len() as u64;
            }
            match result {
                Ok(state) => heard.saw_end |= state.peer_has_closed(),
                Err(error) => {
                    heard.saw_failure = true;
                    turn.talk.tls_error = Some(error);
                    self.deaf = true;
                }
            }
            turn.talk.check_now();
        }
    }

    /// Gives TLS what there is to say.
    fn speak(&mut self, turn: &mut Turn<'_>) {
        let said = &mut turn.talk.client;
        if self.mute || self.babbles || !self.speaks_tls() {
            return;
        }
        let left = self.script.request_len - said.sent;
        if left > 0 && !self.tls.is_handshaking() && self.out.is_empty() {
            let len = turn.random.magnitude(1, self.script.pace.write_max);
            let len = len.min(usize::try_from(left).unwrap());
            let bytes = turn.talk.request.bytes(said.sent, len);
            said.sent += self.tls.writer().write(&bytes).unwrap() as u64;
        }
        let complete = said.sent == self.script.request_len && !self.tls.is_handshaking();
        let ends = match self.script.end {
            ClientEnd::AfterRequest => complete,
            ClientEnd::AfterEcho => complete && said.got == self.script.request_len,
            ClientEnd::AfterServer => complete && said.saw_end,
            ClientEnd::Never => false,
        };
        if ends && !said.ended {
            said.ended = true;
            self.tls.send_close_notify();
        }
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.out).unwrap();
        }
    }

    /// Writes TLS bytes to the socket, up to the point where the script says to misbehave.
    fn flush(&mut self, turn: &mut Turn<'_>) -> bool {
        if self.mute {
            return false;
        }
        let trickles = self.crawls || self.script.trickle.is_some_and(|end| self.written < end);
        let mut len = if trickles { 1 } else { self.script.pace.write_max };
        let behaves = !self.babbles && !self.crawls;
        if let Some((at, how)) = self.script.misbehaves.filter(|_| behaves) {
            if self.written == at {
                self.misbehave(how, turn);
                return true;
            }
            len = len.min(usize::try_from(at - self.written).unwrap());
        }
        let bytes: Vec<u8> = self.out.iter().copied().take(len).collect();
        if bytes.is_empty() {
            return false;
        }
        match turn.link.write(End::Peer, &bytes) {
            Ok(0) => false,
            Ok(taken) => {
                self.out.drain(..taken);
                self.written += taken as u64;
                true
            }
            Err(_) => {
                (self.deaf, self.mute) = (true, true);
                turn.talk.client.saw_failure = true;
                true
            }
        }
    }

    fn misbehave(&mut self, how: Misbehaviour, turn: &mut Turn<'_>) {
        turn.talk.client.misbehaved = true;
        self.mute = true;
        match how {
            Misbehaviour::Silent => self.gone = true,
            Misbehaviour::Fin => turn.link.shutdown(End::Peer),
            Misbehaviour::Close => self.leave(turn),
            Misbehaviour::Reset => {
                turn.link.abort(End::Peer, turn.random);
                self.leave(turn);
            }
            // More than a record: whatever was begun is complete, and wrong.
            Misbehaviour::Garbage => {
                self.out = noise(turn.random, 20_000);
                (self.babbles, self.mute) = (true, false);
            }
            Misbehaviour::Crawl => (self.crawls, self.mute) = (true, false),
        }
    }

    fn leave(&mut self, turn: &mut Turn<'_>) {
        self.gone = true;
        turn.link.close(End::Peer, turn.random);
    }

    /// Ends its direction of the TCP connection, or leaves, when the time has come.
    fn maybe_leave(&mut self, turn: &mut Turn<'_>) {
        let flushed = self.out.is_empty() || self.mute;
        let said = &turn.talk.client;
        let heard_all = self.deaf || !self.script.fin_after_notify;
        let over = if said.saw_end { said.ended && heard_all } else { self.deaf };
        if flushed && (over || (self.deaf && self.mute)) {
            self.leave(turn);
        } else if flushed && said.ended && self.script.fin_after_notify {
            turn.link.shutdown(End::Peer);
        }
    }
}

impl Peer for Client {
    fn poll(&mut self, turn: &mut Turn<'_>) -> Option<Duration> {
        if self.gone {
            return None;
        }
        if turn.now < self.busy_until {
            return Some(self.busy_until.since(turn.now));
        }
        let mut moved = self.receive(turn);
        self.speak(turn);
        moved |= self.flush(turn);
        if !self.gone {
            self.maybe_leave(turn);
        }
        let pause =
            if self.crawls { Duration::from_secs(5) } else { self.script.pace.pause(turn.random) };
        self.busy_until = turn.now + pause;
        (moved && !self.gone).then_some(pause)
    }
}

fn noise(random: &mut Random, len: usize) -> VecDeque<u8> {
    (0..len).map(|_| random.bits().to_le_bytes()[0]).collect()
}
