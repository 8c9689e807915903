//! The session caches: time of one operation, alone and against other threads, and memory of one
//! session, which is checked against what the caches account for. See `bench/README.md`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput};

use portcullis::tls::resumption::Binding;
use portcullis::tls::resumption::cache::{Cache, Miss, Refusal, SessionId, Stored};
use portcullis::tls::resumption::shared::Shared;

/// Bytes of a session's state without client certificates.
const STATE_BYTES: usize = 120;
/// Sessions in the caches whose times are taken.
const SESSIONS: u32 = 10_000;
/// No bound in bytes: the bound in entries is what is met.
const ANY_BYTES: usize = 1 << 32;
const NOW: u32 = 1_700_000_000;

fn main() {
    memory("l1", |sessions| {
        let mut cache = Cache::new(sessions, ANY_BYTES);
        for id in ids(1, sessions) {
            assert!(cache.insert(id, stored(), NOW).is_ok());
        }
        (u64::from(cache.entries()), cache.bytes(), cache)
    });
    memory("l2", |sessions| {
        let cache = Shared::new(sessions, ANY_BYTES);
        for id in ids(1, sessions) {
            assert!(cache.insert(id, stored(), NOW).is_ok());
        }
        (cache.entries(), cache.bytes(), cache)
    });

    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    l1(&mut criterion);
    l2(&mut criterion);
    criterion.final_summary();
}

/// Numbers that look random (splitmix64): cheap enough to be made while time is taken.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn id(&mut self) -> SessionId {
        let mut id = [0; 32];
        for part in id.chunks_exact_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes());
        }
        SessionId(id)
    }

    /// One of `ids`, in an order that no processor foresees.
    fn pick<'a>(&mut self, ids: &'a [SessionId]) -> &'a SessionId {
        let range = ids.len() as u128;
        let at = usize::try_from((u128::from(self.next()) * range) >> 64);
        at.ok().and_then(|at| ids.get(at)).unwrap_or(&SessionId([0; 32]))
    }
}

fn ids(seed: u64, count: u32) -> impl Iterator<Item = SessionId> {
    let mut random = Random(seed << 32);
    (0..count).map(move |_| random.id())
}

fn stored() -> Stored {
    let binding = Binding { listener: [1; 8], policy: [2; 8], name: [3; 8] };
    Stored { binding, expires: NOW + 3600, state: Box::new([SECRET; STATE_BYTES]) }
}

fn l1(criterion: &mut Criterion) {
    let present: Vec<_> = ids(1, SESSIONS).collect();
    let absent: Vec<_> = ids(2, SESSIONS).collect();
    let mut cache = Cache::new(SESSIONS, ANY_BYTES);
    for id in &present {
        assert_eq!(cache.insert(*id, stored(), NOW), Ok(()));
    }
    let mut random = Random(3);
    let mut group = criterion.benchmark_group("cache/l1");
    group.throughput(Throughput::Elements(1));
    group.bench_function("get_hit", |bencher| {
        bencher.iter(|| assert!(black_box(cache.get(random.pick(&present), NOW)).is_ok()));
    });
    group.bench_function("get_miss", |bencher| {
        bencher.iter(|| assert!(black_box(cache.get(random.pick(&absent), NOW)).is_err()));
    });
    // The cache is full: each insert evicts a session, wipes it and frees it.
    group.bench_function("insert", |bencher| {
        bencher.iter_batched(
            || (random.id(), stored()),
            |(id, stored)| assert_eq!(cache.insert(id, stored, NOW), Ok(())),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn l2(criterion: &mut Criterion) {
    let cache = Shared::new(SESSIONS, ANY_BYTES);
    // Shards fill unevenly; what found no place is no hit.
    for id in ids(1, SESSIONS) {
        assert!(cache.insert(id, stored(), NOW).is_ok());
    }
    let present: Vec<_> = ids(1, SESSIONS).filter(|id| cache.get(id, NOW).is_ok()).collect();
    let absent: Vec<_> = ids(2, SESSIONS).collect();
    contend(criterion, "get_hit", &|random| match cache.get(random.pick(&present), NOW) {
        Ok(stored) => {
            black_box(stored);
            false
        }
        Err(miss) => {
            assert_eq!(miss, Miss::Contended);
            true
        }
    });
    contend(criterion, "get_miss", &|random| match cache.get(random.pick(&absent), NOW) {
        Err(Miss::NotFound) => false,
        other => {
            assert_eq!(other.err(), Some(Miss::Contended));
            true
        }
    });
    // As full as with L1, but making the session is in the figure: kept outside, it would take
    // memory for every operation of a sample.
    contend(criterion, "insert", &|random| {
        let inserted = cache.insert(random.id(), stored(), NOW);
        assert_ne!(inserted, Err(Refusal::TooLarge));
        inserted.is_err()
    });
}

/// Measures `operation`, which says whether it was contended, on 1, 2 and 4 threads that do nothing
/// else. What is reported as time is that of one operation on one thread, by the slowest thread.
#[expect(clippy::cast_precision_loss, reason = "counts of far less than 2^53")]
fn contend(
    criterion: &mut Criterion,
    name: &str,
    operation: &(dyn Fn(&mut Random) -> bool + Sync),
) {
    let mut group = criterion.benchmark_group(format!("cache/l2/{name}/threads"));
    for threads in [1_u32, 2, 4] {
        let (total, contended) = (AtomicU64::new(0), AtomicU64::new(0));
        let seeds = AtomicU64::new(1 << 40);
        group.throughput(Throughput::Elements(u64::from(threads)));
        group.bench_function(threads.to_string(), |bencher| {
            bencher.iter_custom(|operations| {
                let barrier = Barrier::new(threads as usize);
                let slowest = AtomicU64::new(0);
                let work = || {
                    let mut random = Random(seeds.fetch_add(1 << 32, Ordering::Relaxed));
                    barrier.wait();
                    let start = Instant::now();
                    let failed = (0..operations).filter(|_| operation(&mut random)).count() as u64;
                    let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                    slowest.fetch_max(nanos, Ordering::Relaxed);
                    total.fetch_add(operations, Ordering::Relaxed);
                    contended.fetch_add(failed, Ordering::Relaxed);
                };
                thread::scope(|scope| {
                    for _ in 0..threads {
                        scope.spawn(work);
                    }
                });
                Duration::from_nanos(slowest.into_inner())
            });
        });
        let (total, contended) = (total.into_inner(), contended.into_inner());
        if total > 0 {
            let share = contended as f64 / total as f64;
            eprintln!("cache/l2/{name}/threads/{threads}: {:.3} % contended", share * 100.0);
        }
    }
    group.finish();
}

/// Says what a session costs in a cache that `fill` made and filled, and checks that it is what the
/// cache accounts for, and that states are wiped.
///
/// # Panics
/// When either is not so.
fn memory<T>(level: &str, fill: impl Fn(u32) -> (u64, usize, T)) {
    for sessions in [10_000, 100_000] {
        let before = HELD.get();
        UNWIPED.set(Some(0));
        let (entries, accounted, cache) = fill(sessions);
        let held = HELD.get().wrapping_sub(before) as u64;
        let accounted = accounted as u64;
        eprintln!(
            "cache/{level}: {entries} of {sessions} sessions: {} bytes each, {} accounted for",
            held / entries,
            accounted / entries,
        );
        // Held but not accounted for: places reserved for sessions that found their shard full,
        // what each of 64 shards has before there is a session, and what its table leaves unused
        // of the allocator's size class.
        let unused = (u64::from(sessions) - entries) * 128 + 64 * 2048;
        assert!(held <= accounted + unused, "{held} bytes held, {accounted} accounted for");
        drop(cache);
        assert_eq!(HELD.get(), before, "a dropped cache keeps memory");
        assert_eq!(UNWIPED.take(), Some(0), "states freed with their secret");
    }
}

/// What a state is full of.
const SECRET: u8 = 0xA5;

thread_local! {
    /// Bytes of the heap that this thread has taken and not given back, malloc's own included.
    static HELD: Cell<usize> = const { Cell::new(0) };
    /// States that this thread gave back with their secret; nothing while nobody wants to know.
    static UNWIPED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// The system's allocator, watched.
struct Watched;

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// Bytes that the allocator, which is jemalloc under the system's name, needs for a block: what can
/// be used of it.
#[expect(unsafe_code, reason = "asks the allocator")]
fn bytes_of(block: *mut u8) -> usize {
    // SAFETY: the callers pass what malloc returned and has not got back, or null, which is 0.
    unsafe { libc::malloc_usable_size(block.cast()) }
}

#[expect(unsafe_code, reason = "an allocator is unsafe to write; this one only counts")]
// SAFETY: all blocks come from the system's allocator and go back to it unchanged.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the same.
        let block = unsafe { System.alloc(layout) };
        HELD.set(HELD.get().wrapping_add(bytes_of(block)));
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        HELD.set(HELD.get().wrapping_sub(bytes_of(block)));
        if let Some(unwiped) = UNWIPED.get()
            && layout == Layout::new::<[u8; STATE_BYTES]>()
        {
            // SAFETY: while somebody wants to know, blocks of this layout are states, written to
            // when they were made.
            let first = unsafe { block.read() };
            UNWIPED.set(Some(unwiped + u64::from(first == SECRET)));
        }
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(block, layout) }
    }
}
