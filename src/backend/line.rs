//! Who waits, in order of arrival: bounded, shared by all workers, without a lock.
//!
//! A ring of cells. Whoever comes reserves the cell at the tail, then writes itself into it.
//! Whoever leaves, or is called, is taken out where it stands, by whichever thread wins its cell. A
//! gap is reused when it has come to the head and was swept.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

/// Nobody stands here (yet).
const EMPTY: u64 = 0;
/// Somebody stood here.
const GAP: u64 = 1;
/// What no [`Cell::who`] may be.
pub(super) const RESERVED: [u64; 2] = [EMPTY, GAP];

#[derive(Default)]
struct Cell {
    who: AtomicU64,
    /// The server that is of no use to it; above `u16::MAX`: none. Written before `who`.
    except: AtomicU32,
}

/// The line.
pub(super) struct Line {
    cells: Box<[Cell]>,
    /// Everything before it is swept. Moved by whoever sweeps.
    head: AtomicUsize,
    /// The next to be reserved.
    tail: AtomicUsize,
    sweeping: AtomicBool,
}

impl Line {
    /// A line with room for `places`, gaps included; rounded up to a power of two.
    pub(super) fn new(places: usize) -> Self {
        Self {
            cells: std::iter::repeat_with(Cell::default).take(places.next_power_of_two()).collect(),
            head: AtomicUsize::new(0),
            tail: AtomicUsize::new(0),
            sweeping: AtomicBool::new(false),
        }
    }

    #[expect(clippy::indexing_slicing, reason = "masked by the ring's length, a power of two")]
    fn cell(&self, place: usize) -> &Cell {
        &self.cells[place & (self.cells.len() - 1)]
    }

    /// Stands at the end of the line; `None`: it is full, gaps included.
    pub(super) fn join(&self, who: u64, except: Option<u16>) -> Option<usize> {
        debug_assert!(!RESERVED.contains(&who));
        // Read first, so that it cannot be ahead of the tail.
        let head = self.head.load(SeqCst);
        let after = |tail: usize| {
            let has_room = tail.wrapping_sub(head) < self.cells.len();
            has_room.then(|| tail.wrapping_add(1))
        };
        let place = self.tail.fetch_update(SeqCst, SeqCst, after).ok()?;
        let cell = self.cell(place);
        cell.except.store(except.map_or(u32::MAX, u32::from), SeqCst);
        cell.who.store(who, SeqCst);
        Some(place)
    }

    /// Takes `who` out; false: somebody else has.
    pub(super) fn leave(&self, place: usize, who: u64) -> bool {
        let left = self.cell(place).who.compare_exchange(who, GAP, SeqCst, SeqCst).is_ok();
        if left {
            self.sweep();
        }
        left
    }

    /// Takes out the first to whom `server` is of use. Once the ring is half used, the first of all
    /// takes any server: it must not hold the others up.
    pub(super) fn call(&self, server: u16) -> Option<u64> {
        self.find(server, |place, who| self.leave(place, who))
    }

    /// Whether somebody stands here to whom `server` is of use.
    pub(super) fn has_use_for(&self, server: u16) -> bool {
        self.find(server, |_, _| true).is_some()
    }

    fn find(&self, server: u16, mut found: impl FnMut(usize, u64) -> bool) -> Option<u64> {
        // In this order, so that the head cannot be ahead of the tail.
        let head = self.head.load(SeqCst);
        let tail = self.tail.load(SeqCst);
        let used = tail.wrapping_sub(head);
        let mut takes_any = used > self.cells.len() / 2;
        (0..used).find_map(|nth| {
            let place = head.wrapping_add(nth);
            let cell = self.cell(place);
            let who = cell.who.load(SeqCst);
            if RESERVED.contains(&who) {
                return None;
            }
            let wants = takes_any || cell.except.load(SeqCst) != u32::from(server);
            takes_any = false;
            (wants && found(place, who)).then_some(who)
        })
    }

    /// Moves the head over gaps. One thread does it at a time, and nobody waits for it: what it
    /// leaves is swept by the next who makes a gap.
    fn sweep(&self) {
        if self.sweeping.swap(true, SeqCst) {
            return;
        }
        let mut head = self.head.load(SeqCst);
        // A cell that was reserved and is not written yet is no gap.
        while self.cell(head).who.compare_exchange(GAP, EMPTY, SeqCst, SeqCst).is_ok() {
            head = head.wrapping_add(1);
            self.head.store(head, SeqCst);
        }
        self.sweeping.store(false, SeqCst);
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line")
            .field("head", &self.head)
            .field("tail", &self.tail)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_called_in_order_of_arrival_and_nobody_twice() {
        let line = Line::new(4);
        let mut next = 2;
        for _ in 0..10 {
            let joined: Vec<u64> = (next..next + 4).collect();
            for who in &joined {
                assert!(line.join(*who, None).is_some());
            }
            assert_eq!(line.join(999, None), None, "it is full");
            let called: Vec<u64> = std::iter::from_fn(|| line.call(0)).collect();
            assert_eq!(called, joined);
            next += 4;
        }
    }

    #[test]
    fn whoever_leaves_is_not_called_and_its_place_is_used_again_once_it_is_first() {
        let line = Line::new(4);
        let places: Vec<usize> = (2..6).map(|who| line.join(who, None).unwrap()).collect();
        assert!(line.leave(places[1], 3));
        assert!(!line.leave(places[1], 3), "it has left");
        assert_eq!(line.join(6, None), None, "the gap is not at the head");
        assert_eq!(line.call(0), Some(2));
        assert!(line.join(6, None).is_some());
        assert!(line.join(7, None).is_some());
        assert!(!line.leave(places[0], 2), "somebody else stands there");
        let called: Vec<u64> = std::iter::from_fn(|| line.call(0)).collect();
        assert_eq!(called, [4, 5, 6, 7]);
    }

    #[test]
    fn a_server_is_offered_to_the_first_who_can_use_it() {
        let line = Line::new(8);
        line.join(2, Some(0)).unwrap();
        line.join(3, Some(1)).unwrap();
        line.join(4, None).unwrap();
        assert_eq!(line.call(0), Some(3));
        assert_eq!(line.call(0), Some(4));
        assert!(!line.has_use_for(0));
        assert!(line.has_use_for(1));
        assert_eq!(line.call(0), None);
        assert_eq!(line.call(1), Some(2));
        assert_eq!(line.call(1), None);
    }

    #[test]
    fn whoever_waits_for_another_server_does_not_hold_up_the_line_for_ever() {
        let line = Line::new(8);
        line.join(2, Some(0)).unwrap();
        for who in 3..7 {
            line.join(who, None).unwrap();
            assert_eq!(line.call(0), Some(if who == 6 { 2 } else { who }));
        }
        assert_eq!(line.call(0), Some(6));
    }
}
