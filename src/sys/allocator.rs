//! The allocator as a worker uses it: jemalloc, see jemalloc(3) for each name here. Where another
//! one serves the process, all of this does nothing.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::CStr;
use std::num::NonZeroUsize;
use std::ptr::{from_mut, null_mut};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;

/// Arenas of the threads that have their own: by core, and one behind the other for threads without
/// a core, of which there are more than cores.
#[expect(clippy::disallowed_types, reason = "a thread takes it once, when it starts")]
static ARENAS: std::sync::Mutex<BTreeMap<usize, u32>> = std::sync::Mutex::new(BTreeMap::new());
static WITHOUT_CORE: AtomicUsize = AtomicUsize::new(0);

/// Objects of one size that a worker has at hand, so that it rarely asks its arena. Of jemalloc's
/// own number, up to 200, the first that a worker needs would take whole slabs, and a few that stay
/// would hold all of them.
const AT_HAND: &CStr = c"8-4096:20";

/// Gives the calling thread, a worker's, the arena of its core, which no thread without this call
/// shares. All others share one (`opt.narenas`, see `.cargo/config.toml`): of each size one slab
/// stays in each arena, whatever becomes of its objects.
pub(super) fn use_own_arena(core: Option<usize>) {
    let core = core.unwrap_or_else(|| {
        let cores = available_parallelism().map_or(1, NonZeroUsize::get);
        WITHOUT_CORE.fetch_add(1, Ordering::Relaxed) % cores
    });
    use_arena(arena_of(core));
    let mut at_hand = AT_HAND.as_ptr();
    control(c"thread.tcache.ncached_max.write", None, Some(&mut at_hand));
}

/// The calling thread's arena.
pub(super) fn arena() -> Option<u32> {
    let mut arena = 0;
    control(c"thread.arena", Some(&mut arena), None).then_some(arena)
}

/// Gives the calling thread an arena, if there is one.
pub(super) fn use_arena(arena: Option<u32>) {
    if let Some(mut arena) = arena {
        control(c"thread.arena", None, Some(&mut arena));
    }
}

/// The arena of a core, which its first thread makes.
fn arena_of(core: usize) -> Option<u32> {
    let mut arenas = ARENAS.lock().unwrap_or_else(PoisonError::into_inner);
    match arenas.entry(core) {
        Entry::Occupied(known) => Some(*known.get()),
        Entry::Vacant(place) => {
            let mut arena = 0_u32;
            let made = control(c"arenas.create", Some(&mut arena), None);
            made.then(|| *place.insert(arena))
        }
    }
}

/// Gives back what the allocator keeps at hand for the calling thread (its thread cache): single
/// objects on many pages, which would all stay.
pub(super) fn flush_thread_cache() {
    control::<()>(c"thread.tcache.flush", None, None);
}

/// One of jemalloc's controls, which gives a value or takes one; whether it has done so.
fn control<T>(name: &CStr, old: Option<&mut T>, new: Option<&mut T>) -> bool {
    let mut old_bytes = size_of::<T>();
    let new_bytes = if new.is_some() { size_of::<T>() } else { 0 };
    let old_length = if old.is_some() { from_mut(&mut old_bytes) } else { null_mut() };
    // SAFETY: the name ends with a zero, and each value is what the manual says and lives on.
    let failed = unsafe {
        tikv_jemalloc_sys::mallctl(
            name.as_ptr(),
            old.map_or(null_mut(), |old| from_mut(old).cast()),
            old_length,
            new.map_or(null_mut(), |new| from_mut(new).cast()),
            new_bytes,
        )
    };
    failed == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_of_a_core_share_an_arena_with_nobody_else() {
        let on = |core: usize| {
            let settle = move || {
                use_own_arena(Some(core));
                arena()
            };
            std::thread::spawn(settle).join().unwrap()
        };
        let (one, other) = (on(900), on(901));
        assert!(one.is_some() && other.is_some());
        assert_ne!(one, other);
        assert_eq!(on(900), one);
        assert_ne!(arena(), one);
        assert_ne!(arena(), other);
    }

    #[test]
    fn all_other_threads_share_one_arena() {
        let mut arenas = 0_u32;
        assert!(control(c"opt.narenas", Some(&mut arenas), None));
        assert_eq!(arenas, 1, "is .cargo/config.toml in force?");
        let of_another = || std::thread::spawn(arena).join().unwrap();
        assert_eq!(of_another(), of_another());
    }

    #[test]
    fn a_worker_has_few_objects_at_hand() {
        let most = std::thread::spawn(|| {
            use_own_arena(Some(902));
            let (mut most, mut size) = (0_usize, 448_usize);
            let name = c"thread.tcache.ncached_max.read_sizeclass";
            assert!(control(name, Some(&mut most), Some(&mut size)));
            most
        });
        assert_eq!(most.join().unwrap(), 20);
    }
}
