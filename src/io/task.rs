//! Work that another thread can do for a worker.

use std::any::Any;
use std::time::Duration;

use super::buffer::Pool;

/// Something to do that needs nothing but itself and a processor.
pub trait Work: Any + Send {
    /// Does it, with send buffers of the thread that it runs on. It does not panic.
    fn run(&mut self, pool: &mut Pool);
}

/// Work on its way to another thread, and back.
pub struct Task {
    work: Box<dyn Work>,
    /// What it has taken of a processor; whoever has done it says so.
    pub took: Duration,
}

impl Task {
    /// Work to be done.
    pub fn new(work: impl Work) -> Self {
        Self { work: Box::new(work), took: Duration::ZERO }
    }

    /// Does it, with buffers of `pool`.
    pub fn run(&mut self, pool: &mut Pool) {
        self.work.run(pool);
    }

    /// The work, if it is of that type.
    pub fn into_work<W: Work>(self) -> Option<Box<W>> {
        let work: Box<dyn Any> = self.work;
        work.downcast().ok()
    }
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task").field("took", &self.took).finish_non_exhaustive()
    }
}
