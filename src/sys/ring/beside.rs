//! The thread beside a worker that does dear steps of handshakes: on the same core, with the same
//! descriptors, and only while nobody else of that core has anything to do.

use std::sync::Arc;
use std::thread::Thread;
use std::time::Duration;

use nix::sys::eventfd::EventFd;
use nix::time::{ClockId, clock_gettime};

use crate::io::buffer::Pool;
use crate::io::{Completion, Payload, Task, Token};
use crate::limits::STEPS_BESIDE_MAX;

use super::Ring;
use crate::sys::allocator;
use crate::sys::start::step_back;

/// The worker's hold on it.
pub(super) struct Beside {
    /// `None`: it is to end.
    orders: Option<rtrb::Producer<Order>>,
    done: rtrb::Consumer<Order>,
    thread: Thread,
    /// Orders that have not come back.
    out: usize,
    /// It has had an order since the last [`Ring::rest_beside`].
    is_used: bool,
}

struct Order {
    token: Token,
    task: Box<Task>,
}

impl Ring {
    /// Has it done; if no thread can be had for it, here and now.
    pub(super) fn compute(&mut self, token: Token, task: Box<Task>) {
        if self.beside.is_none() {
            self.beside = Beside::start(Arc::clone(&self.wake)).ok();
        }
        let ordered = match &mut self.beside {
            Some(beside) => beside.order(token, task),
            None => Err(task),
        };
        if let Err(mut task) = ordered {
            run(&mut task, &mut Pool::default());
            self.answered.push(completion(token, task));
        }
    }

    /// Lets the thread go if it has not been needed since the last call: its stack, caches and
    /// buffers are memory, too.
    pub(super) fn rest_beside(&mut self) {
        if let Some(beside) = &mut self.beside {
            let is_used = std::mem::take(&mut beside.is_used);
            if !is_used && beside.out == 0 {
                self.beside = None;
            }
        }
    }

    /// What is done.
    pub(super) fn take_computed(&mut self, completions: &mut Vec<Completion>) {
        if let Some(beside) = &mut self.beside {
            completions.extend(std::iter::from_fn(|| beside.take()));
        }
    }
}

impl Beside {
    /// Starts it; it writes to `wake` whenever something is done. To be called by the worker, whose
    /// core and descriptors it inherits.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub(super) fn start(wake: Arc<EventFd>) -> std::io::Result<Self> {
        let (orders, for_it) = rtrb::RingBuffer::new(STEPS_BESIDE_MAX);
        let (by_it, done) = rtrb::RingBuffer::new(STEPS_BESIDE_MAX);
        let name = std::thread::current().name().map_or_else(String::new, |name| {
            // Linux keeps 15 bytes (prctl(2)).
            name.replace("worker", "beside")
        });
        let arena = allocator::arena();
        let thread = std::thread::Builder::new().name(name);
        let thread = thread.spawn(move || {
            step_back();
            // In another it could keep other cores' threads waiting for a lock that it holds.
            allocator::use_arena(arena);
            serve(for_it, by_it, &wake);
        })?;
        let thread = thread.thread().clone();
        Ok(Self { orders: Some(orders), done, thread, out: 0, is_used: true })
    }

    /// Has it done.
    ///
    /// # Errors
    /// Gives it back when [`STEPS_BESIDE_MAX`] are on their way.
    pub(super) fn order(&mut self, token: Token, task: Box<Task>) -> Result<(), Box<Task>> {
        let Some(orders) = self.orders.as_mut().filter(|_| self.out < STEPS_BESIDE_MAX) else {
            return Err(task);
        };
        match orders.push(Order { token, task }) {
            Ok(()) => {
                (self.is_used, self.out) = (true, self.out + 1);
                self.thread.unpark();
                Ok(())
            }
            Err(rtrb::PushError::Full(Order { task, .. })) => Err(task),
        }
    }

    /// One that is done.
    pub(super) fn take(&mut self) -> Option<Completion> {
        let Order { token, task } = self.done.pop().ok()?;
        self.out -= 1;
        Some(completion(token, task))
    }
}

impl Drop for Beside {
    /// Lets the thread end by itself. Nobody waits for that: it comes last of all on its core.
    fn drop(&mut self) {
        self.orders = None;
        self.thread.unpark();
    }
}

fn serve(mut orders: rtrb::Consumer<Order>, mut done: rtrb::Producer<Order>, wake: &Arc<EventFd>) {
    let mut pool = Pool::default();
    loop {
        match orders.pop() {
            Ok(mut order) => {
                run(&mut order.task, &mut pool);
                // There is a place for each that was ordered.
                let _there_is_room = done.push(order);
                // A full eventfd counter (EAGAIN) means that the wake-up is pending already.
                let _pending = wake.write(1);
            }
            Err(_) if orders.is_abandoned() => return,
            Err(_) => std::thread::park(),
        }
    }
}

fn run(task: &mut Task, pool: &mut Pool) {
    let begun = processor_time();
    task.run(pool);
    task.took = processor_time().saturating_sub(begun);
}

/// What the calling thread has had of a processor.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

fn completion(token: Token, task: Box<Task>) -> Completion {
    Completion { token, result: Ok(0), more: false, payload: Payload::Computed(task) }
}

#[cfg(test)]
mod tests {
    use std::thread::ThreadId;

    use super::*;
    use crate::io::task::Work;
    use crate::io::{Io, Kind, Operation};

    /// Takes ten milliseconds of a processor and notes whose they were.
    struct Toil {
        by: Option<ThreadId>,
    }

    impl Work for Toil {
        fn run(&mut self, _pool: &mut Pool) {
            let begun = processor_time();
            while processor_time().saturating_sub(begun) < Duration::from_millis(10) {
                std::hint::spin_loop();
            }
            self.by = Some(std::thread::current().id());
        }
    }

    fn toil(ring: &mut Ring, slot: u32) {
        let task = Box::new(Task::new(Toil { by: None }));
        ring.submit(Token::new(slot, 3, Kind::Compute), Operation::Compute(task));
    }

    /// So many that are done, by slot: what each took, and whether another thread has done it.
    fn done(ring: &mut Ring, count: usize) -> Vec<(u32, Duration, bool)> {
        let (mut completions, mut all) = (Vec::new(), Vec::new());
        let until = ring.now() + Duration::from_secs(20);
        while all.len() < count && ring.now() < until {
            ring.wait(Some(until), &mut completions);
            for Completion { token, payload, .. } in completions.drain(..) {
                let Payload::Computed(task) = payload else { continue };
                let took = task.took;
                let by = task.into_work::<Toil>().unwrap().by.unwrap();
                all.push((token.slot, took, by != std::thread::current().id()));
            }
        }
        all.sort_unstable();
        all
    }

    #[test]
    fn another_thread_does_it_and_wakes_the_ring() {
        let mut ring = Ring::new(2, Vec::new(), Arc::new(EventFd::new().unwrap())).unwrap();
        for slot in [0, 1, 0] {
            toil(&mut ring, slot);
            let [(of, took, true)] = done(&mut ring, 1)[..] else { panic!("not done elsewhere") };
            assert_eq!(of, slot);
            let most = Duration::from_millis(200);
            assert!((Duration::from_millis(10)..most).contains(&took), "{took:?}");
        }
    }

    #[test]
    fn a_thread_that_is_not_needed_ends_and_another_one_comes_when_it_is() {
        let mut ring = Ring::new(1, Vec::new(), Arc::new(EventFd::new().unwrap())).unwrap();
        for _ in 0..2 {
            assert!(!ring.is_large());
            toil(&mut ring, 0);
            ring.trim();
            ring.trim();
            assert!(ring.is_large(), "it has not answered");
            assert!(done(&mut ring, 1)[0].2);
            ring.trim();
            ring.trim();
        }
    }

    #[test]
    fn what_is_one_too_many_is_done_here() {
        let mut ring = Ring::new(3, Vec::new(), Arc::new(EventFd::new().unwrap())).unwrap();
        (0..=STEPS_BESIDE_MAX).for_each(|slot| toil(&mut ring, slot.try_into().unwrap()));
        let all = done(&mut ring, STEPS_BESIDE_MAX + 1);
        let all: Vec<_> = all.iter().map(|(slot, _, elsewhere)| (*slot, *elsewhere)).collect();
        assert_eq!(all, [(0, true), (1, true), (2, false)]);
    }
}
