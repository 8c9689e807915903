//! The mailbox: commands from the control thread to one worker, and the eventfd that wakes it.
//! Other workers write to the eventfd, too, when they have left something in memory that both
//! share.

use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::limits::MAILBOX_COMMANDS_MAX;
use crate::worker::command::Command;

/// The control thread's end.
#[derive(Debug)]
pub struct Sender {
    commands: rtrb::Producer<Command>,
    wake: Arc<EventFd>,
}

/// The worker's end.
#[derive(Debug)]
pub struct Receiver {
    /// Commands, in order.
    pub commands: rtrb::Consumer<Command>,
    wake: Arc<EventFd>,
}

/// A new mailbox, before its worker's thread is started.
///
/// # Errors
/// eventfd(2)'s.
pub fn mailbox() -> std::io::Result<(Sender, Receiver)> {
    let (producer, consumer) = rtrb::RingBuffer::new(MAILBOX_COMMANDS_MAX);
    // Non-blocking, so that a ring writes to it at once; one that reads waits all the same.
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let wake = Arc::new(EventFd::from_flags(flags)?);
    Ok((
        Sender { commands: producer, wake: Arc::clone(&wake) },
        Receiver { commands: consumer, wake },
    ))
}

impl Sender {
    /// What wakes this mailbox's worker.
    pub fn wake(&self) -> Arc<EventFd> {
        Arc::clone(&self.wake)
    }

    /// Leaves a command and wakes the worker. `Err` gives it back: the mailbox is full, because
    /// the worker has not looked into it for [`MAILBOX_COMMANDS_MAX`] commands.
    pub fn send(&mut self, command: Command) -> Result<(), Command> {
        self.commands.push(command).map_err(|rtrb::PushError::Full(command)| command)?;
        // A full eventfd counter (EAGAIN) means that the wake-up is pending already.
        let _pending = self.wake.write(1);
        Ok(())
    }
}

impl Receiver {
    /// Splits into commands and descriptor.
    pub fn into_parts(self) -> (rtrb::Consumer<Command>, Arc<EventFd>) {
        (self.commands, self.wake)
    }
}
