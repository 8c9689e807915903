//! Everything outside the worker: the clock, the network and the peers, driven by one queue of
//! events. Two events at one time happen in the order in which they were scheduled.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use portcullis::config::ProxyVersion;
use portcullis::io::{Completion, Errno, Side, Time};
use portcullis::worker::command::Command;

use crate::client::{Client, Peer, Turn};
use crate::conversation::Conversation;
use crate::faults::Faults;
use crate::network::{End, Link};
use crate::random::Random;
use crate::server::Server;

/// What happens at a time.
pub(crate) enum Event {
    /// A conversation's client connects to a listener.
    ClientArrives { talk: usize, listener: usize },
    /// A segment reaches one end of a link.
    Segment { link: usize, end: End },
    /// A peer has had its pause.
    PeerTurn { link: usize },
    /// The kernel has heard that the peer made room.
    Room { link: usize },
    /// The worker may see a completion.
    Complete(Completion),
    /// The network answers a connect.
    ConnectAnswered { key: u64, talk: usize, attempt: usize, result: Result<(), Errno> },
    /// The thread beside the worker has done a step, if the worker has done none since it had
    /// `worked` so long.
    Computed { key: u64, worked: Duration },
    /// A cancel is carried out.
    CancelRuns { key: u64 },
    /// The control thread leaves a command.
    Command(Command),
    /// Another worker wakes this one.
    Wake,
}

/// A link, the model at its far end, and the slot that holds our end.
struct Wire {
    link: Link,
    peer: Box<dyn Peer>,
    talk: usize,
    owner: Option<(u32, Side)>,
    wakes_at: Option<Time>,
    /// Segments do not overtake each other.
    last_arrival: BTreeMap<End, Time>,
}

/// The outside.
pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) random: Random,
    pub(crate) faults: Faults,
    pub(crate) talks: Vec<Conversation>,
    /// Established connections that wait for an accept, by listener.
    pub(crate) backlogs: Vec<VecDeque<usize>>,
    /// Clients that have not come yet.
    pub(crate) expected: usize,
    pub(crate) proxy: Option<ProxyVersion>,
    events: BTreeMap<(Time, u64), Event>,
    scheduled: u64,
    wires: Vec<Wire>,
    configs: [Arc<rustls::ClientConfig>; 2],
}

impl World {
    /// A world without events. `configs`: the clients' TLS 1.3 and TLS 1.2 configurations.
    pub(crate) fn new(
        random: Random,
        faults: Faults,
        listeners: usize,
        configs: [Arc<rustls::ClientConfig>; 2],
    ) -> Self {
        Self {
            now: Time(0),
            random,
            faults,
            talks: Vec::new(),
            backlogs: vec![VecDeque::new(); listeners],
            expected: 0,
            proxy: None,
            events: BTreeMap::new(),
            scheduled: 0,
            wires: Vec::new(),
            configs,
        }
    }

    /// Lets a client come at a time.
    pub(crate) fn expect_client(&mut self, at: Time, talk: Conversation) {
        self.expected += 1;
        let listener = talk.listener;
        self.talks.push(talk);
        let talk = self.talks.len() - 1;
        self.schedule(at, Event::ClientArrives { talk, listener });
    }

    pub(crate) fn schedule(&mut self, at: Time, event: Event) {
        self.scheduled += 1;
        self.events.insert((at.max(self.now), self.scheduled), event);
    }

    pub(crate) fn schedule_in(&mut self, delay: Duration, event: Event) {
        self.schedule(self.now + delay, event);
    }

    /// The next event that is due by now.
    pub(crate) fn due(&mut self) -> Option<Event> {
        let first = self.events.first_entry()?;
        (first.key().0 <= self.now).then(|| first.remove())
    }

    /// When something happens next.
    pub(crate) fn next_at(&self) -> Option<Time> {
        self.events.first_key_value().map(|((at, _), _)| *at)
    }

    /// Another worker wakes this one: it notices soon, or late.
    pub(crate) fn wake(&mut self, at: Time) {
        let late = self.faults.late_completions;
        let longest = if self.random.chance(late) { 50_000 } else { 5 };
        let at = at + self.random.micros(0, longest);
        self.schedule(at, Event::Wake);
    }

    /// A segment's way, or a round trip's half.
    pub(crate) fn latency(&mut self) -> Duration {
        let longest = self.faults.latency_micros;
        self.random.micros(1, longest)
    }

    /// A client comes: connected by the kernel, not accepted yet. Its first bytes may be under way.
    pub(crate) fn client_arrives(&mut self, talk: usize, listener: usize) {
        self.expected -= 1;
        let script = self.talks[talk].plan.client.clone();
        let config = Arc::clone(&self.configs[usize::from(script.tls12)]);
        let client = Client::new(script, &config, &mut self.random);
        let link = self.add_wire(talk, Box::new(client));
        self.backlogs[listener].push_back(link);
    }

    /// A connect succeeds: the server of the conversation that `slot`'s client leads.
    pub(crate) fn server_connects(&mut self, talk: usize, slot: u32) -> usize {
        let answered = self.talks[talk].tries;
        let script = self.talks[talk].plan.server.clone();
        let server = Server::new(script, self.proxy, answered);
        let link = self.add_wire(talk, Box::new(server));
        self.own(link, slot, Side::Server);
        link
    }

    fn add_wire(&mut self, talk: usize, peer: Box<dyn Peer>) -> usize {
        let capacity = self.talks[talk].plan.capacity;
        self.wires.push(Wire {
            link: Link::new(capacity),
            peer,
            talk,
            owner: None,
            wakes_at: None,
            last_arrival: BTreeMap::new(),
        });
        let link = self.wires.len() - 1;
        self.wake_peer(link, Duration::ZERO);
        link
    }

    /// The worker has got our end of the link.
    pub(crate) fn own(&mut self, link: usize, slot: u32, side: Side) {
        self.wires[link].owner = Some((slot, side));
    }

    pub(crate) fn owner(&self, link: usize) -> Option<(u32, Side)> {
        self.wires[link].owner
    }

    pub(crate) fn talk(&self, link: usize) -> usize {
        self.wires[link].talk
    }

    /// A client that waited for an accept gives up.
    pub(crate) fn give_up(&mut self, link: usize) {
        let talk = self.wires[link].talk;
        self.talks[talk].client.misbehaved = true;
        let random = &mut self.random;
        self.wires[link].link.abort(End::Peer, random);
    }

    /// Our end of the link, to be used once; what follows from it is scheduled.
    pub(crate) fn with_link<R>(
        &mut self,
        link: usize,
        act: impl FnOnce(&mut Link, &mut Random) -> R,
    ) -> R {
        let result = act(&mut self.wires[link].link, &mut self.random);
        self.settle(link);
        result
    }

    /// A segment arrives. Returns the link if the worker's operations on it should look again.
    pub(crate) fn segment(&mut self, link: usize, end: End) -> Option<usize> {
        self.with_link(link, |wire, random| wire.arrive(end, random));
        match end {
            End::Peer => {
                self.wake_peer(link, Duration::ZERO);
                None
            }
            End::Ours => Some(link),
        }
    }

    /// Every segment under way to our end of the link arrives now.
    pub(crate) fn rush(&mut self, link: usize) {
        self.with_link(link, |link, random| while link.arrive(End::Ours, random) {});
    }

    /// Lets the peer act if its time has come.
    pub(crate) fn peer_turn(&mut self, link: usize) {
        let now = self.now;
        let wire = &mut self.wires[link];
        if wire.wakes_at.is_none_or(|at| at > now) {
            return;
        }
        wire.wakes_at = None;
        let again = wire.peer.poll(&mut Turn {
            link: &mut wire.link,
            talk: &mut self.talks[wire.talk],
            random: &mut self.random,
            now,
        });
        self.settle(link);
        if let Some(pause) = again {
            self.wake_peer(link, pause);
        }
    }

    fn wake_peer(&mut self, link: usize, pause: Duration) {
        let at = self.now + pause;
        let wire = &mut self.wires[link];
        if wire.wakes_at.is_none_or(|wakes_at| at < wakes_at) {
            wire.wakes_at = Some(at);
            self.schedule(at, Event::PeerTurn { link });
        }
    }

    /// Schedules what follows from a change of the link.
    fn settle(&mut self, link: usize) {
        for end in [End::Ours, End::Peer] {
            for _ in 0..self.wires[link].link.take_launched(end) {
                let at = self.now + self.latency();
                let last = self.wires[link].last_arrival.entry(end).or_default();
                *last = at.max(*last);
                let at = *last;
                self.schedule(at, Event::Segment { link, end });
            }
        }
        if std::mem::take(&mut self.wires[link].link.ours_made_room) {
            let latency = self.latency();
            self.wake_peer(link, latency);
        }
        if std::mem::take(&mut self.wires[link].link.peer_made_room) {
            let latency = self.latency();
            self.schedule_in(latency, Event::Room { link });
        }
    }
}

/// Address of the simulated listener.
pub(crate) fn listener_address(listener: usize) -> SocketAddr {
    let port = 8443 + u16::try_from(listener).unwrap();
    SocketAddr::from(([192, 0, 2, 1], port))
}

/// Address of a conversation's client.
pub(crate) fn client_address(number: usize) -> SocketAddr {
    let number = u16::try_from(number).unwrap();
    let [high, low] = number.to_be_bytes();
    SocketAddr::from(([10, 0, high, low], 10_000 + number))
}
