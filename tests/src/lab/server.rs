//! The servers under test, all behind gunicorn with one worker.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use super::net::{Network, Side};
use super::paths;
use super::postgres::{self, Postgres};
use super::process::Process;
use super::program::Program;

/// Port that every server listens on.
pub const PORT: u16 = 8000;
/// Longest time until the first answer. Generous: virtual machines without acceleration.
const START: Duration = Duration::from_secs(120);

/// Fetches a URL; with a second argument, retries for so many seconds while nobody answers. Any
/// answer counts then, a 404 too. Proxies from the environment are not asked.
const FETCH: &str = r#"
import sys, time, urllib.error, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
end = time.monotonic() + (float(sys.argv[2]) if len(sys.argv) > 2 else 0)
while True:
    try:
        sys.stdout.buffer.write(opener.open(sys.argv[1], timeout=60).read())
        break
    except urllib.error.HTTPError as error:
        if len(sys.argv) > 2:
            break
        sys.exit(f"{sys.argv[1]}: {error}: {error.read()[:2000]!r}")
    except OSError as error:
        if time.monotonic() > end:
            sys.exit(f"{sys.argv[1]}: {error}")
        time.sleep(0.02)
"#;

/// Which server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum App {
    /// The study's, synchronous: one worker, one thread.
    StudySync,
    /// The study's, asynchronous: one uvicorn worker.
    StudyAsync,
    /// The study's, synchronous, with the database behind a Unix socket.
    StudySyncUnixSocket,
    /// A server that does these steps for each request, or those in the query string; see
    /// `tests/apps/control/app.py`.
    Control {
        /// Such as `cpu:50`, `sleep:50` or `lock:50`.
        steps: String,
    },
}

/// A running server. Ended when dropped.
#[derive(Debug)]
pub struct Server {
    process: Process,
}

impl Server {
    /// Starts it in the server's namespace and waits for its first answer.
    ///
    /// # Errors
    /// When the Python environment is missing, a database is needed and none runs, or it does not
    /// come up; the message holds the log's end.
    pub fn start(
        network: &Network,
        app: &App,
        postgres: Option<&Postgres>,
        logs: &Path,
    ) -> Result<Self> {
        let mut program = Program::new(paths::python("gunicorn")?)
            .within(network, Side::Server)
            // Quick shutdown: requests in progress are of no use any more.
            .stop_signal(Signal::SIGQUIT)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .args(["--bind", &format!("0.0.0.0:{PORT}")])
            .args(["--workers", "1", "--threads", "1", "--timeout", "180"]);
        if let Some(postgres) = postgres {
            let host = if *app == App::StudySyncUnixSocket {
                let directory = postgres.socket_directory();
                directory.context("Postgres was not told to have a Unix socket")?.into()
            } else {
                std::ffi::OsString::from(postgres.host())
            };
            program = program
                .env("DWELL_DB_HOST", host)
                .env("DWELL_DB_PORT", postgres::PORT.to_string())
                .env("DWELL_DB_NAME", postgres::STUDY)
                .env("DWELL_DB_USER", postgres::STUDY)
                .env("DWELL_DB_PASSWORD", postgres::STUDY);
        }
        program = match app {
            App::Control { steps } => {
                program.directory(paths::app("control")).env("DWELL_STEPS", steps).arg("app")
            }
            App::StudySync | App::StudyAsync | App::StudySyncUnixSocket => {
                postgres.context("the study's server needs Postgres first")?;
                let program = program.directory(paths::app("study"));
                if *app == App::StudyAsync {
                    program
                        .args(["--worker-class", "uvicorn.workers.UvicornWorker"])
                        .arg("study.asgi")
                } else {
                    program.arg("study.wsgi")
                }
            }
        };
        let mut process = program.spawn(&logs.join("server.log"))?;
        // One helper waits in the namespace; we watch the server meanwhile.
        let url = format!("http://{}:{PORT}/", network.server_v4());
        let mut waiter = fetcher(network)?
            .args([url.as_str(), &START.as_secs().to_string()])
            .spawn(&logs.join("ready.log"))?;
        let mut answered = None;
        process.wait_until(START, || match waiter.ended() {
            Ok(None) => false,
            Ok(Some(status)) => {
                answered = Some(status);
                true
            }
            Err(_) => true,
        })?;
        if !answered.is_some_and(|status| status.success()) {
            bail!(
                "the server does not answer\n{}\n{}",
                super::process::tail(waiter.log()),
                super::process::tail(process.log())
            );
        }
        Ok(Self { process })
    }

    /// Its first process, gunicorn's arbiter.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }
}

fn fetcher(network: &Network) -> Result<Program> {
    Ok(Program::new(paths::python("python3")?)
        .within(network, Side::Outside)
        .args(["-I", "-S", "-c", FETCH]))
}

/// Fetches a URL from the outside.
pub(super) fn get(network: &Network, url: &str) -> Result<String> {
    fetcher(network)?.arg(url).run()
}
