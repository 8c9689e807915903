//! For wikis and change requests.

use std::fmt::Write as _;

use super::Planned;
use crate::tune::plan::Advice;

/// A plan.
pub fn plan(planned: &Planned<'_>) -> String {
    let goal = planned.goal;
    let mut out = format!(
        "# Kernel settings for {} connections, profile {}\n\n\
         | setting | now | wanted | takes effect | of the | why | danger |\n\
         |---|---|---|---|---|---|---|\n",
        goal.connections,
        goal.profile.name()
    );
    for row in &planned.rows {
        let knob = row.knob;
        let live = row.live.as_ref().map(ToString::to_string).unwrap_or_default();
        let wanted = match &row.advice {
            Advice::Set(value) => format!("**{value}**"),
            Advice::Already => "as it is".to_owned(),
            Advice::Keep(reason) => format!("as it is: {}", cell(reason)),
            Advice::Absent(reason) => format!("not here: {}", cell(reason)),
        };
        let (effect, scope) = (knob.effect.name(), knob.scope.name());
        let (why, danger) = (cell(knob.why), cell(knob.danger));
        // Writing into a String does not fail.
        let _infallible = writeln!(
            out,
            "| `{}` | {live} | {wanted} | {effect} | {scope} | {why} | {danger} |",
            knob.name
        );
    }
    out.push_str("\n## What stops this box, first to last\n\n");
    out.push_str("| limit | now | connections | after the plan | cure |\n|---|---|---|---|---|\n");
    for ceiling in &planned.ceilings {
        let note = ceiling.note.map(|note| format!(" ({note})")).unwrap_or_default();
        let _infallible = writeln!(
            out,
            "| {}{note} | {} | {} | {} | {} |",
            ceiling.name,
            ceiling.live,
            ceiling.connections,
            ceiling.planned,
            cell(&ceiling.cure)
        );
    }
    for (title, lines) in [("To drop", folklore(planned)), ("Besides", planned.notes.clone())] {
        if !lines.is_empty() {
            let _infallible = writeln!(out, "\n## {title}\n");
            for line in lines {
                let _infallible = writeln!(out, "- {line}");
            }
        }
    }
    out
}

fn folklore(planned: &Planned<'_>) -> Vec<String> {
    let line = |finding: &crate::tune::folklore::Finding| {
        let place = finding.file.as_deref().unwrap_or("live");
        format!("`{} = {}` ({place}): {}", finding.key, finding.value, finding.why)
    };
    planned.folklore.iter().map(line).collect()
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
