//! `portcullis run`.

use std::path::Path;

use crate::config::Config;
use crate::control::failure::Failure;
use crate::control::{self, Ended};
use crate::telemetry::log;

/// Serves as the file says.
pub(super) fn run(path: &Path) -> Result<Ended, Failure> {
    let config = Config::load(path)?;
    log::init(config.log.level);
    for warning in super::tune::warnings_at_start(&config) {
        tracing::warn!("{warning}");
    }
    control::run(config, |_, _| {})
}
