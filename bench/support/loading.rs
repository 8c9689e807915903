//! Clients that are those of `portcullis load`, in this process.

use std::sync::mpsc;
use std::time::Duration;

use portcullis::config::{RecordLayer, Tls, TlsVersion};
use portcullis::load::summary::Summary;
use portcullis::load::{self, Mode, Plan, Watch};
use portcullis::tls::client::{Offer, Resume, Wishes};

use super::Result;
use super::certificate::NAME;
use super::server::Server;

/// What an operation may take: longer than anything but a server that hangs.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A load of full TLS 1.3 handshakes with what all servers do best, nobody's yet and of no length.
pub(crate) fn plan(server: &Server) -> Result<Plan> {
    let wishes = Wishes {
        tls: Tls {
            versions: vec![TlsVersion::Tls13],
            cipher_suites: Some(vec!["TLS_AES_128_GCM_SHA256".to_owned()]),
            groups: vec!["X25519".to_owned()],
            record_layer: RecordLayer::Lean,
        },
        alpn: Vec::new(),
        server_name: NAME.to_owned(),
        authorities: None,
        resume: Resume::No,
    };
    Ok(Plan {
        mode: Mode::Handshake,
        target: server.address,
        sources: Some("127.0.0.0/28".parse()?),
        offer: Offer::new(&wishes)?,
        question: None,
        connections: 0,
        threads: None,
        rate: None,
        connect_rate: None,
        warm_up: Duration::ZERO,
        duration: Duration::ZERO,
        timeout: TIMEOUT,
        server_pid: Some(server.id()),
        flood: None,
    })
}

/// Runs a load that nobody looks at.
pub(crate) fn run(plan: &Plan) -> Result<Summary> {
    let (_nobody, interrupts) = mpsc::channel();
    Ok(load::run(plan, &mut Watch { interrupts: &interrupts, show: &mut |_| {} })?)
}
