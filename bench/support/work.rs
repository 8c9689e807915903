//! The kinds of work that are measured, with their stable names.

/// One kind of work: what each connection asks and gets, over and over (closed loop).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    /// Name on the command line and in tables.
    pub(crate) name: &'static str,
    /// Connections at once.
    pub(crate) connections: usize,
    /// Bytes of one request; [`ENDLESS`]: the client never stops sending.
    pub(crate) request_bytes: u64,
    /// Bytes of one answer; [`ENDLESS`]: the origin never stops sending.
    pub(crate) answer_bytes: u64,
    /// Whether the client closes after each answer and opens a new connection.
    pub(crate) closes: bool,
}

/// A request or an answer without end.
pub(crate) const ENDLESS: u64 = u64::MAX;

/// Full handshake, backend connect, one answer, close.
pub(crate) const FULL: Work =
    Work { name: "full", connections: 32, request_bytes: 100, answer_bytes: 100, closes: true };

/// 1 KiB asked and 1 KiB answered on kept connections.
pub(crate) const REQUEST: Work = Work {
    name: "request",
    connections: 64,
    request_bytes: 1024,
    answer_bytes: 1024,
    closes: false,
};

/// All kinds of work, in the order they are measured and printed.
pub(crate) const ALL: [Work; 6] = [
    FULL,
    REQUEST,
    Work { name: "request1000", connections: 1000, ..REQUEST },
    Work { name: "request16k", request_bytes: 16 * 1024, answer_bytes: 16 * 1024, ..REQUEST },
    Work {
        name: "bulk_down",
        connections: 8,
        request_bytes: 1,
        answer_bytes: ENDLESS,
        closes: false,
    },
    Work {
        name: "bulk_up",
        connections: 8,
        request_bytes: ENDLESS,
        answer_bytes: 0,
        closes: false,
    },
];

impl Work {
    /// Whether progress is counted in bytes, not in operations.
    pub(crate) fn is_bulk(self) -> bool {
        self.request_bytes == ENDLESS || self.answer_bytes == ENDLESS
    }

    /// The unit of the cost printed for this work.
    pub(crate) fn unit(self) -> &'static str {
        if self.is_bulk() { "s/GiB" } else { "us/op" }
    }
}

impl std::str::FromStr for Work {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        ALL.into_iter().find(|work| work.name == name).ok_or_else(|| {
            let names: Vec<_> = ALL.iter().map(|work| work.name).collect();
            format!("no such work; there are {}", names.join(", "))
        })
    }
}
