//! A first step of a handshake, as a piece of work that another thread can do: a session, what its
//! client has said, and what came of it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use super::failure::Failure;
use super::resolver;
use super::resumption::bridge::{self, Attempt, Beginnings, Resumption};
use super::session::{Session, Sinks};
use crate::io::Time;
use crate::io::buffer::Pool;
use crate::io::queue::Queue;
use crate::io::task::Work;
use crate::telemetry::labels::{HandshakeOutcome, HandshakeQueue, HandshakeStep, KeyType};

/// A session that is lent out, with all that a step of its handshake needs.
pub struct FirstStep {
    session: Session,
    attempt: Attempt,
    bytes: Vec<u8>,
    at: Moment,
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
        step: HandshakeStep,
        key: KeyType,
    },
    Panicked(Box<dyn Any + Send>),
}

/// A session that has come back.
#[derive(Debug)]
pub struct Returned {
    /// The session.
    pub session: Session,
    /// What its client offers to resume.
    pub attempt: Attempt,
    /// Records for the client; its alert if the step failed.
    pub records: Vec<u8>,
    /// What ended the session, if it has ended.
    pub result: Result<(), Failure>,
}

/// Where the step has waited, when it is done, and with what.
#[derive(Debug)]
pub struct Moment {
    /// The queue that it comes from.
    pub queue: HandshakeQueue,
    /// What the worker lends of its tickets and sessions.
    pub resumption: Beginnings,
    /// Unix time, in seconds.
    pub unix: u32,
    /// The time of this turn.
    pub now: Time,
}

impl FirstStep {
    /// `bytes` are to be shown to `session`.
    pub fn new(session: Session, attempt: Attempt, bytes: Vec<u8>, at: Moment) -> Self {
        Self { session, attempt, bytes, at, outcome: Outcome::Open }
    }

    fn receive(&mut self, pool: &mut Pool) -> Outcome {
        let (mut plaintext, mut records) = (Queue::default(), Queue::default());
        let mut sinks =
            Sinks { plaintext: &mut plaintext, records: &mut records, pool, now: self.at.now };
        let resumption = Rc::new(Resumption::new(self.at.resumption.clone()));
        let asked_again = self.session.asks_again();
        let (session, bytes) = (&mut self.session, &mut self.bytes);
        let result = bridge::during(&resumption, &mut self.attempt, self.at.unix, || {
            session.receive(bytes, &mut sinks)
        });
        // The client has no key yet that it could have sealed any with.
        debug_assert!(plaintext.is_empty(), "plaintext in the first step");
        plaintext.discard(pool);
        let step = match &result {
            Err(_) => HandshakeStep::Failed,
            Ok(()) => self.session.answer(asked_again),
        };
        let key = resolver::take_shown_key();
        Outcome::Done { result, records: records.drain(pool), step, key }
    }

    /// The queue that it comes from.
    pub fn queue(&self) -> HandshakeQueue {
        self.at.queue
    }

    /// Which step it was, and the key that signed.
    pub fn step(&self) -> (HandshakeStep, KeyType) {
        match &self.outcome {
            Outcome::Done { step, key, .. } => (*step, *key),
            Outcome::Open | Outcome::Panicked(_) => (HandshakeStep::Failed, KeyType::None),
        }
    }

    /// The session, and what came of it.
    ///
    /// # Panics
    /// As the work did.
    pub fn into_returned(self) -> Returned {
        let Self { session, attempt, outcome, .. } = self;
        match outcome {
            Outcome::Done { result, records, .. } => Returned { session, attempt, records, result },
            Outcome::Open => {
                let result = Err(Failure::Handshake(HandshakeOutcome::InternalError));
                Returned { session, attempt, records: Vec::new(), result }
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
