//! The first step of a full handshake, as a piece of work that another thread can do: a session,
//! what its client has said, and what came of it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::failure::Failure;
use super::resolver;
use super::session::{Session, Sinks};
use crate::io::Time;
use crate::io::buffer::Pool;
use crate::io::queue::Queue;
use crate::io::task::Work;
use crate::telemetry::labels::{HandshakeOutcome, HandshakeStep, KeyType};

/// A session that is lent out, with the bytes to show it.
///
/// Only of a client that offers nothing to resume: whoever does the work has neither the worker's
/// tickets nor its sessions, and rustls, which asks for them, finds none.
pub struct FirstStep {
    session: Box<Session>,
    bytes: Vec<u8>,
    now: Time,
    outcome: Outcome,
}

/// What has come of the work.
#[derive(Debug)]
enum Outcome {
    /// Nobody has done it.
    Open,
    Done {
        result: Result<(), Failure>,
        records: Vec<u8>,
        key: KeyType,
    },
    Panicked(Box<dyn Any + Send>),
}

/// A session that has come back.
#[derive(Debug)]
pub struct Returned {
    /// The session.
    pub session: Box<Session>,
    /// Records for the client; its alert if the step failed.
    pub records: Vec<u8>,
    /// What ended the session, if it has ended.
    pub result: Result<(), Failure>,
}

impl FirstStep {
    /// `bytes` are to be shown to `session`, which has begun at `now`.
    pub fn new(session: Box<Session>, bytes: Vec<u8>, now: Time) -> Self {
        Self { session, bytes, now, outcome: Outcome::Open }
    }

    fn receive(&mut self, pool: &mut Pool) -> Outcome {
        let (mut plaintext, mut records) = (Queue::default(), Queue::default());
        let mut sinks =
            Sinks { plaintext: &mut plaintext, records: &mut records, pool, now: self.now };
        let result = self.session.receive(&mut self.bytes, &mut sinks);
        // The client has no key yet that it could have sealed any with.
        debug_assert!(plaintext.is_empty(), "plaintext in the first step");
        plaintext.discard(pool);
        Outcome::Done { result, records: records.drain(pool), key: resolver::take_shown_key() }
    }

    /// Which step it was, and the key that signed.
    pub fn step(&self) -> (HandshakeStep, KeyType) {
        match &self.outcome {
            Outcome::Done { result: Ok(()), key, .. } => (HandshakeStep::Full, *key),
            Outcome::Done { key, .. } => (HandshakeStep::Failed, *key),
            Outcome::Open | Outcome::Panicked(_) => (HandshakeStep::Failed, KeyType::None),
        }
    }

    /// The session, and what came of it.
    ///
    /// # Panics
    /// As the work did.
    pub fn into_returned(self) -> Returned {
        let Self { session, outcome, .. } = self;
        match outcome {
            Outcome::Done { result, records, .. } => Returned { session, records, result },
            Outcome::Open => {
                let result = Err(Failure::Handshake(HandshakeOutcome::InternalError));
                Returned { session, records: Vec::new(), result }
            }
            Outcome::Panicked(panic) => resume_unwind(panic),
        }
    }
}

impl Work for FirstStep {
    /// A panic is kept for [`FirstStep::into_returned`].
    fn run(&mut self, pool: &mut Pool) {
        let done = catch_unwind(AssertUnwindSafe(|| self.receive(pool)));
        self.outcome = done.unwrap_or_else(Outcome::Panicked);
    }
}

impl std::fmt::Debug for FirstStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FirstStep").field("outcome", &self.outcome).finish_non_exhaustive()
    }
}
