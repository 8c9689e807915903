//! What a turn submits behind everything else: receives, what gives way to established
//! connections, and the cancels that must not overtake their targets.
//!
//! While the sends of a turn are worked off, answers to them arrive, and a receive that finds its
//! bytes waiting costs neither a poll nor a wake-up. Streams take turns: their receives bring as
//! much as a buffer holds, and whoever has a short question would wait for all of them. So would he
//! for the accepts and the ends of a crowd: while kept connections are busy, what is for clients
//! that are not established takes turns, too.

use std::collections::VecDeque;

use crate::io::{Io, Operation, Token};
use crate::limits::{COMPLETIONS_KEPT, GIVING_WAY_PER_TURN, STREAM_RECEIVES_PER_TURN};

/// Operations in the order in which they are wanted.
#[derive(Debug, Default)]
pub struct Outbox {
    /// For the end of this turn.
    now: Vec<(Token, Operation)>,
    /// Receives of streams, for this turn or a later one, and the cancels behind them.
    streams: VecDeque<(Token, Operation)>,
    /// What gives way, for this turn or a later one, and the cancels behind it.
    giving_way: VecDeque<(Token, Operation)>,
}

impl Outbox {
    /// Takes in an operation that is not to be submitted at once; another one is given back.
    /// `gives_way`: established connections go first. Whose operations have given way once must
    /// give way until [`Outbox::lets_wait`] says no, or they overtake each other.
    pub fn take_in(
        &mut self,
        token: Token,
        operation: Operation,
        gives_way: bool,
    ) -> Option<Operation> {
        match operation {
            Operation::Recv { streams: true, .. } => self.streams.push_back((token, operation)),
            // Its target may be among them.
            Operation::Cancel { .. } if !self.streams.is_empty() => {
                self.streams.push_back((token, operation));
            }
            Operation::Cancel { .. } if self.lets_wait() => {
                self.giving_way.push_back((token, operation));
            }
            _ if gives_way => self.giving_way.push_back((token, operation)),
            Operation::Recv { .. } | Operation::Cancel { .. } => self.now.push((token, operation)),
            other => return Some(other),
        }
        None
    }

    /// Nothing waits for a later turn.
    pub fn is_empty(&self) -> bool {
        self.now.is_empty() && self.streams.is_empty() && self.giving_way.is_empty()
    }

    /// Something that gives way waits.
    pub fn lets_wait(&self) -> bool {
        !self.giving_way.is_empty()
    }

    /// The turn ends: submits what it may, [`STREAM_RECEIVES_PER_TURN`] streams' receives among it,
    /// and of what gives way all, or [`GIVING_WAY_PER_TURN`] operations while kept connections are
    /// busy.
    pub fn submit(&mut self, io: &mut impl Io, kept_busy: bool) {
        for (token, operation) in self.now.drain(..) {
            io.submit(token, operation);
        }
        let mut receives = 0;
        while receives < STREAM_RECEIVES_PER_TURN
            && let Some((token, operation)) = self.streams.pop_front()
        {
            let is_receive = matches!(operation, Operation::Recv { .. });
            receives += usize::from(is_receive);
            // A cancel's target: a stream's receive, which has gone, or in the other queue.
            if is_receive || !self.lets_wait() {
                io.submit(token, operation);
            } else {
                self.giving_way.push_back((token, operation));
            }
        }
        let most = if kept_busy { GIVING_WAY_PER_TURN } else { usize::MAX };
        let now = self.giving_way.len().min(most);
        for (token, operation) in self.giving_way.drain(..now) {
            io.submit(token, operation);
        }
    }

    /// Whether [`Outbox::trim`] may have something to give back.
    pub fn is_large(&self) -> bool {
        self.giving_way.capacity().max(self.streams.capacity()) > COMPLETIONS_KEPT
    }

    /// Gives back the memory that a burst has needed.
    pub fn trim(&mut self) {
        self.streams.shrink_to(COMPLETIONS_KEPT);
        self.giving_way.shrink_to(COMPLETIONS_KEPT);
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

    fn receive(outbox: &mut Outbox, slot: u32, streams: bool) {
        let operation = Operation::Recv { side: Side::Client, streams };
        let taken = outbox.take_in(Token::new(slot, 0, Kind::RecvClient), operation, false);
        assert!(taken.is_none(), "a receive waits for the end of the turn");
    }

    fn cancel(outbox: &mut Outbox, slot: u32) {
        let operation = Operation::Cancel { target: Kind::RecvClient };
        let taken = outbox.take_in(Token::new(slot, 0, Kind::CancelRecvClient), operation, false);
        assert!(taken.is_none(), "a cancel waits for the end of the turn");
    }

    fn turn(outbox: &mut Outbox) -> Vec<(u32, Kind)> {
        let mut io = Submitted::default();
        outbox.submit(&mut io, true);
        io.0
    }

    fn give_way(outbox: &mut Outbox, slot: u32, kind: Kind, operation: Operation) {
        let taken = outbox.take_in(Token::new(slot, 0, kind), operation, true);
        assert!(taken.is_none(), "it waits for the end of the turn");
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
    fn who_is_established_waits_for_few_of_those_that_end() {
        let mut outbox = Outbox::default();
        for slot in 0..100 {
            give_way(&mut outbox, slot, Kind::CloseClient, Operation::Close { side: Side::Client });
        }
        receive(&mut outbox, 1000, false);
        let first = turn(&mut outbox);
        assert_eq!(first.first(), Some(&(1000, Kind::RecvClient)));
        assert_eq!(first.len(), 1 + GIVING_WAY_PER_TURN);

        let mut io = Submitted::default();
        outbox.submit(&mut io, false);
        let all = first.iter().skip(1).chain(&io.0).map(|(slot, _)| *slot);
        assert_eq!(all.collect::<Vec<_>>(), (0..100).collect::<Vec<_>>(), "all, in order");
        assert!(outbox.is_empty(), "nobody is kept busy: nothing waits");
    }

    #[test]
    fn a_cancel_overtakes_neither_what_gives_way_nor_a_stream() {
        for streams in [false, true] {
            let mut outbox = Outbox::default();
            for slot in 0..20 {
                let operation = Operation::Poll { side: Side::Client };
                give_way(&mut outbox, slot, Kind::PollClient, operation);
            }
            let first_stream = 100;
            let behind = u32::try_from(2 * STREAM_RECEIVES_PER_TURN).unwrap();
            for stream in (first_stream..first_stream + behind).filter(|_| streams) {
                receive(&mut outbox, stream, true);
            }
            cancel(&mut outbox, 19);
            cancel(&mut outbox, first_stream + behind - 1);
            let mut all = Vec::new();
            while !outbox.is_empty() {
                all.extend(turn(&mut outbox));
            }
            let at = |what| all.iter().position(|one| *one == what);
            let last_stream = first_stream + behind - 1;
            assert!(at((19, Kind::CancelRecvClient)) > at((19, Kind::PollClient)), "{all:?}");
            let cancelled = at((last_stream, Kind::CancelRecvClient));
            assert!(cancelled.is_some(), "{all:?}");
            assert!(cancelled > at((last_stream, Kind::RecvClient)), "{all:?}");
        }
    }
}
