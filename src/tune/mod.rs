//! Setting up the kernel: find out what is here, say what it should be and why, set it, watch over
//! it, take it back.
//!
//! # Reading order
//! 1. [`root`] and [`value`]: where files are and what they hold.
//! 2. [`detect`]: what is here, as [`detect::Facts`].
//! 3. [`goal`]: what for, and the formulas.
//! 4. [`knobs`]: the one table of settings.
//! 5. [`plan`], [`sizing`], [`folklore`], [`advice`]: what should be, what stops this box first,
//!    what should go, and what no sysctl can set.
//! 6. [`apply`], [`state`], [`verify`], [`process`]: doing it, undoing it, and drift.
//! 7. [`files`], [`profiles`], [`render`]: the same as files and as tables.
//!
//! Up to 5 nothing is written, and [`plan`] to [`advice`] are functions of facts alone.

pub mod root;
pub mod value;

pub mod detect;
pub mod goal;
pub mod knobs;

pub mod advice;
pub mod folklore;
pub mod plan;
pub mod sizing;

pub mod apply;
pub mod process;
pub mod state;
pub mod verify;

pub mod files;
pub mod profiles;
pub mod render;
