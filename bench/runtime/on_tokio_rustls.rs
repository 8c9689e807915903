//! The echo server on tokio as most would write it: `tokio-rustls`, and a buffer in each task.

use std::net::TcpListener;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::support::Result;

/// Plaintext of one record.
const BUFFER_BYTES: usize = 16 * 1024;

/// Serves until the process is ended.
pub(crate) fn serve(listener: TcpListener, config: &Arc<ServerConfig>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let acceptor = TlsAcceptor::from(Arc::clone(config));
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (client, _) = listener.accept().await?;
            let acceptor = acceptor.clone();
            // A connection that fails is the client's to report.
            tokio::spawn(async move { echo(client, acceptor).await.ok() });
        }
    })
}

async fn echo(client: TcpStream, acceptor: TlsAcceptor) -> std::io::Result<()> {
    let mut tls = acceptor.accept(client).await?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = tls.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        tls.write_all(buffer.get(..read).unwrap_or_default()).await?;
        tls.flush().await?;
    }
}
