//! One direction's keys: seals and opens one record at a time.
//!
//! TLS 1.3: RFC 8446 section 5.2. TLS 1.2: RFC 5288 (AES-GCM, whose records carry half of their
//! nonce) and RFC 7905 (ChaCha20-Poly1305).

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{self, HKDF_SHA256, HKDF_SHA384};
use rustls::ConnectionTrafficSecrets;
use rustls::crypto::cipher::{self, AeadKey, Iv};
use zeroize::Zeroizing;

use super::frame::{HEADER_BYTES, Header};
use super::schedule::Secret;
use crate::limits::{AES_GCM_RECORDS_MAX, CHACHA20_RECORDS_MAX};

const TAG_BYTES: usize = 16;
const EXPLICIT_NONCE_BYTES: usize = 8;
const NONCE_BYTES: usize = 12;

/// What protects the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cipher {
    Aes128Gcm,
    Aes256Gcm,
    ChaCha20Poly1305,
}

impl Cipher {
    fn algorithm(self) -> &'static Algorithm {
        match self {
            Self::Aes128Gcm => &AES_128_GCM,
            Self::Aes256Gcm => &AES_256_GCM,
            Self::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        }
    }

    /// The hash of its TLS 1.3 suite (RFC 8446 appendix B.4).
    fn hash(self) -> hkdf::Algorithm {
        match self {
            Self::Aes128Gcm | Self::ChaCha20Poly1305 => HKDF_SHA256,
            Self::Aes256Gcm => HKDF_SHA384,
        }
    }
}

/// One direction's key, IV and next sequence number, and the cipher's state while it is in use.
pub(super) struct Keys {
    key: AeadKey,
    iv: Iv,
    cipher: Cipher,
    tls13: bool,
    /// The sequence number of the next record.
    next: u64,
    /// Made by the first record after a rest: 140 ns and 584 bytes.
    context: Option<Box<LessSafeKey>>,
}

impl Keys {
    /// Keys as rustls hands them out; `None` for a cipher that came after this was written.
    pub(super) fn new(
        (next, secrets): (u64, ConnectionTrafficSecrets),
        tls13: bool,
    ) -> Option<Self> {
        let (cipher, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Cipher::Aes128Gcm, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Cipher::Aes256Gcm, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                (Cipher::ChaCha20Poly1305, key, iv)
            }
            _ => return None,
        };
        Some(Self { key, iv, cipher, tls13, next, context: None })
    }

    /// Goes on with the keys that follow, after a `KeyUpdate` (RFC 8446 section 7.2).
    ///
    /// # Errors
    /// None that the library has ever had.
    pub(super) fn update(&mut self, secret: &mut Secret) -> Result<(), Unspecified> {
        let hash = self.cipher.hash();
        *secret = secret.next(hash)?;
        let (mut key, mut iv) = (Zeroizing::new([0; 32]), [0; NONCE_BYTES]);
        let key_len = self.cipher.algorithm().key_len();
        secret.expand(hash, b"key", key.get_mut(..key_len).ok_or(Unspecified)?)?;
        secret.expand(hash, b"iv", &mut iv)?;
        (self.key, self.iv) = (AeadKey::from(*key), Iv::from(iv));
        (self.next, self.context) = (0, None);
        Ok(())
    }

    /// Gives the cipher's state back.
    pub(super) fn rest(&mut self) {
        self.context = None;
    }

    /// Records that these keys may still protect (RFC 8446 section 5.5).
    pub(super) fn records_left(&self) -> u64 {
        let most = match self.cipher {
            Cipher::Aes128Gcm | Cipher::Aes256Gcm => AES_GCM_RECORDS_MAX,
            Cipher::ChaCha20Poly1305 => CHACHA20_RECORDS_MAX,
        };
        most.saturating_sub(self.next)
    }

    fn explicit_nonce(&self) -> bool {
        !self.tls13 && self.cipher != Cipher::ChaCha20Poly1305
    }

    /// Opens the record that `header` and `body` are into the front of `out`, which has at least
    /// `body`'s size. Returns how many bytes it protected; in TLS 1.3 type and padding are among
    /// them.
    ///
    /// # Errors
    /// When the record is not the next one that the peer has sealed.
    pub(super) fn open(
        &mut self,
        header: Header,
        body: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Unspecified> {
        let sequence = self.next;
        let mut nonce = cipher::Nonce::new(&self.iv, sequence).0;
        let mut sealed = body;
        if self.explicit_nonce() {
            let (explicit, rest) =
                body.split_first_chunk::<EXPLICIT_NONCE_BYTES>().ok_or(Unspecified)?;
            sealed = rest;
            let (salt, _) = self.iv.as_ref().split_at(NONCE_BYTES - EXPLICIT_NONCE_BYTES);
            for (to, from) in nonce.iter_mut().zip(salt.iter().chain(explicit)) {
                *to = *from;
            }
        }
        let (ciphertext, tag) = sealed.split_last_chunk::<TAG_BYTES>().ok_or(Unspecified)?;
        let out = out.get_mut(..ciphertext.len()).ok_or(Unspecified)?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tls13 = self.tls13;
        let context = self.context()?;
        if tls13 {
            context.open_separate_gather(nonce, Aad::from(header.bytes()), ciphertext, tag, out)?;
        } else {
            let aad = Aad::from(header.tls12_aad(sequence, ciphertext.len()));
            context.open_separate_gather(nonce, aad, ciphertext, tag, out)?;
        }
        self.next = sequence.checked_add(1).ok_or(Unspecified)?;
        Ok(ciphertext.len())
    }

    /// Seals `payload` of type `kind` into the front of `out`, which has room for it and
    /// [`crate::limits::RECORD_OVERHEAD_BYTES_MAX`]. Returns the record's length.
    ///
    /// # Errors
    /// When `out` is too small, or nothing is left of [`Keys::records_left`].
    pub(super) fn seal(
        &mut self,
        kind: u8,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Unspecified> {
        let sequence = self.next;
        let next = sequence.checked_add(1).ok_or(Unspecified)?;
        let nonce = cipher::Nonce::new(&self.iv, sequence).0;
        let explicit = if self.explicit_nonce() { EXPLICIT_NONCE_BYTES } else { 0 };
        let hidden_kind = usize::from(self.tls13);
        let body = explicit + payload.len() + hidden_kind + TAG_BYTES;
        let header = if self.tls13 { Header::tls13(body) } else { Header::tls12(kind, body) };
        let header = header.ok_or(Unspecified)?;

        let out = out.get_mut(..HEADER_BYTES + body).ok_or(Unspecified)?;
        let (front, rest) = out.split_at_mut(HEADER_BYTES);
        front.copy_from_slice(&header.bytes());
        let (front, rest) = rest.split_at_mut(explicit);
        front.copy_from_slice(nonce.get(NONCE_BYTES - explicit..).ok_or(Unspecified)?);
        let (ciphertext, tail) = rest.split_at_mut(payload.len());

        let nonce = Nonce::assume_unique_for_key(nonce);
        let tls13 = self.tls13;
        let context = self.context()?;
        if tls13 {
            let aad = Aad::from(header.bytes());
            context.seal_out_of_place_scatter(nonce, aad, payload, ciphertext, &[kind], tail)?;
        } else {
            let aad = Aad::from(header.tls12_aad(sequence, payload.len()));
            context.seal_out_of_place_scatter(nonce, aad, payload, ciphertext, &[], tail)?;
        }
        self.next = next;
        Ok(HEADER_BYTES + body)
    }

    fn context(&mut self) -> Result<&LessSafeKey, Unspecified> {
        if self.context.is_none() {
            let algorithm = self.cipher.algorithm();
            let key = self.key.as_ref().get(..algorithm.key_len()).ok_or(Unspecified)?;
            self.context = Some(Box::new(LessSafeKey::new(UnboundKey::new(algorithm, key)?)));
        }
        self.context.as_deref().ok_or(Unspecified)
    }

    /// As if `next` records had gone before.
    #[cfg(test)]
    pub(super) fn skip_to(&mut self, next: u64) {
        self.next = next;
    }

    #[cfg(test)]
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Whether there is no cipher's state.
    pub(super) fn is_resting(&self) -> bool {
        self.context.is_none()
    }
}
