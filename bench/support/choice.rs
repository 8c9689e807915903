//! The part of a command line that says which programs are compared.

use std::path::{Path, PathBuf};

use super::Result;
use super::program::{PEERS, Program};

/// Which programs are compared.
#[derive(Debug, clap::Args)]
pub(crate) struct Choice {
    /// Servers, in the order in which they are measured. What is not installed is skipped.
    #[arg(long, value_delimiter = ',', default_value = "portcullis,haproxy,nginx,hitch,stunnel")]
    servers: Vec<String>,
    /// Another build of Portcullis to measure in the same run, as NAME=PATH; may be repeated.
    #[arg(long, value_name = "NAME=PATH", value_parser = pair)]
    binary: Vec<(String, PathBuf)>,
    /// Where a peer's program is, if not in the search path, as NAME=PATH; may be repeated.
    #[arg(long, value_name = "NAME=PATH", value_parser = pair)]
    path: Vec<(String, PathBuf)>,
    /// nginx's stream module; empty where it is built in.
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/usr/lib/nginx/modules/ngx_stream_module.so"
    )]
    nginx_module: String,
}

fn pair(text: &str) -> std::result::Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("want NAME=PATH")?;
    Ok((name.to_owned(), path.into()))
}

impl Choice {
    /// The programs to measure, in the order in which they are measured, with their versions.
    ///
    /// # Errors
    /// One that there is not; on a CI machine also one that is not installed.
    pub(crate) fn programs(&self) -> Result<Vec<(Program, String)>> {
        let mut programs = Vec::new();
        for name in &self.servers {
            if name == "portcullis" {
                let ours = Path::new(env!("CARGO_BIN_EXE_portcullis"));
                programs.push(with_version(Program::portcullis(name, ours))?);
                continue;
            }
            match with_version(self.peer(name)?) {
                Ok(peer) => programs.push(peer),
                Err(error) => missing(&error.to_string())?,
            }
        }
        for (name, path) in &self.binary {
            programs.push(with_version(Program::portcullis(name, path))?);
        }
        Ok(programs)
    }

    fn peer(&self, name: &str) -> Result<Program> {
        let path = self.path.iter().find(|(peer, _)| peer == name).map(|(_, path)| path.clone());
        let peer = Program::peer(name, path);
        let mut peer = peer.ok_or_else(|| {
            format!("no such server: {name}; there are portcullis, {}", PEERS.join(", "))
        })?;
        if name == "nginx" {
            let load = match self.nginx_module.as_str() {
                "" => String::new(),
                module => format!("load_module {module};"),
            };
            peer.values.push(("@LOAD_MODULE@", load));
        }
        Ok(peer)
    }
}

fn with_version(program: Program) -> Result<(Program, String)> {
    match program.version() {
        Ok(version) => Ok((program, version)),
        Err(error) => {
            let path = program.path.display();
            Err(format!("{}: skipped, {path} cannot be run: {error}", program.name).into())
        }
    }
}

/// Says what is missing; where everything has to be there, as in CI, that is an error.
pub(crate) fn missing(what: &str) -> Result<()> {
    if std::env::var_os("CI").is_some() {
        return Err(what.into());
    }
    eprintln!("{what}");
    Ok(())
}
