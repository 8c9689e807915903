//! Exit codes, as sysexits(3) numbers them.

/// All is well.
pub const OK: u8 = 0;

/// `tune verify` found a difference, or `tune revert` left something alone that was changed since.
pub const DRIFT: u8 = 1;

/// The command line is wrong.
pub const USAGE: u8 = 64;

/// The kernel lacks something we need.
pub const UNAVAILABLE: u8 = 69;

/// The operating system refused something.
pub const OS: u8 = 71;

/// We lack a permission.
pub const PERMISSION: u8 = 77;

/// The configuration, or a file that it names, is wrong.
pub const CONFIG: u8 = 78;
