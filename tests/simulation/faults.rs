//! What goes wrong: probabilities of the kernel's and the network's faults, and the script that
//! each conversation's client and server follow. All of it follows from the seed.

use std::time::Duration;

use crate::random::Random;

/// Faults of kernel and network, in thousandths of the occasions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// A receive delivers less than has arrived.
    pub(crate) short_reads: u32,
    /// A send takes less than would fit.
    pub(crate) short_writes: u32,
    /// A completion is seen long after its operation has ended.
    pub(crate) late_completions: u32,
    /// A cancel is carried out late: its target may have succeeded meanwhile.
    pub(crate) late_cancels: u32,
    /// What is under way to a socket arrives just before a cancel is carried out.
    pub(crate) cancel_races: u32,
    /// A poll completes although there is nothing to receive.
    pub(crate) spurious_polls: u32,
    /// A receive finds no free buffer.
    pub(crate) no_buffers: u32,
    /// An accept finds no descriptor.
    pub(crate) accept_no_files: u32,
    /// An accept finds a client that has given up.
    pub(crate) accept_aborted: u32,
    /// Not a fault: this kernel's receives go on after a completion, until their limit.
    pub(crate) receives_go_on: bool,
    /// Receive buffers that there are.
    pub(crate) receive_buffers: u16,
    /// The longest way of a segment, in microseconds.
    pub(crate) latency_micros: u64,
    /// Not a fault: what the first step of a full handshake costs, in microseconds; others cost
    /// less.
    pub(crate) full_step_micros: u64,
    /// Conversations of which one side misbehaves.
    pub(crate) misbehaviour: u32,
    /// Conversations of which a connect fails.
    pub(crate) connect_failures: u32,
}

impl Faults {
    /// A kind world: nothing fails, and every receive finds a buffer.
    pub(crate) fn none() -> Self {
        Self { receive_buffers: 64, latency_micros: 100, ..Self::default() }
    }

    /// Each fault absent, rare or frequent, independently: a seed where only one is frequent finds
    /// what a uniform mixture hides.
    pub(crate) fn draw(random: &mut Random) -> Self {
        let mut rate = |rates: [u32; 3]| random.pick(&rates);
        Self {
            short_reads: rate([0, 100, 700]),
            short_writes: rate([0, 100, 700]),
            late_completions: rate([0, 20, 300]),
            late_cancels: rate([0, 200, 800]),
            cancel_races: rate([0, 200, 800]),
            spurious_polls: rate([0, 50, 700]),
            no_buffers: rate([0, 10, 200]),
            accept_no_files: rate([0, 50, 300]),
            accept_aborted: rate([0, 0, 50]),
            receives_go_on: rate([0, 1, 1]) == 1,
            receive_buffers: u16::try_from(rate([2, 8, 64])).unwrap(),
            latency_micros: u64::from(rate([1, 1000, 30_000])),
            full_step_micros: u64::from(rate([0, 100, 10_000])),
            misbehaviour: rate([0, 300, 700]),
            connect_failures: rate([0, 100, 500]),
        }
    }
}

/// How a peer leaves its role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Misbehaviour {
    /// Neither reads nor writes any more, but keeps its socket.
    Silent,
    /// Ends its stream without a word, and reads on.
    Fin,
    /// Gives its socket back.
    Close,
    /// Resets.
    Reset,
    /// Sends random bytes where TLS records are due; a client's only.
    Garbage,
    /// Goes on by a byte every five seconds, and reads as ever; a client's only.
    Crawl,
}

/// How fast a peer is and in which pieces it moves bytes.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    pub(crate) read_max: usize,
    pub(crate) write_max: usize,
    pub(crate) pause_micros: u64,
}

impl Pace {
    pub(crate) const FAST: Self =
        Self { read_max: 64 * 1024, write_max: 64 * 1024, pause_micros: 10 };

    fn draw(random: &mut Random) -> Self {
        let sizes = [200, 3000, 20_000, 64 * 1024];
        Self {
            read_max: random.pick(&sizes),
            write_max: random.pick(&sizes),
            pause_micros: random.pick(&[10, 200, 3000, 3000, 50_000]),
        }
    }

    /// How long the peer thinks before it goes on.
    pub(crate) fn pause(&self, random: &mut Random) -> Duration {
        random.micros(1, self.pause_micros)
    }
}

/// What a client says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    Tls,
    PlainHttp,
    Noise,
}

/// When a client ends its direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientEnd {
    /// With its last request byte.
    AfterRequest,
    /// When the reply, as long as its request, is complete.
    AfterEcho,
    /// When the server has ended its own direction.
    AfterServer,
    /// Never: it keeps the connection and says nothing.
    Never,
}

/// A client's part.
#[derive(Debug, Clone)]
pub(crate) struct ClientScript {
    pub(crate) opening: Opening,
    pub(crate) tls12: bool,
    pub(crate) request_len: u64,
    pub(crate) end: ClientEnd,
    /// FIN follows `close_notify` at once; else with the close.
    pub(crate) fin_after_notify: bool,
    pub(crate) pace: Pace,
    /// After so many TLS bytes.
    pub(crate) misbehaves: Option<(u64, Misbehaviour)>,
    /// Bytes of one write until so many have been written: a trickled `ClientHello`.
    pub(crate) trickle: Option<u64>,
    /// Reads nothing more once it has had so many bytes of the reply; 0: nothing at all.
    pub(crate) reads_until: Option<u64>,
}

/// What a server replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    /// One byte for each byte it reads.
    Echo,
    /// So many bytes, whatever it reads.
    Source(u64),
    /// So many bytes, when the client has ended: only a half-closed client gets them.
    AfterEnd(u64),
}

/// A server's part.
#[derive(Debug, Clone)]
pub(crate) struct ServerScript {
    pub(crate) reply: Reply,
    /// Ends its direction when the reply is complete; else when the client has ended, too.
    pub(crate) ends_first: bool,
    pub(crate) pace: Pace,
    /// After so many bytes, read and written.
    pub(crate) misbehaves: Option<(u64, Misbehaviour)>,
}

/// What a connect meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectOutcome {
    Connected,
    Refused,
    /// No answer; the kernel gives up after minutes.
    Hangs,
    /// No descriptor left for the socket.
    NoFiles,
}

/// One conversation: a client, the connects made for it, and the server it reaches.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) client: ClientScript,
    pub(crate) server: ServerScript,
    /// By number of the try; tries beyond are connected.
    pub(crate) connects: Vec<ConnectOutcome>,
    /// Bytes that a socket holds in each direction.
    pub(crate) capacity: usize,
}

impl Plan {
    /// A quick and well-behaved echo over TLS 1.3.
    pub(crate) fn echo(request_len: u64) -> Self {
        Self {
            client: ClientScript {
                opening: Opening::Tls,
                tls12: false,
                request_len,
                end: ClientEnd::AfterEcho,
                fin_after_notify: true,
                pace: Pace::FAST,
                misbehaves: None,
                trickle: None,
                reads_until: None,
            },
            server: ServerScript {
                reply: Reply::Echo,
                ends_first: false,
                pace: Pace::FAST,
                misbehaves: None,
            },
            connects: Vec::new(),
            capacity: 256 * 1024,
        }
    }

    /// Any conversation.
    pub(crate) fn draw(random: &mut Random, faults: &Faults) -> Self {
        let largest = random.pick(&[100, 10_000, 100_000, 300_000]);
        let size = |random: &mut Random| random.magnitude(1, largest) as u64 - 1;
        let (request_len, reply_len) = (size(random), size(random));
        let server = ServerScript {
            reply: match random.range(0, 3) {
                0 | 1 => Reply::Echo,
                2 => Reply::Source(reply_len),
                _ => Reply::AfterEnd(reply_len),
            },
            ends_first: false,
            pace: Pace::draw(random),
            misbehaves: None,
        };
        let client = ClientScript {
            opening: Opening::Tls,
            tls12: random.chance(300),
            request_len,
            end: ClientEnd::AfterRequest,
            fin_after_notify: random.chance(500),
            pace: Pace::draw(random),
            misbehaves: None,
            trickle: random.chance(100).then(|| random.range(1, 400)),
            reads_until: None,
        };
        let mut plan = Self {
            client,
            server,
            connects: Vec::new(),
            capacity: random.magnitude(500, 256 * 1024),
        };
        plan.agree_on_ends(random);
        if random.chance(faults.misbehaviour) {
            plan.misbehave(random);
        }
        while random.chance(faults.connect_failures) && plan.connects.len() < 3 {
            plan.connects.push(random.pick(&[
                ConnectOutcome::Refused,
                ConnectOutcome::Refused,
                ConnectOutcome::Hangs,
                ConnectOutcome::NoFiles,
            ]));
        }
        plan
    }

    /// Chooses who ends first, so that neither waits for the other for ever.
    fn agree_on_ends(&mut self, random: &mut Random) {
        match self.server.reply {
            Reply::Echo if random.chance(500) => self.client.end = ClientEnd::AfterEcho,
            Reply::Source(_) if random.chance(500) => {
                self.server.ends_first = true;
                if random.chance(500) {
                    self.client.end = ClientEnd::AfterServer;
                }
            }
            Reply::Echo | Reply::Source(_) | Reply::AfterEnd(_) => {}
        }
    }

    fn misbehave(&mut self, random: &mut Random) {
        use Misbehaviour::{Close, Fin, Garbage, Reset, Silent};
        let after = random.magnitude(1, 400_000) as u64 - 1;
        match random.range(0, 10) {
            0 => self.client.opening = Opening::PlainHttp,
            1 => self.client.opening = Opening::Noise,
            2 => self.client.end = ClientEnd::Never,
            10 => self.client.reads_until = Some(after),
            3..=6 => {
                let how = random.pick(&[Silent, Fin, Close, Reset, Garbage]);
                self.client.misbehaves = Some((after, how));
            }
            _ => {
                let how = random.pick(&[Silent, Fin, Close, Reset]);
                self.server.misbehaves = Some((after, how));
            }
        }
    }

    /// Whether both sides keep to TLS and TCP, so that nothing but the terminator could spoil it.
    pub(crate) fn is_kind(&self) -> bool {
        self.client.opening == Opening::Tls
            && self.client.reads_until.is_none()
            && self.client.end != ClientEnd::Never
            && self.client.misbehaves.is_none()
            && self.server.misbehaves.is_none()
    }
}
