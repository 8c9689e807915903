//! The kernel's error numbers, as the journey sees them.

/// A Linux error number, positive, as errno(3) lists them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// An operation was cancelled.
    pub const CANCELED: Self = Self(125);
    /// The peer reset the connection.
    pub const CONNECTION_RESET: Self = Self(104);
    /// A client gave up before it was accepted.
    pub const CONNECTION_ABORTED: Self = Self(103);
    /// Nobody listens there.
    pub const CONNECTION_REFUSED: Self = Self(111);
    /// No buffers left: of the provided ring for a receive, of the kernel otherwise.
    pub const NO_BUFFERS: Self = Self(105);
    /// Nothing has come, and nothing is wrong: the operation is to be asked for again.
    pub const TRY_AGAIN: Self = Self(11);
    /// This process (or this ring's table) has no descriptor left.
    pub const PROCESS_FILES: Self = Self(24);
    /// The whole system has no descriptor left.
    pub const SYSTEM_FILES: Self = Self(23);
    /// No memory.
    pub const NO_MEMORY: Self = Self(12);
    /// The other side no longer reads.
    pub const BROKEN_PIPE: Self = Self(32);
    /// The target of a cancel was not found.
    pub const NOT_FOUND: Self = Self(2);
    /// Not a connected socket.
    pub const NOT_CONNECTED: Self = Self(107);

    /// Out of descriptors or kernel memory: a reason to back off, not to fail.
    pub fn is_exhaustion(self) -> bool {
        matches!(
            self,
            Self::PROCESS_FILES | Self::SYSTEM_FILES | Self::NO_BUFFERS | Self::NO_MEMORY
        )
    }
}

impl std::fmt::Debug for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}
