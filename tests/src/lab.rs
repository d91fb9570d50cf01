//! The laboratory: a real server and a real Postgres on one machine, joined by a network of their
//! own. Every part is a guard that takes itself away when it is dropped.
//!
//! ```text
//! namespace PREFIX-server            namespace PREFIX-outside
//!   gunicorn, port 8000                Postgres, port 5432
//!   eth0  198.18.a.b  <---- veth ---->  eth0  198.18.a.c   load generator
//! ```
//!
//! Nothing on the machine's own network changes. Needs root, or sudo: only entering and making
//! namespaces uses it, and all programs run as the invoking user (Postgres, which refuses root,
//! as user `postgres` when root invokes).

pub mod net;
pub mod paths;
pub mod postgres;
pub mod process;
pub mod program;
pub mod server;
pub mod user;

use std::path::PathBuf;

use anyhow::{Context as _, Result};

pub use net::{Network, Side};
pub use postgres::{Postgres, PostgresSpec};
pub use process::Process;
pub use program::Program;
pub use server::{App, Server};

/// The network and everything that runs in it. Fields are dropped in order: programs first.
#[derive(Debug)]
pub struct Lab {
    server: Option<Server>,
    postgres: Option<Postgres>,
    network: Network,
    logs: PathBuf,
}

impl Lab {
    /// Makes the network. `logs` is the directory for the programs' output; it is created.
    ///
    /// # Errors
    /// When the namespaces cannot be made: neither root nor a usable sudo, or no veth.
    pub fn new(logs: PathBuf) -> Result<Self> {
        let mut lab = Self { server: None, postgres: None, network: Network::new()?, logs };
        lab.log_to(lab.logs.clone())?;
        Ok(lab)
    }

    /// Sends the output of programs started from now on to another directory, which is created.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn log_to(&mut self, logs: PathBuf) -> Result<()> {
        std::fs::create_dir_all(&logs)
            .with_context(|| format!("cannot create {}", logs.display()))?;
        self.logs = logs;
        Ok(())
    }

    /// The network.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Directory of the programs' output.
    #[must_use]
    pub fn logs(&self) -> &std::path::Path {
        &self.logs
    }

    /// The server, if one was started.
    #[must_use]
    pub fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    /// Postgres, if it was started.
    #[must_use]
    pub fn postgres(&self) -> Option<&Postgres> {
        self.postgres.as_ref()
    }

    /// Replaces Postgres by a fresh one and waits until it takes connections.
    ///
    /// # Errors
    /// When it does not come up; the message holds the end of its log.
    pub fn start_postgres(&mut self, spec: &PostgresSpec) -> Result<&Postgres> {
        self.stop_postgres();
        let postgres = Postgres::start(&self.network, spec, &self.logs)?;
        Ok(self.postgres.insert(postgres))
    }

    /// Replaces the server by a fresh one and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up; the message holds the end of its log.
    pub fn start_server(&mut self, app: &App) -> Result<&Server> {
        self.stop_server();
        let server = Server::start(&self.network, app, self.postgres.as_ref(), &self.logs)?;
        Ok(self.server.insert(server))
    }

    /// Ends the server, if there is one.
    pub fn stop_server(&mut self) {
        self.server = None;
    }

    /// Ends Postgres and removes its data, if there is one.
    pub fn stop_postgres(&mut self) {
        self.postgres = None;
    }

    /// URL of a path on the server, as the outside sees it. `path` begins with a slash.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}:{}{path}", self.network.server_v4(), server::PORT)
    }

    /// A program on the outside, where the load generator belongs, run as the invoking user.
    #[must_use]
    pub fn outside(&self, program: impl Into<PathBuf>) -> Program {
        Program::new(program).within(&self.network, Side::Outside)
    }

    /// Fetches a path of the server from the outside and returns the body.
    ///
    /// # Errors
    /// When the request fails or the status is not below 400.
    pub fn get(&self, path: &str) -> Result<String> {
        server::get(&self.network, &self.url(path))
    }
}
