//! `portcullis run`.

use std::path::Path;

use crate::control::failure::Failure;
use crate::control::{self, Ended, seams};
use crate::telemetry::log;

/// Serves as the file says.
pub(super) fn run(path: &Path) -> Result<Ended, Failure> {
    let config = seams::load(path).map_err(|problems| Failure::Configuration { problems })?;
    log::init(config.log.level);
    control::run(config, |_, _| {})
}
