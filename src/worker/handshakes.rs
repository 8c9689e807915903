//! Steps of handshakes: when the worker does one, and when it has one done.
//!
//! A step cannot be interrupted by the worker. Where it is dear (our key signs), an established
//! connection would wait for most of it: then first steps are done one by one on another thread of
//! the same core ([`Operation::Compute`]), which the kernel interrupts as soon as the worker has
//! anything to do.
//!
//! [`Operation::Compute`]: crate::io::Operation::Compute

use std::time::Duration;

use crate::connection::Stepped;
use crate::io::{Io, Task, Time, Token};
use crate::limits::{APART_PATIENCE, DEAR_STEP, KEPT_LATELY, STEPS_BESIDE_MAX};
use crate::telemetry::labels::{HandshakeQueue, HandshakeStep, KeyType, Label};
use crate::tls::first_step::FirstStep;

use super::Worker;
use super::admission::Refusal;
use super::scheduler::{Next, Queues, RESUMING_IN_A_ROW_MAX, Waiting};
use super::sources::table::Handle;

/// While established connections keep the worker busy in every turn, handshakes are owed this part
/// of the time that those take: who is saturated still lets new clients in.
const OWED_PART: u32 = 4;
/// A turn counts as so long, at least.
const TURN_MIN: Duration = Duration::from_micros(20);
/// A new measurement's part in what a queue's steps take.
const NEWEST_PART: u32 = 8;

/// What the worker knows of the steps that it does and has done.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Time that handshakes have coming while established connections go first.
    owed: Duration,
    /// What full and resumed steps of each queue have taken lately.
    lately: [Duration; HandshakeQueue::COUNT],
    /// Steps that are done apart, or wait for it there.
    apart: usize,
    /// When one has gone there, or come back, last.
    apart_at: Time,
    /// Steps of resuming clients since then, done here.
    resumed: u32,
}

impl<I: Io> Worker<I> {
    /// Gives handshakes the time that is theirs in this turn.
    pub(super) fn shake_hands(&mut self) {
        if self.scheduler.is_empty() {
            return;
        }
        let woken = self.now;
        self.now = self.io.now();
        self.have_steps_done();
        self.do_steps(self.now.since(woken));
        for queue in HandshakeQueue::ALL {
            let waiting = self.scheduler.waiting(*queue) as u64;
            self.counters.handshake_queue.of(*queue).set(waiting);
        }
    }

    /// Whether a step waits that may be done now, here or apart.
    pub(super) fn has_steps_to_do(&self) -> bool {
        !self.scheduler.is_empty()
            && (self.scheduler.has_work(self.here()) || self.scheduler.has_work(self.apart()))
    }

    /// When a step that is done apart has taken so long that others are not kept waiting for it;
    /// `None`: it has, or none is there.
    pub(super) fn apart_until(&self) -> Option<Time> {
        let until = self.pace.apart_at + APART_PATIENCE;
        (self.pace.apart > 0 && until > self.now).then_some(until)
    }

    /// Whether a queue's steps are dear, and somebody would wait for them.
    fn is_dear(&self, queue: HandshakeQueue) -> bool {
        let lately = self.pace.lately.get(queue.index()).copied().unwrap_or_default();
        queue != HandshakeQueue::UnderWay
            && lately >= DEAR_STEP
            && self.have_kept_moved(KEPT_LATELY)
    }

    /// What may begin apart: what is dear, if there is room.
    fn apart(&self) -> Queues {
        Queues::those(|queue| self.pace.apart < STEPS_BESIDE_MAX && self.is_dear(queue))
    }

    /// What may begin here: what is not dear, and of clients that resume not so many that what is
    /// apart never gets the core; all, if it does not come back.
    fn here(&self) -> Queues {
        let is_late = self.pace.apart > 0 && self.apart_until().is_none();
        let is_due = self.pace.apart > 0 && self.pace.resumed >= RESUMING_IN_A_ROW_MAX;
        Queues::those(|queue| {
            let gives_way = is_due && queue == HandshakeQueue::Resuming;
            is_late || !(self.is_dear(queue) || gives_way)
        })
    }

    /// Has the next dear step done.
    fn have_steps_done(&mut self) {
        while let Some(next) = self.scheduler.next(self.now, self.apart()) {
            self.take(next, true);
        }
    }

    /// `served` is how long this turn's events have taken.
    fn do_steps(&mut self, served: Duration) {
        let here = self.here();
        if !self.scheduler.has_work(here) {
            return;
        }
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
        let until = self.now + budget;
        while let Some(next) = self.scheduler.next(self.now, here) {
            if self.take(next, false) && self.now >= until {
                break;
            }
        }
    }

    /// Does what the scheduler has said, here or `apart`; says whether it was a step.
    fn take(&mut self, next: Next, apart: bool) -> bool {
        match next {
            Next::Drop(waiting) => {
                self.drop_overdue(waiting);
                false
            }
            Next::Step(queue, waiting) => {
                self.step(queue, waiting, apart);
                true
            }
        }
    }

    /// One step of one handshake, here or `apart`.
    fn step(&mut self, queue: HandshakeQueue, waiting: Waiting, apart: bool) {
        let Waiting { slot, generation, since } = waiting;
        if queue != HandshakeQueue::UnderWay && self.is_spent(slot, generation) {
            return self.refuse(waiting, Refusal::SourceHandshakeCpu);
        }
        let source = self.source(slot, generation);
        let mut stepped = Stepped::Gone;
        self.with_connection(slot, generation, |connection, cx| {
            stepped = connection.step(apart, cx);
        });
        let begun = self.now;
        match stepped {
            // It has cost nothing.
            Stepped::Gone => return,
            Stepped::Apart => {
                self.pace.apart += 1;
                (self.pace.apart_at, self.pace.resumed) = (begun, 0);
                self.counters.steps_apart.add(1);
            }
            Stepped::Done(step, key) => {
                let resumes = queue == HandshakeQueue::Resuming;
                self.pace.resumed = self.pace.resumed.saturating_add(u32::from(resumes));
                self.now = self.io.after_step(step);
                self.account(source, queue, (step, key), self.now.since(begun));
            }
        }
        self.counters.handshake_wait(queue).observe(begun.since(since));
    }

    /// The step that was done apart is done.
    pub(super) fn step_returns(&mut self, token: Token, task: Task) {
        self.pace.apart = self.pace.apart.saturating_sub(1);
        (self.pace.apart_at, self.pace.resumed) = (self.now, 0);
        let took = task.took;
        let Some(done) = task.into_work::<FirstStep>() else {
            unreachable!("nothing else is done apart")
        };
        let source = self.source(token.slot, token.generation);
        self.account(source, done.queue(), done.step(), took);
        self.with_connection(token.slot, token.generation, |connection, cx| {
            connection.step_returns(*done, cx);
        });
    }

    /// Books what a step of a queue has cost.
    fn account(
        &mut self,
        source: Option<Handle>,
        queue: HandshakeQueue,
        (step, key): (HandshakeStep, KeyType),
        took: Duration,
    ) {
        self.charge(source, (step, key), took);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let [steps, time] = self.counters.steps(step);
        steps.of(key).add(1);
        time.of(key).add(nanos);
        // Others tell nothing of what the next one will cost.
        let tells = matches!(step, HandshakeStep::Full | HandshakeStep::Resumed);
        if let Some(lately) = self.pace.lately.get_mut(queue.index()).filter(|_| tells) {
            // More was not its doing: the thread had lost its core.
            let took = took.min(2 * DEAR_STEP);
            let before = if lately.is_zero() { took } else { *lately };
            *lately = (before * (NEWEST_PART - 1) + took) / NEWEST_PART;
        }
    }
}
