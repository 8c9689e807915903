//! The one table of settings, as data. What `plan` proposes, what `apply` writes, what `verify`
//! compares and what stands in `sysctl/` all come from here.
//!
//! To add one: an entry in the file of its group, with a wish that follows from the [`Goal`]. Then
//! `BLESS=1 cargo test --test tune committed` writes the files of `sysctl/` anew.

mod behaviour;
mod capacity;
mod evidence;

use serde::Serialize;

use super::goal::Goal;
use super::value::Value;

/// Why a setting is touched at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Without it, connections fail that the machine could hold.
    Capacity,
    /// It decides how connections behave.
    Behaviour,
    /// Only a counter of this machine is a reason.
    Evidence,
}

impl Group {
    /// All, in the order of the table.
    pub const ALL: [Self; 3] = [Self::Capacity, Self::Behaviour, Self::Evidence];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Capacity => "capacity",
            Self::Behaviour => "behaviour",
            Self::Evidence => "evidence",
        }
    }
}

/// Where a setting is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Below `/proc/sys`, by its dotted name.
    Sysctl(&'static str),
    /// A file that shows all words and the chosen one in brackets.
    Choice(&'static str),
    /// A resource limit of the service, by systemd's name.
    Limit(&'static str),
    /// A word of the kernel's command line, and the sysctl that shows what came of it.
    Boot(&'static str, &'static str),
}

/// When a change counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// At once, for everything.
    Now,
    /// For sockets made afterwards.
    NewSockets,
    /// For listeners made afterwards: restart Portcullis.
    Listen,
    /// When Portcullis starts again.
    Restart,
    /// When the machine starts again.
    Boot,
}

impl Effect {
    /// In a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Now => "now",
            Self::NewSockets => "new sockets",
            Self::Listen => "listen()",
            Self::Restart => "restart",
            Self::Boot => "boot",
        }
    }
}

/// Whose setting it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The host's: not there in a container's network namespace.
    Host,
    /// Each network namespace's.
    Netns,
    /// The host's, but shown in each network namespace, read-only.
    HostShown,
    /// The process's.
    Process,
}

impl Scope {
    /// In a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Netns => "namespace",
            Self::HostShown => "host, shown",
            Self::Process => "process",
        }
    }
}

/// What a goal wants of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// What is there stays, for this reason.
    Keep(String),
    /// No number below these; a higher one stays.
    AtLeast(Value),
    /// No number above these; a lower one stays.
    AtMost(Value),
    /// This and nothing else.
    Exactly(Value),
}

/// One setting.
#[derive(Debug)]
pub struct Knob {
    /// As people know it.
    pub name: &'static str,
    /// Where it is made.
    pub place: Place,
    /// Why it is touched.
    pub group: Group,
    /// Of its numbers.
    pub unit: &'static str,
    /// The kernel's own value.
    pub default: &'static str,
    /// Our value, as a formula in words.
    pub formula: &'static str,
    /// Our value.
    pub wish: fn(&Goal<'_>) -> Wish,
    /// What for.
    pub why: &'static str,
    /// What it can do wrong, or when not to.
    pub danger: &'static str,
    /// The first kernel that has it.
    pub since: &'static str,
    /// Where to read more.
    pub source: &'static str,
    /// When a change counts.
    pub effect: Effect,
    /// Whose it is.
    pub scope: Scope,
}

/// All settings, in the order in which they are applied.
pub fn all() -> impl Iterator<Item = &'static Knob> {
    capacity::KNOBS.iter().chain(&behaviour::KNOBS).chain(&evidence::KNOBS)
}

fn exactly(number: u64) -> Wish {
    Wish::Exactly(Value::of(&[number]))
}

fn at_least(number: u64) -> Wish {
    Wish::AtLeast(Value::of(&[number]))
}

fn at_most(number: u64) -> Wish {
    Wish::AtMost(Value::of(&[number]))
}

fn keep(reason: &str) -> Wish {
    Wish::Keep(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_knob_says_everything_about_itself() {
        let mut names = std::collections::BTreeSet::new();
        for knob in all() {
            assert!(names.insert(knob.name), "{} is there twice", knob.name);
            let texts = [knob.unit, knob.default, knob.formula, knob.why, knob.danger, knob.source];
            assert!(texts.iter().all(|text| !text.is_empty()), "{knob:?}");
            assert!(knob.since.starts_with(|c: char| c.is_ascii_digit()), "{knob:?}");
            if let Place::Sysctl(name) = knob.place {
                assert_eq!(name, knob.name);
            }
        }
        assert!(names.len() > 30, "{}", names.len());
    }

    #[test]
    fn groups_stand_together() {
        let order: Vec<Group> = all().map(|knob| knob.group).collect();
        let mut sorted = order.clone();
        sorted.sort_by_key(|group| Group::ALL.iter().position(|other| other == group));
        assert_eq!(order, sorted);
    }
}
