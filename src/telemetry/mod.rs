//! Counters, histograms, logs, and the access-log record: a leaf that every layer may use.

pub mod access_log;
pub mod backends;
pub mod calendar;
pub mod counters;
pub mod exposition;
pub mod histogram;
pub mod kernel;
pub mod labels;
pub mod log;
pub mod names;
pub mod record;
