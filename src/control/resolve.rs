//! Servers' names to addresses, on a thread of its own: getaddrinfo(3) blocks for as long as it
//! likes, and neither the workers nor the control thread may wait for it.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::config::{Backend, Server, ServerAddress};
use crate::io::Address;
use crate::limits::{RESOLVE_INTERVAL, RESOLVE_START_TIMEOUT};

/// Addresses by backend and server; empty for a server whose name does not resolve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses(pub Vec<Vec<Vec<Address>>>);

/// Resolves again and again, and tells what changed.
#[derive(Debug)]
pub struct Resolver {
    /// What is known without asking anybody: IP addresses and Unix sockets.
    literal: Addresses,
    /// `None`: there is no name to resolve.
    changes: Option<UnboundedReceiver<Addresses>>,
    /// Dropped: the thread ends after what it is doing.
    _stop: Option<Sender<()>>,
}

/// Asks the system's resolver. Blocks for as long as that takes.
///
/// # Errors
/// getaddrinfo(3)'s.
pub fn system(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok((host, port).to_socket_addrs()?.collect())
}

impl Resolver {
    /// Starts to resolve. Without names in the configuration there is no thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(backends: &[Backend]) -> io::Result<Self> {
        Self::start_with(backends, RESOLVE_INTERVAL, system)
    }

    fn start_with(
        backends: &[Backend],
        interval: Duration,
        lookup: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + 'static,
    ) -> io::Result<Self> {
        let literal = literals(backends);
        let mut servers = backends.iter().flat_map(|backend| &backend.servers);
        if servers.all(|server| literal_address(&server.address).is_some()) {
            return Ok(Self { literal, changes: None, _stop: None });
        }
        let (sender, changes) = unbounded_channel();
        let (stop, stopped) = std::sync::mpsc::channel();
        let mut rounds = Rounds {
            backends: backends.to_vec(),
            known: literal.clone(),
            failing: Vec::new(),
            lookup,
        };
        std::thread::Builder::new()
            .name("resolver".into())
            .spawn(move || rounds.run(interval, &sender, &stopped))?;
        Ok(Self { literal, changes: Some(changes), _stop: Some(stop) })
    }

    /// The first result. When names take too long, what is known without them; the rest follows
    /// through [`Resolver::changed`].
    pub async fn first(&mut self) -> Addresses {
        let literal = self.literal.clone();
        if self.changes.is_none() {
            return literal;
        }
        tokio::time::timeout(RESOLVE_START_TIMEOUT, self.changed()).await.unwrap_or_else(
            |_elapsed| {
                tracing::warn!(
                    "names of servers are still being resolved after {RESOLVE_START_TIMEOUT:?}; \
                     starting without them"
                );
                literal
            },
        )
    }

    /// Waits until the addresses have changed.
    pub async fn changed(&mut self) -> Addresses {
        if let Some(changes) = &mut self.changes {
            if let Some(addresses) = changes.recv().await {
                return addresses;
            }
            // The thread is gone, which only a panic explains; the addresses stay as they are.
            self.changes = None;
        }
        std::future::pending().await
    }
}

/// The thread's state.
struct Rounds<L> {
    backends: Vec<Backend>,
    known: Addresses,
    /// Backend and server whose names did not resolve last time.
    failing: Vec<(usize, usize)>,
    lookup: L,
}

impl<L: Fn(&str, u16) -> io::Result<Vec<SocketAddr>>> Rounds<L> {
    fn run(
        &mut self,
        interval: Duration,
        changes: &UnboundedSender<Addresses>,
        stopped: &std::sync::mpsc::Receiver<()>,
    ) {
        let mut first = true;
        loop {
            let now = self.round();
            if (first || now != self.known) && changes.send(now.clone()).is_err() {
                return;
            }
            self.known = now;
            first = false;
            if stopped.recv_timeout(interval) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    /// Asks for every name once. A name that fails keeps the addresses it had.
    fn round(&mut self) -> Addresses {
        let mut now = self.known.clone();
        let mut failing = Vec::new();
        for ((b, backend), known) in self.backends.iter().enumerate().zip(&mut now.0) {
            for ((s, server), known) in backend.servers.iter().enumerate().zip(known) {
                let ServerAddress::Host { host, port } = &server.address else {
                    continue;
                };
                if literal_address(&server.address).is_some() {
                    continue;
                }
                let failed_before = self.failing.contains(&(b, s));
                match (self.lookup)(host, *port) {
                    Ok(addresses) if !addresses.is_empty() => {
                        *known = sorted(addresses);
                        if failed_before {
                            tracing::info!("the name {host} resolves again");
                        }
                    }
                    failed => {
                        failing.push((b, s));
                        if !failed_before {
                            warn(backend, server, host, known.len(), failed.err());
                        }
                    }
                }
            }
        }
        self.failing = failing;
        now
    }
}

fn warn(backend: &Backend, server: &Server, host: &str, kept: usize, error: Option<io::Error>) {
    let at = &server.address_at;
    let why = error.map_or_else(|| "no address".to_owned(), |error| error.to_string());
    tracing::warn!(
        "{}:{}: {}: the name {host} of backend \"{}\" does not resolve ({why}); {}, and it is \
         asked for again every {RESOLVE_INTERVAL:?}",
        at.file.display(),
        at.line,
        at.key,
        backend.name,
        if kept == 0 {
            "this server gets no connections until it does".to_owned()
        } else {
            format!("the {kept} known address(es) stay in use")
        }
    );
}

/// In a fixed order, because name servers shuffle their answers and a new order is no change.
fn sorted(mut addresses: Vec<SocketAddr>) -> Vec<Address> {
    addresses.sort_unstable();
    addresses.dedup();
    addresses.into_iter().map(Address::Inet).collect()
}

fn literals(backends: &[Backend]) -> Addresses {
    let of_server = |server: &Server| literal_address(&server.address).into_iter().collect();
    Addresses(
        backends.iter().map(|backend| backend.servers.iter().map(of_server).collect()).collect(),
    )
}

/// The address of a server that needs no resolving.
fn literal_address(address: &ServerAddress) -> Option<Address> {
    match address {
        ServerAddress::Host { host, port } => {
            let ip: IpAddr = host.parse().ok()?;
            Some(Address::Inet(SocketAddr::new(ip, *port)))
        }
        ServerAddress::Unix(path) => Some(Address::Unix(path.as_path().into())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::config::Position;

    fn backend(hosts: &[&str]) -> Backend {
        let server = |host: &&str| Server {
            address: host.strip_prefix("unix:").map_or_else(
                || ServerAddress::Host { host: (*host).into(), port: 80 },
                |path| ServerAddress::Unix(path.into()),
            ),
            address_at: Position { file: "f".into(), line: 1, key: "k".into() },
            max_connections: None,
        };
        Backend {
            name: "app".into(),
            servers: hosts.iter().map(server).collect(),
            connect: crate::config::defaults::CONNECT_WHEN,
            send_proxy_protocol: None,
            queue: crate::config::BackendQueue::default(),
        }
    }

    fn inet(ip: &str) -> Address {
        Address::Inet(SocketAddr::new(ip.parse().unwrap(), 80))
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(
            async { tokio::time::timeout(Duration::from_secs(10), future).await.expect("in time") },
        )
    }

    #[test]
    fn addresses_and_sockets_need_no_resolver() {
        let never = |_: &str, _: u16| -> io::Result<Vec<SocketAddr>> { panic!("asked") };
        let backends = [backend(&["127.0.0.1", "::1", "unix:/run/app"])];
        let mut resolver = Resolver::start_with(&backends, Duration::ZERO, never).unwrap();
        let wanted = vec![
            vec![inet("127.0.0.1")],
            vec![inet("::1")],
            vec![Address::Unix(std::path::Path::new("/run/app").into())],
        ];
        assert_eq!(wait(resolver.first()), Addresses(vec![wanted]));
    }

    #[test]
    fn changes_are_told_shuffles_are_not_and_failures_keep_what_was_known() {
        let round = AtomicUsize::new(0);
        let lookup = move |_: &str, port| {
            let answer: &[&str] = match round.fetch_add(1, Ordering::Relaxed) {
                0 => &["10.0.0.1", "10.0.0.2"],
                1 => &["10.0.0.2", "10.0.0.1", "10.0.0.2"],
                2 => &[],
                3 => return Err(io::Error::other("name server down")),
                _ => &["10.0.0.3"],
            };
            Ok(answer.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), port)).collect())
        };
        let backends = [backend(&["app.internal"])];
        let interval = Duration::from_millis(1);
        let mut resolver = Resolver::start_with(&backends, interval, lookup).unwrap();
        let first = wait(resolver.first());
        assert_eq!(first.0[0][0], [inet("10.0.0.1"), inet("10.0.0.2")]);
        assert_eq!(wait(resolver.changed()).0[0][0], [inet("10.0.0.3")]);
    }

    #[test]
    fn a_name_that_does_not_resolve_leaves_its_server_without_address() {
        let lookup = |_: &str, _: u16| Err(io::Error::other("no such name"));
        let backends = [backend(&["nowhere.invalid", "127.0.0.1"])];
        let mut resolver =
            Resolver::start_with(&backends, Duration::from_secs(60), lookup).unwrap();
        let first = wait(resolver.first());
        assert_eq!(first.0[0], [vec![], vec![inet("127.0.0.1")]]);
    }
}
