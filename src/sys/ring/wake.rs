//! Waking another worker: a write to the eventfd that its ring reads.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::types::Fd;
use io_uring::{opcode, squeue};
use nix::sys::eventfd::EventFd;

use super::Ring;
use crate::io::Token;

/// What is added to the eventfd's counter (eventfd(2)).
static ONCE: u64 = 1;
const COUNTER_BYTES: u32 = 8;
const _: () = assert!(size_of::<u64>() == COUNTER_BYTES as usize);

impl Ring {
    /// From now on it can wake the workers, by their numbers. The eventfds are in the calling
    /// thread's descriptor table.
    pub fn meet(&mut self, wakes: Arc<[Arc<EventFd>]>) {
        self.wakes = wakes;
    }

    /// It completes silently. A counter that is full (EAGAIN) has not been read: whoever it is for
    /// will wake.
    pub(super) fn wake(&mut self, token: Token, worker: u16) {
        let Some(eventfd) = self.wakes.get(usize::from(worker)).map(AsRawFd::as_raw_fd) else {
            return;
        };
        let entry = opcode::Write::new(Fd(eventfd), (&raw const ONCE).cast(), COUNTER_BYTES);
        self.push(&entry.build().flags(squeue::Flags::SKIP_SUCCESS).user_data(token.pack()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::eventfd::EfdFlags;

    use super::*;
    use crate::io::{Io, Kind, Operation};

    #[test]
    fn a_ring_wakes_another_and_is_told_nothing_of_it_itself() {
        let eventfd = || EventFd::from_flags(EfdFlags::EFD_NONBLOCK).map(Arc::new).unwrap();
        let wakes: Arc<[_]> = Arc::new([eventfd(), eventfd()]);
        let ring = |own: usize| Ring::new(1, Vec::new(), Arc::clone(&wakes[own])).unwrap();
        let (mut one, mut other) = (ring(0), ring(1));
        one.meet(Arc::clone(&wakes));
        let mut completions = Vec::new();
        for _ in 0..3 {
            for _ in 0..2 {
                one.submit(Token::new(1, 0, Kind::Wake), Operation::Wake { worker: 1 });
            }
            let soon = one.now() + Duration::from_millis(10);
            one.wait(Some(soon), &mut completions);
            assert!(completions.is_empty(), "{completions:?}");
            let late = other.now() + Duration::from_secs(10);
            other.wait(Some(late), &mut completions);
            let kinds: Vec<Kind> = completions.drain(..).map(|one| one.token.kind).collect();
            assert_eq!(kinds, [Kind::Mailbox]);
        }
    }
}
