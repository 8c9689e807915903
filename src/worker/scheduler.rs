//! Which handshake gets the processor next, and which is dropped before it has cost any.
//!
//! A step of a handshake cannot be interrupted, so the step is the quantum: the worker takes one
//! when no established connection waits, and looks at the ring again before the next. Steps wait
//! in three queues. First come those of handshakes under way, which have cost us already and cost
//! little more; then those of clients that want to resume; then new ones, the dearest. Who asks
//! may want some of the queues only: a dear step can be done on another thread, one at a time.
//!
//! A queue is served in order while that is soon enough for everybody. When its oldest client has
//! waited for half of `handshake.queue_deadline`, it is served newest first: there are more than
//! can be served, the oldest are the nearest to giving up, and in order everybody would be served
//! just before that. Whoever has waited longer than the deadline for the first step is dropped.

use std::collections::VecDeque;
use std::time::Duration;

use crate::io::Time;
use crate::limits::WAITING_KEPT;
use crate::telemetry::labels::{HandshakeQueue, Label};

/// Steps of resuming clients after which a new one gets its turn, if one waits: those who come back
/// are many and must not keep out those who come for the first time.
pub(super) const RESUMING_IN_A_ROW_MAX: u32 = 16;

/// A connection that waits for the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Its slot.
    pub slot: u32,
    /// Its slot's generation; it may have gone meanwhile.
    pub generation: u32,
    /// Since when it waits.
    pub since: Time,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This one's step.
    Step(HandshakeQueue, Waiting),
    /// This one has waited too long, or there are too many: it is dropped.
    Drop(Waiting),
}

/// Some of the queues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Queues([bool; HandshakeQueue::COUNT]);

impl Queues {
    /// Those for which `is_one` says so.
    pub fn those(is_one: impl Fn(HandshakeQueue) -> bool) -> Self {
        let mut these = Self::default();
        for (queue, these) in HandshakeQueue::ALL.iter().zip(&mut these.0) {
            *these = is_one(*queue);
        }
        these
    }

    fn has(self, queue: HandshakeQueue) -> bool {
        self.0.get(queue.index()).copied().unwrap_or_default()
    }
}

/// Steps of handshakes that wait.
#[derive(Debug)]
pub struct Scheduler {
    under_way: VecDeque<Waiting>,
    resuming: Queue,
    new: Queue,
    /// Steps of resuming clients since the last new one's.
    resuming_in_a_row: u32,
    /// What a first step may wait.
    queue_deadline: Duration,
    /// Steps that may wait.
    max_pending: usize,
}

/// First steps that wait, in order of arrival.
#[derive(Debug, Default)]
struct Queue(VecDeque<Waiting>);

impl Queue {
    fn take(&mut self, now: Time, deadline: Duration) -> Option<Waiting> {
        let oldest = self.0.front()?;
        let is_congested = now.since(oldest.since) > deadline / 2;
        if is_congested { self.0.pop_back() } else { self.0.pop_front() }
    }

    /// The oldest, if it has waited longer than it may. It stands in front, whichever end is
    /// served.
    fn take_late(&mut self, now: Time, deadline: Duration) -> Option<Waiting> {
        let is_late = |waiting: &&Waiting| now.since(waiting.since) > deadline;
        self.0.front().filter(is_late)?;
        self.0.pop_front()
    }
}

impl Scheduler {
    /// No steps; at most `max_pending` may wait, and a first one for `queue_deadline` at most.
    pub fn new(max_pending: u32, queue_deadline: Duration) -> Self {
        Self {
            under_way: VecDeque::new(),
            resuming: Queue::default(),
            new: Queue::default(),
            resuming_in_a_row: 0,
            queue_deadline,
            max_pending: max_pending as usize,
        }
    }

    /// Changes what [`Scheduler::new`] was given.
    pub fn set_bounds(&mut self, max_pending: u32, queue_deadline: Duration) {
        (self.max_pending, self.queue_deadline) = (max_pending as usize, queue_deadline);
    }

    /// Lets a step wait.
    pub fn push(&mut self, queue: HandshakeQueue, waiting: Waiting) {
        match queue {
            HandshakeQueue::UnderWay => self.under_way.push_back(waiting),
            HandshakeQueue::Resuming => self.resuming.0.push_back(waiting),
            HandshakeQueue::New => self.new.0.push_back(waiting),
        }
    }

    /// Steps that wait.
    pub fn len(&self) -> usize {
        HandshakeQueue::ALL.iter().map(|queue| self.waiting(*queue)).sum()
    }

    /// Steps that wait in one queue.
    pub fn waiting(&self, queue: HandshakeQueue) -> usize {
        match queue {
            HandshakeQueue::UnderWay => self.under_way.len(),
            HandshakeQueue::Resuming => self.resuming.0.len(),
            HandshakeQueue::New => self.new.0.len(),
        }
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As many wait as may.
    pub fn is_full(&self) -> bool {
        self.len() >= self.max_pending
    }

    /// Fewer than three quarters of those that may wait do.
    pub fn has_room(&self) -> bool {
        self.len() < self.max_pending.div_ceil(4) * 3
    }

    /// Whether [`Scheduler::trim`] may have something to give back.
    pub fn is_large(&self) -> bool {
        let queues = [&self.under_way, &self.resuming.0, &self.new.0];
        queues.iter().any(|queue| queue.capacity() > WAITING_KEPT)
    }

    /// Gives back the memory that a burst has needed.
    pub fn trim(&mut self) {
        for queue in [&mut self.under_way, &mut self.resuming.0, &mut self.new.0] {
            queue.shrink_to_fit();
        }
    }

    /// Whether something waits in queues that are `wanted`.
    pub fn has_work(&self, wanted: Queues) -> bool {
        HandshakeQueue::ALL.iter().any(|queue| wanted.has(*queue) && self.waiting(*queue) > 0)
    }

    /// What is to be done at `now`, of what waits in queues that are `wanted`; who waits for too
    /// long is dropped from any.
    pub fn next(&mut self, now: Time, wanted: Queues) -> Option<Next> {
        if let Some(late) = self.take_late(now) {
            return Some(Next::Drop(late));
        }
        if wanted.has(HandshakeQueue::UnderWay)
            && let Some(waiting) = self.under_way.pop_front()
        {
            return Some(Next::Step(HandshakeQueue::UnderWay, waiting));
        }
        let new_waits = wanted.has(HandshakeQueue::New) && !self.new.0.is_empty();
        let new_is_due = new_waits && self.resuming_in_a_row >= RESUMING_IN_A_ROW_MAX;
        if wanted.has(HandshakeQueue::Resuming)
            && !new_is_due
            && let Some(waiting) = self.resuming.take(now, self.queue_deadline)
        {
            self.resuming_in_a_row = self.resuming_in_a_row.saturating_add(1);
            return Some(Next::Step(HandshakeQueue::Resuming, waiting));
        }
        if !new_waits {
            return None;
        }
        self.resuming_in_a_row = 0;
        let waiting = self.new.take(now, self.queue_deadline)?;
        Some(Next::Step(HandshakeQueue::New, waiting))
    }

    /// One that has waited too long, or is one too many.
    fn take_late(&mut self, now: Time) -> Option<Waiting> {
        let late = self.new.take_late(now, self.queue_deadline);
        let late = late.or_else(|| self.resuming.take_late(now, self.queue_deadline));
        // Accept is paused, and yet twice as many wait as may, because so many had been accepted
        // before and said nothing until now: the oldest new one goes.
        late.or_else(|| {
            let too_many = self.len() > self.max_pending.saturating_mul(2);
            if too_many { self.new.0.pop_front() } else { None }
        })
    }
}

#[cfg(test)]
mod tests;
