//! Why a session ended early: rustls's errors as small values with bounded labels.

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

use super::client_auth::ChainTooLong;
use crate::telemetry::labels::HandshakeOutcome;

/// Who broke what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// A handshake failed; the outcome is the reason.
    Handshake(HandshakeOutcome),
    /// We can no longer send on this session.
    CannotSend,
}

impl Failure {
    /// The reason as a handshake's outcome.
    pub fn outcome(self) -> HandshakeOutcome {
        match self {
            Self::Handshake(outcome) => outcome,
            Self::CannotSend => HandshakeOutcome::InternalError,
        }
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self::Handshake(outcome(error))
    }
}

/// The label of an error. What we do not tell apart is `bad_handshake`.
fn outcome(error: &Error) -> HandshakeOutcome {
    match error {
        Error::AlertReceived(AlertDescription::CloseNotify) => HandshakeOutcome::ClientClosed,
        Error::AlertReceived(_) => HandshakeOutcome::ClientAlert,
        Error::NoApplicationProtocol => HandshakeOutcome::NoApplicationProtocol,
        Error::PeerIncompatible(incompatible) => incompatible_outcome(incompatible),
        Error::NoCertificatesPresented => HandshakeOutcome::ClientCertificateRequired,
        Error::InvalidCertificate(error) => certificate_outcome(error),
        // About a list of ours: the client can do nothing about it.
        Error::InvalidCertRevocationList(_) => HandshakeOutcome::ClientCertificateStatusUnknown,
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge
            | InvalidMessage::InvalidEmptyPayload
            | InvalidMessage::MessageTooShort,
        )
        | Error::DecryptError
        | Error::PeerSentOversizedRecord => HandshakeOutcome::BadRecord,
        // rustls says so when the resolver has no certificate that this client can verify.
        Error::General(text) if text.contains("certificate chain") => {
            HandshakeOutcome::NoSharedCertificate
        }
        Error::General(_) | Error::EncryptError | Error::FailedToGetRandomBytes => {
            HandshakeOutcome::InternalError
        }
        _ => HandshakeOutcome::BadHandshake,
    }
}

/// One label for each cure: another certificate, a new one, a newer list.
fn certificate_outcome(error: &CertificateError) -> HandshakeOutcome {
    match error {
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => HandshakeOutcome::ClientCertificateExpired,
        CertificateError::Revoked => HandshakeOutcome::ClientCertificateRevoked,
        CertificateError::UnknownRevocationStatus
        | CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. } => {
            HandshakeOutcome::ClientCertificateStatusUnknown
        }
        CertificateError::UnknownIssuer => HandshakeOutcome::ClientCertificateUnknownIssuer,
        CertificateError::Other(error) if error.0.is::<ChainTooLong>() => {
            HandshakeOutcome::ClientCertificateChainTooLong
        }
        _ => HandshakeOutcome::ClientCertificateRefused,
    }
}

fn incompatible_outcome(error: &PeerIncompatible) -> HandshakeOutcome {
    match error {
        PeerIncompatible::NoCipherSuitesInCommon => HandshakeOutcome::NoSharedCipher,
        PeerIncompatible::NoKxGroupsInCommon
        | PeerIncompatible::NamedGroupsExtensionRequired
        | PeerIncompatible::KeyShareExtensionRequired
        | PeerIncompatible::EcPointsExtensionRequired
        | PeerIncompatible::UncompressedEcPointsRequired => HandshakeOutcome::NoSharedGroup,
        PeerIncompatible::NoSignatureSchemesInCommon
        | PeerIncompatible::SignatureAlgorithmsExtensionRequired
        | PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon => {
            HandshakeOutcome::NoSharedCertificate
        }
        PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::Tls13RequiredForQuic
        | PeerIncompatible::SupportedVersionsExtensionRequired
        | PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => {
            HandshakeOutcome::NoSharedVersion
        }
        _ => HandshakeOutcome::BadHandshake,
    }
}
