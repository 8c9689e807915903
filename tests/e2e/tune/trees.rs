//! Directories that stand for machines: what `/proc`, `/sys` and `/etc` would show there.

use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;

/// A machine to be.
pub(super) struct Tree {
    pub(super) dir: tempfile::TempDir,
}

impl Tree {
    /// Cores without hyperthreads, in nodes of equal size.
    pub(super) fn new(release: &str, cores: usize, nodes: usize, ram_gib: u64) -> Self {
        let tree = Self { dir: tempfile::tempdir().unwrap() };
        let last = cores - 1;
        tree.write("proc/sys/kernel/osrelease", release);
        tree.write("proc/meminfo", &format!("MemTotal: {} kB\nSwapTotal: 0 kB", ram_gib << 20));
        tree.write("proc/self/status", &format!("Name:\tx\nCpus_allowed_list:\t0-{last}"));
        tree.write("proc/self/cgroup", "0::/");
        tree.limits("524288", "8388608");
        tree.write("sys/devices/system/cpu/online", &format!("0-{last}"));
        let per_node = cores / nodes;
        for cpu in 0..cores {
            let topology = format!("sys/devices/system/cpu/cpu{cpu}/topology");
            let package = (cpu / per_node).to_string();
            tree.write(&format!("{topology}/physical_package_id"), &package);
            tree.write(&format!("{topology}/core_id"), &(cpu % per_node).to_string());
        }
        for node in 0..nodes {
            let (first, last) = (node * per_node, (node + 1) * per_node - 1);
            let folder = format!("sys/devices/system/node/node{node}");
            tree.write(&format!("{folder}/cpulist"), &format!("{first}-{last}"));
        }
        tree
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn write(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{text}\n")).unwrap();
    }

    pub(super) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(path)).unwrap().trim().to_owned()
    }

    fn limits(&self, nofile: &str, memlock: &str) {
        self.write(
            "proc/self/limits",
            &format!(
                "Limit Soft Hard Units\nMax open files {nofile} {nofile} files\n\
                 Max locked memory {memlock} {memlock} bytes"
            ),
        );
    }

    /// A sysctl, by its dotted name.
    pub(super) fn sysctl(&self, name: &str, value: &str) -> &Self {
        self.write(&format!("proc/sys/{}", name.replace('.', "/")), value);
        self
    }

    /// What every kernel since 6.1 shows in a network namespace.
    pub(super) fn network_defaults(&self) -> &Self {
        for (name, value) in [
            ("net.core.somaxconn", "4096"),
            ("net.ipv4.tcp_rmem", "4096\t131072\t6291456"),
            ("net.ipv4.tcp_wmem", "4096\t16384\t4194304"),
            ("net.ipv4.tcp_notsent_lowat", "4294967295"),
            ("net.ipv4.ip_local_port_range", "32768\t60999"),
            ("net.ipv4.ip_unprivileged_port_start", "1024"),
            ("net.ipv4.tcp_tw_reuse", "2"),
            ("net.ipv4.tcp_max_tw_buckets", "262144"),
            ("net.ipv4.tcp_migrate_req", "0"),
            ("net.ipv4.tcp_syncookies", "1"),
            ("net.ipv4.tcp_fin_timeout", "60"),
            ("net.ipv4.tcp_retries2", "15"),
            ("net.ipv4.tcp_timestamps", "1"),
            ("net.ipv4.tcp_sack", "1"),
            ("net.ipv4.tcp_shrink_window", "0"),
            ("net.ipv4.tcp_ehash_entries", "524288"),
        ] {
            self.sysctl(name, value);
        }
        self
    }

    /// What only the host shows.
    pub(super) fn host_defaults(&self) -> &Self {
        for (name, value) in [
            ("fs.file-max", "9223372036854775807"),
            ("fs.file-nr", "2048\t0\t9223372036854775807"),
            ("fs.nr_open", "1048576"),
            ("net.ipv4.tcp_mem", "3087744\t4116994\t6175488"),
            ("net.ipv4.tcp_max_orphans", "262144"),
            ("net.core.netdev_max_backlog", "1000"),
            ("net.core.netdev_budget", "300"),
            ("net.core.netdev_budget_usecs", "8000"),
            ("net.core.rps_sock_flow_entries", "0"),
            ("vm.swappiness", "60"),
            ("vm.zone_reclaim_mode", "0"),
            ("kernel.numa_balancing", "1"),
            ("kernel.io_uring_disabled", "0"),
        ] {
            self.sysctl(name, value);
        }
        self
    }

    /// A card with one interrupt for each queue, all of which may go anywhere.
    pub(super) fn card(&self, name: &str, driver: &str, queues: usize, node: i32) -> &Self {
        let folder = format!("sys/class/net/{name}");
        self.write(&format!("{folder}/operstate"), "up");
        self.write(&format!("{folder}/device/numa_node"), &node.to_string());
        let drivers = self.dir.path().join("sys/bus/pci/drivers").join(driver);
        std::fs::create_dir_all(&drivers).unwrap();
        symlink(drivers, self.dir.path().join(&folder).join("device/driver")).unwrap();
        let cpus = self.read("sys/devices/system/cpu/online");
        let mut interrupts = String::from("  9:   0   IO-APIC   9-fasteoi   acpi\n");
        let mut line = |irq: usize, what: &str| {
            writeln!(interrupts, "{irq:>3}:   7   IR-PCI-MSIX-0000:41:00.0   {irq}-edge   {what}")
                .unwrap();
            self.write(&format!("{folder}/device/msi_irqs/{irq}"), "msix");
            self.write(&format!("proc/irq/{irq}/smp_affinity_list"), &cpus);
        };
        line(100, &format!("{driver}_async0@pci:0000:41:00.0"));
        for queue in 0..queues {
            line(101 + queue, &format!("{driver}_comp{queue}@pci:0000:41:00.0"));
            self.write(&format!("{folder}/queues/rx-{queue}/rps_cpus"), "0");
            self.write(&format!("{folder}/queues/rx-{queue}/rps_flow_cnt"), "0");
            self.write(&format!("{folder}/queues/tx-{queue}/xps_cpus"), "0");
        }
        self.write("proc/interrupts", interrupts.trim_end());
        self
    }
}

/// 64 cores in two nodes, 256 GiB, and a 100 Gbit/s card that offers one queue less than cores.
pub(super) fn big() -> Tree {
    let tree = Tree::new("6.12.9-amd64", 64, 2, 256);
    tree.network_defaults().host_defaults().card("ens1f0", "mlx5", 63, 1);
    tree.write("sys/class/net/ens1f0/speed", "100000");
    tree.write("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet");
    tree.write("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave");
    tree
}

/// A container on 16 cores that may use 4 CPUs' time and 4 GiB, with its own network namespace.
pub(super) fn container() -> Tree {
    let tree = Tree::new("6.8.0-generic", 16, 1, 64);
    tree.network_defaults();
    tree.sysctl("fs.nr_open", "1048576").sysctl("fs.file-max", "1000000");
    tree.write("proc/self/cgroup", "0::/kubepods/pod1/box");
    tree.write("sys/fs/cgroup/kubepods/pod1/box/memory.max", "max");
    tree.write("sys/fs/cgroup/kubepods/pod1/memory.max", &(4_u64 << 30).to_string());
    tree.write("sys/fs/cgroup/kubepods/pod1/box/cpu.max", "400000 100000");
    tree.write("run/.containerenv", "");
    tree.write("sys/class/net/eth0/operstate", "up");
    tree.write("sys/class/net/eth0/queues/rx-0/rps_cpus", "0");
    tree
}

/// A kernel older than what Portcullis needs, with what guides say in its files.
pub(super) fn old() -> Tree {
    let tree = Tree::new("4.19.0-27-amd64", 8, 1, 32);
    tree.network_defaults().host_defaults();
    tree.sysctl("net.core.somaxconn", "128").sysctl("net.ipv4.tcp_timestamps", "0");
    tree.sysctl("net.ipv4.tcp_mem", "16777216 16777216 16777216");
    for newer in
        ["kernel/io_uring_disabled", "net/ipv4/tcp_migrate_req", "net/ipv4/tcp_shrink_window"]
    {
        std::fs::remove_file(tree.path().join("proc/sys").join(newer)).unwrap();
    }
    tree.write(
        "etc/sysctl.d/60-guide.conf",
        "net.ipv4.tcp_tw_recycle = 1\nnet.ipv4.tcp_timestamps=0\nnet.core.rmem_max = 16777216\n\
         net.ipv4.tcp_max_syn_backlog = 65536",
    );
    tree
}
