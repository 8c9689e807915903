//! PEM files: read whole within a bound, and what they hold of the wanted kind.
//!
//! Errors say what a file holds instead by its labels only, never by its contents.

use std::io::ErrorKind;
use std::path::Path;

use rustls_pki_types::pem::PemObject;

use super::Fault;

/// Bytes of a PEM file, at most. The longest real chains have about 20 KB; a revocation list of
/// this size names some 20,000 certificates, and handshakes hash the whole of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a PEM file is to hold, in the words of its errors.
pub(super) struct Wanted {
    pub(super) what: &'static str,
    pub(super) file: &'static str,
    /// The command that knows its DER form.
    pub(super) convert: &'static str,
}

/// Every section of the wanted kind in a PEM file; at least one.
pub(super) fn sections_of<T: PemObject>(
    path: &Path,
    wanted: &Wanted,
) -> Result<Vec<T>, (Fault, String)> {
    let pem = read(path)?;
    let found: Result<Vec<T>, _> = T::pem_slice_iter(&pem).collect();
    let found = found.map_err(|_| {
        let message = "is damaged: a PEM section's base64 or its END line is wrong; copy it again";
        (Fault::Malformed, message.to_owned())
    })?;
    if !found.is_empty() {
        return Ok(found);
    }
    let Wanted { what, file, convert } = wanted;
    let message = if pem.starts_with(&[0x30]) {
        let path = path.display();
        format!("is DER, not PEM; convert it: {convert} -inform der -in {path} -out {path}.pem")
    } else {
        format!("holds no {what}{}; name {file} here", sections(&pem))
    };
    Err((Fault::NotInFile, message))
}

/// Kinds of PEM sections in a file, as a remark; labels only, never contents.
pub(super) fn sections(pem: &[u8]) -> String {
    let text = String::from_utf8_lossy(pem);
    let label = |line: &str| {
        let label = line.trim_end().strip_prefix("-----BEGIN ")?.strip_suffix("-----")?;
        let legal = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == ' ';
        (label.len() <= 32 && label.chars().all(legal)).then(|| label.to_owned())
    };
    let mut labels: Vec<String> = text.lines().filter_map(label).collect();
    labels.dedup();
    labels.truncate(4);
    if labels.is_empty() {
        ", nor anything else in PEM".to_owned()
    } else {
        format!(", only {}", labels.join(", "))
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, (Fault, String)> {
    let length = std::fs::metadata(path).map(|metadata| (metadata.is_file(), metadata.len()));
    match length {
        Ok((false, _)) => {
            let message = "is not a regular file; name a PEM file".to_owned();
            return Err((Fault::Unreadable, message));
        }
        Ok((true, length)) if length > FILE_BYTES_MAX => {
            let message =
                format!("has {length} bytes, more than a PEM file can need; at most 1 MiB");
            return Err((Fault::Unreadable, message));
        }
        Ok(_) | Err(_) => {}
    }
    std::fs::read(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            let message = "there is no such file; correct the path, or put the file there";
            (Fault::Missing, message.to_owned())
        }
        ErrorKind::PermissionDenied => {
            let message = "this user may not read it; start as root, or give this user's group \
                           read access to the file and search access to its directories";
            (Fault::Permission, message.to_owned())
        }
        _ => (Fault::Unreadable, format!("cannot be read: {error}")),
    })
}
