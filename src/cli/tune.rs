//! `portcullis tune`: what the kernel should be set to for this box, setting it, and taking it
//! back.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

use super::say_all;
use crate::config::{Config, ServerAddress, Steering, size};
use crate::control::capacity::{self, Shape};
use crate::control::exit;
use crate::control::failure::Failure;
use crate::control::topology;
use crate::tune::advice;
use crate::tune::apply::{self, Done, How, Outcome};
use crate::tune::detect::Facts;
use crate::tune::files::{self, Persisted};
use crate::tune::goal::{Goal, Profile, Wishes};
use crate::tune::knobs::Group;
use crate::tune::plan;
use crate::tune::render::{Planned, json, markdown, report};
use crate::tune::root::Root;
use crate::tune::sizing;
use crate::tune::state::{PATH, State, StateError};
use crate::tune::verify;

/// Arguments of all commands.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Action,
    /// Read and write /proc, /sys and /etc below this directory, such as a copy of another
    /// machine's
    #[arg(long, value_name = "DIR", default_value = "/", global = true)]
    root: PathBuf,
    /// File that keeps the former values for revert [default: /var/lib/portcullis/tune.json]
    #[arg(long, value_name = "FILE", global = true)]
    state: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what is here: cores, memory, network cards, kernel, and who else sets keys
    Detect {
        /// Form of the report
        #[arg(long, value_enum, default_value_t = ReportFormat::Table)]
        format: ReportFormat,
    },
    /// Show what each setting should be and why, and what stops this box first; changes nothing
    Plan {
        #[command(flatten)]
        wishes: WishArguments,
        /// Form of the report
        #[arg(long, value_enum, default_value_t = PlanFormat::Table)]
        format: PlanFormat,
        /// Show in full what stays as it is, too
        #[arg(long)]
        all: bool,
    },
    /// Set what plan proposes, note the former values, and account for each setting
    Apply {
        #[command(flatten)]
        wishes: WishArguments,
        /// Write files too, so that it outlives a restart of the machine: sysctl.d, limits of the
        /// unit
        #[arg(long)]
        persist: bool,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
        /// Only these groups of settings; may be repeated
        #[arg(long, value_name = "GROUP", value_enum)]
        only: Vec<GroupName>,
        /// Form of the report
        #[arg(long, value_enum, default_value_t = ReportFormat::Table)]
        format: ReportFormat,
    },
    /// Compare with the plan, name who changed what, and look at the running process; exit code 1
    /// where something differs
    Verify {
        #[command(flatten)]
        wishes: WishArguments,
        /// The process to look at; without it, all that serve
        #[arg(long, value_name = "PID")]
        pid: Option<u32>,
        /// Form of the report
        #[arg(long, value_enum, default_value_t = ReportFormat::Table)]
        format: ReportFormat,
    },
    /// Set everything back to exactly what it was before apply
    Revert {
        /// Also where somebody changed a value since
        #[arg(long)]
        force: bool,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
        /// Form of the report
        #[arg(long, value_enum, default_value_t = ReportFormat::Table)]
        format: ReportFormat,
    },
}

#[derive(Debug, Args)]
struct WishArguments {
    /// Connections of the whole process; without it, what profile and RAM suggest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    connections: Option<u64>,
    /// Kind of machine
    #[arg(long, value_enum, default_value_t = ProfileName::Auto)]
    profile: ProfileName,
    /// Portcullis's memory of a connection, if yours is measured to differ
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory_per_connection: Option<u64>,
    /// Connections that have data waiting at one moment, of hundred [default: 5]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u64).range(1..=100))]
    busy: Option<u64>,
    /// Take workers, addresses, servers and connections from this configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ReportFormat {
    Table,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PlanFormat {
    Table,
    Json,
    #[value(name = "sysctl.d")]
    SysctlD,
    Markdown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProfileName {
    Auto,
    SmallVm,
    Edge,
    BigEdge,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum GroupName {
    Capacity,
    Behaviour,
    Evidence,
}

impl From<GroupName> for Group {
    fn from(name: GroupName) -> Self {
        match name {
            GroupName::Capacity => Self::Capacity,
            GroupName::Behaviour => Self::Behaviour,
            GroupName::Evidence => Self::Evidence,
        }
    }
}

impl ProfileName {
    fn profile(self) -> Option<Profile> {
        match self {
            Self::Auto => None,
            Self::SmallVm => Some(Profile::SmallVm),
            Self::Edge => Some(Profile::Edge),
            Self::BigEdge => Some(Profile::BigEdge),
        }
    }
}

/// An end without a report: what to tell, and the exit code.
struct Refusal(String, u8);

impl From<StateError> for Refusal {
    fn from(error: StateError) -> Self {
        let code = match &error {
            StateError::Io { source, .. }
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                exit::PERMISSION
            }
            StateError::Io { .. } => exit::OS,
            StateError::Malformed { .. } => exit::CONFIG,
        };
        Self(error.to_string(), code)
    }
}

impl From<plan::TooLittleRam> for Refusal {
    fn from(error: plan::TooLittleRam) -> Self {
        Self(error.to_string(), exit::CONFIG)
    }
}

/// Does what the command line says.
pub(super) fn run(arguments: Arguments) -> ExitCode {
    let root = Root::new(arguments.root);
    let state = arguments.state.unwrap_or_else(|| root.path(PATH));
    let ended = match arguments.command {
        Action::Detect { format } => detect(&root, format),
        Action::Plan { wishes, format, all } => show_plan(&root, &wishes, format, all),
        Action::Apply { wishes, persist, dry_run, only, format } => {
            let how = How { root: &root, state: &state, dry_run };
            let groups: Vec<Group> = only.into_iter().map(Group::from).collect();
            apply_plan(how, &wishes, persist, &groups, format)
        }
        Action::Verify { wishes, pid, format } => check(&root, &state, &wishes, pid, format),
        Action::Revert { force, dry_run, format } => {
            let how = How { root: &root, state: &state, dry_run };
            take_back(how, force, format)
        }
    };
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(Refusal(text, code)) => {
            super::tell_text(&text);
            ExitCode::from(code)
        }
    }
}

/// What is here. Without its RAM a machine cannot be planned for.
fn look(root: &Root) -> Result<Facts, Refusal> {
    let facts = Facts::collect(root);
    if facts.memory.total_bytes == 0 {
        let path = root.path("/proc/meminfo");
        let told = format!(
            "{} cannot be read: --root wants a directory with /proc, /sys and /etc of a machine",
            path.display()
        );
        return Err(Refusal(told, exit::USAGE));
    }
    Ok(facts)
}

fn detect(root: &Root, format: ReportFormat) -> Result<u8, Refusal> {
    let facts = look(root)?;
    match format {
        ReportFormat::Table => say_all(&report::facts(&facts)),
        ReportFormat::Json => say_json(&facts)?,
    }
    Ok(exit::OK)
}

fn show_plan(
    root: &Root,
    wishes: &WishArguments,
    format: PlanFormat,
    all: bool,
) -> Result<u8, Refusal> {
    let facts = look(root)?;
    let wishes = wishes.wishes(&facts)?;
    let goal = Goal::new(&facts, &wishes);
    let planned = Planned::new(&goal);
    if let Err(refused) = plan::check(&goal) {
        // What stops it is of use all the same.
        if format == PlanFormat::Table {
            say_all(&report::sizing(&planned));
        }
        return Err(refused.into());
    }
    match format {
        PlanFormat::Table => say_all(&report::plan(&planned, all)),
        PlanFormat::Json => say_json(&json::plan(&planned))?,
        PlanFormat::Markdown => say_all(&markdown::plan(&planned)),
        PlanFormat::SysctlD => {
            let files = files::persisted(&goal, &planned.rows, |_| false);
            let text = files.iter().find(|file| file.path == files::SYSCTL_D);
            say_all(text.map_or("# Nothing to set.\n", |file| &file.text));
        }
    }
    Ok(exit::OK)
}

fn apply_plan(
    how: How<'_>,
    wishes: &WishArguments,
    persist: bool,
    groups: &[Group],
    format: ReportFormat,
) -> Result<u8, Refusal> {
    let facts = look(how.root)?;
    let wishes = wishes.wishes(&facts)?;
    let goal = plan::goal(&facts, &wishes)?;
    let rows = plan::rows(&goal);
    let state = State::load(how.state)?;
    let ours = |knob: &str| {
        state.iter().flat_map(|state| &state.settings).any(|setting| setting.knob == knob)
    };
    let files: Vec<Persisted> = if persist {
        files::persisted(&goal, &plan::of_groups(&rows, groups), ours)
    } else {
        Vec::new()
    };
    let done = apply::apply(how, &wishes, &rows, groups, &files)?;
    account(&done, format)
}

fn check(
    root: &Root,
    state: &Path,
    arguments: &WishArguments,
    pid: Option<u32>,
    format: ReportFormat,
) -> Result<u8, Refusal> {
    let facts = look(root)?;
    let state = State::load(state)?;
    let mut wishes = arguments.wishes(&facts)?;
    if let (Some(state), true) = (&state, wishes == Wishes::default()) {
        wishes = state.wishes.clone();
    }
    let goal = plan::goal(&facts, &wishes)?;
    let report = verify::verify(root, &goal, &plan::rows(&goal), state.as_ref(), pid);
    if let (Some(pid), true) = (pid, report.running.is_empty()) {
        return Err(Refusal(format!("there is no process {pid}"), exit::USAGE));
    }
    match format {
        ReportFormat::Table => say_all(&report::verified(&report)),
        ReportFormat::Json => say_json(&report)?,
    }
    Ok(if report.is_clean() { exit::OK } else { exit::DRIFT })
}

fn take_back(how: How<'_>, force: bool, format: ReportFormat) -> Result<u8, Refusal> {
    let done = apply::revert(how, force)?;
    if done.is_empty() {
        say_all(&format!("nothing to take back: {} is not there\n", how.state.display()));
        return Ok(exit::OK);
    }
    account(&done, format)
}

fn account(done: &[Done], format: ReportFormat) -> Result<u8, Refusal> {
    match format {
        ReportFormat::Table => say_all(&report::account(done)),
        ReportFormat::Json => say_json(&done)?,
    }
    Ok(exit_code(done))
}

/// The worst outcome decides.
fn exit_code(done: &[Done]) -> u8 {
    let any = |is: fn(&Outcome) -> bool| done.iter().any(|done| is(&done.outcome));
    if any(|outcome| matches!(outcome, Outcome::Refused(_))) {
        exit::OS
    } else if any(|outcome| matches!(outcome, Outcome::Forbidden(_))) {
        exit::PERMISSION
    } else if any(|outcome| matches!(outcome, Outcome::Changed(_))) {
        exit::DRIFT
    } else {
        exit::OK
    }
}

fn say_json(value: &impl serde::Serialize) -> Result<(), Refusal> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Refusal(format!("cannot write JSON: {error}"), exit::OS))?;
    say_all(&(text + "\n"));
    Ok(())
}

impl WishArguments {
    /// What the command line says, and what the configuration says where it does not.
    fn wishes(&self, facts: &Facts) -> Result<Wishes, Refusal> {
        let mut wishes = match &self.config {
            Some(path) => configured(path, facts)?,
            None => Wishes::default(),
        };
        wishes.profile = self.profile.profile();
        wishes.connections = self.connections.or(wishes.connections);
        wishes.user_bytes = self.memory_per_connection;
        wishes.busy_percent = self.busy;
        Ok(wishes)
    }
}

fn configured(path: &Path, facts: &Facts) -> Result<Wishes, Refusal> {
    let config = Config::load(path).map_err(|error| {
        let failure = Failure::from(error);
        Refusal(failure.to_string(), failure.exit_code())
    })?;
    // As `run` places them, but on the machine of the facts.
    let named = config.workers.cpus.as_ref().map(Vec::len);
    let workers = config.workers.count.or(named).unwrap_or(facts.cpu.cores.len());
    Ok(of_config(&config, workers, config.limits.connections_per_worker))
}

/// A plan's aim for a configuration with so many workers and connections of each.
pub(super) fn of_config(config: &Config, workers: usize, per_worker: Option<u32>) -> Wishes {
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    Wishes {
        connections: per_worker.map(|each| u64::from(each).saturating_mul(count(workers))),
        workers: Some(count(workers)),
        addresses: Some(count(config.listeners.iter().map(|listener| listener.bind.len()).sum())),
        servers: Some(servers(config)),
        ..Wishes::default()
    }
}

/// What of this machine stops the connections that are configured, each with its cure. With "auto"
/// nobody asked for a number; only listeners' queues and steering are looked at then.
pub(super) fn warnings(
    config: &Config,
    facts: &Facts,
    workers: usize,
    per_worker: u32,
) -> Vec<String> {
    let mut warnings = Vec::new();
    if config.limits.connections_per_worker.is_some() {
        let wishes = of_config(config, workers, Some(per_worker));
        let goal = Goal::new(facts, &wishes);
        warnings = sizing::warnings(&goal, &plan::rows(&goal));
    }
    if config.workers.steering == Steering::IncomingCpu
        && let Ok(placed) = topology::workers(&config.workers)
    {
        let cpus: Vec<usize> = placed.into_iter().flatten().collect();
        warnings.extend(advice::unserved(facts, &cpus));
    }
    let somaxconn = facts.number("net.core.somaxconn").unwrap_or(u64::MAX);
    for listener in &config.listeners {
        let name = &listener.name;
        // Where nobody asked for a number, the one there is fits.
        let Some(backlog) = listener.backlog.filter(|asked| u64::from(*asked) > somaxconn) else {
            continue;
        };
        warnings.push(format!(
            "listener {name}: its backlog of {backlog} is cut to net.core.somaxconn = {somaxconn}: \
             sysctl -w net.core.somaxconn={backlog}, and start again (see `portcullis tune plan`)"
        ));
    }
    warnings
}

/// The same for a configuration that is about to run; what cannot be found out is told by the start
/// itself.
pub(super) fn warnings_at_start(config: &Config) -> Vec<String> {
    let Ok(workers) = topology::workers(&config.workers) else { return Vec::new() };
    let shape = Shape::new(config, workers.len());
    match capacity::connections_per_worker(&config.limits, shape) {
        Ok(per_worker) => {
            warnings(config, &Facts::collect(&Root::new("/")), workers.len(), per_worker)
        }
        Err(_) => Vec::new(),
    }
}

/// Different TCP addresses of servers; 0 where one is a Unix socket, which has no bound of ports.
fn servers(config: &Config) -> u64 {
    let mut addresses = Vec::new();
    for server in config.backends.iter().flat_map(|backend| &backend.servers) {
        match &server.address {
            ServerAddress::Unix(_) => return 0,
            host @ ServerAddress::Host { .. } if addresses.contains(&host) => {}
            host @ ServerAddress::Host { .. } => addresses.push(host),
        }
    }
    u64::try_from(addresses.len()).unwrap_or(u64::MAX)
}
