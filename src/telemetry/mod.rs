//! Counters, histograms, and the access-log record: a leaf that every layer may use.

pub mod counters;
pub mod histogram;
pub mod labels;
pub mod record;
