//! Commands and their exit codes.

pub mod check;
pub mod exit;
