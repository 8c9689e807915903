//! What the allocator keeps of a thread's freed memory.

use std::ptr::null_mut;

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
