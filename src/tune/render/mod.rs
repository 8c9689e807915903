//! Reports: for people at 100 columns, for programs as JSON, for wikis as Markdown.

pub mod json;
pub mod markdown;
pub mod report;
pub mod text;

use super::advice;
use super::folklore::{self, Finding};
use super::goal::Goal;
use super::plan::{self, Row};
use super::sizing::{self, Ceiling};

/// Everything that a plan has to say, for whatever form.
#[derive(Debug)]
pub struct Planned<'a> {
    /// What for.
    pub goal: &'a Goal<'a>,
    /// What to set.
    pub rows: Vec<Row>,
    /// What stops this box.
    pub ceilings: Vec<Ceiling>,
    /// What should go.
    pub folklore: Vec<Finding>,
    /// What no sysctl can set.
    pub notes: Vec<String>,
}

impl<'a> Planned<'a> {
    /// Works it out.
    pub fn new(goal: &'a Goal<'a>) -> Self {
        let rows = plan::rows(goal);
        Self {
            ceilings: sizing::ceilings(goal, &rows),
            folklore: folklore::find(goal.facts),
            notes: advice::notes(goal),
            goal,
            rows,
        }
    }
}
