//! A plan as files: what `apply --persist` writes, and what stands in `sysctl/`.

use std::fmt::Write as _;

use super::goal::Goal;
use super::knobs::{Group, Knob, Place};
use super::plan::{Advice, Row};
use super::render::text::wrap;
use super::value::Value;

/// The drop-in of sysctl.d(5). Read behind all that distributions and cloud images bring, the
/// `99-sysctl.conf` of Debian included: of one key the last file wins.
pub const SYSCTL_D: &str = "/etc/sysctl.d/99-zz-portcullis.conf";

const UNIT_D: &str = "/etc/systemd/system/portcullis.service.d/50-portcullis-tune.conf";
const MODULES_LOAD_D: &str = "/etc/modules-load.d/portcullis.conf";
const MODPROBE_D: &str = "/etc/modprobe.d/portcullis.conf";
const TMPFILES_D: &str = "/etc/tmpfiles.d/portcullis.conf";

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Persisted {
    /// Where.
    pub path: String,
    /// Its text.
    pub text: String,
}

fn file(path: &str, text: String) -> Persisted {
    Persisted { path: path.to_owned(), text }
}

/// What keeps a plan over a restart of the machine. `ours` tells of a setting that is as it should
/// be whether that is our doing: what is so by itself is not pinned, so that a newer kernel's
/// better default counts.
pub fn persisted(goal: &Goal<'_>, rows: &[Row], ours: impl Fn(&str) -> bool) -> Vec<Persisted> {
    let kept: Vec<Row> = rows
        .iter()
        .filter(|row| matches!(row.advice, Advice::Set(_)) || ours(row.knob.name))
        .cloned()
        .collect();
    let header = format!(
        "Written by `portcullis tune apply --persist` for {} connections on {} workers; taken back \
         by `portcullis tune revert`.",
        goal.connections, goal.shape.workers
    );
    let mut files = Vec::new();
    if kept.iter().any(|row| matches!(row.knob.place, Place::Sysctl(_))) {
        files.push(file(SYSCTL_D, sysctl_d(&kept, &header)));
    }
    if kept.iter().any(|row| matches!(row.knob.place, Place::Limit(_))) {
        files.push(file(UNIT_D, unit_d(&kept, &header)));
    }
    let tracked = kept.iter().find(|row| row.knob.name == "net.netfilter.nf_conntrack_buckets");
    if let Some(buckets) = tracked.and_then(|row| row.wanted()?.last()) {
        files.push(file(MODULES_LOAD_D, modules_load_d(&header)));
        files.push(file(MODPROBE_D, modprobe_d(&header, buckets)));
    }
    for row in &kept {
        if let (Place::Choice(path), Some(value)) = (row.knob.place, row.wanted()) {
            let text = format!("{}\nw {path} - - - - {value}\n", comment(&header));
            files.push(file(TMPFILES_D, text));
        }
    }
    files
}

fn comment(text: &str) -> String {
    let mut out = String::new();
    wrap(&mut out, "# ", "# ", text);
    out
}

/// The drop-in of sysctl.d(5), each key with all that is known about it.
pub fn sysctl_d(rows: &[Row], header: &str) -> String {
    let mut out = comment(header);
    for row in rows {
        if let (Place::Sysctl(name), Some(value)) = (row.knob.place, row.wanted()) {
            out.push('\n');
            explain(&mut out, row.knob, value);
            // Writing into a String does not fail.
            let _infallible = writeln!(out, "{name} = {value}");
        }
    }
    out
}

/// A knob's comment lines above its setting.
fn explain(out: &mut String, knob: &Knob, value: &Value) {
    let mut line = |name: &str, text: &str| {
        wrap(out, &format!("# {name:<8}"), &format!("# {:8}", ""), text);
    };
    line("unit", knob.unit);
    line("default", knob.default);
    // Of a value that is not computed, the formula says no more than the value.
    let formula = match knob.formula {
        formula if formula == value.as_str() => String::new(),
        formula => format!(": {formula}"),
    };
    line("ours", &format!("{value}{formula}"));
    line("why", knob.why);
    line("danger", knob.danger);
    let (effect, scope) = (knob.effect.name(), knob.scope.name());
    line("since", &format!("Linux {}; takes effect: {effect}; of the {scope}", knob.since));
    line("source", knob.source);
}

/// What a plan leaves alone, with its reasons.
pub fn left_alone(rows: &[Row]) -> String {
    let mut out = "\n# Left as the kernel has it, on purpose:\n".to_owned();
    for row in rows {
        let reason = match &row.advice {
            Advice::Already => "the default is what we want",
            // There are no counters in a file: what they would have to say.
            Advice::Keep(_) if row.knob.group == Group::Evidence => row.knob.formula,
            Advice::Keep(reason) => reason,
            Advice::Set(_) | Advice::Absent(_) => continue,
        };
        if let Place::Sysctl(name) = row.knob.place {
            wrap(&mut out, "#   ", "#       ", &format!("{name} ({}): {reason}", row.knob.default));
        }
    }
    out
}

/// A systemd drop-in with the service's limits.
pub fn unit_d(rows: &[Row], header: &str) -> String {
    let mut out = format!("{}\n[Service]\n", comment(header));
    for row in rows {
        if let (Place::Limit(name), Some(value)) = (row.knob.place, row.wanted()) {
            explain(&mut out, row.knob, value);
            let _infallible = writeln!(out, "{name}={value}");
        }
    }
    out
}

/// Limits of logins.
pub fn limits_d(rows: &[Row], header: &str) -> String {
    let mut out = comment(header);
    out.push_str(&comment(
        "Services ignore this file: PAM reads it when somebody logs in, and systemd does not. It \
         is for a benchmark from a shell. The service's limits are in portcullis.service.d.",
    ));
    for row in rows {
        let (Place::Limit(name), Some(value)) = (row.knob.place, row.wanted()) else { continue };
        let (item, value) = match name {
            "LimitMEMLOCK" => ("memlock", "unlimited"),
            _ => ("nofile", value.as_str()),
        };
        for user in ["portcullis", "root"] {
            let _infallible = writeln!(out, "{user} - {item} {value}");
        }
    }
    out
}

/// Loads the module early: its keys are not there before, and systemd-sysctl passes over them.
pub fn modules_load_d(header: &str) -> String {
    format!(
        "{}{}nf_conntrack\n",
        comment(header),
        comment(
            "Loaded before sysctl.d is read: a module that comes later brings its keys with their \
             defaults."
        )
    )
}

/// Size of the connection-tracking table.
pub fn modprobe_d(header: &str, buckets: u64) -> String {
    format!(
        "{}{}options nf_conntrack hashsize={buckets}\n",
        comment(header),
        comment(
            "One bucket per flow, 8 bytes each: 2 flows per connection and a quarter more. \
             Default: 65536 above 1 GiB of RAM, 262144 above 4 GiB. Better: no tracking at all, \
             see portcullis-notrack.nft."
        )
    )
}

/// Rules that spare our ports from connection tracking.
pub fn notrack(header: &str) -> String {
    format!(
        "#!/usr/sbin/nft -f\n{}{}\n{NOTRACK}",
        comment(header),
        comment(
            "A tracked connection costs 256 bytes twice (client and server), and each packet a \
             look-up; a full table drops packets. Danger: NOT on a machine that does NAT, \
             publishes container ports, runs kube-proxy, or whose firewall accepts by `ct state \
             established`: untracked packets match none of that; accept these ports before. Load \
             with `nft -f`; take back with `nft delete table inet portcullis_notrack`. Since \
             Linux 4.9. Source: nft(8), NOTRACK."
        )
    )
}

const NOTRACK: &str = "\
table inet portcullis_notrack
delete table inet portcullis_notrack

table inet portcullis_notrack {
    # Ports that Portcullis listens on.
    set listeners {
        type inet_service
        elements = { 443 }
    }
    # Ports of the servers behind it.
    set servers {
        type inet_service
        elements = { 8080 }
    }
    chain prerouting {
        type filter hook prerouting priority raw; policy accept;
        tcp dport @listeners notrack
        tcp sport @servers notrack
    }
    chain output {
        type filter hook output priority raw; policy accept;
        tcp sport @listeners notrack
        tcp dport @servers notrack
    }
}
";

/// A unit that runs `portcullis-nic.sh` for the interface of its instance.
pub fn nic_unit(goal: &Goal<'_>, header: &str) -> String {
    let queues = match goal.facts.nics.first() {
        Some(nic) if nic.rx_queues > 1 => goal.shape.workers.min(nic.rx_queues).to_string(),
        _ => String::new(),
    };
    let why_queues = if queues.is_empty() {
        "One queue: its packets are spread over the workers' cores by RPS. If the card of the \
         virtual machine has more, write their number as QUEUES."
    } else {
        "QUEUES: one receive queue per worker, so that each core takes its own packets and shares \
         none. Setting it takes the link down for a moment."
    };
    format!(
        "{}{}\n[Unit]\nDescription=Queues and interrupts of %i for Portcullis\n\
         After=network-pre.target\nBefore=portcullis.service\n\
         ConditionPathExists=/sys/class/net/%i\n\n[Service]\nType=oneshot\nRemainAfterExit=yes\n{}\
         Environment=QUEUES={queues}\n{}Environment=CPUS=\n\
         ExecStart=/usr/local/lib/portcullis/portcullis-nic.sh %i\n\n[Install]\n\
         WantedBy=multi-user.target\n",
        comment(header),
        comment(
            "Install as /etc/systemd/system/portcullis-nic@.service and enable it for the \
             interface: systemctl enable --now portcullis-nic@eth0. Stop irqbalance, or ban these \
             interrupts there: it would move them again."
        ),
        comment(why_queues),
        comment(
            "CPUS: the workers' CPUs, in the order of the queues, as taskset(1) writes them. \
             Empty: those of the card's NUMA node first, then the others."
        ),
    )
}
