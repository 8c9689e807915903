//! What the kernel counts: of each of our listening sockets, and of TCP in the whole network
//! namespace. The control thread reads it and writes it down here; a scrape shows it.

use std::net::SocketAddr;
use std::sync::OnceLock;

use super::counters::Counter;
use super::names::{self, Metric};

/// Counters of TCP: what the kernel calls them in the line `TcpExt` of `/proc/net/netstat`, and
/// what we do.
pub const COUNTS: [(&str, &Metric); 7] = [
    ("ListenOverflows", &names::KERNEL_LISTEN_OVERFLOWS),
    ("ListenDrops", &names::KERNEL_LISTEN_DROPS),
    ("SyncookiesSent", &names::KERNEL_SYN_COOKIES_SENT),
    ("SyncookiesRecv", &names::KERNEL_SYN_COOKIES_RECEIVED),
    ("SyncookiesFailed", &names::KERNEL_SYN_COOKIES_FAILED),
    ("TCPReqQFullDoCookies", &names::KERNEL_REQUEST_QUEUE_COOKIES),
    ("TCPReqQFullDrop", &names::KERNEL_REQUEST_QUEUE_DROPS),
];

/// What a scrape shows of the kernel's counters.
#[derive(Debug, Default)]
pub struct Kernel {
    counts: [Counter; COUNTS.len()],
    sockets: OnceLock<Vec<Socket>>,
}

/// A listening socket of one worker.
#[derive(Debug)]
pub struct Socket {
    /// The listener's name.
    pub listener: String,
    /// Worker's number.
    pub worker: u16,
    /// Where it listens.
    pub address: SocketAddr,
    /// What the kernel calls it.
    pub inode: u32,
    /// Gauge: connections that wait to be accepted.
    pub waiting: Counter,
    /// Gauge: connections that may wait; 0 when the socket is closed.
    pub backlog: Counter,
    /// Connection attempts that the kernel has dropped.
    pub drops: Counter,
}

impl Socket {
    /// One of which nothing is known yet.
    pub fn new(listener: String, worker: u16, address: SocketAddr, inode: u32) -> Self {
        let (waiting, backlog, drops) = Default::default();
        Self { listener, worker, address, inode, waiting, backlog, drops }
    }
}

impl Kernel {
    /// The listening sockets that there are, told once.
    ///
    /// # Panics
    /// When it is told again: a defect of ours.
    pub fn set_sockets(&self, sockets: Vec<Socket>) {
        let told_again = self.sockets.set(sockets).is_err();
        assert!(!told_again, "listening sockets are made once");
    }

    /// The listening sockets, by worker and in the order of their binds.
    pub fn sockets(&self) -> &[Socket] {
        self.sockets.get().map(Vec::as_slice).unwrap_or_default()
    }

    /// Reads the text of `/proc/net/netstat`; what is not in it keeps its value.
    pub fn read_netstat(&self, text: &str) {
        for ((name, _), count) in COUNTS.iter().zip(&self.counts) {
            if let Some(value) = tcp_ext(text, name) {
                count.set(value);
            }
        }
    }

    /// Each counter of TCP with its metric.
    pub fn counts(&self) -> impl Iterator<Item = (&'static Metric, u64)> {
        COUNTS.iter().zip(&self.counts).map(|((_, metric), count)| (*metric, count.get()))
    }
}

/// One value: a line of names is followed by the line of their values.
fn tcp_ext(text: &str, name: &str) -> Option<u64> {
    const LINE: &str = "TcpExt:";
    let mut lines = text.lines().filter(|line| line.starts_with(LINE));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split_whitespace().position(|one| one == name)?;
    values.split_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_text_is_read() {
        let kernel = Kernel::default();
        kernel.read_netstat(
            "TcpExt: SyncookiesSent SyncookiesRecv ListenOverflows Novel ListenDrops\n\
             TcpExt: 1 2 3 99 4\n\
             IpExt: InNoRoutes ListenDrops\nIpExt: 7 8\n",
        );
        let counts: Vec<u64> = kernel.counts().map(|(_, count)| count).collect();
        assert_eq!(counts, [3, 4, 1, 2, 0, 0, 0]);
        for broken in ["", "TcpExt: ListenDrops\n", "TcpExt: ListenDrops\nTcpExt: x\n"] {
            kernel.read_netstat(broken);
        }
        assert_eq!(kernel.counts().nth(1).unwrap().1, 4, "what cannot be read stays");
    }

    #[test]
    fn this_kernel_has_them_all() {
        let text = std::fs::read_to_string("/proc/net/netstat").unwrap();
        for (name, _) in COUNTS {
            assert!(tcp_ext(&text, name).is_some(), "{name}");
        }
    }
}
