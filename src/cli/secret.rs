//! `portcullis secret`: makes the file that lets a fleet share its session tickets.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::say;
use crate::config::show_duration;
use crate::control::failure::Failure;
use crate::control::{rotation, secret, unix_time};

/// Makes a new secret file.
pub(super) fn run(path: &Path, epoch: Duration) -> Result<(), Failure> {
    let now = unix_time(SystemTime::now()).as_secs() / epoch.as_secs().max(1);
    // One epoch back, for machines whose clocks are behind.
    let ratchet =
        rotation::random(now.saturating_sub(1)).map_err(|error| Failure::rotation(&error))?;
    secret::create(path, epoch, &ratchet).map_err(|source| Failure::NewFile {
        path: path.to_owned(),
        purpose: "a new secret",
        source,
    })?;
    let path = path.display();
    say(&format!(
        "{path} is made, for epochs of {}. Copy it to every machine of the fleet, readable by \
         Portcullis only, and name it there:\n\n    [resumption]\n    secret_file = \"{path}\"",
        show_duration(epoch)
    ));
    Ok(())
}
