//! Workers that share a backend's permits: how they run side by side, and what has to hold between
//! any two turns.
//!
//! Each worker has a kernel and a world of its own, clock included. The one that is furthest behind
//! has the next turn, and sees nothing that happens behind the others' next events: so a worker
//! that is woken is never far ahead of the one that wakes it.

use portcullis::io::{Io, Time};
use portcullis::worker::Progress;
use portcullis::worker::snapshot::Snapshot;

use crate::run::{Outcome, Running, Setting};

/// Runs one worker for each setting until all have ended. What they share is the first one's.
pub(crate) fn run_together(settings: &[Setting]) -> Vec<Outcome> {
    let snapshot = settings[0].snapshot(settings.len());
    let mut workers: Vec<Running> =
        settings.iter().zip(0..).map(|(setting, index)| setting.start(&snapshot, index)).collect();
    let mut running: Vec<usize> = (0..workers.len()).collect();
    while !running.is_empty() {
        let next_at = |index: &usize| workers[*index].worker.io().next_at();
        let mut times: Vec<Time> = running.iter().map(next_at).collect();
        let first = (0..times.len()).min_by_key(|at| times[*at]).unwrap();
        times.remove(first);
        let index = running[first];
        let worker = &mut workers[index].worker;
        worker.io_mut().horizon = times.into_iter().min();
        let progress = worker.turn();
        worker.check_invariants();
        let now = worker.io_mut().now();
        for woken in std::mem::take(&mut worker.io_mut().woken) {
            workers[usize::from(woken)].worker.io_mut().world.wake(now);
        }
        check(&snapshot, &workers);
        if progress == Progress::Ended {
            running.remove(first);
        }
    }
    check_at_end(&snapshot);
    settings.iter().zip(workers).map(|(setting, running)| setting.finish(running)).collect()
}

/// # Panics
/// When permits were lost or made, a server has more connections than it may, or a client waits
/// beside a free permit.
pub(crate) fn check(snapshot: &Snapshot, workers: &[Running]) {
    let backend = &snapshot.backends[0];
    let Some(permits) = &backend.permits else {
        return;
    };
    permits.check_invariants();
    let held: usize = workers.iter().map(|one| one.worker.permits_held().len()).sum();
    let in_use: u32 = permits.in_use().map(|(in_use, _)| in_use).sum();
    let in_use = usize::try_from(in_use).unwrap();
    assert_eq!(in_use, held + permits.on_their_way(), "in use, and held or on their way");
    // As the servers see it.
    for (server, (in_use, max)) in backend.servers.iter().zip(permits.in_use()) {
        let sockets: usize = workers
            .iter()
            .map(|one| one.worker.io().servers().filter(|to| **to == server.address).count())
            .sum();
        let sockets = u32::try_from(sockets).unwrap();
        assert!(sockets <= in_use, "{sockets} sockets to {server:?} with {in_use} permits");
        assert!(max.is_none_or(|max| sockets <= max), "{sockets} sockets to {server:?}");
    }
}

/// # Panics
/// When a permit or a waiting client is left.
pub(crate) fn check_at_end(snapshot: &Snapshot) {
    if let Some(permits) = &snapshot.backends[0].permits {
        permits.check_invariants();
        assert!(permits.in_use().all(|(in_use, _)| in_use == 0), "{permits:?}");
        assert_eq!((permits.waiting(), permits.on_their_way()), (0, 0), "{permits:?}");
    }
}
