//! strace of a server process, read back: the independent witness of its system calls.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::lab::{Process, Program, user};

/// One system call that returned.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Name.
    pub name: String,
    /// First argument as written, such as a descriptor.
    pub first: String,
    /// Return value; negative on error.
    pub result: i64,
    /// When it was entered, CLOCK_REALTIME nanoseconds.
    pub start_ns: i128,
    /// When it returned.
    pub end_ns: i128,
}

/// A trace in progress.
#[derive(Debug)]
pub struct Strace {
    process: Process,
    file: PathBuf,
}

impl Strace {
    /// Attaches to a process and waits until it is traced.
    ///
    /// # Errors
    /// When strace is missing or may not attach.
    pub fn start(pid: u32, file: &Path) -> Result<Self> {
        let _ = std::fs::remove_file(file);
        let log = file.with_extension("log");
        let mut process = Program::new(crate::lab::paths::system("strace")?)
            .identity(user::root())
            .args(["-ttt", "-T", "-p", &pid.to_string()])
            .args(["-e", "trace=accept4,recvfrom,sendto,close,connect", "-o"])
            .arg(file)
            .spawn(&log)?;
        process.wait_until(Duration::from_secs(20), || {
            std::fs::read_to_string(&log).is_ok_and(|text| text.contains("attached"))
        })?;
        Ok(Self { process, file: file.to_path_buf() })
    }

    /// Detaches and reads what it saw, in order.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn stop(mut self) -> Result<Vec<Call>> {
        self.process.stop()?;
        let text = std::fs::read_to_string(&self.file)
            .with_context(|| format!("{}", self.file.display()))?;
        Ok(text.lines().filter_map(call).collect())
    }
}

/// `1700000000.123456 recvfrom(9, "GET ...", 8192, 0, NULL, NULL) = 69 <0.000021>`
fn call(line: &str) -> Option<Call> {
    let (stamp, rest) = line.split_once(' ')?;
    let (name, rest) = rest.trim_start().split_once('(')?;
    let first = rest.split([',', ')']).next()?.to_owned();
    let (_, result) = rest.rsplit_once(" = ")?;
    let took = result.rsplit_once('<')?.1.strip_suffix('>')?;
    let start_ns = nanoseconds(stamp)?;
    Some(Call {
        name: name.to_owned(),
        first,
        result: result.split_whitespace().next()?.parse().ok()?,
        start_ns,
        end_ns: start_ns + nanoseconds(took)?,
    })
}

/// Seconds with six decimals.
fn nanoseconds(text: &str) -> Option<i128> {
    let (seconds, micros) = text.split_once('.')?;
    Some(seconds.parse::<i128>().ok()? * 1_000_000_000 + micros.parse::<i128>().ok()? * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read() {
        let line = "1700000000.000010 sendto(9, \"x = <y>\", 3, 0, NULL, 0) = 3 <0.000021>";
        let read = call(line).unwrap();
        assert_eq!((read.name.as_str(), read.first.as_str(), read.result), ("sendto", "9", 3));
        assert_eq!(read.start_ns, 1_700_000_000_000_010_000);
        assert_eq!(read.end_ns - read.start_ns, 21_000);
        assert_eq!(call("1.000000 close(9) = ? <unavailable>"), None);
    }
}
