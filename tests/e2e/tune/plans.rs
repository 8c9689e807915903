//! What is found on other machines, and what is proposed for them.

use super::trees::{self, Tree};
use super::{assert_fits, json, named, tune};
use crate::support::process::{all, text};

#[test]
fn a_big_machine_is_told_about_its_missing_queue_and_its_nodes() {
    let tree = trees::big();
    let facts = json(&tune(tree.path(), &["detect", "--format", "json"]));
    assert_eq!(facts["cpu"]["cores"].as_array().unwrap().len(), 64);
    assert_eq!(facts["cpu"]["nodes"].as_array().unwrap().len(), 2);
    let card = named(&facts["nics"], "ens1f0");
    assert_eq!((&card["driver"], &card["speed_mbit"]), (&"mlx5".into(), &100_000.into()));
    assert_eq!((&card["rx_queues"], &card["node"]), (&63.into(), &1.into()));
    assert_eq!(card["irqs"].as_array().unwrap().len(), 63, "async0 serves no queue");

    let plan = tune(tree.path(), &["plan"]);
    assert_fits(&plan);
    // Sentences are wrapped.
    let words = text(&plan.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "profile big-edge",
        "63 receive queues for 64 workers",
        "workers.count = 63",
        "NUMA node 1 (CPU 32-63)",
        "63 of 63 interrupts of ens1f0",
        "clock source is hpet",
        "governor is powersave",
    ] {
        assert!(words.contains(part), "no {part:?}: {words}");
    }
}

#[test]
fn a_big_machine_gets_values_by_the_formulas() {
    let tree = trees::big();
    let plan = json(&tune(tree.path(), &["plan", "--connections", "10000000", "--format", "json"]));
    let wanted = |name: &str| named(&plan["settings"], name)["wanted"].clone();
    // 2 x 10,000,000 / 64 = 312,500 descriptors, 32 for the listener, 64 besides; 10 % more.
    assert_eq!(wanted("LimitNOFILE"), "524288");
    // A fifth of 256 GiB in pages would be 13,421,772.
    assert_eq!(wanted("net.ipv4.tcp_mem"), "6710886 8947848 13421772");
    // 20,000,000 sockets, 4 in a bucket.
    assert_eq!(wanted("thash_entries"), "8388608");
    assert_eq!(wanted("net.core.somaxconn"), "65535");
    assert_eq!(wanted("net.ipv4.tcp_max_orphans"), "1250000");
    assert_eq!(wanted("kernel.numa_balancing"), "0");
    // Without evidence no guide's number.
    for name in ["net.core.netdev_max_backlog", "net.core.netdev_budget"] {
        assert_eq!(named(&plan["settings"], name)["verdict"], "keep", "{name}");
    }
    let first = &plan["ceilings"][0];
    assert_eq!(first["name"], "local ports to servers", "{:#}", plan["ceilings"]);
    assert_eq!((&first["connections"], &first["planned"]), (&28_232.into(), &55_536.into()));
}

#[test]
fn evidence_makes_the_difference() {
    let tree = trees::big();
    // Packets, drops and cut rounds of two CPUs, in hexadecimal.
    tree.write("proc/net/softnet_stat", "00002710 00000003 000000ff\n00002710 00000000 00000000");
    let plan = json(&tune(tree.path(), &["plan", "--format", "json"]));
    let verdict = |name: &str| named(&plan["settings"], name)["wanted"].clone();
    assert_eq!(verdict("net.core.netdev_max_backlog"), "10000");
    assert_eq!(verdict("net.core.netdev_budget"), "600");
}

#[test]
fn a_container_gets_what_its_control_group_allows_and_no_host_setting() {
    let tree = trees::container();
    let output = tune(tree.path(), &["plan", "--format", "json"]);
    let plan = json(&output);
    let mem = named(&plan["settings"], "net.ipv4.tcp_mem");
    assert_eq!(mem["verdict"], "absent");
    assert!(mem["reason"].as_str().unwrap().contains("on the host"), "{mem}");
    assert_eq!(named(&plan["settings"], "net.ipv4.tcp_migrate_req")["verdict"], "set");
    let ram = named(&plan["ceilings"], "memory of the control group");
    assert_eq!(ram["live"], "4.0 GiB");
    let notes = plan["notes"].to_string();
    assert!(notes.contains("4.00 CPUs to 16 workers"), "{notes}");
    assert!(notes.contains("podman container"), "{notes}");
    let detect = tune(tree.path(), &["detect"]);
    assert_fits(&detect);
    assert!(text(&detect.stdout).contains("not the first network namespace"), "{}", all(&detect));
}

#[test]
fn an_old_kernel_is_told_so_and_folklore_is_called_by_name() {
    let tree = trees::old();
    let plan = tune(tree.path(), &["plan"]);
    assert_fits(&plan);
    let words = text(&plan.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "Linux 4.19.0-27-amd64 is too old",
        "net.ipv4.tcp_migrate_req: this kernel has no such setting",
        "net.ipv4.tcp_tw_recycle = 1 (/etc/sysctl.d/60-guide.conf): dropped clients behind NAT",
        "net.ipv4.tcp_mem = 16777216 16777216 16777216 (live): it counts pages of 4 KiB",
        "net.ipv4.tcp_timestamps = 0 (/etc/sysctl.d/60-guide.conf)",
        "net.core.rmem_max = 16777216",
        "net.ipv4.tcp_max_syn_backlog = 65536",
    ] {
        assert!(words.contains(part), "no {part:?}: {words}");
    }
    let json = json(&tune(tree.path(), &["plan", "--format", "json"]));
    assert_eq!(named(&json["settings"], "net.core.somaxconn")["wanted"], "4096");
}

#[test]
fn a_plan_that_does_not_fit_ram_is_refused_with_what_would() {
    let tree = Tree::new("6.12.0", 4, 1, 8);
    tree.network_defaults().host_defaults();
    tree.sysctl("net.ipv4.tcp_mem", "95000 127000 190000");
    let refused = tune(tree.path(), &["plan", "--connections", "2000000"]);
    assert_eq!(refused.status.code(), Some(78), "{}", all(&refused));
    let message = text(&refused.stderr);
    let most = message.split("--connections ").nth(1).unwrap().split(')').next().unwrap();
    assert!(text(&refused.stdout).contains("RAM"), "the ceilings are shown all the same");
    // Not one more than what the message says.
    let fits = tune(tree.path(), &["plan", "--connections", most]);
    assert_eq!(fits.status.code(), Some(0), "{most}: {}", all(&fits));
    let more = (most.parse::<u64>().unwrap() + 1).to_string();
    assert_eq!(tune(tree.path(), &["plan", "--connections", &more]).status.code(), Some(78));
    // Nothing is set, either.
    let apply = tune(tree.path(), &["apply", "--connections", "2000000"]);
    assert_eq!(apply.status.code(), Some(78));
    assert_eq!(tree.read("proc/sys/net/core/somaxconn"), "4096");
    // A smaller connection fits more often.
    let lean = ["plan", "--connections", &more, "--memory-per-connection", "512B"];
    assert_eq!(tune(tree.path(), &lean).status.code(), Some(0));
}

#[test]
fn better_values_stay() {
    let tree = trees::big();
    let better = [
        ("net.ipv4.tcp_rmem", "4096 131072 67108864"),
        ("net.core.somaxconn", "1048576"),
        ("net.ipv4.tcp_max_tw_buckets", "4000000"),
        ("net.ipv4.tcp_mem", "20000000 30000000 40000000"),
        ("net.ipv4.tcp_notsent_lowat", "16384"),
        ("net.ipv4.tcp_fin_timeout", "5"),
        ("net.ipv4.ip_local_port_range", "1024 65535"),
        ("net.core.netdev_budget_usecs", "20000"),
    ];
    for (name, value) in better {
        tree.sysctl(name, value);
    }
    tree.write("proc/net/softnet_stat", "00002710 00000003 000000ff");
    let plan = json(&tune(tree.path(), &["plan", "--format", "json"]));
    for (name, _) in better {
        assert_eq!(named(&plan["settings"], name)["verdict"], "already", "{name}");
    }
}

#[test]
fn a_tree_without_a_machine_is_a_mistake_of_the_caller() {
    let empty = tempfile::tempdir().unwrap();
    for command in ["detect", "plan", "apply", "verify"] {
        let output = tune(empty.path(), &[command]);
        assert_eq!(output.status.code(), Some(64), "{command}: {}", all(&output));
        assert!(text(&output.stderr).contains("proc/meminfo"), "{}", all(&output));
    }
}

/// Each form carries each setting; the drop-in says all about it.
#[test]
fn every_form_tells_the_same() {
    let tree = trees::big();
    let plan = json(&tune(tree.path(), &["plan", "--format", "json"]));
    let markdown = text(&tune(tree.path(), &["plan", "--format", "markdown"]).stdout);
    let drop_in = text(&tune(tree.path(), &["plan", "--format", "sysctl.d"]).stdout);
    let all = tune(tree.path(), &["plan", "--all"]);
    assert_fits(&all);
    let mut sysctls = 0;
    for setting in plan["settings"].as_array().unwrap() {
        let name = setting["name"].as_str().unwrap();
        assert!(markdown.contains(&format!("| `{name}` |")), "{name}");
        if setting["verdict"] != "set" || !name.contains('.') {
            continue;
        }
        sysctls += 1;
        let line = format!("\n{name} = {}\n", setting["wanted"].as_str().unwrap());
        assert!(drop_in.contains(&line), "{line}");
    }
    assert!(sysctls > 10, "{sysctls}");
    assert_eq!(drop_in.matches("\n# danger").count(), sysctls);
}
