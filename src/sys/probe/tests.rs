//! The probe on this kernel, and what its errors tell an operator.

use super::*;

fn refused(errno: i32, disabled: u32, filtered: bool) -> String {
    let error = io::Error::from_raw_os_error(errno);
    classify(error, "6.1.0-test", disabled, filtered, 65_536).to_string()
}

/// Whether the kernel's version is at least this.
fn at_least(kernel: &str, since: &str) -> bool {
    let parts = |text: &str| -> Vec<u32> {
        text.split(|c: char| !c.is_ascii_digit())
            .take(2)
            .map(|part| part.parse().unwrap())
            .collect()
    };
    parts(kernel) >= parts(since)
}

#[test]
fn this_kernel_has_what_a_worker_needs_or_says_why_not() {
    match report() {
        Ok(report) => {
            for feature in &report.features {
                let expected = at_least(&report.kernel, feature.since);
                assert!(feature.available || !expected, "{feature:?}");
            }
            assert!(report.features.iter().any(|feature| feature.need == Need::Needed));
        }
        Err(error) => assert!(!matches!(error, ProbeError::Other { .. }), "{error}"),
    }
}

#[test]
fn asking_leaves_no_descriptor_behind() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    drop(report());
    let before = open();
    for _ in 0..50 {
        drop(report());
    }
    // Other tests of this process open some too, but not fifty.
    assert!(open() < before + 50);
}

#[test]
fn a_sysctl_that_forbids_is_named_with_its_cure() {
    let text = refused(libc::EPERM, 2, false);
    assert!(text.contains("kernel.io_uring_disabled = 2"), "{text}");
    assert!(text.contains("sysctl -w kernel.io_uring_disabled=0"), "{text}");
    assert!(!text.contains("io_uring_group"), "a group does not help with 2: {text}");
    assert!(refused(libc::EPERM, 1, false).contains("kernel.io_uring_group"));
}

#[test]
fn a_filter_that_forbids_is_named_with_its_cure() {
    let text = refused(libc::EPERM, 0, true);
    for part in ["seccomp filter", "--security-opt seccomp=", "SystemCallFilter="] {
        assert!(text.contains(part), "{text}");
    }
    assert!(refused(libc::ENOSYS, 0, true).contains("seccomp filter"));
    assert!(refused(libc::EACCES, 0, false).contains("security module"));
    assert!(is_filtered("Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n"));
    assert!(!is_filtered("Name:\tx\nSeccomp:\t0\nSeccomp_filters:\t2\n"));
}

#[test]
fn an_old_kernel_and_a_low_limit_are_told_what_is_enough() {
    let text = refused(libc::ENOSYS, 0, false);
    assert!(text.contains("6.1.0-test") && text.contains("Linux 6.1 or newer"), "{text}");
    let text = refused(libc::ENOMEM, 0, false);
    for part in ["RLIMIT_MEMLOCK", "need 856 KiB", "792 KiB each", "64 KiB in", "LimitMEMLOCK=2M"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("workers.count"), "not even one fits: {text}");
    let feature = setup_flags(false);
    let kernel = "5.15".to_owned();
    let text = ProbeError::TooOld { kernel, feature }.to_string();
    assert!(text.contains("5.15") && text.contains("DEFER_TASKRUN"), "{text}");
}

#[test]
fn too_many_workers_for_the_locked_memory_are_told_how_many_fit() {
    let (workers, limit) = (11, 8 << 20);
    let text = ProbeError::Memory { workers, needed: memory_needed(workers), limit }.to_string();
    for part in ["11 worker(s)", "8776 KiB", "8192 KiB", "LimitMEMLOCK=18M", "18432", "to 10"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn workers_that_fit_are_not_refused() {
    let memory = memory(1);
    // Where even one does not fit, nothing else of this crate's tests would run.
    assert_eq!(memory.map(|memory| memory.needed).ok(), Some(memory_needed(1)));
}
