//! `portcullis check`: everything that `run` would find wrong before it binds a port.

use std::path::Path;

use crate::cli::say;
use crate::control::failure::Failure;
use crate::control::{self, seams};
use crate::telemetry::log;

/// Checks the file, what it names, and this machine; says what it found.
pub(super) fn check(path: &Path) -> Result<(), Failure> {
    let config = seams::load(path).map_err(|problems| Failure::Configuration { problems })?;
    log::init(config.log.level);
    let plan = control::plan(config)?;
    control::check_machine()?;
    for listener in &plan.config.listeners {
        let backend = plan.config.backends.get(listener.backend);
        say(&format!(
            "listener {}: {} address(es), {} certificate(s), backend {}",
            listener.name,
            listener.bind.len(),
            listener.certificates.len(),
            backend.map_or("?", |backend| backend.name.as_str()),
        ));
    }
    say(&format!(
        "workers: {}, {} connections each; {} open files allowed",
        plan.cpus.len(),
        plan.connections,
        plan.open_files
    ));
    say(&format!("{}: good", path.display()));
    Ok(())
}
