//! Evidence: settings that guides raise on every machine. Here a counter of this machine must say
//! that the default is too low; otherwise it stays.

use super::{Effect, Group, Knob, Place, Scope, Wish, at_least, exactly, keep};
use crate::tune::goal::{Goal, Profile};

const BASE: Knob = Knob {
    name: "",
    place: Place::Sysctl(""),
    group: Group::Evidence,
    unit: "packets",
    default: "",
    formula: "",
    wish: |_| Wish::Keep(String::new()),
    why: "",
    danger: "",
    since: "2.4",
    source: "Documentation/admin-guide/sysctl/net.rst",
    effect: Effect::Now,
    scope: Scope::Host,
};

pub(super) const KNOBS: [Knob; 6] = [
    Knob {
        name: "net.core.netdev_max_backlog",
        place: Place::Sysctl("net.core.netdev_max_backlog"),
        default: "1000",
        formula: "10000 when the second column of /proc/net/softnet_stat is not 0; more stays",
        wish: |goal| when(goal, "softnet_dropped", || at_least(10_000)),
        why: "queue of a CPU for packets that another one received (RPS), and of loopback and veth",
        danger: "network cards with a queue per core do not use it; a long queue is latency",
        source: "net/core/dev.c, enqueue_to_backlog",
        ..BASE
    },
    Knob {
        name: "net.core.netdev_budget",
        place: Place::Sysctl("net.core.netdev_budget"),
        default: "300",
        formula: "600 when 1 % of the packets came in rounds that were cut short (third column of \
                  softnet_stat); more stays",
        wish: |goal| squeezed(goal, || at_least(600)),
        why: "packets that a CPU takes in one round before it looks at anything else",
        danger: "the worker on that CPU waits for the round's end",
        since: "2.6.12",
        ..BASE
    },
    Knob {
        name: "net.core.netdev_budget_usecs",
        place: Place::Sysctl("net.core.netdev_budget_usecs"),
        unit: "microseconds",
        default: "2 ticks: 2000 at 1000 Hz, 8000 at 250 Hz",
        formula: "8000 when rounds are cut short; more stays",
        wish: |goal| squeezed(goal, || at_least(8000)),
        why: "time of such a round",
        danger: "as netdev_budget",
        since: "4.12",
        ..BASE
    },
    Knob {
        name: "net.core.rps_sock_flow_entries",
        place: Place::Sysctl("net.core.rps_sock_flow_entries"),
        unit: "flows",
        default: "0 (off)",
        formula: "32768 on a machine whose card has fewer queues than there are workers; more \
                  stays",
        wish: |goal| {
            let short = goal
                .facts
                .nics
                .iter()
                .any(|nic| nic.driver.is_some() && nic.rx_queues < goal.shape.workers.min(2));
            if short { at_least(32_768) } else { keep("the card has a queue per worker") }
        },
        why: "with one queue for several workers, RFS hands a packet to the CPU of its worker; \
              each queue's rps_cpus and rps_flow_cnt must be set as well (portcullis-nic@.service)",
        danger: "one more interrupt per packet; useless with a queue per worker",
        since: "2.6.35",
        source: "Documentation/networking/scaling.rst",
        ..BASE
    },
    Knob {
        name: "net.ipv4.tcp_orphan_retries",
        place: Place::Sysctl("net.ipv4.tcp_orphan_retries"),
        unit: "repetitions; 0 means 8",
        default: "0",
        formula: "3 when closed sockets exceed half of tcp_max_orphans on a big machine",
        wish: |goal| {
            let most = goal.facts.number("net.ipv4.tcp_max_orphans").unwrap_or(u64::MAX);
            let many = goal.facts.counter("tcp_orphan") > most / 2;
            if many && goal.profile == Profile::BigEdge {
                exactly(3)
            } else {
                keep("few closed sockets wait for their last bytes")
            }
        },
        why: "closed sockets whose peer is gone leave sooner",
        danger: "the last bytes of an answer are lost on bad paths",
        source: "tcp(7)",
        scope: Scope::Netns,
        ..BASE
    },
    Knob {
        name: "net.ipv4.tcp_shrink_window",
        place: Place::Sysctl("net.ipv4.tcp_shrink_window"),
        unit: "0 off, 1 on",
        default: "0",
        formula: "1 when TCP ran into memory pressure (TCPMemoryPressures)",
        wish: |goal| when(goal, "TCPMemoryPressures", || exactly(1)),
        why: "a receive window that was promised may be taken back, so that memory stays bounded",
        danger: "some peers take a shrinking window for an error",
        since: "6.5, and stable updates of 6.1",
        source: "Documentation/networking/ip-sysctl.rst",
        scope: Scope::Netns,
        ..BASE
    },
];

/// A wish, where a counter speaks for it.
fn when(goal: &Goal<'_>, counter: &str, wish: impl Fn() -> Wish) -> Wish {
    match goal.facts.counter(counter) {
        0 => Wish::Keep(format!("no evidence: {counter} is 0")),
        _ => wish(),
    }
}

/// A few rounds that are cut short are normal. One that is has taken the default budget of 300.
fn squeezed(goal: &Goal<'_>, wish: impl Fn() -> Wish) -> Wish {
    let (cut, packets) =
        (goal.facts.counter("softnet_squeezed"), goal.facts.counter("softnet_packets"));
    if cut.saturating_mul(300) <= packets / 100 {
        return Wish::Keep(format!("no evidence: {cut} rounds cut short in {packets} packets"));
    }
    wish()
}
