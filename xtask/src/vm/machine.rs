//! Starts QEMU, passes the job's output through and finds its status at the end of it.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::initramfs;
use super::kernel::Kernel;
use crate::workspace;

/// Written by init2.sh after the job's last byte; the number and a newline follow.
const STATUS_MARK: &[u8] = b"\0vm-status:";

/// One command for a virtual machine.
#[derive(Debug)]
pub(crate) struct Job {
    /// Program and arguments.
    pub(crate) command: Vec<String>,
    /// Where it starts.
    pub(crate) directory: PathBuf,
    /// Its environment, besides HOME, USER and TERM.
    pub(crate) environment: Vec<(String, String)>,
    /// How long booting and running may take together.
    pub(crate) timeout: Duration,
}

impl Job {
    /// The shell script that runs this job inside.
    pub(crate) fn script(&self) -> String {
        let mut script = String::from("export HOME=/root USER=root TERM=dumb\n");
        for (name, value) in &self.environment {
            script.push_str(&format!("export {name}={}\n", shell_quoted(value)));
        }
        // The job finds system programs even where the caller's search path lacks them.
        script.push_str("export PATH=\"$PATH:/usr/local/sbin:/usr/sbin:/sbin\"\n");
        script.push_str(&format!("cd {}\n", shell_quoted(&self.directory.to_string_lossy())));
        script.push_str("exec");
        for word in &self.command {
            script.push(' ');
            script.push_str(&shell_quoted(word));
        }
        script.push('\n');
        script
    }
}

/// Quotes a word so that any shell reads it back unchanged.
pub(crate) fn shell_quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Boots the kernel and runs the job, its output passed on to standard output as it comes. Returns
/// the job's exit status.
///
/// # Errors
/// When the machine ends or the time is over before the job has; holds the console's last lines.
pub(crate) fn run(kernel: &Kernel, job: &Job, directory: &Path) -> Result<u8> {
    sweep(directory);
    // Unique per run: several machines may run at once.
    let run = directory.join(format!("run-{}", std::process::id()));
    std::fs::create_dir_all(&run).with_context(|| format!("cannot create {}", run.display()))?;
    let initrd = run.join("initramfs");
    std::fs::write(&initrd, initramfs::build(kernel, job)?)
        .with_context(|| format!("cannot write {}", initrd.display()))?;
    let console = run.join("console.log");

    let outcome = boot(kernel, job, &initrd, &console);
    let kept = directory.join("console.log");
    let _ = std::fs::rename(&console, &kept);
    let _ = std::fs::remove_dir_all(&run);
    outcome.map_err(|error| {
        error.context(format!(
            "the virtual machine ({}) did not finish; end of {}:\n{}",
            kernel.release,
            kept.display(),
            tail(&kept, 30)
        ))
    })
}

/// Removes what runs that were killed have left.
fn sweep(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("run-"));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn boot(kernel: &Kernel, job: &Job, initrd: &Path, console: &Path) -> Result<u8> {
    let mut qemu = command(kernel, initrd, console)?;
    let mut machine = Machine(
        // At the end of its input QEMU would tell the guest that nobody listens: held open.
        qemu.stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{}`", workspace::line(&qemu)))?,
    );
    let mut stream = machine.0.stdout.take().context("QEMU has no output")?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0_u8; 16 << 10];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if sender.send(buffer[..count].to_vec()).is_err() {
                break;
            }
        }
    });

    let deadline = Instant::now() + job.timeout;
    let mut output = Output::default();
    let mut stdout = std::io::stdout();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left) {
            Ok(bytes) => {
                stdout.write_all(output.accept(&bytes)).context("cannot pass on the output")?;
                stdout.flush().context("cannot pass on the output")?;
                if let Some(status) = output.status() {
                    return Ok(status);
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("no end after {} s", job.timeout.as_secs());
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let status = machine.0.wait().context("cannot wait for QEMU")?;
                match status.signal() {
                    Some(signal) => bail!("QEMU was ended by signal {signal}"),
                    None => bail!("the machine stopped by itself ({status})"),
                }
            }
        }
    }
}

fn command(kernel: &Kernel, initrd: &Path, console: &Path) -> Result<Command> {
    let qemu = workspace::find_program("qemu-system-x86_64")
        .context("there is no qemu-system-x86_64 (Debian: qemu-system-x86)")?;
    // The machine dies with us, however we die.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "SIGKILL", "--"]).arg(qemu);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    // One host thread for both processors: with two, one that runs over code which the other patches
    // (attaching a probe does that to the scheduler) can stay in the old translation for ever.
    command.args(["-machine", "q35", "-accel", "tcg,thread=single", "-cpu", "max"]);
    command.args(["-smp", "2", "-m", "4G"]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initrd);
    command.args(["-append", "console=ttyS0 panic=-1 random.trust_cpu=on mitigations=off"]);
    command.arg("-serial").arg(format!("file:{}", option_quoted(console)));
    command.args(["-device", "virtio-serial-pci", "-chardev", "stdio,id=output,signal=off"]);
    command.args(["-device", "virtserialport,chardev=output,name=output"]);
    command.args([
        "-virtfs",
        "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
    ]);
    Ok(command)
}

/// QEMU splits option values at commas; a doubled one stands for itself.
fn option_quoted(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// Stops QEMU when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Splits the machine's stream into the job's output and its exit status.
#[derive(Debug, Default)]
struct Output {
    /// Passed on up to `done`; the rest may be the start of the mark.
    bytes: Vec<u8>,
    done: usize,
    status: Option<u8>,
}

impl Output {
    /// Takes new bytes; returns those that surely are the job's.
    fn accept(&mut self, bytes: &[u8]) -> &[u8] {
        self.bytes.drain(..self.done);
        self.bytes.extend_from_slice(bytes);
        self.done = self.bytes.len();
        for start in 0..self.bytes.len() {
            let rest = &self.bytes[start..];
            if let Some(number) = rest.strip_prefix(STATUS_MARK) {
                if let Some(end) = number.iter().position(|byte| *byte == b'\n') {
                    self.status = std::str::from_utf8(&number[..end])
                        .ok()
                        .and_then(|number| number.parse().ok());
                }
                self.done = start;
                break;
            }
            if STATUS_MARK.starts_with(rest) {
                self.done = start;
                break;
            }
        }
        &self.bytes[..self.done]
    }

    fn status(&self) -> Option<u8> {
        self.status
    }
}

fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::{Job, Output};
    use std::time::Duration;

    #[test]
    fn the_status_is_cut_off_wherever_the_stream_is_split() {
        let stream = b"one\0two\n\0vm-status:37\n";
        for split in 0..=stream.len() {
            let mut output = Output::default();
            let mut passed = output.accept(&stream[..split]).to_vec();
            passed.extend_from_slice(output.accept(&stream[split..]));
            assert_eq!(passed, b"one\0two\n", "split at {split}");
            assert_eq!(output.status(), Some(37), "split at {split}");
        }
    }

    #[test]
    fn without_the_mark_there_is_no_status() {
        let mut output = Output::default();
        assert_eq!(output.accept(b"all\0vm-status"), b"all");
        assert_eq!(output.status(), None);
        assert_eq!(output.accept(b" no\n"), b"\0vm-status no\n");
        assert_eq!(output.status(), None);
    }

    #[test]
    fn words_reach_the_job_unchanged() {
        let job = Job {
            command: vec!["printf".into(), "%s|".into(), "it's".into(), "$HOME `x` \"y\"".into()],
            directory: "/".into(),
            environment: vec![("DWELL_TEST".into(), "a b'c".into())],
            timeout: Duration::from_secs(1),
        };
        let script = job.script();
        let output =
            std::process::Command::new("sh").args(["-c", &script]).output().expect("sh starts");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "it's|$HOME `x` \"y\"|");
    }
}
