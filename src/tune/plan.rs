//! Facts and wishes in, proposals out. Nothing here reads or writes a file.

use super::detect::Facts;
use super::goal::{Goal, Wishes};
use super::knobs::{self, Group, Knob, Place, Scope, Wish};
use super::value::Value;

/// What is proposed for one knob.
#[derive(Debug, Clone)]
pub struct Row {
    /// The knob.
    pub knob: &'static Knob,
    /// Its value now; `None`: not known or not there.
    pub live: Option<Value>,
    /// What to do.
    pub advice: Advice,
}

/// What to do about a knob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advice {
    /// Set it to this.
    Set(Value),
    /// It is as it should be.
    Already,
    /// It stays, for this reason.
    Keep(String),
    /// It cannot be set here, for this reason.
    Absent(&'static str),
}

impl Row {
    /// The value that a goal wants, whether it is there already or not.
    pub fn wanted(&self) -> Option<&Value> {
        match &self.advice {
            Advice::Set(value) => Some(value),
            Advice::Already => self.live.as_ref(),
            Advice::Keep(_) | Advice::Absent(_) => None,
        }
    }
}

/// A proposal for every knob, in the order of the table.
pub fn rows(goal: &Goal<'_>) -> Vec<Row> {
    knobs::all().map(|knob| row(knob, goal)).collect()
}

fn row(knob: &'static Knob, goal: &Goal<'_>) -> Row {
    let live = goal.facts.live.get(knob.name).cloned();
    let advice = match (knob.wish)(goal) {
        Wish::Keep(reason) => Advice::Keep(reason),
        wish => advise(knob, live.as_ref(), &wish, goal.facts),
    };
    Row { knob, live, advice }
}

fn advise(knob: &Knob, live: Option<&Value>, wish: &Wish, facts: &Facts) -> Advice {
    let (wanted, max) = match wish {
        Wish::AtLeast(value) => (value, Some(true)),
        Wish::AtMost(value) => (value, Some(false)),
        Wish::Exactly(value) => (value, None),
        Wish::Keep(reason) => return Advice::Keep(reason.clone()),
    };
    let Some(live) = live else {
        return match knob.place {
            // Not of this process: a service has its own.
            Place::Limit(_) => Advice::Set(wanted.clone()),
            Place::Sysctl(_) | Place::Choice(_) | Place::Boot(..) => {
                Advice::Absent(why_absent(knob, facts))
            }
        };
    };
    let value = max.map_or_else(|| wanted.clone(), |max| live.merge(wanted, max));
    if value == *live { Advice::Already } else { Advice::Set(value) }
}

fn why_absent(knob: &Knob, facts: &Facts) -> &'static str {
    if knob.scope == Scope::Host && !facts.kernel.first_network_namespace {
        "the host's, and not shown in this network namespace: set it on the host"
    } else {
        "this kernel has no such setting"
    }
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{connections} connections do not fit: they need {} MiB of RAM and there are {} MiB; at most \
     {most} fit. Ask for fewer (--connections {most}), give the machine {} MiB, or lower \
     --memory-per-connection if yours is measured to be less",
    .needed >> 20, .usable >> 20, .needed.div_ceil(1 << 20)
)]
pub struct TooLittleRam {
    /// Asked for.
    pub connections: u64,
    /// Bytes that they need.
    pub needed: u64,
    /// Bytes that there are.
    pub usable: u64,
    /// Connections that would fit.
    pub most: u64,
}

/// Checks that a goal fits into RAM.
///
/// # Errors
/// It does not.
pub fn check(goal: &Goal<'_>) -> Result<(), TooLittleRam> {
    let most = goal.ram_connections();
    if goal.connections <= most {
        return Ok(());
    }
    Err(TooLittleRam {
        connections: goal.connections,
        needed: goal.ram_needed(goal.connections),
        usable: goal.facts.memory.usable_bytes(),
        most,
    })
}

/// A goal that fits.
///
/// # Errors
/// It does not fit into RAM.
pub fn goal<'a>(facts: &'a Facts, wishes: &Wishes) -> Result<Goal<'a>, TooLittleRam> {
    let goal = Goal::new(facts, wishes);
    check(&goal)?;
    Ok(goal)
}

/// Rows of some groups; all where none is named.
pub fn of_groups(rows: &[Row], groups: &[Group]) -> Vec<Row> {
    let wanted = |row: &&Row| groups.is_empty() || groups.contains(&row.knob.group);
    rows.iter().filter(wanted).cloned().collect()
}
