//! The files in `sysctl/`: they are what the table of knobs makes, and the programs that read such
//! files accept them.

use std::path::Path;
use std::process::Command;

use portcullis::tune::goal::Profile;
use portcullis::tune::knobs;
use portcullis::tune::profiles;

use super::{LIMIT, json, trees, tune};
use crate::support::peers::peer;
use crate::support::process::{all, run};

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/sysctl"))
}

/// `BLESS=1` writes them anew.
#[test]
fn committed_profiles_are_what_the_table_makes() {
    for profile in Profile::ALL {
        for file in profiles::files(profile) {
            let path = folder().join(&file.path);
            if std::env::var_os("BLESS").is_some() {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, &file.text).unwrap();
            }
            let committed = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                committed == file.text,
                "{} differs from src/tune/knobs: BLESS=1 cargo test --test e2e committed",
                file.path
            );
        }
    }
}

#[test]
fn every_key_of_a_profile_is_explained_above_it() {
    for profile in Profile::ALL {
        let path = folder().join(profile.name()).join("99-zz-portcullis.conf");
        let text = std::fs::read_to_string(path).unwrap();
        let mut keys = 0;
        for block in text.split("\n\n").filter(|block| !block.starts_with("# Left")) {
            let Some(line) = block.lines().find(|line| !line.starts_with('#')) else { continue };
            let (name, value) = line.split_once(" = ").unwrap();
            let knob = knobs::all().find(|knob| knob.name == name).unwrap();
            for part in ["unit", "default", "ours", "why", "danger", "since", "source"] {
                assert!(
                    block.contains(&format!("\n# {part} "))
                        || block.starts_with(&format!("# {part} ")),
                    "{part}: {block}"
                );
            }
            assert!(block.contains(knob.source.split(';').next().unwrap()), "{block}");
            assert!(block.contains(value), "{block}");
            keys += 1;
        }
        assert!(keys > 15, "{keys} keys in {}", profile.name());
    }
}

#[test]
fn nft_accepts_the_rules() {
    let Some(nft) = peer("nft") else { return };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: nft -c wants root");
        return;
    }
    for profile in Profile::ALL {
        let rules = folder().join(profile.name()).join("portcullis-notrack.nft");
        // In a namespace of its own: to check, nft looks at what is loaded.
        let mut command = Command::new("unshare");
        let output = run(command.arg("-n").arg(&nft).arg("-f").arg(&rules), b"", LIMIT);
        assert!(output.status.success(), "{}", all(&output));
    }
}

#[test]
fn systemd_accepts_the_unit_of_the_network_card() {
    let Some(analyze) = peer("systemd-analyze") else { return };
    let dir = tempfile::tempdir().unwrap();
    for profile in Profile::ALL {
        let unit = folder().join(profile.name()).join("portcullis-nic@.service");
        let text = std::fs::read_to_string(unit).unwrap();
        // It looks for the program, which is installed elsewhere here.
        let script = folder().join("portcullis-nic.sh");
        let text =
            text.replace("/usr/local/lib/portcullis/portcullis-nic.sh", script.to_str().unwrap());
        let path = dir.path().join("portcullis-nic@eth0.service");
        std::fs::write(&path, text).unwrap();
        let mut command = Command::new(&analyze);
        let output = run(
            command.args(["verify", "--man=no", "--recursive-errors=no"]).arg(&path),
            b"",
            LIMIT,
        );
        assert!(output.status.success(), "{}", all(&output));
        assert!(!all(&output).contains("portcullis-nic"), "{}", all(&output));
    }
}

/// Runs the script that sets up a card on a tree.
fn set_up(tree: &trees::Tree, card: &str, cpus: &str) -> String {
    let output = run(
        Command::new("sh")
            .arg(folder().join("portcullis-nic.sh"))
            .arg(card)
            .env("SYS", tree.path().join("sys"))
            .env("PROC", tree.path().join("proc"))
            .env("CPUS", cpus),
        b"",
        LIMIT,
    );
    assert!(output.status.success(), "{}", all(&output));
    all(&output)
}

#[test]
fn each_queue_of_a_card_gets_a_core_of_its_node_first() {
    let tree = trees::big();
    let told = set_up(&tree, "ens1f0", "");
    assert!(told.contains("63 queues, interrupts 63"), "{told}");
    // The card is at node 1: CPUs 32 to 63 come first, then 0 to 30.
    let affinity = |irq: usize| tree.read(&format!("proc/irq/{irq}/smp_affinity_list"));
    assert_eq!(
        (affinity(101), affinity(132), affinity(133)),
        ("32".into(), "63".into(), "0".into())
    );
    assert_eq!(affinity(100), "0-63", "async0 serves no queue");
    let xps = |queue: usize| tree.read(&format!("sys/class/net/ens1f0/queues/tx-{queue}/xps_cpus"));
    assert_eq!((xps(0), xps(31)), ("00000001,00000000".into(), "80000000,00000000".into()));
    assert_eq!(xps(32), "00000001");
    // One core has no queue, so that steering would starve its worker.
    let advised = |cores: &str| {
        tree.write("sys/devices/system/cpu/online", cores);
        let plan = tune(tree.path(), &["plan", "--format", "json"]);
        json(&plan)["notes"].to_string().contains("workers.steering")
    };
    assert!(!advised("0-63"));
    assert!(advised("0-30,32-63"), "without core 31");
}

#[test]
fn named_cpus_are_used_in_their_order_and_a_single_queue_is_spread() {
    let tree = trees::big();
    set_up(&tree, "ens1f0", "4-5,9");
    let affinity = |irq: usize| tree.read(&format!("proc/irq/{irq}/smp_affinity_list"));
    assert_eq!([affinity(101), affinity(102), affinity(103), affinity(104)], ["4", "5", "9", "4"]);
    let tree = trees::Tree::new("6.12.0", 4, 1, 8);
    tree.host_defaults().card("eth0", "virtio_net", 1, -1);
    tree.sysctl("net.core.rps_sock_flow_entries", "32768");
    set_up(&tree, "eth0", "");
    assert_eq!(tree.read("sys/class/net/eth0/queues/rx-0/rps_cpus"), "0000000f");
    assert_eq!(tree.read("sys/class/net/eth0/queues/rx-0/rps_flow_cnt"), "32768");
}
