//! `portcullis check`: everything that `run` would need, verified without binding a port.

mod admission;

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::unistd::AccessFlags;

use crate::config::{
    Backend, Config, ConfigError, Connect, ProxyVersion, Resumption, ResumptionMode, Server,
    ServerAddress, show_duration,
};
use crate::control::backlog::{self, Backlog};
use crate::control::capacity::{self, CapacityError, DESCRIPTORS_RESERVED, Shape};
use crate::control::certificates::{
    self, CertificateProblem, ClientAuthDescription, Description, Fault,
};
use crate::control::rotation::Rotation;
use crate::control::{exit, resolve, topology, unix_time};
use crate::sys::probe::{self, Memory, ProbeError};
use crate::telemetry::calendar::rfc3339_utc;
use crate::tls::provider::{Cpu, suite_order};
use crate::tune::detect::Facts;
use crate::tune::goal::Goal;
use crate::tune::plan;
use crate::tune::render::text::wrap;
use crate::tune::root::Root;
use crate::tune::sizing::{self, Ceiling};

/// Days before a certificate's expiry from which on `check` warns: two weeks are what is left when
/// an automatic renewal, due a month before, has failed for a fortnight.
const EXPIRY_WARNING_DAYS: i64 = 14;

/// Days before a revocation list's next update from which on `check` warns. Lists are made every
/// few hours to every month; the newer one of most is there a day before.
const NEXT_UPDATE_WARNING_DAYS: i64 = 1;

/// Checks a configuration and prints the report; problems go to standard error.
pub(super) fn run(config_path: &Path) -> ExitCode {
    let report = report(config_path, SystemTime::now());
    // A closed pipe takes nothing from the verdict, which is the exit code.
    let _printed = std::io::stdout().write_all(report.text.as_bytes());
    let _printed = std::io::stderr().write_all(report.problems.as_bytes());
    ExitCode::from(report.exit_code)
}

/// What `check` found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// For standard output.
    text: String,
    /// For standard error; empty when nothing is wrong.
    problems: String,
    /// One of [`exit`].
    exit_code: u8,
}

impl Report {
    fn heading(&mut self, text: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text.push_str(text);
        self.text.push('\n');
    }

    /// A line of a section; what does not fit goes on below, indented deeper.
    fn line(&mut self, text: &str) {
        wrap(&mut self.text, "  ", "      ", text);
    }

    fn warn(&mut self, text: &str) {
        self.line(&format!("warning: {text}"));
    }

    /// A problem; the first one's exit code is the report's.
    fn problem(&mut self, exit_code: u8, text: &str) {
        if !self.problems.is_empty() {
            self.problems.push('\n');
        }
        wrap(&mut self.problems, "error: ", "    ", text);
        if self.exit_code == exit::OK {
            self.exit_code = exit_code;
        }
    }
}

/// Checks a configuration as of a time.
pub(super) fn report(config_path: &Path, now: SystemTime) -> Report {
    let mut report = Report::default();
    let config = match Config::load(config_path) {
        Ok(config) => config,
        Err(error) => {
            configuration_problems(&mut report, &error);
            // What this machine can do is of use even so.
            kernel(&mut report);
            return report;
        }
    };
    report.heading(&format!("{}: valid", config_path.display()));
    for (index, listener) in config.listeners.iter().enumerate() {
        listener_line(&mut report, &config, index);
        if listener.alpn.is_empty() {
            continue;
        }
        report.line(&format!("    alpn {}", listener.alpn.join(", ")));
    }
    backend_section(&mut report, &config);
    let mut backlogs = Vec::new();
    match certificates::load_at(&config, now) {
        Ok(loaded) => {
            certificate_section(&mut report, &config, &loaded.certificates, now);
            client_auth_section(&mut report, &config, &loaded.client_auth, now);
            backlogs = backlog::of(&config, &loaded.terms);
            admission::section(&mut report, &config, &loaded);
        }
        Err(problems) => {
            for problem in &problems {
                report.problem(certificate_exit_code(problem), &problem.to_string());
            }
        }
    }
    tls_section(&mut report, &config);
    resumption_section(&mut report, &config.resumption, now);
    kernel(&mut report);
    queue_section(&mut report, &config, &backlogs);
    worker_section(&mut report, &config);
    if report.problems.is_empty() {
        report.heading("Everything that can be checked without starting is in order.");
    }
    report
}

fn configuration_problems(report: &mut Report, error: &ConfigError) {
    match error {
        ConfigError::Unreadable { source, .. } => {
            let code = match source.kind() {
                ErrorKind::PermissionDenied => exit::PERMISSION,
                _ => exit::CONFIG,
            };
            report.problem(code, &error.to_string());
        }
        ConfigError::Invalid(problems) => {
            for problem in problems {
                report.problem(exit::CONFIG, &problem.to_string());
            }
        }
    }
}

fn certificate_exit_code(problem: &CertificateProblem) -> u8 {
    match problem.fault {
        Fault::Permission => exit::PERMISSION,
        _ => exit::CONFIG,
    }
}

fn listener_line(report: &mut Report, config: &Config, index: usize) {
    let Some(listener) = config.listeners.get(index) else {
        return;
    };
    let binds: Vec<String> = listener.bind.iter().map(ToString::to_string).collect();
    let backend = config.backends.get(listener.backend).map_or("", |b| b.name.as_str());
    report.line(&format!(
        "listener {} on {} -> backend {backend}",
        listener.name,
        binds.join(", "),
    ));
}

fn backend_section(report: &mut Report, config: &Config) {
    report.heading("Backends");
    for backend in &config.backends {
        let proxy = match backend.send_proxy_protocol {
            None => "",
            Some(ProxyVersion::V1) => ", with a PROXY protocol v1 header",
            Some(ProxyVersion::V2) => ", with a PROXY protocol v2 header",
        };
        let turns = if backend.servers.len() > 1 { ", in turn" } else { "" };
        let when = match backend.connect {
            Connect::Eager => "",
            Connect::OnFirstByte => ", connected on a client's first byte",
        };
        report.line(&format!("{}{turns}{when}{proxy}", backend.name));
        if backend.is_limited() {
            let (max, timeout) = (backend.queue.max, show_duration(backend.queue.timeout));
            report.line(&format!(
                "    while none has room, {max} clients wait in line, for {timeout} at most"
            ));
        }
        for server in &backend.servers {
            server_line(report, backend, server);
            if let Some(max) = server.max_connections {
                report.line(&format!("        at most {max} connections"));
            }
        }
    }
}

/// A server with the addresses of its name. One that cannot be reached by now is no error: it may
/// come later, and `run` starts without it.
fn server_line(report: &mut Report, backend: &Backend, server: &Server) {
    let at = &server.address_at;
    let place = format!("{}:{}: {}", at.file.display(), at.line, at.key);
    match &server.address {
        ServerAddress::Unix(path) => {
            report.line(&format!("    unix:{}", path.display()));
            if std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
                report.warn(&format!("{place}: there is no {} yet", path.display()));
            }
        }
        ServerAddress::Host { host, port } => match resolve::system(host, *port) {
            Ok(found) if !found.is_empty() => {
                let mut found: Vec<String> = found.iter().map(ToString::to_string).collect();
                found.sort_unstable();
                found.dedup();
                let found = found.join(", ");
                let named = found.contains(host.as_str());
                let line = if named { found } else { format!("{host}:{port} = {found}") };
                report.line(&format!("    {line}"));
            }
            failed => {
                let why = failed.err().map_or_else(|| "no address".to_owned(), |e| e.to_string());
                report.line(&format!("    {host}:{port}"));
                report.warn(&format!(
                    "{place}: the name {host} of backend \"{}\" does not resolve ({why}); this \
                     server gets no connections until it does",
                    backend.name
                ));
            }
        },
    }
}

fn certificate_section(
    report: &mut Report,
    config: &Config,
    certificates: &[Description],
    now: SystemTime,
) {
    report.heading("Certificates");
    for certificate in certificates {
        let listener = listener_name(config, certificate.listener);
        let path = certificate.chain.display();
        report.line(&format!("{path} (listener {listener})"));
        let names = match certificate.names.as_slice() {
            [] => "none; served only as the listener's default".to_owned(),
            names => names.join(", "),
        };
        report.line(&format!("    names   {names}"));
        let issuer = if certificate.self_signed {
            "itself (clients trust it only if told to)"
        } else {
            &certificate.issuer
        };
        let length = certificate.chain_length;
        report.line(&format!(
            "    key     {}; chain of {length}; issued by {issuer}",
            certificate.key
        ));
        let days = certificate.days_left(now);
        let until = date(certificate.not_after);
        report.line(&format!("    expiry  {until}, {days} days left"));
        if days < EXPIRY_WARNING_DAYS {
            report.warn(&format!("{path} expires in {days} days; renew it"));
        }
        if !certificate.names_not_covered.is_empty() {
            let names = certificate.names_not_covered.join(", ");
            report.warn(&format!(
                "{path} is to be served for {names}, which it does not list; clients will refuse it"
            ));
        }
    }
}

fn listener_name(config: &Config, index: usize) -> &str {
    config.listeners.get(index).map_or("", |listener| listener.name.as_str())
}

fn client_auth_section(
    report: &mut Report,
    config: &Config,
    policies: &[ClientAuthDescription],
    now: SystemTime,
) {
    if policies.is_empty() {
        return;
    }
    report.heading("Client certificates");
    for policy in policies {
        let listener = listener_name(config, policy.listener);
        report.line(&format!("listener {listener}: {}, issued by", policy.mode.name()));
        let ca = policy.ca.display();
        for authority in &policy.authorities {
            let subject = &authority.subject;
            let days = certificates::days_left(authority.not_after, now);
            let until = date(authority.not_after);
            report.line(&format!("    {subject} in {ca}; expires {until}, {days} days left"));
            if days < EXPIRY_WARNING_DAYS {
                report.warn(&format!(
                    "{subject} in {ca} expires in {days} days; then nothing starts with this file: \
                     add its successor, and take it out before"
                ));
            }
            if authority.lacks_list {
                report.warn(&format!(
                    "listener.client_auth.crl has no list of {subject}: whoever it issued to is \
                     refused; add its list, or leave crl out"
                ));
            }
        }
        let Some(crl) = &policy.crl else {
            report.line("revocation is not checked (no listener.client_auth.crl)");
            continue;
        };
        let crl = crl.display();
        for list in &policy.revocation_lists {
            let (issuer, revoked) = (&list.issuer, list.revoked);
            let days = certificates::days_left(list.next_update, now);
            let until = date(list.next_update);
            report.line(&format!(
                "    {crl} of {issuer}: {revoked} revoked; next update {until}, {days} days left"
            ));
            if days < NEXT_UPDATE_WARNING_DAYS {
                report.warn(&format!(
                    "{crl}: the list of {issuer} counts for less than a day more; then all its \
                     clients are refused: put the newer one there and start again"
                ));
            }
        }
    }
}

/// A Unix time's day, in UTC. Certificates that ended before 1970 were refused.
fn date(seconds: i64) -> String {
    let since = Duration::from_secs(seconds.try_into().unwrap_or_default());
    let mut time = rfc3339_utc(UNIX_EPOCH + since);
    time.truncate(time.find('T').unwrap_or(time.len()));
    time
}

fn tls_section(report: &mut Report, config: &Config) {
    let order = suite_order(&config.tls, Cpu::detect());
    report.heading("TLS");
    report.line("cipher suites, in the order that decides:");
    for name in &order.names {
        report.line(&format!("    {name}"));
    }
    report.line(&format!("why: {}", order.why));
    let groups = config.tls.groups.join(", ");
    report.line(&format!(
        "groups: {groups} (among those that the client offers too, the client's order decides)"
    ));
}

fn resumption_section(report: &mut Report, section: &Resumption, now: SystemTime) {
    report.heading("Resumption");
    let (lifetime, epoch) = (show_duration(section.lifetime), show_duration(section.epoch));
    match section.mode {
        ResumptionMode::Off => return report.line("off: every handshake is a full one"),
        ResumptionMode::Cache => report.line(
            "cache: no tickets; sessions are kept here, those of TLS 1.3 for one use, and end with \
             this process",
        ),
        ResumptionMode::Tickets => {
            report.line(&format!(
                "tickets: kept by clients, {} for each full handshake of TLS 1.3; the sessions of \
                 TLS 1.2 clients that take none are kept here",
                section.tickets_per_handshake
            ));
            ticket_keys(report, section, now);
        }
    }
    report.line(&format!(
        "a session resumes for {lifetime} after the full handshake that began it, at the listener, \
         for the server name and under the client-authentication policy that it began with; no \
         early data"
    ));
    report.line(&format!(
        "kept here at most: {} sessions per worker and {} for all, in {} MiB each",
        section.sessions_per_worker,
        section.sessions,
        section.session_bytes >> 20
    ));
    if section.mode == ResumptionMode::Tickets && section.lifetime > 2 * section.epoch {
        report.warn(&format!(
            "tickets are accepted for one to two epochs of {epoch}, which ends a session before \
             its lifetime of {lifetime}; raise resumption.epoch or lower resumption.lifetime"
        ));
    }
}

fn ticket_keys(report: &mut Report, section: &Resumption, now: SystemTime) {
    let rotation = match Rotation::start(section, unix_time(now), Instant::now()) {
        Ok(rotation) => rotation,
        Err(error) => {
            let code = if error.is_permission() { exit::PERMISSION } else { exit::CONFIG };
            return report.problem(code, &error.to_string());
        }
    };
    match &section.secret_file {
        Some((path, _)) => {
            report.line(&format!("ticket keys from {}: {}", path.display(), rotation.describe()));
            // A link stays; what it leads to is moved forward.
            let path = path.canonicalize().unwrap_or_else(|_| path.clone());
            let directory = path.parent().unwrap_or(Path::new("/"));
            if nix::unistd::access(directory, AccessFlags::W_OK).is_err() {
                report.warn(&format!(
                    "{} may not be written by this user: ticket keys change all the same, but the \
                     file is not moved forward, and whoever gets it can open the tickets of past \
                     epochs too",
                    directory.display()
                ));
            }
        }
        None => report.line(&format!(
            "ticket keys from a random secret of each process, changed every {}: sessions end with \
             the process, and machines behind one name do not share them (see `portcullis secret`)",
            show_duration(section.epoch)
        )),
    }
    if rotation.is_early(unix_time(now)) {
        report.warn(
            "the clock is before the first epoch of resumption.secret_file: it is wrong here, or \
             was where the file was made",
        );
    }
}

/// What the kernel must have. `sys::probe` adds the ring's features here.
fn kernel(report: &mut Report) {
    report.heading("Kernel");
    match probe::report() {
        Ok(found) => {
            report.line(&format!(
                "release {}; {} or newer is needed, and io_uring works; its features, + there, - \
                 not there:",
                found.kernel,
                probe::KERNEL_MIN
            ));
            for feature in &found.features {
                let has = if feature.available { "+" } else { "-" };
                report.line(&format!(
                    "  {has} {:<34} since {:<5} {}",
                    feature.name, feature.since, feature.purpose
                ));
            }
        }
        Err(error) => {
            let code = match error {
                ProbeError::Memory { .. } => exit::OS,
                _ => exit::UNAVAILABLE,
            };
            report.problem(code, &error.to_string());
        }
    }
}

/// Where clients wait before they are accepted, for each worker and address.
fn queue_section(report: &mut Report, config: &Config, backlogs: &[Backlog]) {
    report.heading("Clients that wait in the kernel, for each worker and address");
    for (listener, backlog) in config.listeners.iter().zip(backlogs) {
        report.line(&format!("listener {}: {backlog}", listener.name));
        if let Some(longest) = listener.defer_accept {
            report.line(&format!(
                "    one that says nothing is kept there for {}, and neither limits nor metrics \
                 see it (listener.defer_accept)",
                show_duration(longest)
            ));
        }
    }
    let somaxconn = capacity::sysctl("net/core/somaxconn").unwrap_or(0);
    report.line(&format!("net.core.somaxconn {somaxconn} (cuts every listener's backlog)"));
}

fn worker_section(report: &mut Report, config: &Config) {
    let workers = match topology::workers(&config.workers) {
        Ok(workers) => workers,
        Err(error) => return report.problem(exit::CONFIG, &error.to_string()),
    };
    report.heading("Workers");
    let count = workers.len();
    let pinned: Option<Vec<usize>> = workers.iter().copied().collect();
    match pinned {
        Some(cpus) => {
            let cpus = topology::show_cpus(&cpus);
            report.line(&format!("{count}, pinned to CPU {cpus}"));
        }
        None => report.warn(&format!(
            "{count} workers are more than the CPUs this process may use: none will be pinned"
        )),
    }
    memory_line(report, count);
    let shape = Shape::new(config, count);
    let connections = match capacity::connections_per_worker(&config.limits, shape) {
        Ok(connections) => connections,
        Err(error) => {
            let code = match error {
                CapacityError::Limits(_) => exit::OS,
                _ => exit::CONFIG,
            };
            return report.problem(code, &error.to_string());
        }
    };
    limit_section(report, config, shape, connections);
}

/// Locked memory bounds workers, not connections.
fn memory_line(report: &mut Report, workers: usize) {
    let each = probe::MEMLOCK_BYTES_PER_WORKER.div_ceil(1024);
    match probe::memory(workers) {
        Ok(Memory { needed, limit: Some(limit) }) => report.line(&format!(
            "their rings take {} KiB of locked memory, {each} KiB each, of {} KiB that \
             RLIMIT_MEMLOCK allows this user in all its processes",
            needed.div_ceil(1024),
            limit / 1024
        )),
        Ok(Memory { limit: None, .. }) => report.line(&format!(
            "their rings take {each} KiB of locked memory each, and RLIMIT_MEMLOCK does not bind \
             this process"
        )),
        Err(error) => report.problem(exit::OS, &error.to_string()),
    }
}

fn limit_section(report: &mut Report, config: &Config, shape: Shape, connections: u32) {
    let facts = Facts::collect(&Root::new("/"));
    let wishes = super::tune::of_config(config, shape.workers, Some(connections));
    let goal = Goal::new(&facts, &wishes);
    let rows = plan::rows(&goal);
    let auto = if config.limits.connections_per_worker.is_none() { " (auto)" } else { "" };
    report.heading("Connections this process can hold, and what stops it, first to last");
    let mut lines = vec![(
        goal.connections,
        "limits.connections_per_worker".to_owned(),
        format!("{connections}{auto}"),
    )];
    for Ceiling { name, live, connections, note, .. } in sizing::ceilings(&goal, &rows) {
        let note = note.map(|note| format!(" ({note})")).unwrap_or_default();
        lines.push((connections, format!("{name}{note}"), live));
    }
    lines.sort_by_key(|(connections, ..)| *connections);
    report.line(&format!("{:<48} {:>20} {:>20}", "limit", "live value", "connections"));
    for (connections, name, live) in lines {
        report.line(&format!("{name:<48} {live:>20} {connections:>20}"));
    }
    report.line(&format!(
        "a worker needs {} descriptors for each connection and {} besides: {} for each listening \
         address, and {DESCRIPTORS_RESERVED} for itself",
        capacity::DESCRIPTORS_PER_CONNECTION,
        shape.descriptors(0),
        capacity::DESCRIPTORS_PER_ADDRESS,
    ));
    for warning in super::tune::warnings(config, &facts, shape.workers, connections) {
        report.warn(&warning);
    }
}

#[cfg(test)]
mod tests;
