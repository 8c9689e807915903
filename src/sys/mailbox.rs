//! The mailbox: commands from the control thread to one worker, and the eventfd that wakes it.

use std::os::fd::{AsRawFd, RawFd};
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
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
    Ok((
        Sender { commands: producer, wake: Arc::clone(&wake) },
        Receiver { commands: consumer, wake },
    ))
}

impl Sender {
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
    /// The descriptor that becomes readable when a command was left.
    pub fn wake_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// Splits into commands and descriptor.
    pub fn into_parts(self) -> (rtrb::Consumer<Command>, Arc<EventFd>) {
        (self.commands, self.wake)
    }
}
