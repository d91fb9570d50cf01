//! A Postgres of one's own: a template data directory is made once, every start copies it.

mod template;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use super::net::{Network, Side};
use super::paths;
use super::process::Process;
use super::program::Program;
use super::user::{self, Identity};

/// Port that it listens on; its namespace is its own, so that no other server is in the way.
pub const PORT: u16 = 5432;
/// Database, role and password, all three.
pub const STUDY: &str = "study";
/// Rows of the study.
pub const STUDY_ROWS: u32 = 1_000_000;
/// What paths of directories for Unix sockets begin with; the maker's pid follows.
const SOCKETS: &str = "/tmp/dwell-pg-";
/// Longest time until it takes connections. Generous: virtual machines without acceleration.
const START: Duration = Duration::from_secs(120);

/// What to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresSpec {
    /// Rows of the posts table.
    pub rows: u32,
    /// Postgres' max_connections.
    pub max_connections: u32,
    /// Whether it also listens on a Unix socket, see [`Postgres::socket_directory`].
    pub unix_socket: bool,
    /// Further settings: name and value, such as `shared_preload_libraries`. Everything that is
    /// not set here or above has Postgres' default, durability included.
    pub settings: Vec<(String, String)>,
}

impl PostgresSpec {
    /// The study's: max_connections at its default of 100.
    #[must_use]
    pub fn study(rows: u32) -> Self {
        Self { rows, max_connections: 100, unix_socket: false, settings: Vec::new() }
    }
}

/// A running Postgres. Ended and removed when dropped.
#[derive(Debug)]
pub struct Postgres {
    // Ended before the directories go.
    process: Process,
    host: String,
    socket: Option<Directory>,
    data: Directory,
}

impl Postgres {
    /// Starts it on the outside. Makes the template first if there is none yet.
    ///
    /// # Errors
    /// When Postgres is not installed, or does not come up; the message holds the log's end.
    pub fn start(network: &Network, spec: &PostgresSpec, logs: &Path) -> Result<Self> {
        let identity = user::database()?;
        let template = template::get(spec.rows)?;
        let base = template.path.parent().context("a template lies in a directory")?;
        sweep(base, identity)?;
        let data = Directory::copy(&template.path, base, identity)?;
        drop(template);
        let socket = spec.unix_socket.then(|| Directory::short(identity)).transpose()?;
        let host = network.outside_v4().to_string();
        let mut settings = vec![
            ("listen_addresses", host.clone()),
            ("port", PORT.to_string()),
            ("ssl", "off".to_owned()),
            ("max_connections", spec.max_connections.to_string()),
            (
                "unix_socket_directories",
                match &socket {
                    Some(directory) => directory.path.display().to_string(),
                    None => String::new(),
                },
            ),
            // As in the image that the study used; it costs Django one round trip per connection.
            ("timezone", "Etc/UTC".to_owned()),
            ("log_timezone", "Etc/UTC".to_owned()),
        ];
        settings.extend(spec.settings.iter().map(|(name, value)| (name.as_str(), value.clone())));
        let mut program = Program::new(template::program("postgres")?)
            .within(network, Side::Outside)
            .identity(identity)
            // Immediate: the data is thrown away anyway.
            .stop_signal(Signal::SIGQUIT)
            .directory("/")
            .arg("-D")
            .arg(data.path.clone());
        for (name, value) in &settings {
            program = program.arg("-c").arg(format!("{name}={value}"));
        }
        let log = logs.join("postgres.log");
        let mut process = program.spawn(&log)?;
        process.wait_until(START, || {
            std::fs::read_to_string(&log)
                .is_ok_and(|text| text.contains("ready to accept connections"))
        })?;
        Ok(Self { process, host, socket, data })
    }

    /// The address that it listens on.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The directory of its Unix socket, if it was told to have one.
    #[must_use]
    pub fn socket_directory(&self) -> Option<&Path> {
        self.socket.as_ref().map(|directory| directory.path.as_path())
    }

    /// Its data directory, gone when this is dropped.
    #[must_use]
    pub fn data_directory(&self) -> &Path {
        &self.data.path
    }

    /// Its first process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Runs one SQL statement over TCP and returns unaligned rows without headings.
    ///
    /// # Errors
    /// When it fails; the message holds what Postgres said.
    pub fn query(&self, network: &Network, sql: &str) -> Result<String> {
        Program::new(template::program("psql")?)
            .within(network, Side::Outside)
            .env("PGPASSWORD", STUDY)
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
            .args(["-h", &self.host, "-p", &PORT.to_string(), "-U", STUDY, "-d", STUDY, "-c", sql])
            .run()
    }
}

/// Removes the directories of laboratories whose maker was killed.
fn sweep(base: &Path, identity: Identity) -> Result<()> {
    const SCRIPT: &str = r#"
        for directory in "$1"/data-*-* "$2"*-*; do
            pid=${directory##*/}; pid=${pid#data-}; pid=${pid#dwell-pg-}; pid=${pid%%-*}
            if [ -O "$directory" ] && [ ! -e "/proc/$pid" ]; then rm -rf -- "$directory"; fi
        done"#;
    Program::new("/bin/sh")
        .args(["-c", SCRIPT, "sh"])
        .arg(base)
        .arg(SOCKETS)
        .identity(identity)
        .directory("/")
        .run()
        .map(drop)
        .context("cannot remove what an earlier laboratory left")
}

/// A directory that belongs to whoever Postgres runs as. Removed when dropped.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    identity: Identity,
}

impl Directory {
    /// A copy of a template within `base`, sharing blocks where the file system can.
    fn copy(template: &Path, base: &Path, identity: Identity) -> Result<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("data-{}-{number}", std::process::id()));
        let copy = Self { path, identity };
        Program::new(paths::system("cp")?)
            .args(["-a", "--reflink=auto", "-T"])
            .arg(template)
            .arg(&copy.path)
            .identity(identity)
            .directory("/")
            .run()
            .context("cannot copy the database's template")?;
        Ok(copy)
    }

    /// One with a path short enough for a Unix socket's address.
    fn short(identity: Identity) -> Result<Self> {
        let path = Program::new(paths::system("mktemp")?)
            .args(["-d", &format!("{SOCKETS}{}-XXXXXX", std::process::id())])
            .identity(identity)
            .directory("/")
            .run()?;
        let directory = Self { path: path.into(), identity };
        // The server, another user, has to reach the socket; its password still guards it.
        Program::new(paths::system("chmod")?)
            .arg("0755")
            .arg(&directory.path)
            .identity(identity)
            .directory("/")
            .run()?;
        Ok(directory)
    }

    fn remove(&self) -> Result<()> {
        if self.path.parent().is_none_or(|parent| parent == Path::new("/")) {
            bail!("refusing to remove {}", self.path.display());
        }
        Program::new(paths::system("rm")?)
            .args(["-rf", "--"])
            .arg(&self.path)
            .identity(self.identity)
            .directory("/")
            .run()
            .map(drop)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("{} is left behind: {error:#}", self.path.display());
        }
    }
}
