//! The echo server on tokio-uring: one thread, a task for each connection.
//!
//! A read owns its buffer until bytes come, so that each connection has one; there is no way to
//! wait without.

use std::cell::RefCell;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;

use super::RECEIVE_BYTES;
use super::tls::{Echo, Spare};
use crate::support::Result;

/// Entries of the submission queue, as many as our own ring has.
const SUBMISSIONS: u32 = 4096;

/// Serves until the process is ended.
pub(crate) fn serve(listener: TcpListener, config: &Arc<ServerConfig>) -> Result<()> {
    let mut ring = tokio_uring::uring_builder();
    // What else our own ring sets (`DEFER_TASKRUN`) makes this one hang.
    ring.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag();
    let mut runtime = tokio_uring::builder();
    runtime.entries(SUBMISSIONS).uring_builder(&ring);
    let spare = Rc::new(RefCell::new(Spare::default()));
    runtime.start(async {
        let listener = tokio_uring::net::TcpListener::from_std(listener);
        loop {
            let (client, _) = listener.accept().await?;
            let (config, spare) = (Arc::clone(config), Rc::clone(&spare));
            // A connection that fails is the client's to report.
            tokio_uring::spawn(async move { echo(client, config, &spare).await.ok() });
        }
    })
}

async fn echo(client: TcpStream, config: Arc<ServerConfig>, spare: &RefCell<Spare>) -> Result<()> {
    let mut tls = Echo::new(config)?;
    let mut buffer = Vec::with_capacity(RECEIVE_BYTES);
    loop {
        let (read, filled) = client.read(buffer).await;
        buffer = filled;
        let read = read?;
        if read == 0 {
            return Ok(());
        }
        let received = buffer.get_mut(..read).unwrap_or_default();
        let records = tls.receive(received, &mut spare.borrow_mut())?;
        let mut bytes = records.bytes;
        if records.filled > 0 {
            let (sent, slice) = client.write_all(bytes.slice(..records.filled)).await;
            bytes = slice.into_inner();
            sent?;
        }
        spare.borrow_mut().give(bytes);
    }
}
