//! Whether everything is still as the plan has it, who changed it, and who will at the next boot.

use serde::Serialize;

use super::detect::settings::Line;
use super::files::SYSCTL_D;
use super::goal::Goal;
use super::knobs::{Group, Place};
use super::plan::{Advice, Row};
use super::process::{self, Running};
use super::root::Root;
use super::state::State;
use super::value::Value;

/// A setting that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drift {
    /// The knob, or the file.
    pub name: String,
    /// What it is.
    pub live: String,
    /// What it should be.
    pub wanted: String,
    /// Whether `apply` had set it.
    pub was_set: bool,
    /// Who says otherwise, and where; `None`: no file does, so it was done by hand or a program.
    pub who: Option<String>,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Settings compared.
    pub compared: usize,
    /// Those that differ now.
    pub drift: Vec<Drift>,
    /// Those of the plan that `apply` left unset, by choice or by necessity, or that evidence
    /// speaks for only now.
    pub left: Vec<String>,
    /// Those that will differ after the next boot.
    pub at_boot: Vec<Drift>,
    /// Processes that serve.
    pub running: Vec<Running>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.drift.is_empty()
            && self.at_boot.is_empty()
            && self.running.iter().all(|running| running.problems.is_empty())
    }
}

/// Compares.
pub fn verify(
    root: &Root,
    goal: &Goal<'_>,
    rows: &[Row],
    state: Option<&State>,
    pid: Option<u32>,
) -> Report {
    let mut report = Report::default();
    for row in
        rows.iter().filter(|row| !matches!(row.knob.place, Place::Limit(_) | Place::Boot(..)))
    {
        compare(goal, row, state, &mut report);
    }
    for file in state.iter().flat_map(|state| &state.files) {
        report.compared += 1;
        let now = std::fs::read_to_string(root.path(&file.path)).ok();
        if now.as_ref() != Some(&file.after) {
            let live = if now.is_some() { "edited" } else { "not there" };
            report.drift.push(Drift {
                name: file.path.clone(),
                live: live.to_owned(),
                wanted: "as apply --persist wrote it".to_owned(),
                was_set: true,
                who: None,
            });
        }
    }
    let running = process::find(root, pid).into_iter();
    report.running = running.filter_map(|pid| process::look(root, pid, goal)).collect();
    report
}

fn compare(goal: &Goal<'_>, row: &Row, state: Option<&State>, report: &mut Report) {
    let set = state
        .and_then(|state| state.settings.iter().find(|setting| setting.knob == row.knob.name))
        .map(|setting| setting.after.clone());
    let was_set = set.is_some();
    // What was set counts; a plan of today may want less, as its evidence may be gone.
    let Some(wanted) = set.or_else(|| row.wanted().cloned()) else { return };
    let Some(live) = &row.live else { return };
    report.compared += 1;
    let decides = goal.facts.settings.decides(row.knob.name);
    let drift = |live: &Value, who: Option<&Line>| Drift {
        name: row.knob.name.to_owned(),
        live: live.to_string(),
        wanted: wanted.to_string(),
        was_set,
        who: who.map(|line| line.file.clone()),
    };
    let differs = *live != wanted && (was_set || matches!(row.advice, Advice::Set(_)));
    let left = state.is_some_and(|state| state.left.iter().any(|name| name == row.knob.name));
    // New evidence is a reason to plan again, not a difference from what was set.
    let new_evidence = row.knob.group == Group::Evidence;
    if differs && !was_set && (left || new_evidence) {
        report.left.push(row.knob.name.to_owned());
    } else if differs {
        report.drift.push(drift(live, decides.filter(|line| line.value == *live)));
    }
    // Only somebody who has our file expects our values after a boot.
    let persisted = state.is_some_and(|state| state.files.iter().any(|file| file.path == SYSCTL_D));
    if let Some(line) = decides
        && persisted
        && was_set
        && line.file != SYSCTL_D
        && line.value != wanted
    {
        report.at_boot.push(drift(&line.value, Some(line)));
    }
}
