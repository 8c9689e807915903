//! What a turn submits behind everything else: receives, and the cancels that must not overtake
//! them.
//!
//! While the sends of a turn are worked off, answers to them arrive, and a receive that finds its
//! bytes waiting costs neither a poll nor a wake-up. Streams take turns: their receives bring as
//! much as a buffer holds, and whoever has a short question would wait for all of them.

use std::collections::VecDeque;

use crate::io::{Io, Operation, Token};
use crate::limits::STREAM_RECEIVES_PER_TURN;

/// Operations in the order in which they are wanted.
#[derive(Debug, Default)]
pub struct Outbox {
    /// For the end of this turn.
    now: Vec<(Token, Operation)>,
    /// Receives of streams, for this turn or a later one, and the cancels behind them.
    streams: VecDeque<(Token, Operation)>,
}

impl Outbox {
    /// Takes a receive or a cancel in; another operation is given back, to be submitted at once.
    pub fn take_in(&mut self, token: Token, operation: Operation) -> Option<Operation> {
        match operation {
            Operation::Recv { streams: true, .. } => self.streams.push_back((token, operation)),
            // Its target may be among them.
            Operation::Cancel { .. } if !self.streams.is_empty() => {
                self.streams.push_back((token, operation));
            }
            Operation::Recv { .. } | Operation::Cancel { .. } => self.now.push((token, operation)),
            other => return Some(other),
        }
        None
    }

    /// Nothing waits for a later turn.
    pub fn is_empty(&self) -> bool {
        self.now.is_empty() && self.streams.is_empty()
    }

    /// The turn ends: submits what it may, [`STREAM_RECEIVES_PER_TURN`] streams' receives among it.
    pub fn submit(&mut self, io: &mut impl Io) {
        for (token, operation) in self.now.drain(..) {
            io.submit(token, operation);
        }
        let mut receives = 0;
        while receives < STREAM_RECEIVES_PER_TURN
            && let Some((token, operation)) = self.streams.pop_front()
        {
            receives += usize::from(matches!(operation, Operation::Recv { .. }));
            io.submit(token, operation);
        }
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
        let taken = outbox.take_in(Token::new(slot, 0, Kind::RecvClient), operation);
        assert!(taken.is_none(), "a receive waits for the end of the turn");
    }

    fn cancel(outbox: &mut Outbox, slot: u32) {
        let operation = Operation::Cancel { target: Kind::RecvClient };
        let taken = outbox.take_in(Token::new(slot, 0, Kind::CancelRecvClient), operation);
        assert!(taken.is_none(), "a cancel waits for the end of the turn");
    }

    fn turn(outbox: &mut Outbox) -> Vec<(u32, Kind)> {
        let mut io = Submitted::default();
        outbox.submit(&mut io);
        io.0
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
}
