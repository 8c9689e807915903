//! What the allocator keeps of a thread's freed memory, and where a thread's memory comes from.

use std::ptr::{from_mut, null_mut};

/// Gives back what the allocator keeps at hand for the calling thread (jemalloc's thread cache,
/// `thread.tcache.flush` of jemalloc(3)): single objects on many pages, which would all stay. Where
/// another allocator serves the process, jemalloc's cache is empty, and this does nothing.
pub(super) fn flush_thread_cache() {
    // SAFETY: the name ends with a zero, and this control takes and gives no value.
    let _no_cache = unsafe {
        tikv_jemalloc_sys::mallctl(
            c"thread.tcache.flush".as_ptr(),
            null_mut(),
            null_mut(),
            null_mut(),
            0,
        )
    };
}

/// A part of the allocator's memory, which some threads share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arena(libc::c_uint);

impl Arena {
    /// The calling thread's (`thread.arena` of jemalloc(3)); `None`: nobody can tell.
    pub(super) fn own() -> Option<Self> {
        let (mut arena, mut length) = (0, size_of::<libc::c_uint>());
        // SAFETY: this control gives a value of that type, with its length, and takes none.
        let failed = unsafe {
            tikv_jemalloc_sys::mallctl(
                c"thread.arena".as_ptr(),
                from_mut(&mut arena).cast(),
                &raw mut length,
                null_mut(),
                0,
            )
        };
        (failed == 0).then_some(Self(arena))
    }

    /// From now on the calling thread's memory comes from there: what two threads hand to one
    /// another need not be kept twice.
    pub(super) fn share(mut self) {
        // SAFETY: this control takes a value of that type and gives none.
        let _shared = unsafe {
            tikv_jemalloc_sys::mallctl(
                c"thread.arena".as_ptr(),
                null_mut(),
                null_mut(),
                from_mut(&mut self.0).cast(),
                size_of::<libc::c_uint>(),
            )
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_shares_an_arena_says_so() {
        let own = Arena::own().unwrap();
        let of_other = std::thread::spawn(move || {
            own.share();
            Arena::own().unwrap().0
        });
        assert_eq!(of_other.join().unwrap(), own.0);
    }
}
