//! What was held, and what it took.

use std::fmt;

use serde_json::Value;

/// A summary of `portcullis load hold`, and the server's memory afterwards.
pub(crate) struct Account<'a> {
    pub(crate) waves: u32,
    /// Of all waves.
    pub(crate) lost: u64,
    /// Of the first wave.
    pub(crate) summary: &'a Value,
    /// Bytes before the first client, behind the first clients, and behind all.
    pub(crate) server: [u64; 3],
}

/// Connections that were lost while they were held, or were not to be had.
pub(crate) fn lost(summary: &Value) -> u64 {
    number(summary, "/connections").saturating_sub(number(summary, "/open"))
        + number(summary, "/measured/failed")
}

fn number(summary: &Value, path: &str) -> u64 {
    summary.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

impl fmt::Display for Account<'_> {
    #[expect(clippy::cast_precision_loss, reason = "bytes for human eyes")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let get = |path: &str| number(self.summary, path);
        let float = |path: &str| self.summary.pointer(path).and_then(Value::as_f64).unwrap_or(0.0);
        let open = get("/open").max(1);
        writeln!(
            f,
            "{} of {} open; opening them took {:.0} s; {} sampled in {:.0} s, {} lost",
            get("/open"),
            get("/connections"),
            float("/connect_seconds"),
            get("/measured/operations"),
            float("/measured/seconds"),
            self.lost,
        )?;
        writeln!(
            f,
            "sampled: median {:.0} us, p99 {:.0} us; server CPU while holding {:.2} s",
            float("/measured/latency_us/p50"),
            float("/measured/latency_us/p99"),
            float("/measured/server/cpu_seconds"),
        )?;
        writeln!(f, "\n{:44} {:>14} {:>16}", "memory", "bytes in all", "per connection")?;
        for (what, part) in [
            ("server, user space (PSS)", "server"),
            ("load generator, user space (PSS)", "own"),
            ("kernel slabs, sockets of both ends among them", "kernel"),
        ] {
            let before = get(&format!("/memory/{part}_before"));
            let with = get(&format!("/memory/{part}_with")).saturating_sub(before);
            writeln!(f, "{what:44} {with:14} {:16.0}", with as f64 / open as f64)?;
        }
        if self.waves > 1 {
            writeln!(
                f,
                "\nall of this was the first of {} waves; lost are those of all",
                self.waves
            )?;
        }
        let [fresh, warm, after] = self.server;
        let to = |start: u64| 100.0 * (after as f64 / start.max(1) as f64 - 1.0);
        writeln!(
            f,
            "\nserver started with {fresh} bytes, had {warm} after its first clients, and {after} \
             when all have ended ({:+.1} and {:+.1} %)",
            to(fresh),
            to(warm),
        )
    }
}
