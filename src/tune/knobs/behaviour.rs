//! Behaviour: how connections live and end, and what the machine does beside them.

use super::{Effect, Group, Knob, Place, Scope, Wish, at_least, at_most, exactly, keep};
use crate::tune::goal::Profile;
use crate::tune::value::Value;

const IP_SYSCTL: &str = "Documentation/networking/ip-sysctl.rst";

/// What most entries here are; each says only what is its own.
const BASE: Knob = Knob {
    name: "",
    place: Place::Sysctl(""),
    group: Group::Behaviour,
    unit: "0 off, 1 on",
    default: "1",
    formula: "1",
    wish: |_| exactly(1),
    why: "",
    danger: "",
    since: "2.2",
    source: IP_SYSCTL,
    effect: Effect::Now,
    scope: Scope::Netns,
};

pub(super) const KNOBS: [Knob; 25] = [
    Knob {
        name: "net.ipv4.tcp_migrate_req",
        place: Place::Sysctl("net.ipv4.tcp_migrate_req"),
        default: "0",
        why: "when a worker's listener closes, the connections in its queue go to another worker's \
              instead of being reset",
        danger: "none here: all workers' listeners have the same options, as it demands",
        since: "5.14",
        source: "net/core/sock_reuseport.c; bench/RESULTS.md, Tuning",
        ..BASE
    },
    Knob {
        name: "net.ipv4.tcp_syncookies",
        place: Place::Sysctl("net.ipv4.tcp_syncookies"),
        unit: "0 off, 1 when the queue is full, 2 always",
        why: "a SYN flood fills the queue; cookies need no place in it",
        danger: "2 is for tests: no large windows without timestamps",
        ..BASE
    },
    Knob {
        name: "net.ipv4.tcp_synack_retries",
        place: Place::Sysctl("net.ipv4.tcp_synack_retries"),
        unit: "repetitions",
        default: "5 (63 s)",
        formula: "3 (15 s); fewer stay",
        wish: |_| at_most(3),
        why: "a SYN that nobody follows up holds its place in the queue for 15 s, not 63 s",
        danger: "clients on very lossy paths have fewer tries",
        ..BASE
    },
    Knob {
        name: "net.ipv4.tcp_abort_on_overflow",
        place: Place::Sysctl("net.ipv4.tcp_abort_on_overflow"),
        default: "0",
        formula: "0",
        wish: |_| exactly(0),
        why: "a burst that fills the queue passes when the client repeats itself",
        danger: "1 makes each burst visible to clients as a reset",
        since: "2.4",
        ..BASE
    },
    Knob {
        name: "net.ipv4.tcp_fin_timeout",
        place: Place::Sysctl("net.ipv4.tcp_fin_timeout"),
        unit: "seconds in FIN-WAIT-2",
        default: "60",
        formula: "20; less stays, but not 0",
        wish: |goal| match goal.facts.number("net.ipv4.tcp_fin_timeout") {
            Some(0) => exactly(20),
            _ => at_most(20),
        },
        why: "peers that never close their side hold closed sockets",
        danger: "does not shorten TIME-WAIT, which is 60 s in all kernels",
        ..BASE
    },
    Knob {
        name: "net.ipv4.tcp_keepalive_time",
        place: Place::Sysctl("net.ipv4.tcp_keepalive_time"),
        unit: "seconds of silence",
        default: "7200",
        formula: "600; less stays",
        wish: |_| at_most(600),
        why: "counts for sockets with SO_KEEPALIVE only; NAT boxes forget a silent flow sooner",
        danger: "1,000,000 such connections are 1,700 probes a second",
        ..BASE
    },
    Knob {
        name: "net.ipv4.tcp_keepalive_intvl",
        place: Place::Sysctl("net.ipv4.tcp_keepalive_intvl"),
        unit: "seconds between probes",
        default: "75",
        formula: "30; less stays",
        wish: |_| at_most(30),
        why: "with 5 probes a dead peer is found after 150 s",
        danger: "an outage of 150 s ends what is silent",
        since: "2.4",
        ..BASE
    },
    Knob {
        name: "net.ipv4.tcp_keepalive_probes",
        place: Place::Sysctl("net.ipv4.tcp_keepalive_probes"),
        unit: "probes",
        default: "9",
        formula: "5; fewer stay",
        wish: |_| at_most(5),
        why: "with 30 s between them a dead peer is found after 150 s",
        danger: "fewer end what a short outage only silences",
        ..BASE
    },
    Knob {
        name: "net.ipv4.tcp_retries2",
        place: Place::Sysctl("net.ipv4.tcp_retries2"),
        unit: "repetitions",
        default: "15 (924 s)",
        formula: "8 (100 s)",
        wish: |_| exactly(8),
        why: "a peer that vanished holds its buffers for 100 s, not a quarter of an hour",
        danger: "an outage of 100 s ends busy connections; RFC 1122 wants no less",
        ..BASE
    },
    Knob {
        name: "net.ipv4.tcp_slow_start_after_idle",
        place: Place::Sysctl("net.ipv4.tcp_slow_start_after_idle"),
        formula: "0",
        wish: |_| exactly(0),
        why: "a kept connection answers its next request at the speed it had",
        danger: "bursts into shallow buffers; pacing (fq) smooths them",
        since: "2.6.18",
        ..BASE
    },
    Knob {
        name: "net.ipv4.tcp_mtu_probing",
        place: Place::Sysctl("net.ipv4.tcp_mtu_probing"),
        unit: "0 off, 1 when a path loses large packets, 2 always",
        default: "0",
        why: "paths that drop the ICMP messages about packet sizes otherwise hang",
        danger: "on a path that loses packets for other reasons, they become smaller",
        since: "2.6.17",
        ..BASE
    },
    Knob {
        name: "net.ipv4.tcp_ecn",
        place: Place::Sysctl("net.ipv4.tcp_ecn"),
        unit: "0 off, 1 ask and accept, 2 accept",
        default: "2",
        formula: "the kernel's",
        wish: |_| keep("accepted when asked for; to ask is a choice about networks"),
        why: "routers tell of congestion without dropping",
        danger: "some middle boxes drop what asks for it",
        since: "2.4",
        ..BASE
    },
    Knob {
        name: "net.ipv4.tcp_congestion_control",
        place: Place::Sysctl("net.ipv4.tcp_congestion_control"),
        unit: "an algorithm's name",
        default: "cubic, unless the kernel was built with another",
        formula: "the kernel's",
        wish: |_| keep("a choice about networks and fairness, not about capacity"),
        why: "bbr keeps its speed on paths that lose packets",
        danger: "bbr takes more than its share where buffers are short, and is best with \
                 net.core.default_qdisc = fq",
        since: "2.6.13",
        effect: Effect::NewSockets,
        ..BASE
    },
    Knob {
        name: "net.core.default_qdisc",
        place: Place::Sysctl("net.core.default_qdisc"),
        unit: "a queueing discipline's name",
        default: "pfifo_fast; systemd sets fq_codel",
        formula: "the kernel's",
        wish: |_| keep("fq is worth it with bbr only"),
        why: "fq paces each flow, which bbr relies on before Linux 4.13",
        danger: "counts for interfaces made afterwards: tc qdisc replace dev eth0 root mq",
        since: "3.12",
        source: "Documentation/admin-guide/sysctl/net.rst",
        effect: Effect::Boot,
        scope: Scope::Host,
        ..BASE
    },
    Knob {
        name: "net.ipv4.tcp_fastopen",
        place: Place::Sysctl("net.ipv4.tcp_fastopen"),
        unit: "bits: 1 client, 2 server",
        formula: "the kernel's",
        wish: |_| keep("Portcullis does not use it"),
        why: "data in the SYN saves a round trip",
        danger: "middle boxes lose such packets",
        since: "3.7",
        effect: Effect::Listen,
        ..BASE
    },
    Knob {
        name: "net.ipv4.tcp_timestamps",
        place: Place::Sysctl("net.ipv4.tcp_timestamps"),
        unit: "0 off, 1 on with random offsets, 2 on without",
        why: "round-trip times, protection against old packets, tcp_tw_reuse and SYN cookies need \
              it",
        danger: "0 saves 12 bytes a packet and costs all of those",
        ..BASE
    },
    Knob {
        name: "net.ipv4.tcp_sack",
        place: Place::Sysctl("net.ipv4.tcp_sack"),
        why: "after a loss only what is missing is repeated",
        danger: "0 was a stopgap for CVE-2019-11477 in kernels of 2019",
        ..BASE
    },
    Knob {
        name: "net.ipv4.tcp_window_scaling",
        place: Place::Sysctl("net.ipv4.tcp_window_scaling"),
        why: "windows above 64 KiB",
        danger: "0 is 5 Mbit/s per connection at 100 ms",
        ..BASE
    },
    Knob {
        name: "net.ipv4.tcp_moderate_rcvbuf",
        place: Place::Sysctl("net.ipv4.tcp_moderate_rcvbuf"),
        why: "receive buffers grow only for who needs it",
        danger: "0 leaves all of them at the first value of tcp_rmem",
        since: "2.6.7",
        ..BASE
    },
    Knob {
        name: "vm.swappiness",
        place: Place::Sysctl("vm.swappiness"),
        unit: "0 to 200",
        default: "60",
        formula: "10; 1 at 100 Gbit/s; less stays",
        wish: |goal| at_most(if goal.profile == Profile::BigEdge { 1 } else { 10 }),
        why: "a worker whose page is on disk stops all its connections",
        danger: "at 0 the kernel kills before it swaps",
        since: "2.6",
        source: "Documentation/admin-guide/sysctl/vm.rst",
        scope: Scope::Host,
        ..BASE
    },
    Knob {
        name: "vm.min_free_kbytes",
        place: Place::Sysctl("vm.min_free_kbytes"),
        unit: "KiB",
        default: "the root of 16 x RAM in KiB, at most 262144",
        formula: "a 256th of RAM, at most 1 GiB; none for a small machine; more stays",
        wish: |goal| match goal.profile {
            Profile::SmallVm => keep("the kernel's fits small machines"),
            Profile::Edge | Profile::BigEdge => {
                at_least((goal.facts.memory.total_bytes >> 18).min(1 << 20))
            }
        },
        why: "packets are received in interrupts, which cannot wait for memory",
        danger: "it is taken from everything else; more than 5 % of RAM invites the OOM killer",
        since: "2.6",
        source: "Documentation/admin-guide/sysctl/vm.rst",
        scope: Scope::Host,
        ..BASE
    },
    Knob {
        name: "vm.zone_reclaim_mode",
        place: Place::Sysctl("vm.zone_reclaim_mode"),
        unit: "bits",
        default: "0",
        formula: "0",
        wish: |_| exactly(0),
        why: "with 1 a node that is full stalls its threads though the other has room",
        danger: "none",
        since: "2.6.16",
        source: "Documentation/admin-guide/sysctl/vm.rst",
        scope: Scope::Host,
        ..BASE
    },
    Knob {
        name: "kernel.numa_balancing",
        place: Place::Sysctl("kernel.numa_balancing"),
        default: "1 where there are several nodes",
        formula: "0",
        wish: |_| exactly(0),
        why: "pinned threads with their own memory gain nothing, and each sample is a page fault",
        danger: "other programs on the machine that are not pinned may lose",
        since: "3.13",
        source: "Documentation/admin-guide/sysctl/kernel.rst",
        scope: Scope::Host,
        ..BASE
    },
    Knob {
        name: "kernel.io_uring_disabled",
        place: Place::Sysctl("kernel.io_uring_disabled"),
        unit: "0 for all, 1 for root and the group io_uring_group, 2 for nobody",
        default: "0",
        formula: "at most 1; 2 forbids Portcullis to start",
        wish: |_| at_most(1),
        why: "1 with io_uring_group set to the service's group lets nobody else use io_uring",
        danger: "2 keeps root out as well; a group alone needs io_uring_group and 1",
        since: "6.6",
        source: "Documentation/admin-guide/sysctl/kernel.rst",
        effect: Effect::Restart,
        scope: Scope::Host,
        ..BASE
    },
    Knob {
        name: "transparent_hugepage",
        place: Place::Choice("/sys/kernel/mm/transparent_hugepage/enabled"),
        unit: "always, madvise or never",
        default: "madvise or always, as the distribution chose",
        formula: "madvise, where it is always",
        wish: |goal| match goal.facts.live.get("transparent_hugepage").map(Value::as_str) {
            Some("always") => Wish::Exactly(Value::parse("madvise")),
            _ => keep("not always"),
        },
        why: "with always, many small allocations become many half-empty pages of 2 MiB",
        danger: "other programs that gain from it must ask for it (madvise)",
        since: "2.6.38",
        source: "Documentation/admin-guide/mm/transhuge.rst",
        scope: Scope::Host,
        ..BASE
    },
];
