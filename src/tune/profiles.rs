//! The machines that the files in `sysctl/` are made for, and those files.

use std::collections::BTreeMap;

use super::detect::Facts;
use super::detect::cpu::Cpu;
use super::detect::kernel::{IoUring, Kernel, Limits};
use super::detect::memory::Memory;
use super::detect::nic::Nic;
use super::detect::settings::Settings;
use super::files::{self, Persisted};
use super::goal::{Goal, Profile, Wishes};
use super::plan;
use super::value::Value;

/// A machine as its profile imagines it, with the defaults of Linux 6.12.
struct Machine {
    cores: usize,
    nodes: usize,
    ram_gib: u64,
    speed_mbit: u64,
    queues: usize,
}

fn machine(profile: Profile) -> Machine {
    match profile {
        Profile::SmallVm => Machine { cores: 4, nodes: 1, ram_gib: 8, speed_mbit: 1000, queues: 1 },
        Profile::Edge => {
            Machine { cores: 16, nodes: 1, ram_gib: 64, speed_mbit: 25_000, queues: 16 }
        }
        Profile::BigEdge => {
            Machine { cores: 64, nodes: 2, ram_gib: 256, speed_mbit: 100_000, queues: 64 }
        }
    }
}

/// What such a machine would tell.
pub fn facts(profile: Profile) -> Facts {
    let machine = machine(profile);
    let cpus: Vec<usize> = (0..machine.cores).collect();
    let node = |cpus: &[usize]| cpus.to_vec();
    Facts {
        cpu: Cpu {
            online: cpus.clone(),
            allowed: cpus.clone(),
            nodes: cpus.chunks(machine.cores / machine.nodes).map(node).collect(),
            cores: cpus,
            clocksource: Some("tsc".to_owned()),
            governor: None,
            quota_percent: None,
        },
        memory: Memory { total_bytes: machine.ram_gib << 30, cgroup_bytes: None, swap_bytes: 0 },
        nics: vec![Nic {
            name: "eth0".to_owned(),
            driver: Some("any".to_owned()),
            speed_mbit: Some(machine.speed_mbit),
            node: Some(0),
            rx_queues: machine.queues,
            tx_queues: machine.queues,
            queues_max: None,
            rss_queues: None,
            irqs: Vec::new(),
            rps_queues: 0,
            xps_queues: 0,
        }],
        kernel: Kernel {
            release: "6.12".to_owned(),
            first_network_namespace: true,
            container: None,
            hypervisor: None,
            io_uring: IoUring::Unknown,
        },
        limits: Limits { nofile: Some(524_288), memlock: Some(8 << 20) },
        conntrack: None,
        evidence: BTreeMap::new(),
        settings: Settings::default(),
        live: defaults(machine.ram_gib << 30),
    }
}

/// What Linux 6.12 sets by itself with so much RAM; what is not here is not looked at.
fn defaults(ram: u64) -> BTreeMap<String, Value> {
    let tcp_max = ram / 4096 * 3 / 32;
    // Half of the established hash's buckets: one for each 128 KiB, at most 524,288.
    let half_buckets = (ram >> 17).min(524_288) / 2;
    let min_free_kib = (ram / 1024 * 16).isqrt().min(262_144);
    let texts = [
        ("fs.file-max", "9223372036854775807".to_owned()),
        ("fs.nr_open", "1048576".to_owned()),
        ("net.ipv4.tcp_mem", format!("{} {} {tcp_max}", tcp_max / 2, tcp_max / 3 * 2)),
        ("net.ipv4.tcp_rmem", "4096 131072 6291456".to_owned()),
        ("net.ipv4.tcp_wmem", "4096 16384 4194304".to_owned()),
        ("net.ipv4.tcp_notsent_lowat", "4294967295".to_owned()),
        ("net.ipv4.ip_local_port_range", "32768 60999".to_owned()),
        ("net.ipv4.tcp_tw_reuse", "2".to_owned()),
        ("net.core.somaxconn", "4096".to_owned()),
        ("net.ipv4.tcp_max_tw_buckets", half_buckets.to_string()),
        ("net.ipv4.tcp_max_orphans", half_buckets.to_string()),
        ("thash_entries", (half_buckets * 2).to_string()),
        ("net.ipv4.tcp_ehash_entries", (half_buckets * 2).to_string()),
        ("net.ipv4.tcp_congestion_control", "cubic".to_owned()),
        ("net.core.default_qdisc", "fq_codel".to_owned()),
        ("net.ipv4.tcp_migrate_req", "0".to_owned()),
        ("net.ipv4.tcp_syncookies", "1".to_owned()),
        ("net.ipv4.tcp_synack_retries", "5".to_owned()),
        ("net.ipv4.tcp_abort_on_overflow", "0".to_owned()),
        ("net.ipv4.tcp_fin_timeout", "60".to_owned()),
        ("net.ipv4.tcp_keepalive_time", "7200".to_owned()),
        ("net.ipv4.tcp_keepalive_intvl", "75".to_owned()),
        ("net.ipv4.tcp_keepalive_probes", "9".to_owned()),
        ("net.ipv4.tcp_retries2", "15".to_owned()),
        ("net.ipv4.tcp_slow_start_after_idle", "1".to_owned()),
        ("net.ipv4.tcp_mtu_probing", "0".to_owned()),
        ("net.ipv4.tcp_ecn", "2".to_owned()),
        ("net.ipv4.tcp_fastopen", "1".to_owned()),
        ("net.ipv4.tcp_timestamps", "1".to_owned()),
        ("net.ipv4.tcp_sack", "1".to_owned()),
        ("net.ipv4.tcp_window_scaling", "1".to_owned()),
        ("net.ipv4.tcp_moderate_rcvbuf", "1".to_owned()),
        ("vm.swappiness", "60".to_owned()),
        ("vm.min_free_kbytes", min_free_kib.to_string()),
        ("vm.zone_reclaim_mode", "0".to_owned()),
        // What a machine with several nodes starts with.
        ("kernel.numa_balancing", "1".to_owned()),
        ("kernel.io_uring_disabled", "0".to_owned()),
        ("net.core.netdev_max_backlog", "1000".to_owned()),
        ("net.core.netdev_budget", "300".to_owned()),
        ("net.core.netdev_budget_usecs", "8000".to_owned()),
        ("net.core.rps_sock_flow_entries", "0".to_owned()),
        ("net.ipv4.tcp_orphan_retries", "0".to_owned()),
        ("net.ipv4.tcp_shrink_window", "0".to_owned()),
    ];
    texts.into_iter().map(|(name, text)| (name.to_owned(), Value::parse(&text))).collect()
}

/// The files of a profile, by their paths below `sysctl/`.
pub fn files(profile: Profile) -> Vec<Persisted> {
    let facts = facts(profile);
    let goal = Goal::new(&facts, &Wishes { profile: Some(profile), ..Wishes::default() });
    let rows = plan::rows(&goal);
    let set: Vec<plan::Row> =
        rows.iter().filter(|row| matches!(row.advice, plan::Advice::Set(_))).cloned().collect();
    let machine = machine(profile);
    let (name, speed) = (profile.name(), machine.speed_mbit / 1000);
    let header = format!(
        "Portcullis, profile {name}: {} connections on {} cores, {} GiB of RAM and {speed} Gbit/s, \
         from the defaults of Linux 6.12. Generated from src/tune/knobs, like `portcullis tune \
         plan`, which computes the same for the machine at hand: prefer that where you can.",
        goal.connections, machine.cores, machine.ram_gib
    );
    let buckets = (goal.sockets() / 4 * 5).next_power_of_two();
    let untracked =
        "Off until you uncomment it: with portcullis-notrack.nft the default is enough.";
    let modprobe = files::modprobe_d(&format!("{header} {untracked}"), buckets)
        .replace("\noptions", "\n#options");
    let sysctl = files::sysctl_d(&set, &header) + &files::left_alone(&rows);
    [
        ("99-zz-portcullis.conf", sysctl),
        ("portcullis.service.d/50-portcullis-tune.conf", files::unit_d(&set, &header)),
        ("limits.d/50-portcullis.conf", files::limits_d(&set, &header)),
        ("modules-load.d/portcullis.conf", files::modules_load_d(&header)),
        ("modprobe.d/portcullis.conf", modprobe),
        ("portcullis-notrack.nft", files::notrack(&header)),
        ("portcullis-nic@.service", files::nic_unit(&goal, &header)),
    ]
    .into_iter()
    .map(|(path, text)| Persisted { path: format!("{name}/{path}"), text })
    .collect()
}
