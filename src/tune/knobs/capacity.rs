//! Capacity: without these, connections fail that the machine could hold.

use super::{Effect, Group, Knob, Place, Scope, Wish, at_least, at_most, exactly, keep};
use crate::control::capacity::RING_DESCRIPTORS_MAX;
use crate::limits::NOT_SENT_BYTES;
use crate::tune::goal::{Goal, Profile};
use crate::tune::value::Value;

/// Local ports begin here, above what programs listen on by custom.
const PORT_FIRST: u64 = 10_000;

/// What a tracked connection may be silent for, in seconds: two hours, and nine keepalive probes in
/// vain, a little longer than the kernel's own keepalive.
const ESTABLISHED_S: u64 = 7_440 + 600;

/// Shows the number of hash buckets; negative where they are the first namespace's.
const EHASH: &str = "net.ipv4.tcp_ehash_entries";

pub(super) const KNOBS: [Knob; 17] = [
    Knob {
        name: "fs.file-max",
        place: Place::Sysctl("fs.file-max"),
        group: Group::Capacity,
        unit: "open files of the whole machine",
        default: "a tenth of RAM in KiB; systemd 240 and newer raise it to the most",
        formula: "1.25 x sockets, 2 of them per connection; a higher one stays",
        wish: |goal| at_least(goal.sockets() / 4 * 5 + 65_536),
        why: "a socket is a file, with or without a descriptor",
        danger: "none; root is exempt, so that tests as root do not meet it",
        since: "2.4",
        source: "Documentation/admin-guide/sysctl/fs.rst; fs/file_table.c, alloc_empty_file",
        effect: Effect::Now,
        scope: Scope::Host,
    },
    Knob {
        name: "fs.nr_open",
        place: Place::Sysctl("fs.nr_open"),
        group: Group::Capacity,
        unit: "descriptors of a process, at most",
        default: "1048576",
        formula: "what LimitNOFILE needs; a higher one stays",
        wish: |goal| at_least(goal.nofile().max(RING_DESCRIPTORS_MAX)),
        why: "RLIMIT_NOFILE cannot be raised above it, and systemd cuts LimitNOFILE silently",
        danger: "at 2^30 old daemons that close every possible descriptor take minutes to start",
        since: "2.6.25",
        source: "Documentation/admin-guide/sysctl/fs.rst; proc(5)",
        effect: Effect::Now,
        scope: Scope::Host,
    },
    Knob {
        name: "LimitNOFILE",
        place: Place::Limit("LimitNOFILE"),
        group: Group::Capacity,
        unit: "descriptors of a worker",
        default: "1024 soft, 524288 hard (systemd)",
        formula: "2 per connection of a worker, and its listeners', plus 10 %, to a power of two",
        wish: |goal| at_least(goal.nofile()),
        why: "each worker has a descriptor table of its own, and its ring's table of direct \
              descriptors has the same limit",
        danger: "none for Portcullis; a child would inherit it",
        since: "2.4",
        source: "systemd.exec(5); io_uring/rsrc.c, io_sqe_files_register",
        effect: Effect::Restart,
        scope: Scope::Process,
    },
    Knob {
        name: "LimitMEMLOCK",
        place: Place::Limit("LimitMEMLOCK"),
        group: Group::Capacity,
        unit: "bytes of locked memory",
        default: "8 MiB (64 KiB before Linux 5.16)",
        formula: "infinity",
        wish: |_| Wish::Exactly(Value::parse("infinity")),
        why: "Linux before 5.12, and from 6.14, counts rings here, for all processes of a user",
        danger: "none: Portcullis locks rings and nothing else",
        since: "2.4",
        source: "io_uring_setup(2), ENOMEM; portcullis check shows what its rings need",
        effect: Effect::Restart,
        scope: Scope::Process,
    },
    Knob {
        name: "net.ipv4.tcp_mem",
        place: Place::Sysctl("net.ipv4.tcp_mem"),
        group: Group::Capacity,
        unit: "pages of 4 KiB (not bytes): min, pressure, max",
        default: "9.4 % of RAM as max, 2/3 and 1/2 of that",
        formula: "max = a fifth of RAM, or what connections and a reserve leave of it; pressure = \
                  2/3 max, min = 1/2 max; higher ones stay",
        wish: |goal| Wish::AtLeast(Value::of(&goal.tcp_mem())),
        why: "all that TCP may queue; idle sockets count nothing. Above it new data is dropped and \
              sockets are killed: \"out of memory -- consider tuning tcp_mem\"",
        danger: "too much, and the OOM killer comes before TCP's own restraint",
        since: "2.4",
        source: "Documentation/networking/ip-sysctl.rst; net/ipv4/tcp.c, tcp_init_mem",
        effect: Effect::Now,
        scope: Scope::Host,
    },
    Knob {
        name: "net.ipv4.tcp_rmem",
        place: Place::Sysctl("net.ipv4.tcp_rmem"),
        group: Group::Capacity,
        unit: "bytes of a receive buffer: min, first, most",
        default: "4096 131072 6291456",
        formula: "most = 32 MiB from 10 Gbit/s on, as Linux 6.16 and newer have it; else the \
                  kernel's",
        wish: |goal| match goal.profile {
            Profile::SmallVm => {
                keep("the kernel grows buffers as they are needed; idle ones cost 0")
            }
            Profile::Edge | Profile::BigEdge => {
                Wish::AtLeast(Value::of(&[4096, 131_072, 32 << 20]))
            }
        },
        why: "an upload over a long path is as fast as window / round trip",
        danger: "none while tcp_mem bounds the sum; a lower first value saves nothing and slows \
                 the first round trip",
        since: "2.4; per namespace from 4.15",
        source: "Documentation/networking/ip-sysctl.rst; tcp(7)",
        effect: Effect::Now,
        scope: Scope::Netns,
    },
    Knob {
        name: "net.ipv4.tcp_wmem",
        place: Place::Sysctl("net.ipv4.tcp_wmem"),
        group: Group::Capacity,
        unit: "bytes of a send buffer: min, first, most",
        default: "4096 16384 4194304",
        formula: "most = 16 MiB at 100 Gbit/s; else the kernel's",
        wish: |goal| match goal.profile {
            Profile::SmallVm | Profile::Edge => {
                keep("4 MiB are 335 Mbit/s per connection at 100 ms")
            }
            Profile::BigEdge => Wish::AtLeast(Value::of(&[4096, 16_384, 16 << 20])),
        },
        why: "a download over a long path is as fast as window / round trip",
        danger: "with tcp_notsent_lowat unset, one stalled reader may hold all of it",
        since: "2.4; per namespace from 4.15",
        source: "Documentation/networking/ip-sysctl.rst; tcp(7)",
        effect: Effect::Now,
        scope: Scope::Netns,
    },
    Knob {
        name: "net.ipv4.tcp_notsent_lowat",
        place: Place::Sysctl("net.ipv4.tcp_notsent_lowat"),
        group: Group::Capacity,
        unit: "bytes unsent in a socket",
        default: "4294967295",
        formula: "128 KiB, what Portcullis gives its clients' sockets; a lower one stays",
        wish: |_| at_most(u64::from(NOT_SENT_BYTES)),
        why: "a reader that stalls costs 128 KiB unsent and not 4 MiB: this extends to the \
              servers' sockets and to other programs",
        danger: "more wake-ups for programs that write much; below 16 KiB throughput falls",
        since: "3.12",
        source: "Documentation/networking/ip-sysctl.rst; bench/RESULTS.md, Tuning",
        effect: Effect::Now,
        scope: Scope::Netns,
    },
    Knob {
        name: "net.ipv4.ip_local_port_range",
        place: Place::Sysctl("net.ipv4.ip_local_port_range"),
        group: Group::Capacity,
        unit: "first and last port",
        default: "32768 60999",
        formula: "10000 to 65535; a wider one stays",
        wish: port_range,
        why: "each connection to one address of a server needs a port of its own: 55,536 instead \
              of 28,232",
        danger: "what listens above 10000 may find its port taken: name it in \
                 ip_local_reserved_ports",
        since: "2.2",
        source: "Documentation/networking/ip-sysctl.rst; ip(7)",
        effect: Effect::NewSockets,
        scope: Scope::Netns,
    },
    Knob {
        name: "net.ipv4.tcp_tw_reuse",
        place: Place::Sysctl("net.ipv4.tcp_tw_reuse"),
        group: Group::Capacity,
        unit: "0 off, 1 on, 2 on the loopback only",
        default: "2",
        formula: "1 where servers are reached over TCP",
        wish: |goal| match goal.servers {
            0 => keep("no TCP to servers"),
            _ => exactly(1),
        },
        why: "ports to a server wait 60 s after use; with one server 55,536 of them are 925 \
              connections a second. Reused after 1 s instead",
        danger: "needs timestamps on both sides; does nothing for clients' connections",
        since: "2.6; the value 2 from 4.19",
        source: "Documentation/networking/ip-sysctl.rst; net/ipv4/tcp_ipv4.c, tcp_twsk_unique",
        effect: Effect::Now,
        scope: Scope::Netns,
    },
    Knob {
        name: "net.core.somaxconn",
        place: Place::Sysctl("net.core.somaxconn"),
        group: Group::Capacity,
        unit: "connections in a listener's queue",
        default: "4096 (128 before Linux 5.4)",
        formula: "4096; from 10 Gbit/s 16384, at 100 Gbit/s 65535; a higher one stays",
        wish: |goal| {
            at_least(match goal.profile {
                Profile::SmallVm => 4096,
                Profile::Edge => 16_384,
                Profile::BigEdge => 65_535,
            })
        },
        why: "cuts listener.backlog, per listener and worker; bounds the SYN queue as well",
        danger: "a queue longer than clients are patient is served to clients that have left",
        since: "2.4.25",
        source: "Documentation/networking/ip-sysctl.rst; listen(2); net/ipv4/tcp_input.c",
        effect: Effect::Listen,
        scope: Scope::Netns,
    },
    Knob {
        name: "net.ipv4.tcp_max_tw_buckets",
        place: Place::Sysctl("net.ipv4.tcp_max_tw_buckets"),
        group: Group::Capacity,
        unit: "sockets in TIME-WAIT",
        default: "half of the hash buckets for sockets: 65536 with 16 GiB of RAM",
        formula: "1.2 x 60 s x closes per second, at 2048 a second for each worker; more stays",
        wish: |goal| at_least((goal.shape.count() * 2048 * 72).min(2_097_152)),
        why: "beyond it TIME-WAIT is cut short, and late packets meet a new connection",
        danger: "256 bytes each; never lower it",
        since: "2.4",
        source: "Documentation/networking/ip-sysctl.rst",
        effect: Effect::Now,
        scope: Scope::Netns,
    },
    Knob {
        name: "net.ipv4.tcp_max_orphans",
        place: Place::Sysctl("net.ipv4.tcp_max_orphans"),
        group: Group::Capacity,
        unit: "closed sockets with data to send",
        default: "half of the hash buckets for sockets: 65536 with 16 GiB of RAM",
        formula: "an eighth of the connections; more stays",
        wish: |goal| at_least((goal.connections / 8).max(65_536)),
        why: "a drain closes many at once; beyond it they are reset",
        danger: "up to 64 KiB each, which tcp_mem bounds",
        since: "2.4",
        source: "Documentation/networking/ip-sysctl.rst; net/ipv4/tcp.c, tcp_check_oom",
        effect: Effect::Now,
        scope: Scope::Host,
    },
    Knob {
        name: "thash_entries",
        place: Place::Boot("thash_entries", EHASH),
        group: Group::Capacity,
        unit: "hash buckets for sockets",
        default: "one per 128 KiB of RAM, at most 524288",
        formula: "a bucket for 4 sockets, to a power of two; more stay",
        wish: |goal| match goal.facts.number(EHASH) {
            Some(_) => at_least((goal.sockets() / 4).next_power_of_two()),
            None => keep("shared with the first network namespace"),
        },
        why: "each packet walks a bucket's chain of sockets: 38 long for 10 million connections",
        danger: "8 bytes each, for ever; nothing can change it while the machine runs",
        since: "2.4; shown from 6.1",
        source: "Documentation/admin-guide/kernel-parameters.txt; net/ipv4/tcp.c, tcp_init",
        effect: Effect::Boot,
        scope: Scope::Host,
    },
    Knob {
        name: "net.netfilter.nf_conntrack_max",
        place: Place::Sysctl("net.netfilter.nf_conntrack_max"),
        group: Group::Capacity,
        unit: "tracked flows",
        default: "as many as hash buckets",
        formula: "1.25 x sockets, 2 flows per connection; a higher one stays. Better: notrack",
        wish: |goal| match goal.facts.conntrack.as_ref().map(|conntrack| conntrack.count) {
            Some(1..) => at_least(goal.sockets() / 4 * 5),
            _ => keep("nothing is tracked here"),
        },
        why: "beyond it packets are dropped: \"nf_conntrack: table full\"",
        danger: "256 bytes each and 8 per bucket; set nf_conntrack_buckets too",
        since: "2.6.15",
        source: "Documentation/networking/nf_conntrack-sysctl.rst",
        effect: Effect::Now,
        scope: Scope::HostShown,
    },
    Knob {
        name: "net.netfilter.nf_conntrack_buckets",
        place: Place::Sysctl("net.netfilter.nf_conntrack_buckets"),
        group: Group::Capacity,
        unit: "hash buckets",
        default: "65536 above 1 GiB of RAM, 262144 above 4 GiB",
        formula: "as many as flows, to a power of two; more stays",
        wish: |goal| match goal.facts.conntrack.as_ref().map(|conntrack| conntrack.count) {
            Some(1..) => at_least((goal.sockets() / 4 * 5).next_power_of_two()),
            _ => keep("nothing is tracked here"),
        },
        why: "each packet walks a bucket's chain",
        danger: "8 bytes each, not swappable; resizing takes a moment",
        since: "2.6.15; writable from 4.7",
        source: "Documentation/networking/nf_conntrack-sysctl.rst",
        effect: Effect::Now,
        scope: Scope::HostShown,
    },
    Knob {
        name: "net.netfilter.nf_conntrack_tcp_timeout_established",
        place: Place::Sysctl("net.netfilter.nf_conntrack_tcp_timeout_established"),
        group: Group::Capacity,
        unit: "seconds",
        default: "432000 (5 days)",
        formula: "8040, a little over two hours and nine keepalive probes; a shorter one stays",
        wish: |goal| match goal.facts.conntrack.as_ref().map(|conntrack| conntrack.count) {
            Some(1..) => at_most(ESTABLISHED_S),
            _ => keep("nothing is tracked here"),
        },
        why: "flows whose ends vanished fill the table for days",
        danger: "shorter than timeouts.idle or a keepalive's interval, it cuts silent connections",
        since: "2.6.15",
        source: "Documentation/networking/nf_conntrack-sysctl.rst",
        effect: Effect::Now,
        scope: Scope::Netns,
    },
];

/// The widest of ours and the live one, above the privileged ports.
fn port_range(goal: &Goal<'_>) -> Wish {
    let first = goal
        .facts
        .number("net.ipv4.ip_unprivileged_port_start")
        .map_or(PORT_FIRST, |start| start.max(PORT_FIRST));
    let live = goal.facts.live.get("net.ipv4.ip_local_port_range").and_then(Value::numbers);
    match live.as_deref() {
        Some([low, high]) => Wish::Exactly(Value::of(&[first.min(*low), 65_535.max(*high)])),
        _ => Wish::Exactly(Value::of(&[first, 65_535])),
    }
}
