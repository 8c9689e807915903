//! The command line: what to do, and the one place where a failure is printed.

mod check;
mod demo;
mod load;
mod run;
mod secret;
mod tune;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::config::epoch;
use crate::control::Ended;
use crate::control::exit;
use crate::control::failure::Failure;

/// Ends TLS for the servers behind it.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Try it: a self-signed certificate and a built-in web server, nothing else needed
    Demo {
        /// Address to listen on; port 0 lets the kernel choose
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8443")]
        listen: SocketAddr,
    },
    /// Serve, as a configuration file says, until SIGTERM
    Run {
        /// Configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Make the secret by which the machines of a fleet accept each other's session tickets
    Secret {
        /// How long one ticket key seals; the same as resumption.epoch
        #[arg(long, value_name = "DURATION", default_value = "12h", value_parser = epoch)]
        epoch: Duration,
        /// File to make; an existing one is not touched
        #[arg(value_name = "FILE")]
        path: PathBuf,
    },
    /// Load a TLS server with clients, and measure what they and the server see
    Load {
        #[command(subcommand)]
        mode: Box<load::Command>,
    },
    /// Set up the kernel for this box: detect, plan, apply, verify, revert
    Tune(tune::Arguments),
    /// Check a configuration file, its certificates and this machine; binds no port
    Check {
        /// Configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// Reads the command line, does what it says, and returns the exit code of sysexits(3).
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Standard output or error may be closed; the exit code still tells.
            let _unseen = error.print();
            return if error.use_stderr() {
                ExitCode::from(exit::USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let ended = match arguments.command {
        Action::Demo { listen } => demo::demo(listen),
        Action::Run { config } => run::run(&config),
        Action::Secret { epoch, path } => secret::run(&path, epoch).map(|()| Ended::Drained),
        Action::Check { config } => return check::run(&config),
        Action::Load { mode } => return load::run(&mode),
        Action::Tune(arguments) => return tune::run(arguments),
    };
    match ended {
        Ok(Ended::Drained) => ExitCode::SUCCESS,
        Ok(Ended::Signalled(number)) => ExitCode::from(signalled(number)),
        Err(failure) => {
            tell(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

/// What shells report for a process that a signal ended.
fn signalled(number: i32) -> u8 {
    u8::try_from(number).map_or(u8::MAX, |number| number.saturating_add(128))
}

fn tell(failure: &Failure) {
    tell_text(&failure.to_string());
}

fn tell_text(text: &str) {
    let mut stderr = std::io::stderr().lock();
    for line in text.lines() {
        // Nobody to tell it to; the exit code still tells.
        let _unseen = writeln!(stderr, "portcullis: {line}");
    }
}

/// Prints a line for the user. A closed standard output stops nothing.
fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _unseen = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// Prints a whole report. A closed standard output stops nothing.
fn say_all(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _unseen = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }

    #[test]
    fn demo_listens_where_documented_unless_told_otherwise() {
        let parse = |arguments: &[&str]| match Arguments::try_parse_from(arguments) {
            Ok(Arguments { command: Action::Demo { listen } }) => listen.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(parse(&["portcullis", "demo"]), "127.0.0.1:8443");
        let elsewhere = ["portcullis", "demo", "--listen", "[::1]:1"];
        assert_eq!(parse(&elsewhere), "[::1]:1");
    }

    #[test]
    fn a_run_without_configuration_is_refused() {
        assert!(Arguments::try_parse_from(["portcullis", "run"]).is_err());
    }

    #[test]
    fn signals_become_the_shells_exit_codes() {
        assert_eq!(signalled(15), 143);
        assert_eq!(signalled(2), 130);
    }
}
