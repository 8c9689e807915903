//! Tests of the permits: against a model, one call after the other, and under real threads.

use std::sync::atomic::AtomicI64;
use std::sync::mpsc::{Receiver, Sender, channel};

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// With a line that is soon full of gaps.
fn permits(max: &[Option<u32>], waiting_max: u32, workers: usize) -> Permits {
    let (max_connections, cells) = (max.iter().copied(), waiting_max as usize * CELLS_PER_CLIENT);
    let permits = Permits::with_cells(max_connections, waiting_max, SECOND, workers, cells);
    for server in 0..u16::try_from(max.len()).unwrap() {
        permits.set_reachable(server, true);
    }
    permits
}

fn waiter(worker: u16, slot: u32) -> Waiter {
    Waiter { worker, slot, generation: 7 }
}

/// Stands in line and settles, as a worker does.
fn wait(permits: &Permits, waiter: Waiter) -> (Option<Place>, Vec<u16>) {
    let mut wakes = Vec::new();
    let place = permits.wait(waiter, None);
    permits.settle(&mut wakes);
    (place, wakes)
}

#[test]
fn a_word_holds_the_largest_numbers() {
    for (high, slot, generation) in [(0, 0, 0), (u16::MAX, (1 << 20) - 1, (1 << 24) - 1), (3, 2, 1)]
    {
        let word = pack(high, slot, generation);
        assert_eq!(unpack(word), (high, slot, generation));
        assert!(!crate::backend::line::RESERVED.contains(&word));
    }
}

#[test]
fn a_permit_given_back_goes_to_the_longest_waiter_on_whichever_worker() {
    let permits = permits(&[Some(1)], 10, 2);
    assert!(permits.take(0));
    assert!(!permits.take(0));
    assert!(wait(&permits, waiter(1, 5)).1.is_empty());
    assert!(wait(&permits, waiter(0, 6)).1.is_empty());
    assert_eq!((permits.waiting(), permits.awaited(0), permits.awaited(1)), (2, 1, 1));
    for (worker, slot) in [(1, 5), (0, 6)] {
        let mut wakes = Vec::new();
        permits.release(0, &mut wakes);
        assert_eq!(wakes, [worker]);
        assert!(!permits.take(0), "it is the waiter's");
        assert_eq!(permits.next_grant(1 - worker), None);
        let grant = permits.next_grant(worker);
        assert_eq!(grant, Some(Grant { server: 0, slot, generation: 7 }));
    }
    permits.release(0, &mut Vec::new());
    assert_eq!(permits.in_use().next(), Some((0, Some(1))));
    permits.check_invariants();
}

#[test]
fn a_full_line_takes_nobody_and_whoever_leaves_makes_room() {
    let permits = permits(&[Some(1)], 2, 1);
    assert!(permits.take(0));
    let first = wait(&permits, waiter(0, 1)).0.unwrap();
    let second = wait(&permits, waiter(0, 2)).0.unwrap();
    assert!(permits.wait(waiter(0, 3), None).is_none());
    assert!(permits.leave(waiter(0, 2), &second));
    assert!(permits.wait(waiter(0, 3), None).is_some());
    permits.release(0, &mut Vec::new());
    assert!(!permits.leave(waiter(0, 1), &first), "its permit is on its way");
    assert!(permits.wait(waiter(0, 4), None).is_none(), "it counts until it has got it");
    assert_eq!(permits.next_grant(0).unwrap().slot, 1);
    assert!(permits.wait(waiter(0, 4), None).is_some());
}

#[test]
fn nobody_waits_where_nobody_may() {
    let permits = permits(&[Some(1)], 0, 1);
    assert!(permits.take(0));
    assert!(permits.wait(waiter(0, 1), None).is_none());
    assert!(!permits.has_waiters());
}

#[test]
fn a_client_gets_no_permit_of_the_server_that_has_failed_it() {
    let permits = permits(&[Some(1), Some(1)], 10, 1);
    assert!(permits.take(0) && permits.take(1));
    assert!(permits.wait(waiter(0, 1), Some(0)).is_some());
    assert!(permits.wait(waiter(0, 2), None).is_some());
    permits.release(0, &mut Vec::new());
    let grant = permits.next_grant(0).unwrap();
    assert_eq!((grant.slot, grant.server), (2, 0), "the first who can use it");
    permits.release(1, &mut Vec::new());
    let grant = permits.next_grant(0).unwrap();
    assert_eq!((grant.slot, grant.server), (1, 1));
}

#[test]
fn a_server_without_an_address_gives_no_permit_until_it_has_one() {
    let permits = permits(&[Some(1), None], 10, 1);
    permits.set_reachable(0, false);
    permits.set_reachable(1, false);
    assert!(!permits.take(0) && !permits.take(1));
    assert!(wait(&permits, waiter(0, 1)).0.is_some());
    permits.set_reachable(1, true);
    let mut wakes = Vec::new();
    permits.settle(&mut wakes);
    assert_eq!(wakes, [0]);
    assert_eq!(permits.next_grant(0).unwrap().server, 1);
}

/// One thing that happens; numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Step {
    Arrive { worker: u16, except: Option<u16> },
    Leave(usize),
    Release(usize),
    Reach { server: u16, reachable: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..3_u16, prop_oneof![3 => Just(None), 1 => (0..2_u16).prop_map(Some)])
            .prop_map(|(worker, except)| Step::Arrive { worker, except }),
        1 => any::<usize>().prop_map(Step::Leave),
        3 => any::<usize>().prop_map(Step::Release),
        1 => (0..2_u16, any::<bool>())
            .prop_map(|(server, reachable)| Step::Reach { server, reachable }),
    ];
    prop::collection::vec(step, 1..200)
}

/// Who waits, in order, and who holds a permit.
#[derive(Default)]
struct Model {
    line: Vec<(Waiter, Option<u16>, Place)>,
    holders: Vec<u16>,
    /// Clients that have left the line by themselves.
    left: usize,
}

impl Model {
    /// Takes what was granted by now: nobody may have been passed over who could have used it.
    fn fetch(&mut self, permits: &Permits) {
        let mut granted = Vec::new();
        for worker in 0..3 {
            while let Some(Grant { server, slot, generation }) = permits.next_grant(worker) {
                let who = Waiter { worker, slot, generation };
                let at = self.line.iter().position(|(waiter, ..)| *waiter == who);
                granted.push((at.expect("it waits"), server));
            }
        }
        granted.sort_unstable();
        for (at, server) in &granted {
            for (earlier, (_, except, _)) in self.line.iter().enumerate().take(*at) {
                let is_granted = granted.iter().any(|(at, _)| *at == earlier);
                assert!(is_granted || *except == Some(*server), "{earlier} was passed over");
            }
        }
        for (at, server) in granted.iter().rev() {
            let (_, except, _) = self.line.remove(*at);
            let was_first = (0..*at).all(|one| granted.iter().any(|(at, _)| *at == one));
            assert!(except != Some(*server) || was_first, "it had no use for server {server}");
            self.holders.push(*server);
        }
        permits.check_invariants();
        assert_eq!(permits.waiting() as usize, self.line.len());
    }
}

proptest! {
    #[test]
    fn whatever_happens_permits_are_conserved_and_nobody_waits_beside_a_free_one(
        steps in steps()
    ) {
        let permits = permits(&[Some(2), Some(1)], 8, 3);
        let mut model = Model::default();
        for (slot, step) in (0..).zip(steps) {
            let mut wakes = Vec::new();
            match step {
                Step::Arrive { worker, except } => {
                    let who = waiter(worker, slot);
                    let place = permits.wait(who, except);
                    let has_room = model.line.len() < 8;
                    assert!(place.is_some() == has_room || has_room && model.left >= 8);
                    if let Some(place) = place {
                        model.line.push((who, except, place));
                    }
                    permits.settle(&mut wakes);
                }
                Step::Leave(which) if !model.line.is_empty() => {
                    let (who, _, place) = model.line.remove(which % model.line.len());
                    assert!(permits.leave(who, &place));
                    permits.settle(&mut wakes);
                    model.left += 1;
                }
                Step::Release(which) if !model.holders.is_empty() => {
                    let server = model.holders.swap_remove(which % model.holders.len());
                    permits.release(server, &mut wakes);
                }
                Step::Reach { server, reachable } => {
                    permits.set_reachable(server, reachable);
                    permits.settle(&mut wakes);
                }
                Step::Leave(_) | Step::Release(_) => {}
            }
            model.fetch(&permits);
            let in_use: u32 = permits.in_use().map(|(in_use, _)| in_use).sum();
            assert_eq!(in_use as usize, model.holders.len());
        }
    }
}

/// A worker of the stress test: it has a few clients, and does what its random numbers say.
struct Worker<'a> {
    index: u16,
    permits: &'a Permits,
    /// Connections that each server has, counted apart from the permits.
    open: &'a [AtomicI64],
    max: &'a [Option<u32>],
    wakes: &'a [Sender<()>],
    woken: Receiver<()>,
    random: u64,
    clients: Vec<Client>,
    /// Clients that are still to come.
    to_come: u32,
    served: u32,
    left: u32,
}

enum Client {
    Absent,
    Waiting(Waiter, Place),
    Connected(u16),
}

impl Worker<'_> {
    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random % below as u64).unwrap()
    }

    /// Clients that have got a permit or left the line.
    fn run(mut self) -> u32 {
        while self.step() {
            self.fetch();
        }
        while self.permits.awaited(self.index) > 0 {
            self.fetch();
        }
        self.served + self.left
    }

    /// One client does one thing. False: all have come and gone.
    fn step(&mut self) -> bool {
        let at = self.random(self.clients.len());
        match std::mem::replace(&mut self.clients[at], Client::Absent) {
            Client::Absent if self.to_come > 0 => self.arrive(at),
            Client::Absent => return !self.is_done(),
            Client::Connected(server) => self.close(server),
            Client::Waiting(who, place) if self.random(8) == 0 => {
                // If a permit is on its way to it, `fetch` finds nobody and gives it back.
                self.permits.leave(who, &place);
                self.left += 1;
                let mut wakes = Vec::new();
                self.permits.settle(&mut wakes);
                self.wake(&wakes);
            }
            waiting @ Client::Waiting(..) => {
                self.clients[at] = waiting;
                if !self.clients.iter().any(|one| !matches!(one, Client::Waiting(..))) {
                    self.woken.recv_timeout(20 * SECOND).expect("a wake-up was lost");
                }
            }
        }
        true
    }

    fn is_done(&mut self) -> bool {
        let is_absent = |client: &Client| matches!(client, Client::Absent);
        if self.clients.iter().all(is_absent) {
            return true;
        }
        // Nobody comes any more: who is connected leaves, and whoever waits gets its turn.
        for at in 0..self.clients.len() {
            if let Client::Connected(server) = self.clients[at] {
                self.clients[at] = Client::Absent;
                self.close(server);
            }
        }
        if self.permits.awaited(self.index) > 0 && self.permits.on_their_way() == 0 {
            self.woken.recv_timeout(20 * SECOND).expect("a wake-up was lost");
        }
        false
    }

    fn arrive(&mut self, at: usize) {
        self.to_come -= 1;
        let first = self.random(self.max.len());
        let servers = (0..self.max.len()).map(|nth| (first + nth) % self.max.len());
        let mut servers = servers.map(|server| u16::try_from(server).unwrap());
        let free = !self.permits.has_waiters();
        if let Some(server) = servers.find(|server| free && self.permits.take(*server)) {
            return self.connect(at, server);
        }
        let slot = u32::try_from(at).unwrap();
        let who = Waiter { worker: self.index, slot, generation: self.to_come };
        let except = (self.max.len() > 1 && self.random(16) == 0).then_some(0);
        if let Some(place) = self.permits.wait(who, except) {
            self.clients[at] = Client::Waiting(who, place);
        } else {
            // It comes again.
            self.to_come += 1;
            std::thread::yield_now();
        }
        let mut wakes = Vec::new();
        self.permits.settle(&mut wakes);
        self.wake(&wakes);
    }

    fn connect(&mut self, at: usize, server: u16) {
        let open = self.open[usize::from(server)].fetch_add(1, SeqCst) + 1;
        let max = self.max[usize::from(server)].map_or(i64::MAX, i64::from);
        assert!(open <= max, "server {server} has {open} connections");
        self.clients[at] = Client::Connected(server);
        self.served += 1;
    }

    fn close(&mut self, server: u16) {
        self.open[usize::from(server)].fetch_sub(1, SeqCst);
        let mut wakes = Vec::new();
        self.permits.release(server, &mut wakes);
        self.wake(&wakes);
    }

    fn wake(&self, workers: &[u16]) {
        for worker in workers {
            // One that has ended needs no waking.
            _ = self.wakes[usize::from(*worker)].send(());
        }
    }

    fn fetch(&mut self) {
        while self.woken.try_recv().is_ok() {}
        while let Some(Grant { server, slot, generation }) = self.permits.next_grant(self.index) {
            let at = usize::try_from(slot).unwrap();
            match &self.clients[at] {
                Client::Waiting(who, _) if who.generation == generation => {
                    self.connect(at, server);
                }
                _ => {
                    let mut wakes = Vec::new();
                    self.permits.release(server, &mut wakes);
                    self.wake(&wakes);
                }
            }
        }
    }
}

/// Under real threads: no server ever has more connections than it may, every permit comes back,
/// and nobody sleeps while a permit is free (a wake-up that is lost ends in a timeout).
#[test]
fn under_real_threads_no_permit_and_no_wake_up_is_lost() {
    const WORKERS: u16 = 4;
    const CLIENTS: u32 = 20_000;
    for (max, waiting_max) in
        [(vec![Some(1)], 64), (vec![Some(2), Some(1)], 8), (vec![Some(3), None], 2)]
    {
        let permits = permits(&max, waiting_max, usize::from(WORKERS));
        let open: Vec<AtomicI64> = max.iter().map(|_| AtomicI64::new(0)).collect();
        let (wakes, woken): (Vec<_>, Vec<_>) = (0..WORKERS).map(|_| channel()).unzip();
        let ended: u32 = std::thread::scope(|scope| {
            let workers = (0..WORKERS).zip(woken).map(|(index, woken)| Worker {
                index,
                permits: &permits,
                open: &open,
                max: &max,
                wakes: &wakes,
                woken,
                random: 0x9E37_79B9_7F4A_7C15 ^ u64::from(index),
                clients: (0..8).map(|_| Client::Absent).collect(),
                to_come: CLIENTS,
                served: 0,
                left: 0,
            });
            let threads: Vec<_> = workers.map(|worker| scope.spawn(move || worker.run())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(ended, u32::from(WORKERS) * CLIENTS);
        permits.check_invariants();
        assert_eq!((permits.waiting(), permits.on_their_way()), (0, 0));
        assert!(permits.in_use().all(|(in_use, _)| in_use == 0));
    }
}
