//! The traffic secrets of TLS 1.3, from which the keys behind each `KeyUpdate` follow (RFC 8446
//! section 7.2).
//!
//! rustls hands out keys; what it would keep to derive the next ones is 0.8 KiB for each
//! connection, and with a client certificate the client's chain besides. The secrets themselves are
//! 96 bytes. It tells them to a [`KeyLog`] when it makes them: ours writes nothing anywhere, and
//! hands them to the session whose step runs just then on this thread.

use std::cell::RefCell;

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{Algorithm, KeyType, Prk};
use rustls::KeyLog;
use zeroize::Zeroizing;

/// Bytes of a traffic secret, at most: of SHA-384.
const SECRET_BYTES_MAX: usize = 48;
const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

/// One direction's traffic secret, as long as its suite's hash; wiped when dropped.
#[derive(Clone)]
pub(in crate::tls) struct Secret(Zeroizing<[u8; SECRET_BYTES_MAX]>);

/// Both directions' traffic secrets.
pub(in crate::tls) struct Secrets {
    pub(super) client: Secret,
    pub(super) server: Secret,
}

impl Secret {
    /// `None`: longer than any hash here.
    fn new(secret: &[u8]) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES_MAX]);
        bytes.get_mut(..secret.len())?.copy_from_slice(secret);
        Some(Self(bytes))
    }

    /// The secret that follows this one.
    pub(super) fn next(&self, hash: Algorithm) -> Result<Self, Unspecified> {
        let mut next = Zeroizing::new([0; SECRET_BYTES_MAX]);
        let len = hash.hmac_algorithm().digest_algorithm().output_len;
        self.expand(hash, b"traffic upd", next.get_mut(..len).ok_or(Unspecified)?)?;
        Ok(Self(next))
    }

    /// `HKDF-Expand-Label` with an empty context (RFC 8446 section 7.1).
    pub(super) fn expand(
        &self,
        hash: Algorithm,
        label: &[u8],
        out: &mut [u8],
    ) -> Result<(), Unspecified> {
        const PREFIX: &[u8] = b"tls13 ";
        let secret = self.0.get(..hash.hmac_algorithm().digest_algorithm().output_len);
        let prk = Prk::new_less_safe(hash, secret.ok_or(Unspecified)?);
        let length = u16::try_from(out.len()).map_err(|_| Unspecified)?.to_be_bytes();
        let label_length = u8::try_from(PREFIX.len() + label.len()).map_err(|_| Unspecified)?;
        let info = [&length[..], &[label_length], PREFIX, label, &[0]];
        prk.expand(&info, Length(out.len()))?.fill(out)
    }
}

/// How many bytes are wanted.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

#[derive(Default)]
struct Told {
    client: Option<Secret>,
    server: Option<Secret>,
}

thread_local! {
    static TOLD: RefCell<Told> = RefCell::default();
}

/// Takes a step of rustls, and what secrets it tells meanwhile.
pub(in crate::tls) fn listen<R>(step: impl FnOnce() -> R) -> (R, Option<Secrets>) {
    TOLD.set(Told::default());
    let result = step();
    let Told { client, server } = TOLD.take();
    (result, client.zip(server).map(|(client, server)| Secrets { client, server }))
}

/// Where rustls tells them.
#[derive(Debug)]
pub(in crate::tls) struct Listener;

impl KeyLog for Listener {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        TOLD.with_borrow_mut(|told| match label {
            CLIENT => told.client = Secret::new(secret),
            SERVER => told.server = Secret::new(secret),
            _ => {}
        });
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, CLIENT | SERVER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::hkdf::HKDF_SHA256;

    /// RFC 8448 section 3: the server's first application traffic secret, and the key and IV that
    /// it lists for it.
    #[test]
    fn known_keys_follow_from_a_known_secret() {
        let secret = Secret::new(
            b"\xa1\x1a\xf9\xf0\x55\x31\xf8\x56\xad\x47\x11\x6b\x45\xa9\x50\x32\
              \x82\x04\xb4\xf4\x4b\xfb\x6b\x3a\x4b\x4f\x1f\x3f\xcb\x63\x16\x43",
        )
        .unwrap();
        let (mut key, mut iv) = ([0; 16], [0; 12]);
        secret.expand(HKDF_SHA256, b"key", &mut key).unwrap();
        secret.expand(HKDF_SHA256, b"iv", &mut iv).unwrap();
        assert_eq!(key, *b"\x9f\x02\x28\x3b\x6c\x9c\x07\xef\xc2\x6b\xb9\xf2\xac\x92\xe3\x56");
        assert_eq!(iv, *b"\xcf\x78\x2b\x88\xdd\x83\x54\x9a\xad\xf1\xe9\x84");
    }
}
