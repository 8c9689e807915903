//! Which CPUs the workers run on: one per physical core, among those this process may use.

use std::collections::HashSet;
use std::path::Path;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use crate::config;
use crate::limits::WORKERS_MAX;

const SYSFS: &str = "/sys/devices/system/cpu";

/// Why the workers cannot be placed.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// `sched_getaffinity(2)` failed.
    #[error("cannot read which CPUs this process may use: {0}")]
    Affinity(#[from] nix::Error),
    /// `workers.cpus` names a CPU that is not ours.
    #[error(
        "workers.cpus names CPU {cpu}, which this process may not use (it may use {allowed}); take \
         it out, or widen the mask (taskset, AllowedCPUs= of systemd, the container's cpuset)"
    )]
    NotAllowed {
        /// The CPU.
        cpu: usize,
        /// Those that it may use, as taskset(1) writes them.
        allowed: String,
    },
}

/// The CPU of each worker, in order; `None`: not pinned, because there are more workers than CPUs.
///
/// # Errors
/// A CPU is configured that this process may not use.
pub fn workers(workers: &config::Workers) -> Result<Vec<Option<usize>>, TopologyError> {
    let allowed = allowed()?;
    place(workers, &allowed, &by_core(&allowed, Path::new(SYSFS)))
}

/// CPUs this process may use, in ascending order.
///
/// # Errors
/// `sched_getaffinity(2)`'s.
pub fn allowed() -> Result<Vec<usize>, TopologyError> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    let is_set = |cpu: &usize| set.is_set(*cpu).unwrap_or(false);
    Ok((0..CpuSet::count()).filter(is_set).collect())
}

/// The first hardware thread of each core among `allowed`. `sysfs` is `/sys/devices/system/cpu`, of
/// this machine or of a copied tree.
pub fn cores(allowed: &[usize], sysfs: &Path) -> Vec<usize> {
    let mut by_core = by_core(allowed, sysfs);
    by_core.cpus.truncate(by_core.cores);
    by_core.cpus
}

/// CPUs with the first hardware thread of every core in front, and how many those are.
struct ByCore {
    cpus: Vec<usize>,
    cores: usize,
}

fn by_core(allowed: &[usize], sysfs: &Path) -> ByCore {
    let mut seen = HashSet::new();
    let (mut cpus, mut siblings) = (Vec::new(), Vec::new());
    for cpu in allowed {
        let topology = sysfs.join(format!("cpu{cpu}/topology"));
        let read = |name| std::fs::read_to_string(topology.join(name)).ok();
        // Without sysfs (some containers) each CPU counts as a core.
        let is_first = match (read("physical_package_id"), read("die_id"), read("core_id")) {
            (Some(package), die, Some(core)) => seen.insert((package, die, core)),
            _ => true,
        };
        if is_first { &mut cpus } else { &mut siblings }.push(*cpu);
    }
    let cores = cpus.len();
    cpus.append(&mut siblings);
    ByCore { cpus, cores }
}

fn place(
    workers: &config::Workers,
    allowed: &[usize],
    by_core: &ByCore,
) -> Result<Vec<Option<usize>>, TopologyError> {
    let (cpus, auto) = match &workers.cpus {
        Some(cpus) => (cpus, cpus.len()),
        None => (&by_core.cpus, by_core.cores),
    };
    let foreign = cpus.iter().find(|cpu| !allowed.contains(cpu));
    if let Some(cpu) = foreign {
        return Err(TopologyError::NotAllowed { cpu: *cpu, allowed: show_cpus(allowed) });
    }
    let count = workers.count.unwrap_or(auto).clamp(1, WORKERS_MAX);
    if count > cpus.len() {
        return Ok(vec![None; count]);
    }
    Ok(cpus.iter().take(count).copied().map(Some).collect())
}

/// CPU numbers as taskset(1) writes them; ascending ones become ranges.
pub fn show_cpus(cpus: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => ranges.push((*cpu, *cpu)),
        }
    }
    let show = |(first, last): &(usize, usize)| match last - first {
        0 => first.to_string(),
        _ => format!("{first}-{last}"),
    };
    ranges.iter().map(show).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four CPUs, two cores: 0 and 2 are one core, 1 and 3 the other.
    fn hyperthreads() -> tempfile::TempDir {
        let sysfs = tempfile::TempDir::new().expect("directory");
        for cpu in 0..4 {
            let topology = sysfs.path().join(format!("cpu{cpu}/topology"));
            std::fs::create_dir_all(&topology).expect("made");
            std::fs::write(topology.join("physical_package_id"), "0\n").expect("written");
            std::fs::write(topology.join("core_id"), format!("{}\n", cpu % 2)).expect("written");
        }
        sysfs
    }

    fn placed(
        count: Option<usize>,
        cpus: Option<&[usize]>,
        allowed: &[usize],
    ) -> Vec<Option<usize>> {
        let sysfs = hyperthreads();
        let cpus = cpus.map(<[usize]>::to_vec);
        let workers = config::Workers { count, cpus, steering: config::Steering::Hash };
        place(&workers, allowed, &by_core(allowed, sysfs.path())).expect("placed")
    }

    #[test]
    fn auto_takes_one_hardware_thread_of_each_core() {
        assert_eq!(placed(None, None, &[0, 1, 2, 3]), [Some(0), Some(1)]);
        assert_eq!(placed(None, None, &[1, 2, 3]), [Some(1), Some(2)]);
        assert_eq!(placed(None, None, &[3]), [Some(3)]);
    }

    #[test]
    fn more_workers_than_cores_use_the_siblings_last() {
        let expected = [Some(0), Some(1), Some(2)];
        assert_eq!(placed(Some(3), None, &[0, 1, 2, 3]), expected);
    }

    #[test]
    fn more_workers_than_cpus_are_not_pinned() {
        assert_eq!(placed(Some(3), None, &[0, 1]), [None, None, None]);
    }

    #[test]
    fn named_cpus_are_used_in_their_order() {
        assert_eq!(placed(None, Some(&[3, 0]), &[0, 1, 2, 3]), [Some(3), Some(0)]);
        assert_eq!(placed(Some(1), Some(&[3, 0]), &[0, 1, 2, 3]), [Some(3)]);
    }

    #[test]
    fn a_cpu_outside_the_mask_is_an_error_that_names_the_mask() {
        let workers =
            config::Workers { count: None, cpus: Some(vec![5]), steering: config::Steering::Hash };
        let allowed = [0, 1, 3];
        let sysfs = hyperthreads();
        let error = place(&workers, &allowed, &by_core(&allowed, sysfs.path())).expect_err("CPU 5");
        assert!(error.to_string().contains("CPU 5"), "{error}");
        assert!(error.to_string().contains("0-1,3"), "{error}");
    }

    #[test]
    fn this_machine_has_a_place_for_a_worker() {
        let auto = config::Workers { count: None, cpus: None, steering: config::Steering::Hash };
        let placed = workers(&auto).expect("placed");
        assert!(!placed.is_empty());
        assert!(placed.iter().all(Option::is_some));
    }
}
