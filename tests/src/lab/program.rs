//! Programs: what to run, in which namespace and as whom.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::net::{Network, Side};
use super::paths;
use super::process::{Process, tail};
use super::user::{self, Identity};

/// How long a program may take until it has told its pid.
const START: Duration = Duration::from_secs(5);
/// How often that is looked at.
const POLL: Duration = Duration::from_millis(5);

/// A program to run.
#[derive(Clone, Debug)]
pub struct Program {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(String, OsString)>,
    directory: Option<PathBuf>,
    namespace: Option<PathBuf>,
    identity: Identity,
    stop: Signal,
}

impl Program {
    /// A program that runs here, as the invoking user.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            directory: None,
            namespace: None,
            identity: user::invoker(),
            stop: Signal::SIGTERM,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: Into<OsString>>(mut self, args: impl IntoIterator<Item = I>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Starts it in a directory.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Runs it in one of the laboratory's namespaces.
    #[must_use]
    pub fn within(mut self, network: &Network, side: Side) -> Self {
        self.namespace = Some(network.path(side));
        self
    }

    /// Runs it as somebody else.
    #[must_use]
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = identity;
        self
    }

    /// The signal that asks it to end; SIGTERM if not set.
    #[must_use]
    pub fn stop_signal(mut self, signal: Signal) -> Self {
        self.stop = signal;
        self
    }

    /// The command: [sudo] [nsenter] [setpriv] env PROGRAM. Every link but sudo replaces itself by the
    /// next, so that without sudo the child's pid is the program's. `wrapped` are links in between.
    fn command(&self, wrapped: &[OsString]) -> Result<Command> {
        let me = user::invoker();
        let mut line: Vec<OsString> = Vec::new();
        let privileged = self.namespace.is_some() || self.identity != me;
        if privileged {
            line.extend(user::as_root()?.into_iter().map(Into::into));
        }
        if let Some(namespace) = &self.namespace {
            // Not `ip netns exec`: that also remounts /sys, which would hide cgroup mounts.
            line.push(paths::system("nsenter")?.into());
            let mut option = OsString::from("--net=");
            option.push(namespace);
            line.extend([option, "--".into()]);
        }
        line.extend_from_slice(wrapped);
        line.push(paths::system("setpriv")?.into());
        // Behind sudo we are root at this point, whoever invoked.
        if self.identity != me || (privileged && !me.uid.is_root()) {
            line.push(format!("--reuid={}", self.identity.uid).into());
            line.push(format!("--regid={}", self.identity.gid).into());
            line.push("--init-groups".into());
        }
        // A program must not outlive us: after kill -9 of its parent the kernel signals it.
        line.push(format!("--pdeathsig={}", self.stop.as_str().trim_start_matches("SIG")).into());
        line.push("--".into());
        if !self.env.is_empty() {
            line.push(paths::system("env")?.into());
            for (name, value) in &self.env {
                let mut pair = OsString::from(format!("{name}="));
                pair.push(value);
                line.push(pair);
            }
        }
        line.push(self.program.clone().into());
        line.extend(self.args.iter().cloned());

        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).stdin(Stdio::null());
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        Ok(command)
    }

    /// Runs it to its end and returns what it wrote, whatever its exit status.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output(&self) -> Result<Output> {
        self.command(&[])?
            .output()
            .with_context(|| format!("cannot start {}", self.program.display()))
    }

    /// Runs it to its end and returns its standard output, trimmed.
    ///
    /// # Errors
    /// When it cannot be started or fails; the message holds what it wrote.
    pub fn run(&self) -> Result<String> {
        let output = self.output()?;
        if !output.status.success() {
            bail!(
                "`{}` failed: {}: {}{}",
                self.line(),
                output.status,
                String::from_utf8_lossy(&output.stdout).trim(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Starts it in a session of its own (Ctrl-C does not reach it) with its output in a file.
    ///
    /// # Errors
    /// When it cannot be started or does not tell its pid within a few seconds.
    pub fn spawn(&self, log: &Path) -> Result<Process> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let scratch = paths::scratch();
        std::fs::create_dir_all(&scratch)
            .with_context(|| format!("cannot create {}", scratch.display()))?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pid_file = scratch.join(format!("{}-{number}.pid", std::process::id()));
        // Whoever the program runs as, its first shell writes the pid: it is still root or us.
        let shell = "echo $$ > \"$0\" && exec \"$@\"";
        let wrapped: Vec<OsString> = vec![
            paths::system("setsid")?.into(),
            "--wait".into(),
            "/bin/sh".into(),
            "-c".into(),
            shell.into(),
            pid_file.clone().into(),
        ];
        let output =
            File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let errors = output.try_clone().context("cannot duplicate a file descriptor")?;
        let mut child = self
            .command(&wrapped)?
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let pid = wait_for_pid(&mut child, &pid_file);
        let removed = std::fs::remove_file(&pid_file);
        match pid {
            Ok(pid) => {
                removed.with_context(|| format!("cannot remove {}", pid_file.display()))?;
                let process = Process {
                    child,
                    pid,
                    identity: self.identity,
                    stop: self.stop,
                    name: self.program.display().to_string(),
                    log: log.to_path_buf(),
                };
                Ok(process)
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.context(format!("`{}`: {}", self.line(), tail(log))))
            }
        }
    }

    /// The command line as one would type it, for messages.
    fn line(&self) -> String {
        let mut text = self.program.display().to_string();
        for arg in &self.args {
            text.push(' ');
            text.push_str(&arg.to_string_lossy());
        }
        text
    }
}

/// Waits for the number in `file`.
fn wait_for_pid(child: &mut Child, file: &Path) -> Result<Pid> {
    let deadline = Instant::now() + START;
    loop {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if text.ends_with('\n')
            && let Ok(pid) = text.trim().parse()
        {
            return Ok(Pid::from_raw(pid));
        }
        if let Some(status) = child.try_wait().context("cannot wait for a child")? {
            bail!("it ended at once: {status}");
        }
        if Instant::now() > deadline {
            bail!("it did not start within {} s", START.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn shell(script: &str) -> Program {
        Program::new("/bin/sh").args(["-c", script])
    }

    #[test]
    fn a_program_gets_its_arguments_environment_and_directory() {
        let said = Program::new("/bin/sh")
            .args(["-c", "echo \"$1 $COLOUR $PWD\"", "sh", "two words"])
            .env("COLOUR", "deep blue")
            .directory("/usr")
            .run()
            .unwrap();
        assert_eq!(said, "two words deep blue /usr");
    }

    #[test]
    fn a_failure_tells_the_command_and_what_it_said() {
        let error = shell("echo no such luck >&2; exit 4").run().unwrap_err().to_string();
        assert!(error.contains("exit status: 4") && error.contains("no such luck"), "{error}");
    }
}
