//! The echo server on tokio, thus on epoll: one thread, a task for each connection.
//!
//! All connections read into one buffer, and try to write at once: a task holds no buffer while it
//! waits for its client's bytes, and makes two system calls for an echo.

use std::cell::RefCell;
use std::net::TcpListener;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::ready;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use super::RECEIVE_BYTES;
use super::tls::{Echo, Spare};
use crate::support::Result;

/// What the tasks of the thread share, each between two of its waits.
struct Shared {
    received: Vec<u8>,
    spare: Spare,
}

/// Serves until the process is ended.
pub(crate) fn serve(listener: TcpListener, config: &Arc<ServerConfig>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let shared = Shared { received: vec![0; RECEIVE_BYTES], spare: Spare::default() };
    let shared = Rc::new(RefCell::new(shared));
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (client, _) = listener.accept().await?;
            let (config, shared) = (Arc::clone(config), Rc::clone(&shared));
            // A connection that fails is the client's to report.
            tokio::task::spawn_local(async move { echo(client, config, &shared).await.ok() });
        }
    })
}

async fn echo(
    mut client: TcpStream,
    config: Arc<ServerConfig>,
    shared: &RefCell<Shared>,
) -> Result<()> {
    let mut tls = Echo::new(config)?;
    loop {
        let read = std::future::poll_fn(|cx| {
            let mut shared = shared.borrow_mut();
            let mut into = ReadBuf::new(&mut shared.received);
            ready!(Pin::new(&mut client).poll_read(cx, &mut into))?;
            std::task::Poll::Ready(std::io::Result::Ok(into.filled().len()))
        });
        let read = read.await?;
        if read == 0 {
            return Ok(());
        }
        let records = {
            let Shared { received, spare } = &mut *shared.borrow_mut();
            tls.receive(received.get_mut(..read).unwrap_or_default(), spare)?
        };
        let mut unsent = records.bytes.get(..records.filled).unwrap_or_default();
        while !unsent.is_empty() {
            match client.try_write(unsent) {
                Ok(sent) => unsent = unsent.get(sent..).unwrap_or_default(),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    client.writable().await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        shared.borrow_mut().spare.give(records.bytes);
    }
}
