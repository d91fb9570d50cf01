//! The command line: arguments become a checked configuration in one place, verbs act on it.

mod files;
mod host;
mod reports;
mod run;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use agent_common::{abi, duration};
use clap::{Args, Parser, Subcommand};

use crate::http::Target;

/// The run or the report is fine.
pub const EXIT_OK: u8 = 0;
/// Something failed.
pub const EXIT_ERROR: u8 = 1;
/// The command line is wrong.
pub const EXIT_USAGE: u8 = 2;
/// The run ended but its numbers prove nothing, or nothing can be predicted; the output says why.
pub const EXIT_INVALID: u8 = 3;

// A paragraph is one line, which the help breaks where the terminal ends.
const AFTER_HELP: &str = "\
Exit codes: 0 done, and the run is valid; 1 an error; 2 a wrong command line; 3 a run that ended but \
is invalid, or nothing can be predicted (the output says why).";

const RUN_HELP: &str = "\
Every user sends, waits for the response and sends again at once, on the same connection as long as \
the server keeps it. A kept connection that turns out closed when the request comes is replaced and \
the request sent once more; the report counts these. After a failed connect a user rests for 10 ms. \
Redirects are not followed. Statuses from 400 on are failures.

Examples:
  loadgen run http://127.0.0.1:8000/ --users 10 --hold 10s
  loadgen run http://10.0.0.2:8000/posts --users 500 --ramp 5/s --hold 80s \\
      --form 'title=Post {random:10}' --form 'content=Content {random:100}'
  loadgen run http://10.0.0.2:8000/read --users 100 --ramp 10/s --hold 60s \\
      --agent unix:/run/dwell.sock --delay 100ms --json run.json --html run.html

Exit codes: 0 a valid run; 1 an error; 2 a wrong command line; 3 a run that ended but is invalid (the \
report says why; also when the agent was lost in mid-run).";

const REPORT_HELP: &str = "\
One run is shown in full, several as a table.

Examples:
  loadgen report run.json
  loadgen report plain.json slow.json --html both.html
  loadgen report plain.json slow.json --json - | jq '.cells[].explanation'

Exit codes: 0 done, whether or not the runs are valid (the report says); 1 an error; 2 a wrong command \
line.";

const PREDICT_HELP: &str = "\
The run must have been made with the agent, and be valid. The delay is one on everything that leaves \
the service; what the prediction assumes is printed with it. docs/guide.md has the formulas and their \
limits.

Examples:
  loadgen predict --from plain.json --delay 100ms
  loadgen predict --from all.json --name sync/io_read/0ms --delay 100ms \\
      --json predicted.json
  loadgen run ... --delay 100ms --predicted predicted.json

Exit codes: 0 a prediction or an upper bound; 1 an error; 2 a wrong command line; 3 nothing can be \
predicted (the output says why).";

#[derive(Debug, Parser)]
#[command(name = "loadgen", version, arg_required_else_help = true, after_help = AFTER_HELP)]
/// Emulates users, pairs with the agent, and explains the throughput
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Load a URL and report what happened, and with an agent, why
    #[command(after_help = RUN_HELP)]
    Run(Box<RunArgs>),
    /// Put the runs of several JSON reports into one report
    #[command(after_help = REPORT_HELP)]
    Report(ReportArgs),
    /// Say what a run's service would give under another delay, before it is tried
    #[command(after_help = PREDICT_HELP)]
    Predict(PredictArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// What to load: http://HOST:PORT/PATH
    #[arg(value_parser = parse_url)]
    url: Url,
    /// Users at the top of the ramp
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    users: u32,
    /// Users started per second, such as 5/s; 0 starts all at once
    #[arg(long, default_value = "0", value_parser = parse_rate)]
    ramp: f64,
    /// How long all users stay after the last one has started
    #[arg(long, value_parser = parse_positive)]
    hold: Duration,
    /// HTTP method [default: GET, with --form POST]
    #[arg(long)]
    method: Option<String>,
    /// Form field NAME=VALUE; {random:N} in the value is N random letters. Repeatable
    #[arg(long = "form", value_name = "NAME=VALUE")]
    form: Vec<String>,
    /// Request header. Repeatable
    #[arg(long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// Give a request up after this time, connecting included [default: never]
    #[arg(long, value_parser = parse_positive)]
    timeout: Option<Duration>,
    /// Event loops, each on a thread of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,
    /// Pair with the agent on this socket
    #[arg(long, value_name = "unix:PATH", value_parser = parse_agent)]
    agent: Option<PathBuf>,
    /// Have the agent delay everything that leaves the service's interface
    #[arg(long, requires = "agent", value_parser = parse_positive)]
    delay: Option<Duration>,
    /// The interface to delay [default: the agent chooses]
    #[arg(long, requires = "delay", value_name = "DEV")]
    delay_dev: Option<String>,
    /// Port of a database that the service uses. Repeatable [default: 5432]
    #[arg(long, requires = "agent", value_parser = clap::value_parser!(u16).range(1..))]
    db_port: Vec<u16>,
    /// Name of the run in reports [default: SETUP/ROUTE/DELAY, else the URL]
    #[arg(long)]
    name: Option<String>,
    /// Setup that is tested, such as sync
    #[arg(long)]
    setup: Option<String>,
    /// Route that is tested, such as io_read
    #[arg(long)]
    route: Option<String>,
    /// Prediction that `loadgen predict --json` wrote, to compare with
    #[arg(long, value_name = "FILE")]
    predicted: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
struct ReportArgs {
    /// Reports that `loadgen run --json` wrote
    #[arg(required = true, value_name = "RUN.json")]
    runs: Vec<PathBuf>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
struct PredictArgs {
    /// Report of the run to predict from, best one without a delay
    #[arg(long, value_name = "RUN.json")]
    from: PathBuf,
    /// Name of the run, where the report holds several
    #[arg(long)]
    name: Option<String>,
    /// The delay to predict for
    #[arg(long, value_parser = parse_positive)]
    delay: Duration,
    /// Also write the prediction as JSON; with - to standard output, the text to standard error
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Output {
    /// Also write the report as JSON; with - to standard output, the text to standard error
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write the report as a self-contained HTML page; - as with --json
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Clone, Debug)]
struct Url {
    text: String,
    target: Target,
}

/// Why a verb ended without a result.
enum Stop {
    /// The command line is at fault.
    Usage(anyhow::Error),
    /// Anything else.
    Error(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// Runs the program on its arguments.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are such errors too; where they cannot be printed nothing can.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE));
        }
    };
    let outcome = match cli.verb {
        Verb::Run(args) => run::run(&args),
        Verb::Report(args) => reports::report(&args),
        Verb::Predict(args) => reports::predict(&args),
    };
    let (error, code) = match outcome {
        Ok(code) => return ExitCode::from(code),
        Err(Stop::Usage(error)) => (error, EXIT_USAGE),
        Err(Stop::Error(error)) => (error, EXIT_ERROR),
    };
    tell(format_args!("error: {error:#}"));
    ExitCode::from(code)
}

/// Says something on standard error. Where nobody listens that is no reason to end.
fn tell(text: std::fmt::Arguments<'_>) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn parse_url(text: &str) -> Result<Url, String> {
    let target = Target::parse(text).map_err(|error| error.to_string())?;
    Ok(Url { text: text.to_owned(), target })
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    match number.parse::<f64>() {
        Ok(0.0) => Ok(0.0),
        Ok(rate) if (1e-3..=1e6).contains(&rate) => Ok(rate),
        _ => Err("give users per second, such as 5/s (0.001 to 1000000), or 0".to_owned()),
    }
}

fn parse_positive(text: &str) -> Result<Duration, String> {
    let value = duration::parse(text).map_err(|error| error.to_string())?;
    if value.is_zero() {
        return Err("must be more than 0".to_owned());
    }
    if value > Duration::from_secs(7 * 24 * 3600) {
        return Err("must be at most a week (168h)".to_owned());
    }
    Ok(value)
}

fn parse_agent(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => Ok(PathBuf::from(path)),
        _ => {
            Err("write it as unix:PATH, the PATH that `agent serve --socket` was given".to_owned())
        }
    }
}

impl RunArgs {
    /// Ports of the service's databases.
    fn db_ports(&self) -> Result<Vec<u16>, Stop> {
        if self.db_port.len() > abi::MAX_DB_PORTS {
            let message = anyhow::anyhow!(
                "--db-port was given {} times, at most {} are followed",
                self.db_port.len(),
                abi::MAX_DB_PORTS
            );
            return Err(Stop::Usage(message));
        }
        Ok(if self.db_port.is_empty() { vec![5432] } else { self.db_port.clone() })
    }

    fn method(&self) -> &str {
        let default = if self.form.is_empty() { "GET" } else { "POST" };
        self.method.as_deref().unwrap_or(default)
    }

    fn name(&self) -> String {
        if let Some(name) = &self.name {
            return name.clone();
        }
        let delay = self.delay.map(duration::format);
        match (&self.setup, &self.route) {
            (None, None) => match delay {
                Some(delay) => format!("{} +{delay}", self.url.text),
                None => self.url.text.clone(),
            },
            (setup, route) => [setup.as_ref(), route.as_ref(), delay.as_ref()]
                .into_iter()
                .flatten()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join("/"),
        }
    }
}

/// Addresses of the URL's host, in the resolver's order.
fn resolve(target: &Target) -> anyhow::Result<Vec<SocketAddr>> {
    use std::net::ToSocketAddrs as _;

    use anyhow::Context as _;
    let (host, port) = (target.host.as_str(), target.port);
    let found = (host, port)
        .to_socket_addrs()
        .with_context(|| format!("cannot resolve `{host}`: check the name, or give an address"))?;
    Ok(found.collect())
}

#[cfg(test)]
#[path = "cli/tests.rs"]
mod tests;
