//! Handshakes in memory with a client of our own, so that what they cost here is known before the
//! first client comes.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::client::{self, Offer, Resume, Wishes};
use super::client_auth::ClientAuthPolicy;
use super::hello::{self, Peek};
use super::provider::{Cpu, provider};
use super::resolver::{self, NamedCertificate};
use super::resumption::bridge::{self, Attempt, Beginnings, Resumption};
use super::resumption::name_fingerprint;
use super::session::{Session, Sinks};
use super::terms::Terms;
use crate::config::{self, Config, Listener, Tls, UnknownName};
use crate::io::Time;
use crate::io::buffer::Pool;
use crate::io::queue::Queue;
use crate::telemetry::labels::KeyType;

/// What the client asks for.
const NAME: &str = "rehearsal.invalid";

/// Unix time of all rehearsals.
const UNIX: u32 = 1;

/// Groups by what they cost the server. Whoever takes a dearer one is charged for it.
const CHEAPEST_FIRST: [&str; 4] = ["X25519", "P-256", "X25519MLKEM768", "P-384"];

/// How often each side may speak; no handshake needs more than three.
const ROUNDS_MAX: usize = 8;

/// A certificate's key, and a client that comes back if it has been here.
pub struct Rehearsal {
    terms: Terms,
    offer: Offer,
    resumption: Rc<Resumption>,
    pool: Pool,
}

/// What one handshake took of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Took {
    /// The client went on with its session.
    pub resumed: bool,
    /// The key that signed.
    pub key: KeyType,
    /// The first step.
    pub first: Duration,
    /// All others.
    pub later: Duration,
}

impl Rehearsal {
    /// A rehearsal with a listener's certificate, and with nobody's but the server's.
    pub fn new(config: &Config, listener: &Listener, with: &NamedCertificate) -> Option<Self> {
        let groups = CHEAPEST_FIRST.into_iter().map(str::to_owned);
        let groups = groups.filter(|group| config.tls.groups.contains(group)).collect();
        let tls = Tls { groups, ..config.tls.clone() };
        let listener = Listener { unknown_name: UnknownName::Default, ..listener.clone() };
        let ours = provider(&tls, Cpu::detect());
        let resumption = config::Resumption::default();
        let (certificates, nobody) = (std::slice::from_ref(with), ClientAuthPolicy::none());
        let terms = Terms::build(&listener, &tls, &resumption, ours, certificates, &nobody).ok()?;
        let wishes = Wishes {
            tls,
            alpn: Vec::new(),
            server_name: NAME.to_owned(),
            authorities: None,
            resume: Resume::Ticket,
        };
        let offer = Offer::new(&wishes).ok()?;
        let resumption = Rc::new(Resumption::new(Beginnings::for_tests()));
        let mut this = Self { terms, offer, resumption, pool: Pool::default() };
        this.forget();
        Some(this)
    }

    /// Lets a client come next that has not been here.
    pub fn forget(&mut self) {
        self.offer = self.offer.of_another_client();
    }

    /// One handshake, and its tickets. `clock` tells the time.
    pub fn handshake(&mut self, clock: &mut impl FnMut() -> Duration) -> Option<Took> {
        let mut to_server = Queue::default();
        let client = client::Session::begin(&self.offer, &mut to_server, &mut self.pool);
        let mut play = Play {
            client: client.ok()?,
            to_server,
            to_client: Queue::default(),
            scratch: vec![0; client::SCRATCH_BYTES],
        };
        let took = self.play(&mut play, clock);
        play.to_server.discard(&mut self.pool);
        play.to_client.discard(&mut self.pool);
        took
    }

    fn play(&mut self, play: &mut Play, clock: &mut impl FnMut() -> Duration) -> Option<Took> {
        let mut bytes = play.of_client(&mut self.pool);
        let Peek::Complete(peeked) = hello::peek(&bytes) else {
            return None;
        };
        let traits = peeked.client;
        let name = name_fingerprint(Some(NAME));
        let mut attempt = Attempt::new(name, traits, self.terms.offers_tls13());
        let began = clock();
        let mut server = Session::new(Arc::clone(self.terms.config())).ok()?;
        self.step(&mut server, &mut attempt, &mut bytes, &mut play.to_client)?;
        let first = clock().saturating_sub(began);
        let key = resolver::take_shown_key();
        let resumed = server.is_resumed();
        let mut later = Duration::ZERO;
        for _ in 0..ROUNDS_MAX {
            play.tell_client(&mut self.pool)?;
            if server.is_established() && play.client.is_established() {
                return Some(Took { resumed, key, first, later });
            }
            let mut bytes = play.of_client(&mut self.pool);
            let began = clock();
            self.step(&mut server, &mut attempt, &mut bytes, &mut play.to_client)?;
            later += clock().saturating_sub(began);
        }
        None
    }

    /// What `connection::handshake` does for a client.
    fn step(
        &mut self,
        server: &mut Session,
        attempt: &mut Attempt,
        bytes: &mut [u8],
        records: &mut Queue,
    ) -> Option<()> {
        if !server.is_resumed() {
            attempt.begins_anew();
        }
        let mut plaintext = Queue::default();
        let pool = &mut self.pool;
        let received = bridge::during(&self.resumption, attempt, UNIX, || {
            let plaintext = &mut plaintext;
            server.receive(bytes, &mut Sinks { plaintext, records, pool, now: Time::default() })
        });
        received.ok()
    }
}

/// A client, and what is on the way.
struct Play {
    client: client::Session,
    to_server: Queue,
    to_client: Queue,
    scratch: Vec<u8>,
}

impl Play {
    /// What the client has to say.
    fn of_client(&mut self, pool: &mut Pool) -> Vec<u8> {
        self.to_server.drain(pool)
    }

    /// Shows the client what the server has said.
    fn tell_client(&mut self, pool: &mut Pool) -> Option<()> {
        let bytes = self.to_client.drain(pool);
        let records = &mut self.to_server;
        let (plaintext, scratch) = (&mut |_: &[u8]| {}, &mut self.scratch);
        let mut sinks = client::Sinks { plaintext, records, pool, scratch };
        self.client.receive(&bytes, &mut sinks).ok().map(drop)
    }
}
