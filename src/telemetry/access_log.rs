//! The access log: one JSON line for each connection, written after its close by the control
//! thread. A worker never waits for it: what its queue cannot hold is dropped and counted.
//!
//! `time` is when the line was written, at most a few hundred milliseconds after the close. The
//! file is in append mode, so that logrotate's `copytruncate` works; it is not opened again.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::fs::File;

use super::calendar::rfc3339_utc;
use super::exposition::Process;
use super::log::{Episode, Turn};
use super::record::{self, Record};

/// Bytes collected before they are written: bounds memory, and keeps the number of writes low.
const BATCH_BYTES: usize = 256 * 1024;

/// Without a failed write for this long, writing counts as mended.
const MENDED_AFTER: Duration = Duration::from_secs(10);

/// "Where the file stands": the kernel keeps the position, so that files in append mode, pipes and
/// terminals all work (`io_uring_prep_write(3)`: an offset of -1).
const CURRENT_POSITION: u64 = u64::MAX;

/// Names by the indexes that a [`Record`] carries.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// Listeners.
    pub listeners: Vec<String>,
    /// Backends, each with its servers.
    pub backends: Vec<BackendNames>,
}

/// A backend and its servers.
#[derive(Debug, Clone, Default)]
pub struct BackendNames {
    /// The backend's name.
    pub name: String,
    /// Its servers' addresses, as the configuration writes them.
    pub servers: Vec<String>,
}

/// The line, in the order of its fields.
#[derive(Serialize)]
struct Line<'a> {
    time: &'a str,
    worker: u16,
    listener: Option<&'a str>,
    client: std::net::SocketAddr,
    server_name: Option<&'a str>,
    alpn: Option<&'a str>,
    handshake: &'static str,
    version: &'static str,
    suite: &'static str,
    group: &'static str,
    resumption: Option<&'static str>,
    resumption_result: Option<&'static str>,
    client_verified: bool,
    client_name: Option<&'a str>,
    backend: Option<&'a str>,
    server: Option<&'a str>,
    reason: &'static str,
    inbound_bytes: u64,
    outbound_bytes: u64,
    client_hello_ms: f64,
    handshake_ms: f64,
    queue_ms: f64,
    connect_ms: f64,
    total_ms: f64,
}

/// The open log and the queues that feed it.
#[derive(Debug)]
pub struct AccessLog {
    queues: Vec<record::Receiver>,
    names: Names,
    file: File,
    process: Arc<Process>,
    failing: Episode,
}

impl AccessLog {
    /// Opens `path` for appending (`"-"`: standard output). One queue per worker. The file is
    /// created with mode 0640: it tells who connected, and nobody else needs to know.
    ///
    /// # Errors
    /// open(2)'s.
    pub fn open(
        path: &Path,
        names: Names,
        queues: Vec<record::Receiver>,
        process: Arc<Process>,
    ) -> std::io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;

        let file = if path == Path::new("-") {
            std::fs::File::from(std::io::stdout().as_fd().try_clone_to_owned()?)
        } else {
            std::fs::OpenOptions::new().append(true).create(true).mode(0o640).open(path)?
        };
        Ok(Self {
            queues,
            names,
            file: File::from_std(file),
            process,
            failing: Episode::new(MENDED_AFTER),
        })
    }

    /// Writes what the queues hold now. A failed write loses its batch, is counted and logged once.
    pub async fn drain(&mut self) {
        loop {
            let (batch, records) = self.batch(&rfc3339_utc(SystemTime::now()));
            if records == 0 {
                break;
            }
            let outcome = write_all(&self.file, batch).await;
            self.account(records, &outcome);
        }
    }

    /// As many lines as fit a batch, and how many they are.
    fn batch(&mut self, time: &str) -> (Vec<u8>, u64) {
        let mut batch = Vec::new();
        let mut records = 0;
        // Each worker's queue is first in turn: a busy one cannot keep the others from the batch.
        if !self.queues.is_empty() {
            self.queues.rotate_left(1);
        }
        for queue in &mut self.queues {
            while batch.len() < BATCH_BYTES {
                let Ok(record) = queue.pop() else { break };
                append_line(&mut batch, &record, &self.names, time);
                records += 1;
            }
        }
        (batch, records)
    }

    fn account(&mut self, records: u64, outcome: &std::io::Result<()>) {
        match outcome {
            Ok(()) => self.process.records_written.add(records),
            Err(_) => self.process.records_failed.add(records),
        }
        match (self.failing.observe(outcome.is_err(), Instant::now()), outcome) {
            (Turn::Started, Err(error)) => tracing::error!(
                %error,
                "cannot write the access log: records are lost until its disk or pipe takes them \
                 again; portcullis_access_log_records_failed_total counts them"
            ),
            (Turn::Ended, _) => tracing::info!("the access log is written again"),
            (Turn::Started | Turn::Same, _) => {}
        }
    }
}

async fn write_all(file: &File, mut batch: Vec<u8>) -> std::io::Result<()> {
    let mut written = 0;
    while written < batch.len() {
        let (result, slice) =
            file.write_at(batch.slice(written..), CURRENT_POSITION).submit().await;
        batch = slice.into_inner();
        written += match result {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
    }
    Ok(())
}

/// Appends one line. Names that the indexes do not have become `null`.
fn append_line(batch: &mut Vec<u8>, record: &Record, names: &Names, time: &str) {
    use super::labels::Label;

    let backend = record.backend.and_then(|backend| names.backends.get(usize::from(backend)));
    let server = backend
        .zip(record.server)
        .and_then(|(backend, server)| backend.servers.get(usize::from(server)));
    let line = Line {
        time,
        worker: record.worker,
        listener: names.listeners.get(usize::from(record.listener)).map(String::as_str),
        client: record.client,
        server_name: record.server_name.as_deref(),
        alpn: record.alpn.as_deref(),
        handshake: record.handshake.label(),
        version: record.version.label(),
        suite: record.suite.label(),
        group: record.group.label(),
        resumption: record.resumption.map(|(kind, _)| kind.label()),
        resumption_result: record.resumption.map(|(_, result)| result.label()),
        client_verified: record.client_verified,
        client_name: record.client_name.as_deref(),
        backend: backend.map(|backend| backend.name.as_str()),
        server: server.map(String::as_str),
        reason: record.reason.label(),
        inbound_bytes: record.inbound_bytes,
        outbound_bytes: record.outbound_bytes,
        client_hello_ms: milliseconds(record.client_hello_nanos),
        handshake_ms: milliseconds(record.handshake_nanos),
        queue_ms: milliseconds(record.queue_nanos),
        connect_ms: milliseconds(record.connect_nanos),
        total_ms: milliseconds(record.total_nanos),
    };
    let start = batch.len();
    match serde_json::to_writer(&mut *batch, &line) {
        Ok(()) => batch.push(b'\n'),
        Err(error) => {
            debug_assert!(false, "{error}");
            batch.truncate(start);
        }
    }
}

/// Milliseconds with three decimals: microseconds are as fine as these clocks deserve.
#[expect(clippy::cast_precision_loss, reason = "2^53 microseconds are 285 years")]
fn milliseconds(nanos: u64) -> f64 {
    (nanos / 1000) as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::labels::{
        CloseReason, Group, HandshakeOutcome, ResumptionKind, ResumptionResult, Suite, Version,
    };

    fn record() -> Record {
        Record {
            worker: 1,
            listener: 0,
            client: "[2001:db8::1]:4711".parse().unwrap(),
            server_name: Some("a\"b.example".into()),
            alpn: None,
            handshake: HandshakeOutcome::Ok,
            version: Version::Tls13,
            suite: Suite::Tls13Aes128GcmSha256,
            group: Group::X25519Mlkem768,
            resumption: Some((ResumptionKind::Ticket, ResumptionResult::Expired)),
            client_verified: true,
            client_name: Some("a\"b\u{e9}".into()),
            backend: Some(0),
            server: Some(1),
            reason: CloseReason::Finished,
            inbound_bytes: 10,
            outbound_bytes: 20,
            client_hello_nanos: 1_234_567,
            handshake_nanos: 0,
            queue_nanos: 2_000_000,
            connect_nanos: 999,
            total_nanos: 5_000_000_000,
        }
    }

    fn names() -> Names {
        Names {
            listeners: vec!["https".into()],
            backends: vec![BackendNames {
                name: "app".into(),
                servers: vec!["127.0.0.1:1".into(), "127.0.0.1:2".into()],
            }],
        }
    }

    #[test]
    fn a_line_names_what_the_record_numbers() {
        let mut line = Vec::new();
        append_line(&mut line, &record(), &names(), "2026-01-02T03:04:05.006Z");
        assert_eq!(
            String::from_utf8(line).unwrap(),
            concat!(
                r#"{"time":"2026-01-02T03:04:05.006Z","worker":1,"listener":"https","#,
                r#""client":"[2001:db8::1]:4711","server_name":"a\"b.example","alpn":null,"#,
                r#""handshake":"ok","version":"TLSv1.3","suite":"TLS_AES_128_GCM_SHA256","#,
                r#""group":"X25519MLKEM768","resumption":"ticket","resumption_result":"expired","#,
                r#""client_verified":true,"client_name":"a\"bé","#,
                r#""backend":"app","server":"127.0.0.1:2","#,
                r#""reason":"finished","inbound_bytes":10,"outbound_bytes":20,"#,
                r#""client_hello_ms":1.234,"handshake_ms":0.0,"queue_ms":2.0,"connect_ms":0.0,"#,
                r#""total_ms":5000.0}"#,
                "\n"
            )
        );
    }

    #[test]
    fn records_of_all_workers_are_appended_to_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        std::fs::write(&path, "before\n").unwrap();
        let process = Arc::new(Process::new(2, SystemTime::now()));
        let (mut producers, queues): (Vec<_>, Vec<_>) =
            (0..2).map(|_| rtrb::RingBuffer::new(1024)).unzip();
        for producer in &mut producers {
            for _ in 0..1000 {
                producer.push(Box::new(record())).unwrap();
            }
        }
        tokio_uring::start(async {
            let mut log = AccessLog::open(&path, names(), queues, Arc::clone(&process)).unwrap();
            log.drain().await;
            log.drain().await;
        });
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("before\n{"));
        let lines: Vec<serde_json::Value> =
            text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2000);
        assert_eq!(process.records_written.get(), 2000);
    }

    #[test]
    fn a_reader_that_hangs_holds_up_neither_the_control_thread_nor_its_end() {
        use std::os::unix::fs::OpenOptionsExt as _;

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _reader_that_never_reads = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
            .open(&path)
            .unwrap();
        let process = Arc::new(Process::new(1, SystemTime::now()));
        let (mut producer, queue) = rtrb::RingBuffer::new(1000);
        while producer.push(Box::new(record())).is_ok() {}
        let in_time = tokio_uring::start(async {
            let mut log =
                AccessLog::open(&path, names(), vec![queue], Arc::clone(&process)).unwrap();
            tokio::time::timeout(Duration::from_millis(100), log.drain()).await
        });
        assert!(in_time.is_err(), "the pipe took more than it holds");
    }

    #[test]
    fn a_failed_write_is_counted_and_stops_nothing() {
        let process = Arc::new(Process::new(1, SystemTime::now()));
        let (mut producer, queue) = rtrb::RingBuffer::new(4);
        tokio_uring::start(async {
            let full = Path::new("/dev/full");
            let mut log =
                AccessLog::open(full, names(), vec![queue], Arc::clone(&process)).unwrap();
            producer.push(Box::new(record())).unwrap();
            log.drain().await;
            producer.push(Box::new(record())).unwrap();
            log.drain().await;
        });
        assert_eq!(process.records_failed.get(), 2);
        assert_eq!(process.records_written.get(), 0);
    }
}
