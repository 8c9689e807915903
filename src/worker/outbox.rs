//! What a turn submits behind everything else: receives, what gives way to others, and the cancels
//! that must not overtake their targets.
//!
//! While the sends of a turn are worked off, answers to them arrive, and a receive that finds its
//! bytes waiting costs neither a poll nor a wake-up. Some operations take turns, because whoever
//! has a short question would wait for all of them: receives of streams, which bring as much as a
//! buffer holds; while kept connections are busy, what is for clients that are not established yet;
//! and always what ends connections. The kernel tells of what has happened in order, some 40 events
//! a turn: if each of 8,000 clients that leave together is closed at once, whoever asks after them
//! is heard 0.2 s later.

use std::collections::VecDeque;

use crate::io::{Io, Operation, Token};
use crate::limits::{
    BEGINNING_PER_TURN, ENDING_PER_TURN, ENDING_PER_TURN_BUSY, STREAM_RECEIVES_PER_TURN,
    WAITING_KEPT,
};
use crate::telemetry::labels::GivingWay;

/// Whom an operation is for: who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    /// A client whose handshake is done.
    Established,
    /// One that comes, or shakes hands.
    Beginning,
    /// One whose connection ends.
    Ending,
}

/// Operations in the order in which they are wanted.
type Queue = VecDeque<(Token, Operation)>;

/// What waits for the end of a turn.
#[derive(Debug, Default)]
pub struct Outbox {
    /// For the end of this turn.
    now: Vec<(Token, Operation)>,
    // For this turn or a later one, and cancels behind them.
    /// Receives of streams.
    streams: Queue,
    /// What is for clients that are not established yet.
    beginning: Queue,
    /// What ends connections.
    ending: Queue,
}

impl Outbox {
    /// Takes in an operation that is not to be submitted at once; another one is given back.
    /// `kept_busy`: kept connections have been heard of a moment ago.
    pub fn take_in(
        &mut self,
        token: Token,
        operation: Operation,
        rank: Rank,
        kept_busy: bool,
    ) -> Option<Operation> {
        let Self { now, streams, beginning, ending } = self;
        // Its target may be in any queue: it goes through all that have something.
        if matches!(operation, Operation::Cancel { .. })
            && let Some(queue) = first_in_use([&mut *streams, &mut *beginning, &mut *ending])
        {
            queue.push_back((token, operation));
            return None;
        }
        match (&operation, rank) {
            (Operation::Recv { streams: true, .. }, _) => streams.push_back((token, operation)),
            (_, Rank::Ending) => ending.push_back((token, operation)),
            // Whose operations have waited once, they wait as long as there are any.
            (_, Rank::Beginning) if kept_busy || !beginning.is_empty() => {
                beginning.push_back((token, operation));
            }
            (Operation::Recv { .. } | Operation::Cancel { .. }, _) => {
                now.push((token, operation));
            }
            _ => return Some(operation),
        }
        None
    }

    /// So many connections end that an operation of another one will not be submitted in this turn.
    pub fn is_crowded(&self) -> bool {
        self.ending.len() >= ENDING_PER_TURN
    }

    /// Nothing waits for a later turn.
    pub fn is_empty(&self) -> bool {
        let Self { now, streams, beginning, ending } = self;
        now.is_empty() && [streams, beginning, ending].iter().all(|queue| queue.is_empty())
    }

    /// How many operations wait for a later turn, between two turns.
    pub fn waiting(&self) -> [(GivingWay, usize); GivingWay::COUNT] {
        [
            (GivingWay::Streams, self.streams.len()),
            (GivingWay::Beginning, self.beginning.len()),
            (GivingWay::Ending, self.ending.len()),
        ]
    }

    /// The turn ends: submits what it may. That are [`STREAM_RECEIVES_PER_TURN`] streams' receives,
    /// [`BEGINNING_PER_TURN`] operations of clients that come and [`ENDING_PER_TURN_BUSY`] of those
    /// that end; if no kept connections are busy, all of the former and [`ENDING_PER_TURN`].
    pub fn submit(&mut self, io: &mut impl Io, kept_busy: bool) {
        for (token, operation) in self.now.drain(..) {
            io.submit(token, operation);
        }
        let Self { streams, beginning, ending, .. } = self;
        let mut receives = 0;
        while receives < STREAM_RECEIVES_PER_TURN
            && let Some(entry) = streams.pop_front()
        {
            receives += usize::from(matches!(entry.1, Operation::Recv { .. }));
            submit_or_pass_on(io, entry, [&mut *beginning, &mut *ending]);
        }
        let most = if kept_busy { BEGINNING_PER_TURN } else { usize::MAX };
        for entry in beginning.drain(..beginning.len().min(most)) {
            submit_or_pass_on(io, entry, [&mut *ending]);
        }
        let most = if kept_busy { ENDING_PER_TURN_BUSY } else { ENDING_PER_TURN };
        for entry in ending.drain(..ending.len().min(most)) {
            submit_or_pass_on(io, entry, []);
        }
    }

    /// Whether [`Outbox::trim`] may have something to give back.
    pub fn is_large(&self) -> bool {
        let Self { now, streams, beginning, ending } = self;
        now.capacity() > WAITING_KEPT
            || [streams, beginning, ending].iter().any(|queue| queue.capacity() > WAITING_KEPT)
    }

    /// Gives back the memory that a burst has needed.
    pub fn trim(&mut self) {
        let Self { now, streams, beginning, ending } = self;
        now.shrink_to_fit();
        for queue in [streams, beginning, ending] {
            queue.shrink_to_fit();
        }
    }
}

fn first_in_use<const N: usize>(queues: [&mut Queue; N]) -> Option<&mut Queue> {
    queues.into_iter().find(|queue| !queue.is_empty())
}

/// Submits what has left its queue; a cancel goes behind what waits in those that come later.
fn submit_or_pass_on<const N: usize>(
    io: &mut impl Io,
    (token, operation): (Token, Operation),
    later: [&mut Queue; N],
) {
    let is_cancel = matches!(operation, Operation::Cancel { .. });
    match first_in_use(later).filter(|_| is_cancel) {
        Some(queue) => queue.push_back((token, operation)),
        None => io.submit(token, operation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Completion, Kind, ReceivedAt, Side, Time};

    /// Remembers what is submitted.
    #[derive(Default)]
    struct Submitted(Vec<(u32, Kind)>);

    impl Io for Submitted {
        fn submit(&mut self, token: Token, _: Operation) {
            self.0.push((token.slot, token.kind));
        }
        fn wait(&mut self, _: Option<Time>, _: &mut Vec<Completion>) {}
        fn received(&mut self, _: &ReceivedAt) -> &mut [u8] {
            &mut []
        }
        fn recycle(&mut self, _: ReceivedAt) {}
        fn now(&mut self) -> Time {
            Time::default()
        }
        fn unix(&mut self) -> u32 {
            0
        }
    }

    fn take_in(outbox: &mut Outbox, (slot, kind): (u32, Kind), operation: Operation, rank: Rank) {
        let taken = outbox.take_in(Token::new(slot, 0, kind), operation, rank, true);
        assert!(taken.is_none(), "it waits for the end of the turn");
    }

    fn receive(outbox: &mut Outbox, slot: u32, streams: bool) {
        let operation = Operation::Recv { side: Side::Client, streams };
        take_in(outbox, (slot, Kind::RecvClient), operation, Rank::Established);
    }

    fn cancel(outbox: &mut Outbox, slot: u32) {
        let operation = Operation::Cancel { target: Kind::RecvClient };
        take_in(outbox, (slot, Kind::CancelRecvClient), operation, Rank::Established);
    }

    fn submitted(outbox: &mut Outbox, kept_busy: bool) -> Vec<(u32, Kind)> {
        let mut io = Submitted::default();
        outbox.submit(&mut io, kept_busy);
        io.0
    }

    fn turn(outbox: &mut Outbox) -> Vec<(u32, Kind)> {
        submitted(outbox, true)
    }

    #[test]
    fn a_short_question_goes_before_the_streams_that_came_first() {
        let mut outbox = Outbox::default();
        for stream in 0..100 {
            receive(&mut outbox, stream, true);
        }
        receive(&mut outbox, 1000, false);
        let first = turn(&mut outbox);
        assert_eq!(first.first(), Some(&(1000, Kind::RecvClient)));
        assert_eq!(first.len(), 1 + STREAM_RECEIVES_PER_TURN);
        assert!(!outbox.is_empty(), "the worker must not fall asleep over the others");

        let mut served: Vec<u32> = first.iter().skip(1).map(|(slot, _)| *slot).collect();
        while !outbox.is_empty() {
            served.extend(turn(&mut outbox).iter().map(|(slot, _)| *slot));
        }
        assert_eq!(served, (0..100).collect::<Vec<_>>(), "each stream once, in order");
    }

    #[test]
    fn a_cancel_does_not_overtake_the_receive_that_waits_for_its_turn() {
        let mut outbox = Outbox::default();
        let last = u32::try_from(3 * STREAM_RECEIVES_PER_TURN).unwrap();
        for stream in 0..=last {
            receive(&mut outbox, stream, true);
        }
        cancel(&mut outbox, last);
        let mut all = Vec::new();
        while !outbox.is_empty() {
            all.extend(turn(&mut outbox));
        }
        let end = [(last, Kind::RecvClient), (last, Kind::CancelRecvClient)];
        assert!(all.ends_with(&end), "{all:?}");

        cancel(&mut outbox, 0);
        assert_eq!(turn(&mut outbox), [(0, Kind::CancelRecvClient)], "nothing holds it up");
    }

    #[test]
    fn who_is_established_waits_for_few_of_those_that_come_and_go() {
        let mut outbox = Outbox::default();
        let close = || Operation::Close { side: Side::Client };
        for slot in 0..100 {
            take_in(&mut outbox, (slot, Kind::CloseClient), close(), Rank::Ending);
        }
        for slot in 100..200 {
            let accept = Operation::Accept { listener: 0 };
            take_in(&mut outbox, (slot, Kind::Accept), accept, Rank::Beginning);
        }
        receive(&mut outbox, 1000, false);
        let first = turn(&mut outbox);
        assert_eq!(first.first(), Some(&(1000, Kind::RecvClient)));
        let count = |kind| first.iter().filter(|(_, one)| *one == kind).count();
        assert_eq!(count(Kind::Accept), BEGINNING_PER_TURN);
        assert_eq!(count(Kind::CloseClient), ENDING_PER_TURN_BUSY);
        let (beginning, ending) = (100 - BEGINNING_PER_TURN, 100 - ENDING_PER_TURN_BUSY);
        let waiting = [GivingWay::Streams, GivingWay::Beginning, GivingWay::Ending];
        let waiting: Vec<_> = waiting.into_iter().zip([0, beginning, ending]).collect();
        assert_eq!(outbox.waiting().to_vec(), waiting);

        let second = submitted(&mut outbox, false);
        assert_eq!(second.len(), 100 - BEGINNING_PER_TURN + ENDING_PER_TURN, "nobody is kept");
        let mut closed: Vec<u32> = [first, second].concat().iter().map(|(slot, _)| *slot).collect();
        while !outbox.is_empty() {
            closed.extend(turn(&mut outbox).iter().map(|(slot, _)| *slot));
        }
        closed.retain(|slot| *slot < 100);
        assert_eq!(closed, (0..100).collect::<Vec<_>>(), "all, in order");
    }

    #[test]
    fn a_cancel_overtakes_its_target_in_no_queue() {
        for rank in [Rank::Established, Rank::Beginning, Rank::Ending] {
            for target in [Rank::Established, Rank::Beginning, Rank::Ending] {
                let mut outbox = Outbox::default();
                let ranks = [Rank::Ending, Rank::Beginning, Rank::Established, target];
                for (slot, rank) in (0..).zip(ranks.iter().flat_map(|rank| [*rank; 50])) {
                    let streams = rank == Rank::Established;
                    let operation = Operation::Recv { side: Side::Client, streams };
                    take_in(&mut outbox, (slot, Kind::RecvClient), operation, rank);
                }
                let operation = Operation::Cancel { target: Kind::RecvClient };
                take_in(&mut outbox, (199, Kind::CancelRecvClient), operation, rank);
                let mut all = Vec::new();
                while !outbox.is_empty() {
                    all.extend(turn(&mut outbox));
                }
                let at = |kind| all.iter().position(|one| *one == (199, kind));
                assert!(at(Kind::RecvClient).is_some(), "{all:?}");
                assert!(at(Kind::CancelRecvClient) > at(Kind::RecvClient), "{all:?}");
            }
        }
    }
}
