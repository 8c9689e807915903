//! For people: tables and sentences of at most 100 columns.

use std::fmt::Write as _;

use comfy_table::{
    CellAlignment, ColumnConstraint, ContentArrangement, Table, TableComponent, Width, presets,
};

use super::Planned;
use super::text::{WIDTH, wrap};
use crate::control::topology::show_cpus;
use crate::tune::apply::{Done, Outcome};
use crate::tune::detect::Facts;
use crate::tune::detect::kernel::IoUring;
use crate::tune::detect::nic::Nic;
use crate::tune::goal::KERNEL_BYTES;
use crate::tune::knobs::{Group, Place};
use crate::tune::plan::{Advice, Row};
use crate::tune::process::Running;
use crate::tune::sizing::Ceiling;
use crate::tune::verify::{Drift, Report};

/// Columns of a table, each with its width, spaces around it included.
fn table(columns: &[(&str, u16)]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(u16::try_from(WIDTH).unwrap_or(u16::MAX))
        .set_header(columns.iter().map(|(title, _)| *title));
    for (column, (_, width)) in table.column_iter_mut().zip(columns) {
        column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(*width)));
    }
    table
}

/// Without lines between rows.
fn dense(columns: &[(&str, u16)]) -> Table {
    let mut table = table(columns);
    for component in [
        TableComponent::HorizontalLines,
        TableComponent::MiddleIntersections,
        TableComponent::LeftBorderIntersections,
        TableComponent::RightBorderIntersections,
    ] {
        table.remove_style(component);
    }
    table
}

fn heading(out: &mut String, text: &str) {
    if !out.is_empty() {
        out.push('\n');
    }
    wrap(out, "", "", text);
}

fn line(out: &mut String, text: &str) {
    wrap(out, "  ", "      ", text);
}

/// A list of named sentences, `- ` before each.
fn sentences(out: &mut String, title: &str, list: &[String]) {
    if list.is_empty() {
        return;
    }
    heading(out, title);
    for sentence in list {
        wrap(out, "  - ", "    ", sentence);
    }
}

fn push_table(out: &mut String, table: &Table) {
    for row in table.lines() {
        out.push_str(row.trim_end());
        out.push('\n');
    }
}

/// What is here.
pub fn facts(facts: &Facts) -> String {
    let mut out = String::new();
    processor(&mut out, facts);
    for nic in &facts.nics {
        interface(&mut out, nic);
    }
    kernel(&mut out, facts);
    heading(&mut out, "Counters since boot");
    let counters: Vec<String> =
        facts.evidence.iter().map(|(name, value)| format!("{name} {value}")).collect();
    line(&mut out, &counters.join(", "));
    who_sets(&mut out, facts);
    out
}

fn processor(out: &mut String, facts: &Facts) {
    let cpu = &facts.cpu;
    heading(out, "Processor and memory");
    line(
        out,
        &format!(
            "{} cores with {} hardware thread(s) each; CPUs {} online, {} for this process",
            cpu.cores.len(),
            cpu.threads_per_core(),
            show_cpus(&cpu.online),
            show_cpus(&cpu.allowed)
        ),
    );
    for (node, cpus) in cpu.nodes.iter().enumerate() {
        line(out, &format!("NUMA node {node}: CPUs {}", show_cpus(cpus)));
    }
    line(out, &format!("clock source {}", cpu.clocksource.as_deref().unwrap_or("not shown")));
    let governor = cpu.governor.as_deref().unwrap_or("none: firmware or hypervisor decides");
    line(out, &format!("frequency governor {governor}"));
    if let Some(quota) = cpu.quota_percent {
        line(out, &format!("CPU quota {}.{:02} CPUs", quota / 100, quota % 100));
    }
    let memory = &facts.memory;
    let limit = memory.cgroup_bytes.map_or_else(
        || "no limit by a control group".to_owned(),
        |bytes| format!("{} MiB by the control group", bytes >> 20),
    );
    line(
        out,
        &format!(
            "RAM {} MiB, {limit}; swap {} MiB",
            memory.total_bytes >> 20,
            memory.swap_bytes >> 20
        ),
    );
}

fn interface(out: &mut String, nic: &Nic) {
    heading(out, &format!("Network interface {}", nic.name));
    let driver = nic.driver.as_deref().unwrap_or("none: a virtual interface");
    let speed = nic
        .speed_mbit
        .map_or_else(|| "speed not known".to_owned(), |speed| format!("{speed} Mbit/s"));
    let node = nic.node.map(|node| format!(", NUMA node {node}")).unwrap_or_default();
    line(out, &format!("driver {driver}, {speed}{node}"));
    line(
        out,
        &format!(
            "{} receive queue(s){}{}, {} with RPS; {} transmit queue(s), {} with XPS",
            nic.rx_queues,
            nic.queues_max.map(|most| format!(" of at most {most}")).unwrap_or_default(),
            nic.rss_queues.map(|queues| format!(", RSS to {queues}")).unwrap_or_default(),
            nic.rps_queues,
            nic.tx_queues,
            nic.xps_queues
        ),
    );
    let irqs: Vec<String> = nic
        .irqs
        .iter()
        .map(|irq| format!("{} ({}) to CPU {}", irq.number, irq.name, show_cpus(&irq.cpus)))
        .collect();
    if !irqs.is_empty() {
        line(out, &format!("interrupts {}", irqs.join(", ")));
    }
}

fn kernel(out: &mut String, facts: &Facts) {
    let kernel = &facts.kernel;
    heading(out, "Kernel");
    let container = kernel
        .container
        .as_deref()
        .map_or_else(String::new, |name| format!(", in a {name} container"));
    let hypervisor = kernel.hypervisor.as_deref().map_or_else(
        || ", no hypervisor".to_owned(),
        |vendor| format!(", on a hypervisor ({vendor})"),
    );
    line(out, &format!("Linux {}{hypervisor}{container}", kernel.release));
    line(
        out,
        if kernel.first_network_namespace {
            "first network namespace: all settings can be seen"
        } else {
            "not the first network namespace: the host's settings cannot be seen here"
        },
    );
    match &kernel.io_uring {
        IoUring::Works { has, lacks } => {
            line(out, &format!("io_uring works, with {}", has.join(", ")));
            if !lacks.is_empty() {
                line(out, &format!("io_uring without {}", lacks.join(", ")));
            }
        }
        IoUring::Refused(why) => line(out, &format!("io_uring: {why}")),
        IoUring::Unknown => line(out, "io_uring: not asked, as this is another machine's tree"),
    }
    let show = |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |n| n.to_string());
    line(
        out,
        &format!(
            "limits of this shell: {} descriptors, {} bytes of locked memory",
            show(facts.limits.nofile),
            show(facts.limits.memlock)
        ),
    );
    match &facts.conntrack {
        Some(c) => line(
            out,
            &format!("connection tracking: {} of {} flows, {} buckets", c.count, c.max, c.buckets),
        ),
        None => line(out, "connection tracking is not loaded"),
    }
}

fn who_sets(out: &mut String, facts: &Facts) {
    heading(out, "Who else sets such keys");
    let ours = |key: &str| crate::tune::knobs::all().any(|knob| knob.name == key);
    let mut found = false;
    for set in facts.settings.lines.iter().filter(|set| ours(&set.key)) {
        line(out, &format!("{}: {} = {}", set.file, set.key, set.value));
        found = true;
    }
    for (program, says) in &facts.settings.programs {
        line(out, &format!("{program} {says}"));
        found = true;
    }
    if !found {
        line(out, "no file of sysctl.d(5), and no program that is known for it");
    }
}

/// A plan: changes, or all settings; the sizing; what to drop; what else.
pub fn plan(planned: &Planned<'_>, all: bool) -> String {
    let goal = planned.goal;
    let mut out = String::new();
    heading(
        &mut out,
        &format!(
            "Plan for {} connections on {} worker(s), profile {}: {} bytes of memory each (kernel \
             {KERNEL_BYTES}, Portcullis {}, and a share of the buffers of {} % that are busy), {} \
             MiB of {} MiB",
            goal.connections,
            goal.shape.workers,
            goal.profile.name(),
            goal.connection_bytes(),
            goal.user_bytes,
            goal.busy_percent,
            goal.ram_needed(goal.connections) >> 20,
            goal.facts.memory.usable_bytes() >> 20
        ),
    );
    out.push('\n');
    out.push_str(&sizing(planned));
    for group in Group::ALL {
        changes(&mut out, group, &planned.rows, all);
    }
    if !all {
        unchanged(&mut out, &planned.rows);
    }
    let folklore: Vec<String> = planned
        .folklore
        .iter()
        .map(|finding| {
            let place = finding.file.as_deref().unwrap_or("live");
            format!("{} = {} ({place}): {}", finding.key, finding.value, finding.why)
        })
        .collect();
    sentences(&mut out, "Drop these, which guides hand on", &folklore);
    sentences(&mut out, "Besides", &planned.notes);
    out
}

fn changes(out: &mut String, group: Group, rows: &[Row], all: bool) {
    let shown =
        |row: &&Row| row.knob.group == group && (all || matches!(row.advice, Advice::Set(_)));
    let rows: Vec<&Row> = rows.iter().filter(shown).collect();
    if rows.is_empty() {
        return;
    }
    let title = match group {
        Group::Capacity => "Capacity: without these, connections fail that the box could hold",
        Group::Behaviour => "Behaviour: how connections live and end",
        Group::Evidence => "Evidence: a counter or the hardware of this box speaks for it",
    };
    heading(out, title);
    let mut table = table(&[("setting", 35), ("now → wanted", 28), ("why, danger", 35)]);
    for row in rows {
        let knob = row.knob;
        let (effect, scope) = (knob.effect.name(), knob.scope.name());
        table.add_row([
            format!("{}\n  effect {effect}; {scope}", broken(knob.name, 33)),
            values(row),
            format!("{}\nDanger: {}", knob.why, knob.danger),
        ]);
    }
    push_table(out, &table);
}

/// A name that is longer than its column goes on behind its last slash or dot.
fn broken(name: &str, width: usize) -> String {
    let split = name.rsplit_once('/').map(|parts| (parts, '/'));
    match split.or_else(|| name.rsplit_once('.').map(|parts| (parts, '.'))) {
        Some(((path, last), separator)) if name.len() > width => {
            format!("{path}{separator}\n  {last}")
        }
        _ => name.to_owned(),
    }
}

fn values(row: &Row) -> String {
    let unknown = if matches!(row.knob.place, Place::Limit(_)) { "as its unit says" } else { "-" };
    let now = row.live.as_ref().map_or(unknown, |value| value.as_str());
    let wanted = match &row.advice {
        Advice::Set(value) => format!("→ {value}"),
        Advice::Already => "as it is".to_owned(),
        Advice::Keep(reason) => format!("as it is: {reason}"),
        Advice::Absent(reason) => (*reason).to_owned(),
    };
    format!("{now}\n{wanted}\n({})", row.knob.unit)
}

fn unchanged(out: &mut String, rows: &[Row]) {
    let names = |wanted: fn(&Advice) -> bool| -> Vec<&str> {
        rows.iter().filter(|row| wanted(&row.advice)).map(|row| row.knob.name).collect()
    };
    let mut kept = String::new();
    let already = names(|advice| matches!(advice, Advice::Already));
    if !already.is_empty() {
        line(&mut kept, &format!("already right: {}", already.join(", ")));
    }
    for row in rows {
        match &row.advice {
            Advice::Keep(reason) => line(&mut kept, &format!("{}: {reason}", row.knob.name)),
            Advice::Absent(reason) => line(&mut kept, &format!("{}: {reason}", row.knob.name)),
            Advice::Set(_) | Advice::Already => {}
        }
    }
    if !kept.is_empty() {
        heading(out, "Left alone (--all shows them in full)");
        out.push_str(&kept);
    }
}

/// The ceilings alone.
pub fn sizing(planned: &Planned<'_>) -> String {
    let mut out = String::new();
    heading(&mut out, "How many connections this box holds, and what stops it, first to last");
    let mut table =
        dense(&[("limit", 30), ("now", 16), ("connections", 13), ("as planned", 12), ("cure", 25)]);
    for ceiling in &planned.ceilings {
        let note = ceiling.note.map(|note| format!("\n({note})")).unwrap_or_default();
        table.add_row([
            format!("{}{note}", ceiling.name),
            ceiling.live.clone(),
            count(ceiling.connections),
            count(ceiling.planned),
            ceiling.cure.clone(),
        ]);
    }
    for column in [2, 3] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    push_table(&mut out, &table);
    let first = |allows: fn(&Ceiling) -> u64| {
        let stops = planned.ceilings.iter().filter(|ceiling| ceiling.note.is_none());
        let first = stops.min_by_key(|ceiling| allows(ceiling))?;
        Some(format!("{} ({})", allows(first), first.name))
    };
    let (now, then) = (first(|ceiling| ceiling.connections), first(|ceiling| ceiling.planned));
    if let (Some(now), Some(then)) = (now, then) {
        wrap(&mut out, "", "", &format!("It ends at {now}; with this plan at {then}."));
    }
    out
}

/// Beyond a number that no box will see, the number says nothing.
fn count(connections: u64) -> String {
    const NONE: u64 = 1 << 40;
    if connections >= NONE { "no limit".to_owned() } else { connections.to_string() }
}

/// What became of each setting.
pub fn account(done: &[Done]) -> String {
    let mut table = dense(&[("setting or file", 43), ("outcome", 15), ("", 40)]);
    for done in done {
        let text = match &done.outcome {
            Outcome::Set { from, to } | Outcome::Would { from, to } => format!("{from} -> {to}"),
            Outcome::Already => String::new(),
            Outcome::Skipped(text)
            | Outcome::Forbidden(text)
            | Outcome::Refused(text)
            | Outcome::Changed(text) => text.clone(),
        };
        table.add_row([broken(&done.name, 41), done.outcome.name().to_owned(), text]);
    }
    let mut out = String::new();
    push_table(&mut out, &table);
    let names =
        ["set", "would set", "already", "skipped", "no permission", "refused", "changed since"];
    let count = |name: &&str| done.iter().filter(|done| done.outcome.name() == *name).count();
    let counts: Vec<String> = names
        .iter()
        .map(|name| (name, count(name)))
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    wrap(&mut out, "", "", &counts.join(", "));
    let of_systemd = |done: &&Done| {
        done.name.contains("/systemd/") && matches!(done.outcome, Outcome::Set { .. })
    };
    if done.iter().any(|done| of_systemd(&done)) {
        let next = "Next: systemctl daemon-reload, and restart Portcullis, whose limits changed.";
        wrap(&mut out, "", "", next);
    }
    out
}

/// What `verify` found.
pub fn verified(report: &Report) -> String {
    let mut out = String::new();
    heading(
        &mut out,
        &format!("{} settings and files compared, {} differ", report.compared, report.drift.len()),
    );
    drifts(&mut out, &report.drift);
    if !report.at_boot.is_empty() {
        heading(&mut out, "At the next boot another file sets these after ours");
        drifts(&mut out, &report.at_boot);
    }
    if !report.left.is_empty() {
        line(&mut out, &format!("planned, but not set: {}", report.left.join(", ")));
    }
    for running in &report.running {
        process(&mut out, running);
    }
    if report.running.is_empty() {
        heading(&mut out, "No Portcullis runs here.");
    }
    out
}

fn drifts(out: &mut String, drifts: &[Drift]) {
    if drifts.is_empty() {
        return;
    }
    let mut table = dense(&[("setting or file", 36), ("is → should be", 30), ("who", 32)]);
    for drift in drifts {
        let who = match (&drift.who, drift.was_set) {
            (Some(file), _) => broken(file, 30),
            (None, true) => "no file: by hand or a program".to_owned(),
            (None, false) => "not set yet (tune apply)".to_owned(),
        };
        table.add_row([broken(&drift.name, 34), format!("{} → {}", drift.live, drift.wanted), who]);
    }
    push_table(out, &table);
}

fn process(out: &mut String, running: &Running) {
    heading(out, &format!("Portcullis runs as process {}", running.pid));
    let show = |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |n| n.to_string());
    line(
        out,
        &format!(
            "limits: {} descriptors per worker, {} bytes of locked memory",
            show(running.limits.nofile),
            show(running.limits.memlock)
        ),
    );
    if !running.workers.is_empty() {
        let each = running.workers.join(" ");
        line(out, &format!("{} worker(s), on CPU {each}", running.workers.len()));
    }
    for listening in &running.listeners {
        let mut text = format!(
            "listens on {} with {} socket(s), a queue of {} each",
            listening.address, listening.sockets, listening.backlog
        );
        let _infallible = write!(text, "; {} wait now", listening.waiting);
        line(out, &text);
    }
    for problem in &running.problems {
        line(out, &format!("problem: {problem}"));
    }
    for note in &running.notes {
        line(out, note);
    }
}
