//! Between rustls, which asks through objects that all threads could share, and a worker's own
//! tickets and sessions, which only that worker has.
//!
//! [`during`] lends a worker's [`Resumption`] and a connection's [`Attempt`] to rustls for the time
//! of one call. They wait in a thread-local, because rustls hands no context to those it asks; what
//! rustls asks outside of that time finds nothing.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::UnixTime;
use rustls::server::{ProducesTickets, StoresServerSessions};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use zeroize::Zeroizing;

use super::cache::{Cache, Miss, Refusal, SessionId, Stored};
use super::ratchet::{Ratchet, SECRET_BYTES};
use super::shared::Shared;
use super::ticket::Keys;
use super::{Binding, Fingerprint, fingerprint};
use crate::limits::PSK_IDENTITIES_MAX;
use crate::telemetry::labels::{ResumptionKind, ResumptionResult};
use crate::tls::hello::{ClientTraits, TLS13};

/// What a worker's [`Resumption`] begins with.
#[derive(Debug, Clone)]
pub struct Beginnings {
    /// `resumption.mode` is `"tickets"`.
    pub tickets: bool,
    /// `resumption.lifetime`, in seconds, from the full handshake that began a session.
    pub lifetime: u32,
    /// `resumption.sessions_per_worker`.
    pub cache_entries: u32,
    /// Bytes that these may take.
    pub cache_bytes: usize,
    /// What tickets are sealed with.
    pub keys: Arc<Keys>,
    /// The cache of all workers.
    pub shared: Arc<Shared>,
}

/// One worker's tickets and sessions.
#[derive(Debug)]
pub struct Resumption {
    tickets: bool,
    lifetime: u32,
    shared: Arc<Shared>,
    own: RefCell<Own>,
}

/// What changes.
#[derive(Debug)]
struct Own {
    keys: Arc<Keys>,
    cache: Cache,
    nonces: Nonces,
}

impl Beginnings {
    /// Tickets and small caches under a secret that is none; for tests, benchmarks and rehearsals.
    ///
    /// # Panics
    /// Never: the ratchet is at the epoch.
    #[expect(clippy::expect_used, reason = "the ratchet is at the epoch")]
    pub fn for_tests() -> Self {
        let ratchet = Ratchet::new(0, Zeroizing::new([1; SECRET_BYTES]));
        let keys = Keys::derive(&ratchet, 0, u64::from(u32::MAX));
        Self {
            tickets: true,
            lifetime: 86_400,
            cache_entries: 64,
            cache_bytes: 1 << 20,
            keys: Arc::new(keys.expect("the ratchet is at the epoch")),
            shared: Arc::new(Shared::new(4096, 1 << 22)),
        }
    }
}

impl Resumption {
    /// A worker's part, with nothing cached.
    pub fn new(from: Beginnings) -> Self {
        let Beginnings { tickets, lifetime, cache_entries, cache_bytes, keys, shared } = from;
        let cache = Cache::new(cache_entries, cache_bytes);
        let own = Own { keys, cache, nonces: Nonces::random() };
        Self { tickets, lifetime, shared, own: RefCell::new(own) }
    }

    /// Seals with other keys from now on: an epoch has begun.
    pub fn set_keys(&self, keys: Arc<Keys>) {
        self.own.borrow_mut().keys = keys;
    }

    /// What another thread needs to do a step of a handshake for the worker: all but the worker's
    /// own cache, whose sessions are in that of all workers, too.
    pub fn lend(&self) -> Beginnings {
        Beginnings {
            tickets: self.tickets,
            lifetime: self.lifetime,
            cache_entries: 0,
            cache_bytes: 0,
            keys: Arc::clone(&self.own.borrow().keys),
            shared: Arc::clone(&self.shared),
        }
    }

    /// Sessions in the worker's own cache, and their bytes.
    pub fn cached(&self) -> (u32, usize) {
        let own = self.own.borrow();
        (own.cache.entries(), own.cache.bytes())
    }
}

/// Unique among the workers of a fleet as far as 64 random bits are; SIV forgives the rest.
#[derive(Debug)]
struct Nonces {
    prefix: [u8; 8],
    counter: u32,
}

impl Nonces {
    fn random() -> Self {
        let mut prefix = [0; 8];
        // Without random numbers there is no handshake either.
        let _drawn = SystemRandom::new().fill(&mut prefix);
        Self { prefix, counter: 0 }
    }

    fn next(&mut self) -> [u8; 12] {
        self.counter = self.counter.wrapping_add(1);
        let mut nonce = [0; 12];
        let parts = self.prefix.into_iter().chain(self.counter.to_be_bytes());
        for (to, from) in nonce.iter_mut().zip(parts) {
            *to = from;
        }
        nonce
    }
}

/// What one handshake offers to resume, and what comes of it.
#[derive(Debug, Default)]
pub struct Attempt {
    /// Of the server name that the client asked for.
    name: Fingerprint,
    /// Unix time, in seconds.
    unix: u32,
    /// The handshake will be one of TLS 1.3.
    is_tls13: bool,
    /// A session ID that we do not know is none: clients of TLS 1.3 make one up for the eyes of
    /// middleboxes (RFC 8446 appendix D.4).
    has_no_id: bool,
    /// The client offers to take tickets of TLS 1.2.
    takes_tickets: bool,
    /// The session found, until rustls has said that it resumes.
    found: Option<Found>,
    offered: Option<(ResumptionKind, ResumptionResult)>,
    /// Tickets and session IDs that rustls asked about.
    offers: u8,
    made: Made,
}

/// A session that may be resumed.
#[derive(Debug, Clone, Copy)]
struct Found {
    /// Unix time of the full handshake that began it, in seconds.
    began: u32,
    /// What the client has will do for its next return.
    is_fresh: bool,
}

/// What a handshake left behind for the client's return.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// Tickets sealed.
    pub tickets: u8,
    /// Sessions kept in the caches.
    pub sessions: u8,
    /// Sessions that were not kept in the cache of all workers, because another was using it.
    pub contended: u8,
    /// Sessions and tickets that would have been too large.
    pub too_large: u8,
    /// Sessions that left the worker's cache for it.
    pub left_worker: u64,
    /// Sessions that left the cache of all workers for it.
    pub left_shared: u64,
}

impl Attempt {
    /// The attempt of a client that asks for a name, in a `ClientHello` that is complete.
    pub fn new(name: Fingerprint, client: ClientTraits, offers_tls13: bool) -> Self {
        let ClientTraits { newest_version, takes_tickets, .. } = client;
        let has_no_id = newest_version == TLS13;
        Self {
            name,
            is_tls13: has_no_id && offers_tls13,
            has_no_id,
            takes_tickets,
            ..Self::default()
        }
    }

    /// What the client offered and what came of it; `None`: it offered nothing. `resumed`: what
    /// rustls made of it.
    pub fn result(&self, resumed: bool) -> Option<(ResumptionKind, ResumptionResult)> {
        let (kind, result) = self.offered?;
        let unsuitable = result == ResumptionResult::Resumed && !resumed;
        Some((kind, if unsuitable { ResumptionResult::OtherParameters } else { result }))
    }

    /// rustls does not resume the session found, if any, and a new one begins: to be said before
    /// the tickets of TLS 1.3, which would carry on the time of the one found.
    pub fn begins_anew(&mut self) {
        self.found = None;
    }

    /// What was made for the client's return.
    pub fn made(&self) -> Made {
        self.made
    }
}

/// A handshake that is in rustls's hands just now.
struct Ongoing {
    resumption: Rc<Resumption>,
    attempt: Attempt,
}

thread_local! {
    static ONGOING: RefCell<Option<Ongoing>> = const { RefCell::new(None) };
}

/// Lets `act` have rustls do a step of a handshake that may resume.
pub fn during<T>(
    resumption: &Rc<Resumption>,
    attempt: &mut Attempt,
    unix: u32,
    act: impl FnOnce() -> T,
) -> T {
    /// Takes the attempt back, also from a panic.
    struct Loan<'a>(&'a mut Attempt);
    impl Drop for Loan<'_> {
        fn drop(&mut self) {
            if let Some(ongoing) = ONGOING.take() {
                *self.0 = ongoing.attempt;
            }
        }
    }
    attempt.unix = unix;
    let ongoing = Ongoing { resumption: Rc::clone(resumption), attempt: std::mem::take(attempt) };
    ONGOING.set(Some(ongoing));
    let _loan = Loan(attempt);
    act()
}

/// What rustls asks: one for each listener.
#[derive(Debug)]
pub struct Bridge {
    listener: Fingerprint,
    policy: Fingerprint,
}

impl Bridge {
    /// The bridge of a listener.
    pub fn new(listener: &str, policy: Fingerprint) -> Self {
        Self { listener: fingerprint(&[b"listener", listener.as_bytes()]), policy }
    }

    /// Asks the handshake in hand; `None` where there is none.
    fn ask<T>(&self, act: impl FnOnce(&mut Desk<'_>) -> T) -> Option<T> {
        ONGOING.with_borrow_mut(|ongoing| {
            let Ongoing { resumption, attempt } = ongoing.as_mut()?;
            let binding =
                Binding { listener: self.listener, policy: self.policy, name: attempt.name };
            let own = &mut resumption.own.borrow_mut();
            Some(act(&mut Desk { resumption, own, attempt, binding }))
        })
    }
}

impl ProducesTickets for Bridge {
    /// TLS 1.2: whether the client gets a ticket. TLS 1.3: whether tickets hold the session.
    fn enabled(&self) -> bool {
        self.ask(|desk| desk.gives_tickets()).unwrap_or_default()
    }

    fn lifetime(&self) -> u32 {
        self.ask(|desk| desk.lifetime()).unwrap_or_default()
    }

    fn encrypt(&self, state: &[u8]) -> Option<Vec<u8>> {
        self.ask(|desk| desk.seal(state))?
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.ask(|desk| desk.open(ticket))?
    }
}

impl StoresServerSessions for Bridge {
    /// Asked in full handshakes of TLS 1.2 only: whether the client gets a session ID.
    fn can_cache(&self) -> bool {
        self.ask(|desk| {
            desk.attempt.begins_anew();
            !(desk.resumption.tickets && desk.attempt.takes_tickets)
        })
        .unwrap_or_default()
    }

    fn put(&self, id: Vec<u8>, state: Vec<u8>) -> bool {
        self.ask(|desk| desk.keep(&id, &state)).unwrap_or_default()
    }

    fn get(&self, id: &[u8]) -> Option<Vec<u8>> {
        self.ask(|desk| desk.find(id))?
    }

    fn take(&self, id: &[u8]) -> Option<Vec<u8>> {
        self.ask(|desk| desk.find(id))?
    }
}

impl TimeProvider for Bridge {
    /// The turn's time; the system's for whoever drives rustls outside a worker.
    fn current_time(&self) -> Option<UnixTime> {
        let unix = self.ask(|desk| desk.attempt.unix);
        let since = unix.map(|unix| UnixTime::since_unix_epoch(Duration::from_secs(unix.into())));
        since.or_else(|| DefaultTimeProvider.current_time())
    }
}

/// Everything that an answer to rustls is made of.
struct Desk<'a> {
    resumption: &'a Resumption,
    own: &'a mut Own,
    attempt: &'a mut Attempt,
    binding: Binding,
}

impl Desk<'_> {
    fn gives_tickets(&self) -> bool {
        // Like everywhere a ticket of TLS 1.2 is used until it is of a past epoch; another one for
        // each return would cost the seal and 200 bytes on the wire.
        let has_one = self.attempt.found.is_some_and(|found| found.is_fresh);
        self.resumption.tickets && (self.attempt.is_tls13 || !has_one)
    }

    /// Seconds; a session that a machine with a faster clock began is new.
    fn age(&self, began: u32) -> u32 {
        self.attempt.unix.saturating_sub(began)
    }

    /// Unix time of the full handshake that began the session in hand: this one, if none is
    /// resumed.
    fn began(&self) -> u32 {
        self.attempt.found.map_or(self.attempt.unix, |found| found.began)
    }

    /// Whether a session may be resumed here.
    fn judge(&self, binding: &Binding, began: u32) -> Result<(), ResumptionResult> {
        if binding.listener != self.binding.listener {
            Err(ResumptionResult::OtherListener)
        } else if binding.policy != self.binding.policy {
            Err(ResumptionResult::OtherPolicy)
        } else if binding.name != self.binding.name {
            Err(ResumptionResult::OtherName)
        } else if self.age(began) >= self.resumption.lifetime {
            Err(ResumptionResult::Expired)
        } else {
            Ok(())
        }
    }

    /// Notes what came of one offer, and gives rustls the state of the session that resumes.
    fn answer(
        &mut self,
        kind: ResumptionKind,
        result: Result<(Vec<u8>, Found), ResumptionResult>,
    ) -> Option<Vec<u8>> {
        match result {
            Ok((state, found)) => {
                self.attempt.found = Some(found);
                self.attempt.offered = Some((kind, ResumptionResult::Resumed));
                Some(state)
            }
            Err(ResumptionResult::NotFound)
                if self.attempt.has_no_id && kind == ResumptionKind::SessionId =>
            {
                None
            }
            Err(why) => {
                // A client's favourite comes first.
                self.attempt.offered.get_or_insert((kind, why));
                None
            }
        }
    }

    /// Whether the client may offer one more.
    fn may_offer(&mut self) -> bool {
        self.attempt.offers = self.attempt.offers.saturating_add(1);
        self.attempt.offers <= PSK_IDENTITIES_MAX
    }

    fn open(&mut self, ticket: &[u8]) -> Option<Vec<u8>> {
        if !self.may_offer() {
            return None;
        }
        let is_tls13 = self.attempt.is_tls13;
        let kind = if is_tls13 { ResumptionKind::Psk } else { ResumptionKind::Ticket };
        let result = self.own.keys.open(ticket).and_then(|opened| {
            self.judge(&opened.binding, opened.began)?;
            Ok((opened.state, Found { began: opened.began, is_fresh: opened.is_fresh }))
        });
        self.answer(kind, result)
    }

    fn seal(&mut self, state: &[u8]) -> Option<Vec<u8>> {
        // A client that resumed has used up one ticket, and gets one.
        if self.attempt.found.is_some() && self.attempt.made.tickets > 0 {
            return None;
        }
        let (nonce, began) = (self.own.nonces.next(), self.began());
        let ticket = self.own.keys.seal(nonce, state, &self.binding, began);
        match ticket {
            Some(_) => self.attempt.made.tickets += 1,
            None => self.attempt.made.too_large += 1,
        }
        ticket
    }

    /// How long the client should keep its ticket: longer would only make it offer what will be
    /// refused (RFC 8446 section 4.6.1).
    fn lifetime(&self) -> u32 {
        let left = self.resumption.lifetime.saturating_sub(self.age(self.began()));
        left.min(self.own.keys.accepted_for(self.attempt.unix))
    }

    fn find(&mut self, id: &[u8]) -> Option<Vec<u8>> {
        if !self.may_offer() {
            return None;
        }
        let is_tls13 = self.attempt.is_tls13;
        let kind = if is_tls13 { ResumptionKind::Psk } else { ResumptionKind::SessionId };
        let result = self.look_up(id).and_then(|stored| {
            let began = stored.expires.saturating_sub(self.resumption.lifetime);
            self.judge(&stored.binding, began)?;
            Ok((stored.state.to_vec(), Found { began, is_fresh: true }))
        });
        self.answer(kind, result)
    }

    fn look_up(&mut self, id: &[u8]) -> Result<Stored, ResumptionResult> {
        let id = SessionId::try_from(id).map_err(|_| ResumptionResult::NotFound)?;
        let now = self.attempt.unix;
        if self.attempt.is_tls13 {
            return self.resumption.shared.take(&id, now).map_err(reason);
        }
        match self.own.cache.get(&id, now) {
            Ok(stored) => return Ok(stored.clone()),
            Err(Miss::NotFound) => {}
            Err(miss) => return Err(reason(miss)),
        }
        let stored = self.resumption.shared.get(&id, now).map_err(reason)?;
        self.keep_here(id, stored.clone());
        Ok(stored)
    }

    /// Keeps a session for all workers, and one that may resume more than once for this worker too:
    /// two workers could not agree that one of them has used it up.
    fn keep(&mut self, id: &[u8], state: &[u8]) -> bool {
        let Ok(id) = SessionId::try_from(id) else {
            return false;
        };
        let expires = self.began().saturating_add(self.resumption.lifetime);
        let stored = Stored { binding: self.binding, expires, state: state.into() };
        let mut is_kept = false;
        if !self.attempt.is_tls13 {
            is_kept = self.keep_here(id, stored.clone());
        }
        match self.resumption.shared.insert(id, stored, self.attempt.unix) {
            Ok(left) => {
                self.attempt.made.left_shared += left;
                is_kept = true;
            }
            Err(Refusal::TooLarge) => self.attempt.made.too_large += 1,
            Err(Refusal::Contended) => self.attempt.made.contended += 1,
        }
        self.attempt.made.sessions += u8::from(is_kept);
        is_kept
    }

    fn keep_here(&mut self, id: SessionId, stored: Stored) -> bool {
        let cache = &mut self.own.cache;
        let before = cache.evicted();
        let is_kept = cache.insert(id, stored, self.attempt.unix).is_ok();
        self.attempt.made.left_worker += cache.evicted() - before;
        is_kept
    }
}

fn reason(miss: Miss) -> ResumptionResult {
    match miss {
        Miss::NotFound => ResumptionResult::NotFound,
        Miss::Expired => ResumptionResult::Expired,
        Miss::Contended => ResumptionResult::CacheContended,
    }
}

#[cfg(test)]
mod tests;
