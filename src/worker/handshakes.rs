//! Steps of handshakes: when the worker does one, and when it has one done.
//!
//! A step cannot be interrupted by the worker. Where it is dear (a signature with an RSA key), an
//! established connection would wait for most of it: then the first steps of new clients are done
//! one by one on another thread of the same core ([`Operation::Compute`]), which the kernel
//! interrupts as soon as the worker has anything to do.
//!
//! [`Operation::Compute`]: crate::io::Operation::Compute

use std::time::Duration;

use crate::connection::Stepped;
use crate::io::{Io, Task, Time, Token};
use crate::limits::{APART_PATIENCE, DEAR_STEP};
use crate::telemetry::labels::{HandshakeQueue, HandshakeStep, KeyType, Label};
use crate::tls::first_step::FirstStep;

use super::Worker;
use super::admission::Refusal;
use super::scheduler::{Next, Waiting};
use super::sources::table::Handle;

/// While established connections keep the worker busy in every turn, handshakes are owed this part
/// of the time that those take: who is saturated still lets new clients in.
const OWED_PART: u32 = 4;
/// A turn counts as so long, at least.
const TURN_MIN: Duration = Duration::from_micros(20);
/// What a new measurement weighs in [`Pace::full_step`].
const WEIGHT: u32 = 8;

/// What the worker knows of the steps that it does and has done.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Time that handshakes have coming while established connections go first.
    owed: Duration,
    /// What the first step of a full handshake has taken lately.
    full_step: Duration,
    /// Since when a step is being done apart; `None`: none is.
    apart_since: Option<Time>,
}

impl<I: Io> Worker<I> {
    /// Gives handshakes the time that is theirs in this turn.
    pub(super) fn shake_hands(&mut self) {
        if self.scheduler.is_empty() {
            return;
        }
        let woken = self.now;
        self.now = self.io.now();
        if self.steps_apart() {
            self.have_steps_done();
        }
        if self.has_steps_to_do() {
            self.do_steps(self.now.since(woken));
        }
        for queue in HandshakeQueue::ALL {
            let waiting = self.scheduler.waiting(*queue) as u64;
            self.counters.handshake_queue.of(*queue).set(waiting);
        }
    }

    /// Whether a step waits that may be done now, here or apart.
    pub(super) fn has_steps_to_do(&self) -> bool {
        self.scheduler.has_work(self.takes_new())
    }

    /// When a step that is done apart has taken so long that others are not kept waiting for it.
    pub(super) fn apart_until(&self) -> Option<Time> {
        self.pace.apart_since.map(|since| since + APART_PATIENCE).filter(|until| *until > self.now)
    }

    /// Whether first steps of new clients are done apart: they are dear, and somebody would wait.
    fn steps_apart(&self) -> bool {
        self.pace.full_step >= DEAR_STEP && self.is_kept_busy()
    }

    /// Whether the first step of a new client may begin, here or apart.
    fn takes_new(&self) -> bool {
        self.pace.apart_since.is_none() || self.apart_until().is_none() || !self.steps_apart()
    }

    /// Has the first step of the next new client done, if none is.
    fn have_steps_done(&mut self) {
        while self.pace.apart_since.is_none()
            && let Some(next) = self.scheduler.next_new(self.now)
        {
            self.take(next);
        }
    }

    /// `served` is how long this turn's events have taken.
    fn do_steps(&mut self, served: Duration) {
        let mut budget = self.snapshot.handshake.budget;
        // Who is established goes first; but handshakes are not put off for ever.
        if self.served_established {
            self.pace.owed += served.max(TURN_MIN) / OWED_PART;
            if self.pace.owed < budget {
                return;
            }
            budget = self.pace.owed;
        } else if self.is_kept_busy() {
            // One step: each look costs a handshake 2 us, and is worth it where it spares somebody.
            budget = Duration::ZERO;
        }
        self.pace.owed = Duration::ZERO;
        let (until, new) = (self.now + budget, self.takes_new());
        while let Some(next) = self.scheduler.next(self.now, new) {
            if self.take(next) && self.now >= until {
                break;
            }
        }
    }

    /// Does what the scheduler has said; says whether it was a step.
    fn take(&mut self, next: Next) -> bool {
        match next {
            Next::Drop(waiting) => {
                self.drop_overdue(waiting);
                false
            }
            Next::Step(queue, waiting) => {
                self.step(queue, waiting);
                true
            }
        }
    }

    /// One step of one handshake, here or apart.
    fn step(&mut self, queue: HandshakeQueue, waiting: Waiting) {
        let Waiting { slot, generation, since } = waiting;
        if queue != HandshakeQueue::UnderWay && self.is_spent(slot, generation) {
            return self.refuse(waiting, Refusal::SourceHandshakeCpu);
        }
        let source = self.source(slot, generation);
        let is_apart = self.pace.apart_since.is_none() && self.steps_apart();
        let is_apart = is_apart && queue == HandshakeQueue::New;
        let mut stepped = Stepped::Gone;
        self.with_connection(slot, generation, |connection, cx| {
            stepped = connection.step(is_apart, cx);
        });
        let begun = self.now;
        match stepped {
            // It has cost nothing.
            Stepped::Gone => return,
            Stepped::Apart => {
                self.pace.apart_since = Some(begun);
                self.counters.steps_apart.add(1);
            }
            Stepped::Done(step, key) => {
                self.now = self.io.after_step(step);
                self.account(source, (step, key), self.now.since(begun));
            }
        }
        self.counters.handshake_wait(queue).observe(begun.since(since));
    }

    /// The step that was done apart is done.
    pub(super) fn step_returns(&mut self, token: Token, task: Task) {
        self.pace.apart_since = None;
        let took = task.took;
        let Some(done) = task.into_work::<FirstStep>() else {
            unreachable!("nothing else is done apart")
        };
        let source = self.source(token.slot, token.generation);
        self.account(source, done.step(), took);
        self.with_connection(token.slot, token.generation, |connection, cx| {
            connection.step_returns(*done, cx);
        });
    }

    /// Books what a step has cost.
    fn account(
        &mut self,
        source: Option<Handle>,
        (step, key): (HandshakeStep, KeyType),
        took: Duration,
    ) {
        self.charge(source, (step, key), took);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let [steps, time] = self.counters.steps(step);
        steps.of(key).add(1);
        time.of(key).add(nanos);
        if step == HandshakeStep::Full {
            // More was not its doing: the thread had lost its core.
            let took = took.min(2 * DEAR_STEP);
            let lately = if self.pace.full_step.is_zero() { took } else { self.pace.full_step };
            self.pace.full_step = (lately * (WEIGHT - 1) + took) / WEIGHT;
        }
    }
}
