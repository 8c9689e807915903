//! What a load has found, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::process::{CpuTime, kernel_bytes, pss_bytes};
use super::tally::Tally;
use super::{Mode, chart};

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// One window of measurement.
#[derive(Debug, Clone)]
pub struct Measured {
    /// How long it was.
    pub seconds: f64,
    /// What the server's process took of the CPUs meanwhile; none where it was not named.
    pub cpu: Option<CpuTime>,
    /// What clients saw.
    pub tally: Tally,
}

/// Memory before the first connection and while all are open, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The server's, with its children (PSS).
    pub server_before: Option<u64>,
    /// The same, with the connections open.
    pub server_with: Option<u64>,
    /// Our own (PSS).
    pub own_before: u64,
    /// The same, with the connections open.
    pub own_with: u64,
    /// The kernel's slabs, of everything on this machine.
    pub kernel_before: u64,
    /// The same, with the connections open.
    pub kernel_with: u64,
    /// Connections that were open.
    pub connections: u64,
}

impl Memory {
    /// Looks at memory before the load begins.
    pub(super) fn begin(server: Option<u32>) -> io::Result<Self> {
        let (server, own) = (server.map(pss_bytes).transpose()?, pss_bytes(std::process::id())?);
        let kernel = kernel_bytes()?;
        Ok(Self {
            server_before: server,
            server_with: server,
            own_before: own,
            own_with: own,
            kernel_before: kernel,
            kernel_with: kernel,
            connections: 0,
        })
    }

    /// Looks at it again while so many connections are open.
    pub(super) fn end(self, server: Option<u32>, connections: u64) -> io::Result<Self> {
        let now = Self::begin(server)?;
        Ok(Self {
            server_with: now.server_with,
            own_with: now.own_with,
            kernel_with: now.kernel_with,
            connections,
            ..self
        })
    }

    fn per_connection(&self, before: u64, with: u64) -> Option<f64> {
        (self.connections > 0).then(|| float(with.saturating_sub(before)) / float(self.connections))
    }

    /// Bytes of the server for each connection.
    pub fn server_per_connection(&self) -> Option<f64> {
        self.per_connection(self.server_before?, self.server_with?)
    }
}

/// What a load has found.
#[derive(Debug, Clone)]
pub struct Summary {
    /// What it did.
    pub mode: Mode,
    /// Whom it loaded.
    pub target: SocketAddr,
    /// Threads.
    pub threads: usize,
    /// Connections at a time.
    pub connections: u32,
    /// What was seen outside the measurement: while connecting, warming up, closing.
    pub before: Tally,
    /// How long it took to open kept connections.
    pub connect_seconds: f64,
    /// The measurement; of a flood its first half, before the flood.
    pub measured: Measured,
    /// The second half, and what the flood's own clients saw.
    pub flood: Option<(Measured, Measured)>,
    /// Connections that were open at the end of the measurement.
    pub open: u64,
    /// Memory.
    pub memory: Memory,
    /// Somebody has ended it early.
    pub interrupted: bool,
}

impl Summary {
    /// Operations that were done, or connections that are held: whether anything worked at all.
    pub fn has_worked(&self) -> bool {
        self.measured.tally.done() > 0 || self.open > 0
    }

    /// For programs to read.
    pub fn to_json(&self) -> String {
        let json = Json {
            mode: self.mode,
            target: self.target,
            threads: self.threads,
            connections: self.connections,
            tls: self.agreed().map(|agreed| JsonTls {
                version: agreed.version,
                suite: agreed.suite,
                group: agreed.group,
            }),
            interrupted: self.interrupted,
            connect_seconds: self.connect_seconds,
            outside: JsonWindow::new(self.connect_seconds, None, &self.before),
            open: self.open,
            measured: JsonWindow::of(&self.measured),
            flood: self.flood.as_ref().map(|(during, handshakes)| JsonFlood {
                p99_ratio: self.p99_ratio(),
                during: JsonWindow::of(during),
                handshakes: JsonWindow::of(handshakes),
            }),
            memory: self.memory,
            server_bytes_per_connection: self.memory.server_per_connection(),
        };
        // Numbers, strings and maps with string keys: nothing that JSON cannot say.
        serde_json::to_string_pretty(&json).unwrap_or_default()
    }

    fn agreed(&self) -> Option<crate::tls::client::Agreed> {
        self.measured.tally.agreed.or(self.before.agreed)
    }

    /// p99 during the flood against p99 before it.
    fn p99_ratio(&self) -> Option<f64> {
        let p99 = |window: &Measured| window.tally.operations.nanos().value_at_quantile(0.99);
        let (during, _) = self.flood.as_ref()?;
        let before = p99(&self.measured);
        (before > 0).then(|| float(p99(during)) / float(before))
    }
}

#[derive(Serialize)]
struct Json {
    mode: Mode,
    target: SocketAddr,
    threads: usize,
    connections: u32,
    tls: Option<JsonTls>,
    interrupted: bool,
    connect_seconds: f64,
    /// While connecting, warming up and closing.
    outside: JsonWindow,
    open: u64,
    measured: JsonWindow,
    flood: Option<JsonFlood>,
    memory: Memory,
    server_bytes_per_connection: Option<f64>,
}

#[derive(Serialize)]
struct JsonTls {
    version: &'static str,
    suite: &'static str,
    group: Option<&'static str>,
}

#[derive(Serialize)]
struct JsonFlood {
    p99_ratio: Option<f64>,
    during: JsonWindow,
    handshakes: JsonWindow,
}

#[derive(Serialize)]
struct JsonWindow {
    seconds: f64,
    operations: u64,
    operations_per_second: f64,
    handshakes: u64,
    handshakes_resumed: u64,
    up_bytes: u64,
    down_bytes: u64,
    failed: u64,
    failures: BTreeMap<String, u64>,
    latency_us: JsonLatency,
    handshake_latency_us: JsonLatency,
    server: Option<JsonServer>,
}

#[derive(Serialize)]
struct JsonLatency {
    min: f64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    p9999: f64,
    max: f64,
}

#[derive(Serialize)]
struct JsonServer {
    cpu_seconds: f64,
    queued_seconds: f64,
    cpu_us_per_operation: Option<f64>,
    cpu_seconds_per_gib: Option<f64>,
}

impl JsonWindow {
    fn of(measured: &Measured) -> Self {
        Self::new(measured.seconds, measured.cpu, &measured.tally)
    }

    fn new(seconds: f64, cpu: Option<CpuTime>, tally: &Tally) -> Self {
        let cost = cpu.map(|cpu| Cost { cpu, seconds, tally });
        Self {
            seconds,
            operations: tally.done(),
            operations_per_second: per_second(tally.done(), seconds),
            handshakes: tally.handshakes.nanos().len(),
            handshakes_resumed: tally.resumed,
            up_bytes: tally.up_bytes,
            down_bytes: tally.down_bytes,
            failed: tally.failed(),
            failures: tally
                .failures
                .iter()
                .map(|(reason, count)| (reason.name(), *count))
                .collect(),
            latency_us: JsonLatency::of(tally.operations.nanos()),
            handshake_latency_us: JsonLatency::of(tally.handshakes.nanos()),
            server: cost.map(|cost| JsonServer {
                cpu_seconds: cost.cpu.used.as_secs_f64(),
                queued_seconds: cost.cpu.queued.as_secs_f64(),
                cpu_us_per_operation: cost.micros_per_operation(),
                cpu_seconds_per_gib: cost.seconds_per_gib(),
            }),
        }
    }
}

impl JsonLatency {
    fn of(nanos: &Histogram<u64>) -> Self {
        let [min, mean, p50, p90, p99, p999, p9999, max] = percentiles(nanos);
        Self { min, mean, p50, p90, p99, p999, p9999, max }
    }
}

/// What the server spent on what clients saw.
struct Cost<'a> {
    cpu: CpuTime,
    seconds: f64,
    tally: &'a Tally,
}

impl Cost<'_> {
    fn micros_per_operation(&self) -> Option<f64> {
        let done = self.tally.done();
        (done > 0).then(|| self.cpu.used.as_secs_f64() * 1e6 / float(done))
    }

    /// Of plaintext, both ways together.
    fn seconds_per_gib(&self) -> Option<f64> {
        let bytes = self.tally.up_bytes + self.tally.down_bytes;
        (bytes > 0).then(|| self.cpu.used.as_secs_f64() * GIB / float(bytes))
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, mode: Mode) -> fmt::Result {
        let by_bytes = if mode == Mode::Bulk { self.seconds_per_gib() } else { None };
        write!(f, "server CPU  ")?;
        match (by_bytes, self.micros_per_operation()) {
            (Some(seconds), _) => write!(f, "{seconds:>12.2} s a GiB")?,
            (None, Some(micros)) => write!(f, "{micros:>12.2} us an operation")?,
            (None, None) => write!(f, "{:>12.2} s", self.cpu.used.as_secs_f64())?,
        }
        let share = |time: Duration| 100.0 * time.as_secs_f64() / self.seconds.max(1e-9);
        let (busy, queued) = (share(self.cpu.used), share(self.cpu.queued));
        writeln!(f, "; {busy:.0} % busy, {queued:.0} % waiting for a CPU")
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.mode.name(), self.target)?;
        if let Some(agreed) = self.agreed() {
            write!(f, ": {}, {}", agreed.version, agreed.suite)?;
            if let Some(group) = agreed.group {
                write!(f, ", {group}")?;
            }
        }
        let s = if self.threads == 1 { "" } else { "s" };
        writeln!(f, "; {} connections, {} thread{s}", self.connections, self.threads)?;
        if self.interrupted {
            writeln!(f, "ended early, as asked")?;
        }
        if self.mode != Mode::Handshake {
            writeln!(
                f,
                "\n{} of {} connections open; opening them took {:.2} s, {:.0} a second",
                self.open,
                self.connections,
                self.connect_seconds,
                per_second(self.before.handshakes.nanos().len(), self.connect_seconds)
            )?;
            failures(f, &self.before)?;
        }
        match &self.flood {
            None => self.window(f, "", &self.measured)?,
            Some((during, handshakes)) => {
                self.window(f, "before the flood", &self.measured)?;
                self.window(f, "during the flood", during)?;
                self.window(f, "the flood itself", handshakes)?;
                if let Some(ratio) = self.p99_ratio() {
                    writeln!(f, "\np99 during the flood is {ratio:.2} times the p99 before it")?;
                }
            }
        }
        self.memory(f)
    }
}

impl Summary {
    fn window(&self, f: &mut fmt::Formatter<'_>, name: &str, window: &Measured) -> fmt::Result {
        let Measured { seconds, cpu, tally } = window;
        if name.is_empty() {
            writeln!(f)?;
        } else {
            writeln!(f, "\n== {name}")?;
        }
        let done = tally.done();
        writeln!(
            f,
            "operations  {done:>12}  {:>12.1} a second, in {seconds:.2} s",
            per_second(done, *seconds)
        )?;
        let handshakes = tally.handshakes.nanos().len();
        if handshakes > 0 {
            writeln!(
                f,
                "handshakes  {handshakes:>12}  {:>12.1} a second, {:.2} % resumed",
                per_second(handshakes, *seconds),
                100.0 * float(tally.resumed) / float(handshakes)
            )?;
        }
        for (way, bytes) in [("up", tally.up_bytes), ("down", tally.down_bytes)] {
            if bytes > 0 {
                let rate = float(bytes) / seconds.max(1e-9) / (1024.0 * 1024.0);
                writeln!(f, "bytes {way:4}  {bytes:>12}  {rate:>12.1} MiB a second")?;
            }
        }
        if let Some(cpu) = *cpu {
            let cost = Cost { cpu, seconds: *seconds, tally };
            cost.write(f, self.mode)?;
        }
        failures(f, tally)?;
        let rows = [("operation", &tally.operations), ("handshake", &tally.handshakes)];
        let rows: Vec<_> = rows.into_iter().filter(|(_, row)| !row.nanos().is_empty()).collect();
        if rows.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "\nlatency, us {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "min", "mean", "p50", "p90", "p99", "p99.9", "max"
        )?;
        for (name, row) in rows {
            let [min, mean, p50, p90, p99, p999, _, max] = percentiles(row.nanos());
            writeln!(
                f,
                "{name:11} {min:9.0} {mean:9.0} {p50:9.0} {p90:9.0} {p99:9.0} {p999:9.0} {max:9.0}"
            )?;
        }
        let drawn = chart::draw(tally.operations.nanos());
        if !drawn.is_empty() {
            writeln!(f, "\nup to      share of the operations\n{drawn}")?;
        }
        Ok(())
    }

    fn memory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = &self.memory;
        // Of few connections it would be what everything but them takes.
        if self.mode != Mode::Hold || memory.connections == 0 {
            return Ok(());
        }
        let mut line = String::from("memory per open connection:");
        let mut say = |who: &str, before, with| {
            if let Some(bytes) = memory.per_connection(before, with) {
                // Writing into a String does not fail.
                let _infallible = write!(line, " {who} {bytes:.0} B,");
            }
        };
        if let (Some(before), Some(with)) = (memory.server_before, memory.server_with) {
            say("server", before, with);
        }
        say("this program", memory.own_before, memory.own_with);
        say("kernel slabs (all of this machine)", memory.kernel_before, memory.kernel_with);
        writeln!(f, "{}", line.trim_end_matches(','))
    }
}

fn failures(f: &mut fmt::Formatter<'_>, tally: &Tally) -> fmt::Result {
    for (reason, count) in &tally.failures {
        write!(f, "failed      {count:>12}  {}", reason.name())?;
        match reason.hint() {
            Some(hint) => writeln!(f, ": {hint}")?,
            None => writeln!(f)?,
        }
    }
    Ok(())
}

/// Minimum, mean, median, p90, p99, p99.9, p99.99 and maximum, in microseconds.
fn percentiles(nanos: &Histogram<u64>) -> [f64; 8] {
    let micros = |nanos: u64| float(nanos) / 1e3;
    let at = |quantile| micros(nanos.value_at_quantile(quantile));
    [
        micros(if nanos.is_empty() { 0 } else { nanos.min() }),
        nanos.mean() / 1e3,
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        at(0.9999),
        micros(nanos.max()),
    ]
}

fn per_second(count: u64, seconds: f64) -> f64 {
    float(count) / seconds.max(1e-9)
}

#[expect(clippy::cast_precision_loss, reason = "15 digits are enough for human eyes")]
fn float(number: u64) -> f64 {
    number as f64
}
