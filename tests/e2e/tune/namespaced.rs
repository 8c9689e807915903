//! Applying, verifying and reverting, on a kernel's real settings.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::namespace::Namespace;
use super::{LIMIT, assert_fits, json, named, trees};
use crate::support::backend::Backend;
use crate::support::peers::peer;
use crate::support::process::{all, run, text};
use crate::support::server::{BINARY, Setup};

const FIN: &str = "net.ipv4.tcp_fin_timeout";

fn outcome(account: &Value, name: &str) -> String {
    let outcome = &named(account, name)["outcome"];
    match outcome {
        Value::String(word) => word.clone(),
        _ => outcome.as_object().unwrap().keys().next().unwrap().clone(),
    }
}

#[test]
fn what_is_applied_is_there_and_what_is_reverted_is_as_before() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.set("net.ipv4.tcp_retries2", "12");
    let before = namespace.snapshot();
    let dry = namespace.tune(&["apply", "--dry-run"]);
    assert_fits(&dry);
    assert_eq!(namespace.snapshot(), before, "a dry run sets nothing");
    assert!(!namespace.state().exists(), "and notes nothing");

    let applied = namespace.tune(&["apply", "--format", "json"]);
    let account = json(&applied);
    // The host's settings are read-only here, and said to be so.
    assert_eq!(applied.status.code(), Some(77), "{account:#}");
    assert_eq!(outcome(&account, "vm.swappiness"), "forbidden");
    assert_eq!(outcome(&account, "net.ipv4.tcp_mem"), "skipped");
    for (name, value) in [
        (FIN, "20"),
        ("net.ipv4.tcp_retries2", "8"),
        ("net.ipv4.tcp_migrate_req", "1"),
        ("net.ipv4.tcp_notsent_lowat", "131072"),
        ("net.ipv4.ip_local_port_range", "10000 65535"),
    ] {
        assert_eq!(outcome(&account, name), "set", "{name}");
        assert_eq!(namespace.read(name), value, "{name}");
    }
    assert_eq!(outcome(&account, "net.ipv4.tcp_sack"), "already");

    // A second time there is nothing left to do, and the former values are not forgotten.
    let again = json(&namespace.tune(&["apply", "--format", "json"]));
    assert_eq!(outcome(&again, FIN), "already");
    let verified = namespace.tune(&["verify"]);
    assert_fits(&verified);
    assert_eq!(verified.status.code(), Some(0), "{}", all(&verified));

    let reverted = namespace.tune(&["revert"]);
    assert_fits(&reverted);
    assert_eq!(reverted.status.code(), Some(0), "{}", all(&reverted));
    assert_eq!(namespace.snapshot(), before);
    assert!(!namespace.state().exists());
    let nothing = namespace.tune(&["revert"]);
    assert!(text(&nothing.stdout).contains("nothing to take back"), "{}", all(&nothing));
}

#[test]
fn drift_is_found_with_who_did_it_and_not_reverted_without_force() {
    let Some(namespace) = Namespace::new() else { return };
    let before = namespace.snapshot();
    namespace.tune(&["apply", "--only", "behaviour", "--persist"]);
    namespace.set(FIN, "33");
    let verified = namespace.tune(&["verify", "--format", "json"]);
    assert_eq!(verified.status.code(), Some(1));
    let drift = &json(&verified)["drift"];
    assert_eq!(drift.as_array().unwrap().len(), 1, "{drift:#}");
    let fin = named(drift, FIN);
    assert_eq!(
        (&fin["live"], &fin["wanted"], &fin["who"]),
        (&"33".into(), &"20".into(), &Value::Null)
    );

    // A file that sets it, and that is read after ours: it will win at each boot.
    let other = namespace.etc("sysctl.d").join("99-zzz-other.conf");
    std::fs::write(&other, format!("{FIN} = 33\n")).unwrap();
    let report = json(&namespace.tune(&["verify", "--format", "json"]));
    assert_eq!(named(&report["drift"], FIN)["who"], "/etc/sysctl.d/99-zzz-other.conf");
    assert_eq!(named(&report["at_boot"], FIN)["wanted"], "20");
    let table = namespace.tune(&["verify"]);
    assert_fits(&table);
    assert!(text(&table.stdout).contains("99-zzz-other.conf"), "{}", all(&table));
    std::fs::remove_file(other).unwrap();

    let refused = namespace.tune(&["revert"]);
    assert_eq!(refused.status.code(), Some(1), "{}", all(&refused));
    assert!(text(&refused.stdout).contains("changed since"), "{}", all(&refused));
    assert_eq!(namespace.read(FIN), "33", "not ours any more");
    assert_eq!(namespace.read("net.ipv4.tcp_retries2"), "15", "but this was");
    let forced = namespace.tune(&["revert", "--force"]);
    assert_eq!(forced.status.code(), Some(0), "{}", all(&forced));
    assert_eq!(namespace.snapshot(), before);
}

#[test]
fn the_real_systemd_sysctl_sets_what_was_persisted() {
    let systemd = Path::new("/usr/lib/systemd/systemd-sysctl");
    if !systemd.exists() {
        assert!(
            std::env::var_os("CI").is_none(),
            "systemd is not installed: {}",
            systemd.display()
        );
        eprintln!("skipped: no {}", systemd.display());
        return;
    }
    let Some(namespace) = Namespace::new() else { return };
    // A distribution's file that ours must overrule.
    std::fs::write(namespace.etc("sysctl.d").join("99-sysctl.conf"), format!("{FIN}=77\n"))
        .unwrap();
    let applied = namespace.tune(&["apply", "--persist", "--connections", "5000"]);
    let ours = namespace.etc("sysctl.d").join("99-zz-portcullis.conf");
    let unit = namespace.etc("systemd-system").join("portcullis.service.d/50-portcullis-tune.conf");
    assert!(ours.exists() && unit.exists(), "{}", all(&applied));
    assert!(std::fs::read_to_string(&unit).unwrap().contains("\nLimitMEMLOCK=infinity\n"));

    // As after a boot: defaults, then the files.
    namespace.set(FIN, "60");
    namespace.set("net.ipv4.tcp_migrate_req", "0");
    let booted = run(&mut namespace.command(systemd.to_str().unwrap()), b"", LIMIT);
    // It may not set the host's settings here; whatever else it complains about is a mistake.
    let complaints = all(&booted);
    assert!(!complaints.contains("net/"), "{complaints}");
    assert_eq!(namespace.read(FIN), "20");
    assert_eq!(namespace.read("net.ipv4.tcp_migrate_req"), "1");
    assert_eq!(namespace.tune(&["verify"]).status.code(), Some(0));

    let edited = std::fs::read_to_string(&ours).unwrap() + "# mine\n";
    std::fs::write(&ours, &edited).unwrap();
    assert_eq!(namespace.tune(&["verify"]).status.code(), Some(1), "a file of ours was edited");
    assert_eq!(namespace.tune(&["revert"]).status.code(), Some(1));
    assert_eq!(std::fs::read_to_string(&ours).unwrap(), edited, "somebody's words are kept");
    assert!(!unit.exists());
    assert_eq!(namespace.tune(&["revert", "--force"]).status.code(), Some(0));
    assert!(!ours.exists());
}

#[test]
fn every_profile_is_read_by_the_real_systemd_sysctl() {
    let systemd = "/usr/lib/systemd/systemd-sysctl";
    if !Path::new(systemd).exists() {
        assert!(std::env::var_os("CI").is_none(), "systemd is not installed: {systemd}");
        eprintln!("skipped: no {systemd}");
        return;
    }
    for profile in ["small-vm", "edge", "big-edge"] {
        let Some(namespace) = Namespace::new() else { return };
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sysctl").join(profile);
        let file = folder.join("99-zz-portcullis.conf");
        let output = run(namespace.command(systemd).arg(&file), b"", LIMIT);
        let complaints = all(&output);
        // What belongs to the host is not there, or read-only here.
        for line in complaints.lines().filter(|line| line.contains("net/")) {
            assert!(line.contains("No such file"), "{profile}: {line}");
        }
        for line in std::fs::read_to_string(file).unwrap().lines() {
            let Some((name, value)) =
                line.split_once(" = ").filter(|_| line.starts_with("net.ipv4"))
            else {
                continue;
            };
            let path = format!("/proc/sys/{}", name.replace('.', "/"));
            let there = run(namespace.command("test").args(["-e", &path]), b"", LIMIT);
            // tcp_mem and the like are the host's alone.
            if there.status.success() {
                assert_eq!(namespace.read(name), value, "{profile}: {name}");
            }
        }
    }
}

#[test]
fn a_refusal_of_the_kernel_is_told_with_its_error_and_the_rest_stands() {
    let Some(namespace) = Namespace::new() else { return };
    let tree = trees::big();
    // A file of the tree that leads to a real setting, which takes 0 and 1 and not our 8.
    let path = tree.path().join("proc/sys/net/ipv4/tcp_retries2");
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/proc/sys/net/ipv4/tcp_ecn_fallback", &path).unwrap();
    let tune = |args: &[&str]| {
        let mut command = namespace.command(BINARY);
        run(command.args(["tune", "--root"]).arg(tree.path()).args(args), b"", LIMIT)
    };
    let before = namespace.read("net.ipv4.tcp_ecn_fallback");
    let applied = tune(&["apply", "--format", "json"]);
    let account = json(&applied);
    let refused = &named(&account, "net.ipv4.tcp_retries2")["outcome"]["refused"];
    assert!(refused.as_str().is_some_and(|why| why.contains("Invalid argument")), "{account:#}");
    assert_eq!(applied.status.code(), Some(71));
    assert_eq!(namespace.read("net.ipv4.tcp_ecn_fallback"), before);
    assert_eq!(outcome(&account, "net.ipv4.tcp_migrate_req"), "set");
    let state = tree.read("var/lib/portcullis/tune.json");
    let noted = "\"knob\": \"net.ipv4.tcp_retries2\"";
    assert!(!state.contains(noted), "not done, so not noted: {state}");
    assert!(state.contains("tcp_migrate_req"), "{state}");
    let reverted = tune(&["revert"]);
    assert_eq!(reverted.status.code(), Some(0), "{}", all(&reverted));
    assert_eq!(tree.read("proc/sys/net/ipv4/tcp_migrate_req"), "0");
}

#[test]
fn without_privileges_nothing_is_set_and_the_reason_is_told() {
    let setpriv = if nix::unistd::geteuid().is_root() {
        let Some(setpriv) = peer("setpriv") else { return };
        Some(setpriv)
    } else {
        None
    };
    let nobody = |args: &[&str]| {
        let mut command = match &setpriv {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args([
                    "--reuid=65534",
                    "--regid=65534",
                    "--clear-groups",
                    "--bounding-set=-all",
                ]);
                command.arg("--inh-caps=-all").arg(BINARY);
                command
            }
            None => Command::new(BINARY),
        };
        run(command.arg("tune").args(args), b"", LIMIT)
    };
    // What is here may be seen by everybody.
    assert_eq!(nobody(&["detect"]).status.code(), Some(0));
    assert_eq!(nobody(&["plan"]).status.code(), Some(0));
    let refused = nobody(&["apply"]);
    assert_eq!(refused.status.code(), Some(77), "{}", all(&refused));
    assert!(text(&refused.stderr).contains("be root"), "{}", all(&refused));
    // Even where it may keep its notes.
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .unwrap();
    let state = dir.path().join("state.json");
    let path = state.to_str().unwrap();
    let refused = nobody(&["apply", "--state", path, "--only", "behaviour", "--format", "json"]);
    assert_eq!(refused.status.code(), Some(77), "{}", all(&refused));
    let account = json(&refused);
    let forbidden: Vec<_> = account
        .as_array()
        .unwrap()
        .iter()
        .filter(|done| done["outcome"].get("forbidden").is_some())
        .collect();
    assert!(!forbidden.is_empty(), "{account:#}");
    assert!(account.as_array().unwrap().iter().all(|done| done["outcome"].get("set").is_none()));
    assert!(!state.exists(), "there is nothing to take back");
}

/// A kernel whose few ports stop the configured connections, seen by `check` and by `run`.
#[test]
fn check_and_run_warn_of_what_would_stop_the_configured_connections() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.set("net.ipv4.ip_local_port_range", "50000 50099");
    namespace.set("net.core.somaxconn", "100");
    let setup = Setup::new(Backend::echo())
        .listener("backlog = 4096")
        .tables("[limits]\nconnections_per_worker = 500\n");
    let config = setup.write();
    let output =
        run(namespace.command(BINARY).arg("check").arg("--config").arg(&config), b"", LIMIT);
    let words = all(&output).split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "warning: local ports to servers = 100 x 1 allows 100 connections and 500 are configured",
        "portcullis tune plan --connections 500",
        "backlog of 4096 is cut to net.core.somaxconn = 100",
    ] {
        assert!(words.contains(part), "no {part:?}: {words}");
    }
    // The warning comes before anything is bound, so it does not matter whether the loopback is up.
    let log = namespace.dir.path().join("log");
    let mut command = namespace.command(BINARY);
    command.arg("run").arg("--config").arg(&config);
    let file = std::fs::File::create(&log).unwrap();
    let run = crate::support::process::Process::spawn(
        command.stdout(file.try_clone().unwrap()).stderr(file),
    );
    crate::support::eventually("the warning of run", || {
        let log = std::fs::read_to_string(&log).unwrap();
        log.contains("allows 100 connections and 500 are configured").then_some(())
    });
    drop(run);
}
