//! Every closed set of label values. A metric's label, an access-log field and a test's assertion
//! come from the same enum, so that a label's cardinality is bounded and its spelling is one.

/// A closed set of values, each with a label and a dense index.
pub trait Label: Copy + 'static {
    /// Every value, in the order of [`Label::index`].
    const ALL: &'static [Self];

    /// The value as metrics and logs write it.
    fn label(self) -> &'static str;

    /// Position in [`Label::ALL`].
    fn index(self) -> usize;
}

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $label:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// How many values there are.
            pub const COUNT: usize = [$(Self::$variant),+].len();
        }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            fn index(self) -> usize {
                self as usize
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.label())
            }
        }
    };
}

labels! {
    /// Why a connection ended: one per connection, counted at its close.
    CloseReason {
        /// Both sides ended cleanly and everything was delivered; or the server ended, the client
        /// had all of it and closed without ceremony.
        Finished = "finished",
        /// The client ended without TLS's `close_notify`: what it sent may be cut short.
        ClientTruncated = "client_truncated",
        /// The client reset the connection.
        ClientReset = "client_reset",
        /// The client broke the TLS protocol after its handshake.
        ClientViolation = "client_violation",
        /// The server reset the connection; the client got a reset too.
        ServerReset = "server_reset",
        /// Every try to connect to a server failed.
        ConnectFailed = "connect_failed",
        /// Every try to connect to a server ran into `timeouts.connect`.
        ConnectTimeout = "connect_timeout",
        /// The backend has no server with a known address.
        NoServer = "no_server",
        /// Every server had `max_connections`, and `queue.max` clients waited already.
        QueueFull = "queue_full",
        /// Every server had `max_connections`, and no connection ended for this client within
        /// `queue.timeout`.
        QueueTimeout = "queue_timeout",
        /// The handshake did not come to its end; the handshake outcome says why.
        HandshakeFailed = "handshake_failed",
        /// `timeouts.idle` passed without a byte; both sides got a reset.
        IdleTimeout = "idle_timeout",
        /// One side ended and `timeouts.half_closed` passed without a byte from the other.
        HalfClosedTimeout = "half_closed_timeout",
        /// Bytes waited for the client, which took fewer than `limits.min_rate` for the whole of
        /// `timeouts.stalled`; both sides got a reset.
        ClientTooSlow = "client_too_slow",
        /// The same of the server.
        ServerTooSlow = "server_too_slow",
        /// The client had begun a record and did not complete it within `timeouts.stalled`.
        RecordTimeout = "record_timeout",
        /// `timeouts.drain` was over before the connection was.
        DrainTimeout = "drain_timeout",
        /// A defect of ours, caught; the log has the details.
        InternalError = "internal_error",
    }
}

labels! {
    /// How a handshake ended: `ok`, or the one reason why not.
    HandshakeOutcome {
        /// Complete.
        Ok = "ok",
        /// The client's messages were refused: out of order, or with key exchange data of no use.
        BadHandshake = "bad_handshake",
        /// A TLS record that does not parse, does not authenticate or lies about its length.
        BadRecord = "bad_record",
        /// The client sent a fatal alert; most often it does not trust our certificate.
        ClientAlert = "client_alert",
        /// The client sent more than `limits::CLIENT_INTERMEDIATES_MAX` intermediate certificates.
        ClientCertificateChainTooLong = "client_certificate_chain_too_long",
        /// The client's certificate, or one above it, is past its time, or its time has not come.
        ClientCertificateExpired = "client_certificate_expired",
        /// The client's certificate is not good for another reason: a signature that does not fit,
        /// one that is not meant for clients, a constraint that it breaks.
        ClientCertificateRefused = "client_certificate_refused",
        /// The client sent no certificate where `client_auth.mode` requires one.
        ClientCertificateRequired = "client_certificate_required",
        /// `client_auth.crl` lists the client's certificate, or one above it.
        ClientCertificateRevoked = "client_certificate_revoked",
        /// `client_auth.crl` has no list of an issuer, or one past its next update: ours to mend.
        ClientCertificateStatusUnknown = "client_certificate_status_unknown",
        /// No authority of `client_auth.ca` stands above the client's certificate.
        ClientCertificateUnknownIssuer = "client_certificate_unknown_issuer",
        /// The client closed before the handshake was complete.
        ClientClosed = "client_closed",
        /// `timeouts.client_hello` passed between the client's first byte and the last of its
        /// `ClientHello`.
        ClientHelloTimeout = "client_hello_timeout",
        /// More than `limits.client_hello_bytes` without a complete `ClientHello`.
        ClientHelloTooLarge = "client_hello_too_large",
        /// The `ClientHello` came in more than `limits::CLIENT_HELLO_RECORDS_MAX` records.
        ClientHelloTooManyRecords = "client_hello_too_many_records",
        /// The client reset the connection.
        ClientReset = "client_reset",
        /// More new connections came in a second than `limits.connection_rate` lets in.
        ConnectionRate = "connection_rate",
        /// We were told to stop before the handshake was complete.
        Draining = "draining",
        /// A defect of ours.
        InternalError = "internal_error",
        /// More new connections came in a second than the listener's `connection_rate` lets in.
        ListenerConnectionRate = "listener_connection_rate",
        /// The worker had more handshakes to do than it could: this one had waited longer than
        /// `handshake.queue_deadline`, or twice `handshake.max_pending` waited. The client got a
        /// reset before any cryptography.
        Overload = "overload",
        /// None of the client's ALPN protocols is offered here.
        NoApplicationProtocol = "no_application_protocol",
        /// No certificate that the client can verify.
        NoSharedCertificate = "no_shared_certificate",
        /// No cipher suite in common.
        NoSharedCipher = "no_shared_cipher",
        /// No key exchange group in common.
        NoSharedGroup = "no_shared_group",
        /// No TLS version in common.
        NoSharedVersion = "no_shared_version",
        /// The first bytes are no TLS record and no HTTP request.
        NotTls = "not_tls",
        /// The client spoke plain HTTP to the TLS port.
        PlainHttp = "plain_http",
        /// The client's source had `limits.per_source.connections` already: this one was refused.
        SourceConnections = "source_connections",
        /// The client's source had used up `limits.per_source.handshake_cpu`: this one was refused
        /// before any cryptography.
        SourceHandshakeCpu = "source_handshake_cpu",
        /// The client's source had `limits.per_source.handshakes` under way already: this one was
        /// refused.
        SourceHandshakes = "source_handshakes",
        /// `timeouts.handshake` passed.
        Timeout = "timeout",
        /// No certificate for the server name the client asked for.
        UnrecognizedName = "unrecognized_name",
    }
}

labels! {
    /// Negotiated TLS version.
    Version {
        /// Not negotiated.
        None = "none",
        /// RFC 5246.
        Tls12 = "TLSv1.2",
        /// RFC 8446.
        Tls13 = "TLSv1.3",
    }
}

labels! {
    /// Negotiated cipher suite.
    Suite {
        /// Not negotiated.
        None = "none",
        /// TLS 1.3.
        Tls13Aes128GcmSha256 = "TLS_AES_128_GCM_SHA256",
        /// TLS 1.3.
        Tls13Aes256GcmSha384 = "TLS_AES_256_GCM_SHA384",
        /// TLS 1.3.
        Tls13Chacha20Poly1305Sha256 = "TLS_CHACHA20_POLY1305_SHA256",
        /// TLS 1.2.
        EcdheEcdsaAes128GcmSha256 = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        /// TLS 1.2.
        EcdheEcdsaAes256GcmSha384 = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        /// TLS 1.2.
        EcdheEcdsaChacha20Poly1305Sha256 = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        /// TLS 1.2.
        EcdheRsaAes128GcmSha256 = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        /// TLS 1.2.
        EcdheRsaAes256GcmSha384 = "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        /// TLS 1.2.
        EcdheRsaChacha20Poly1305Sha256 = "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    }
}

labels! {
    /// Negotiated key exchange group.
    Group {
        /// Not negotiated.
        None = "none",
        /// RFC 7748.
        X25519 = "X25519",
        /// NIST P-256.
        Secp256r1 = "P-256",
        /// NIST P-384.
        Secp384r1 = "P-384",
        /// Hybrid of X25519 and ML-KEM-768.
        X25519Mlkem768 = "X25519MLKEM768",
    }
}

labels! {
    /// What a client offered to resume its session with.
    ResumptionKind {
        /// A ticket of TLS 1.2 (RFC 5077).
        Ticket = "ticket",
        /// A session ID of TLS 1.2 (RFC 5246 section 7.3).
        SessionId = "session_id",
        /// A pre-shared key of TLS 1.3: a ticket, or the name of a session kept here (RFC 8446
        /// section 4.2.11).
        Psk = "psk",
    }
}

labels! {
    /// What came of an offer to resume. All but the first lead to a full handshake.
    ResumptionResult {
        /// The session goes on.
        Resumed = "resumed",
        /// The cache of all workers was in use by another just then.
        CacheContended = "cache_contended",
        /// `resumption.lifetime` is over since the full handshake that began the session.
        Expired = "expired",
        /// Changed on its way, cut, or never one of ours.
        Malformed = "malformed",
        /// No session of this ID is kept: it left for newer ones, or was used already.
        NotFound = "not_found",
        /// The session began at another listener.
        OtherListener = "other_listener",
        /// The session began under another server name.
        OtherName = "other_name",
        /// The session is of another cipher suite or version than this handshake negotiated, or the
        /// client insists on resuming without a key exchange.
        OtherParameters = "other_parameters",
        /// The session began under another client-authentication policy.
        OtherPolicy = "other_policy",
        /// No key that is good now has sealed the ticket: it is too old, or another secret's.
        UnknownEpoch = "unknown_epoch",
    }
}

labels! {
    /// Where a step of a handshake waits for the processor, in the order in which they are served.
    HandshakeQueue {
        /// The handshake has had a step already; most often the client's Finished has come.
        UnderWay = "under_way",
        /// The first step of a client that offers to resume a session.
        Resuming = "resuming",
        /// The first step of a client that offers none.
        New = "new",
    }
}

labels! {
    /// Operations that give way to others for a turn or more.
    GivingWay {
        /// Receives of streams, which bring as much as a buffer holds.
        Streams = "streams",
        /// What is for clients that come or shake hands, while kept connections have traffic.
        Beginning = "beginning",
        /// What ends connections.
        Ending = "ending",
    }
}

labels! {
    /// What a step of a handshake was.
    HandshakeStep {
        /// The first of a full handshake: key exchange and signature.
        Full = "full",
        /// The first of one that resumes a session.
        Resumed = "resumed",
        /// A later one: most often the client's Finished, which in TLS 1.2 brings the key exchange.
        Later = "later",
        /// The answer to a hello that has to come once more, with a group that we take: cheap.
        Retry = "retry",
        /// One that ended the handshake: something of the client's was refused.
        Failed = "failed",
    }
}

labels! {
    /// The key of the certificate that a handshake showed.
    KeyType {
        /// None was shown: the session was resumed, or this was a later step.
        None = "none",
        /// ECDSA on P-256.
        EcdsaP256 = "ecdsa_p256",
        /// ECDSA on P-384.
        EcdsaP384 = "ecdsa_p384",
        /// `Ed25519`.
        Ed25519 = "ed25519",
        /// RSA, up to 2048 bits.
        Rsa2048 = "rsa_2048",
        /// RSA, up to 3072 bits.
        Rsa3072 = "rsa_3072",
        /// RSA, more bits.
        Rsa4096 = "rsa_4096",
        /// Something else.
        Other = "other",
    }
}

labels! {
    /// Where on its journey a connection is; the gauge of connections by state.
    State {
        /// Its `ClientHello` is not complete.
        ClientHello = "client_hello",
        /// Its handshake is not complete.
        Handshake = "handshake",
        /// The client has said nothing yet, and `connect = "on_first_byte"`.
        FirstByte = "first_byte",
        /// Every server has as many connections as it may: it waits for one to end.
        Queued = "queued",
        /// Its server is not connected.
        Connect = "connect",
        /// Bytes go both ways.
        Relay = "relay",
        /// No byte has moved for `timeouts.rest`: it holds no buffer.
        Idle = "idle",
        /// It has ended; the kernel still holds something of it.
        Close = "close",
    }
}

labels! {
    /// A part of a connection's life that is timed.
    Span {
        /// From accept to the complete `ClientHello`.
        ClientHello = "client_hello",
        /// From the complete `ClientHello` to the client's Finished.
        Handshake = "handshake",
        /// From coming into line for a server to leaving it, whether served or not.
        Queue = "queue",
        /// From the routing decision to the connected server, without the time in line.
        Connect = "connect",
        /// From the connected server to the last byte.
        Relay = "relay",
        /// From accept to the freed slot.
        Total = "total",
    }
}

labels! {
    /// A limit that bit.
    Limit {
        /// Every slot of the worker's table is taken: accept pauses.
        ConnectionsPerWorker = "connections_per_worker",
        /// The kernel has no descriptors or memory for another connection: accept pauses.
        KernelFiles = "kernel_files",
        /// `handshake.max_pending` steps of handshakes wait for the processor: accept pauses.
        HandshakesPending = "handshakes_pending",
        /// `handshake.queue_deadline` was over before a handshake's first step, or more waited than
        /// may: the client got a reset.
        HandshakesDropped = "handshakes_dropped",
        /// `limits.connection_rate`: a new connection was refused.
        ConnectionRate = "connection_rate",
        /// `listener.connection_rate`: a new connection was refused.
        ListenerConnectionRate = "listener_connection_rate",
        /// `limits.per_source.connections`: a new connection was refused.
        SourceConnections = "source_connections",
        /// `limits.per_source.handshakes`: a new connection was refused.
        SourceHandshakes = "source_handshakes",
        /// `limits.per_source.handshake_cpu`: a handshake was refused before any cryptography.
        SourceHandshakeCpu = "source_handshake_cpu",
        /// `limits.per_source.sources`: a connection was let in whose source cannot be counted.
        SourceTable = "source_table",
        /// `limits.client_hello_bytes`.
        ClientHelloBytes = "client_hello_bytes",
        /// `limits::CLIENT_HELLO_RECORDS_MAX` records of one `ClientHello`.
        ClientHelloRecords = "client_hello_records",
        /// No free receive buffer: the receive waits a turn.
        ReceiveBuffers = "receive_buffers",
        /// The access log's queue was full: a record was dropped.
        AccessLogRecords = "access_log_records",
        /// `resumption.sessions_per_worker`: a session left its worker's cache for a newer one.
        SessionsPerWorker = "sessions_per_worker",
        /// `resumption.sessions`: a session left the cache of all workers for a newer one.
        Sessions = "sessions",
        /// A ticket or session was too large to be made: the client's certificates are too long.
        SessionBytes = "session_bytes",
        /// `max_connections` of every server of a backend: a client waits.
        ServerConnections = "server_connections",
        /// `queue.max`: a client got a reset instead of a place in line.
        BackendQueue = "backend_queue",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<L: Label + std::fmt::Debug>() {
        let mut seen = std::collections::HashSet::new();
        for (index, value) in L::ALL.iter().enumerate() {
            assert_eq!(value.index(), index);
            assert!(seen.insert(value.label()), "{value:?} shares its label");
        }
    }

    #[test]
    fn labels_are_dense_and_unique() {
        check::<CloseReason>();
        check::<HandshakeOutcome>();
        check::<Version>();
        check::<Suite>();
        check::<Group>();
        check::<State>();
        check::<Span>();
        check::<Limit>();
        check::<ResumptionKind>();
        check::<ResumptionResult>();
    }
}
