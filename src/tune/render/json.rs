//! For programs.

use serde_json::{Value, json};

use super::Planned;
use crate::tune::plan::{Advice, Row};

/// A plan.
pub fn plan(planned: &Planned<'_>) -> Value {
    let goal = planned.goal;
    json!({
        "profile": goal.profile.name(),
        "connections": goal.connections,
        "workers": goal.shape.workers,
        "connection_bytes": goal.connection_bytes(),
        "ram_connections": goal.ram_connections(),
        "settings": planned.rows.iter().map(row).collect::<Vec<_>>(),
        "ceilings": planned.ceilings,
        "folklore": planned.folklore,
        "notes": planned.notes,
    })
}

fn row(row: &Row) -> Value {
    let knob = row.knob;
    let (verdict, reason) = match &row.advice {
        Advice::Set(_) => ("set", None),
        Advice::Already => ("already", None),
        Advice::Keep(reason) => ("keep", Some(reason.as_str())),
        Advice::Absent(reason) => ("absent", Some(*reason)),
    };
    json!({
        "name": knob.name,
        "group": knob.group,
        "verdict": verdict,
        "reason": reason,
        "live": row.live,
        "wanted": row.wanted(),
        "unit": knob.unit,
        "default": knob.default,
        "formula": knob.formula,
        "why": knob.why,
        "danger": knob.danger,
        "since": knob.since,
        "source": knob.source,
        "takes_effect": knob.effect,
        "scope": knob.scope,
    })
}
