//! The list of impairments in force: one file each under `/run/dwell`, for `list` and `clear`, and
//! for the next start to find what a killed agent and its killed guardian left.
//!
//! A file is a hint, never proof: whether its process lives is checked by start time, and what is
//! really on an interface is asked of the kernel.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::by::By;
use super::error::{InjectError, clear_command};
use crate::model::filter::PacketFilter;
use crate::model::impairment::{Direction, Engine, Impairment};
use crate::model::schedule::Schedule;
use crate::sys::netem::Before;
use crate::sys::netns::Origin;
use crate::sys::process;

/// Where the files are. Emptied by a reboot, as the kernel's state is.
pub(super) const DIRECTORY: &str = "/run/dwell";
const LOCK: &str = "lock";
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// One impairment as its file tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// Name of the file without its ending.
    pub(super) id: String,
    /// Process that holds the impairment.
    pub(super) pid: u32,
    /// When that process started, in clock ticks since boot.
    pub(super) started: u64,
    pub(super) engine: Engine,
    pub(super) impairment: Impairment,
    pub(super) direction: Direction,
    /// Which packets.
    #[serde(default)]
    pub(super) filter: PacketFilter,
    pub(super) device: String,
    pub(super) index: i32,
    /// How the namespace was named, in words.
    pub(super) netns: String,
    /// How the namespace was named.
    pub(super) origin: Origin,
    /// Inode number of the namespace.
    pub(super) netns_inode: u64,
    /// Seconds since 1970.
    pub(super) since: u64,
    /// Who asked for it.
    pub(super) by: By,
    /// How its delay goes with time; `impairment` has the one at the last point that was reached.
    pub(super) schedule: Option<Schedule>,
    /// When it ends by itself, in seconds since 1970.
    pub(super) until: Option<u64>,
    /// How to put the interface back; netem only.
    pub(super) before: Option<Before>,
}

impl Entry {
    /// Whether the process that wrote it is still there.
    pub(super) fn is_live(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// What it does now, to about a second where it follows a schedule.
    pub(super) fn impairment_now(&self) -> Impairment {
        let mut impairment = self.impairment.clone();
        if let Some(schedule) = &self.schedule {
            let since = Duration::from_secs(unix_now().saturating_sub(self.since));
            impairment.delay = schedule.delay_at(since);
        }
        impairment
    }

    /// What is injected, into which packets if not all, and by which schedule.
    pub(super) fn words(&self) -> String {
        self.words_of(&self.impairment_now())
    }

    /// The same where `now` is known to be in force.
    pub(super) fn words_of(&self, now: &Impairment) -> String {
        let mut words = now.to_string();
        if !self.filter.is_all() {
            words += &format!(" ({})", self.filter);
        }
        if let Some(schedule) = &self.schedule {
            words += &format!(" (schedule {schedule})");
        }
        words
    }

    /// The command that ends it.
    pub(super) fn clear_command(&self) -> String {
        clear_command(&self.device, &self.origin)
    }

    /// Path of the socket that its holder answers on.
    pub(super) fn socket(&self) -> PathBuf {
        Path::new(DIRECTORY).join(format!("{}.sock", self.id))
    }

    fn file(&self) -> PathBuf {
        Path::new(DIRECTORY).join(format!("{}.json", self.id))
    }

    /// Writes the file: whole or not at all.
    pub(super) fn write(&self) -> Result<(), InjectError> {
        let (path, partial) = (self.file(), self.file().with_extension("partial"));
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&partial)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            fs::rename(&partial, &path)
        };
        write().map_err(failed("write", &path))
    }

    /// Leaves the file to the next start or `clear`, since the interface could not be put back. From
    /// now on nobody answers for it.
    pub(super) fn abandon(&self) {
        let _ = fs::remove_file(self.socket());
        // Where it cannot be written, the old file does the same once this process has ended.
        let _ = Self { started: 0, ..self.clone() }.write();
    }

    /// Removes the file and the socket.
    pub(super) fn remove(&self) {
        for path in [self.socket(), self.file().with_extension("partial"), self.file()] {
            // Only what is there can be removed.
            let _ = fs::remove_file(path);
        }
    }
}

/// A name for a new entry, unique among live processes and within this one, and a number that is
/// seldom that of another.
pub(super) fn new_id() -> (String, u32) {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let pid = std::process::id();
    (format!("{pid}-{count}"), pid.wrapping_add(count))
}

/// Now, in seconds since 1970.
pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// When process `pid` started, in clock ticks since boot; None if there is none (a zombie included).
pub(super) fn start_time(pid: u32) -> Option<u64> {
    process::stat(pid).map(|stat| stat.started)
}

/// Makes the directory, and refuses one that somebody else could have filled.
pub(super) fn prepare() -> Result<(), InjectError> {
    let path = Path::new(DIRECTORY);
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("make", path)(error));
        }
        _ => {}
    }
    let meta = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    if meta.is_dir() && meta.uid() == 0 && meta.mode() & 0o077 == 0 {
        return Ok(());
    }
    let reason = "it is not a directory of root's with mode 0700; remove it and try again";
    Err(failed("trust", path)(io::Error::other(reason)))
}

/// Held while something is added or cleaned up, so that two agents do not do it at once.
pub(super) fn lock() -> Result<Flock<File>, InjectError> {
    let path = Path::new(DIRECTORY).join(LOCK);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed("open", &path))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, errno)) => {
                if Instant::now() >= deadline {
                    return Err(failed("lock", &path)(errno.into()));
                }
                file = back;
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A file that this version cannot read as an entry.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) path: PathBuf,
    /// The living process that wrote it, where it tells that much: an agent of another version.
    pub(super) holder: Option<u32>,
}

/// What an entry of any version has.
#[derive(Debug, Deserialize)]
struct Holder {
    pid: u32,
    started: u64,
}

impl Unreadable {
    fn new(path: PathBuf, text: &[u8]) -> Self {
        let holder = serde_json::from_slice::<Holder>(text).ok();
        let lives = holder.filter(|holder| start_time(holder.pid) == Some(holder.started));
        Self { path, holder: lives.map(|holder| holder.pid) }
    }
}

/// Every entry, and the files that are none.
pub(super) fn read() -> Result<(Vec<Entry>, Vec<Unreadable>), InjectError> {
    let directory = Path::new(DIRECTORY);
    let files = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((vec![], vec![])),
        other => other.map_err(failed("read", directory))?,
    };
    let (mut entries, mut damaged) = (Vec::new(), Vec::new());
    for path in files.flatten().map(|file| file.path()) {
        if path.extension().is_none_or(|ending| ending != "json") {
            continue;
        }
        let text = match fs::read(&path) {
            // It ended just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(failed("read", &path))?,
        };
        match serde_json::from_slice::<Entry>(&text) {
            Ok(entry) if entry.file() == path => entries.push(entry),
            _ => damaged.push(Unreadable::new(path, &text)),
        }
    }
    entries.sort_by(|a, b| (a.since, &a.id).cmp(&(b.since, &b.id)));
    Ok((entries, damaged))
}

/// Files that no entry of a living process answers for: those that cannot be read, and what is left
/// of others. Call it with the registry locked, when stale entries are gone.
pub(super) fn litter() -> Result<Vec<PathBuf>, InjectError> {
    let (entries, damaged) = read()?;
    let directory = Path::new(DIRECTORY);
    let held: Vec<&OsStr> = damaged
        .iter()
        .filter(|file| file.holder.is_some())
        .filter_map(|file| file.path.file_stem())
        .chain(entries.iter().map(|entry| OsStr::new(&entry.id)))
        .collect();
    let is_litter = |path: &PathBuf| {
        let ending = path.extension().unwrap_or_default();
        let stem = path.file_stem().unwrap_or_default();
        (ending == "sock" || ending == "partial") && !held.contains(&stem)
    };
    let files = fs::read_dir(directory).map_err(failed("read", directory))?;
    let left: Vec<PathBuf> = files.flatten().map(|file| file.path()).filter(is_litter).collect();
    let useless = damaged.into_iter().filter(|file| file.holder.is_none()).map(|file| file.path);
    Ok(useless.chain(left).collect())
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> InjectError {
    let path = path.display().to_string();
    move |source| InjectError::Registry { action, path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_another_version_is_held_while_its_process_lives() {
        let pid = std::process::id();
        let read = |started: u64| {
            let text = format!(r#"{{"pid": {pid}, "started": {started}, "unheard_of": [1]}}"#);
            Unreadable::new(PathBuf::from("t.json"), text.as_bytes()).holder
        };
        let started = start_time(pid).unwrap();
        assert_eq!((read(started), read(started + 1)), (Some(pid), None));
        assert_eq!(Unreadable::new(PathBuf::from("t.json"), b"{").holder, None);
    }

    #[test]
    fn an_entry_of_another_process_with_the_same_pid_is_stale() {
        let pid = std::process::id();
        let mut entry = Entry {
            id: "t".into(),
            pid,
            started: start_time(pid).unwrap(),
            engine: Engine::Nfqueue,
            impairment: Impairment::fixed_delay(Duration::from_millis(1)).unwrap(),
            direction: Direction::Both,
            filter: PacketFilter::default(),
            device: "lo".into(),
            index: 1,
            netns: "current".into(),
            origin: Origin::Current,
            netns_inode: 0,
            since: 0,
            by: By::this_command(),
            schedule: Some(Schedule::parse("0s:0ms 30s~100ms").unwrap()),
            until: Some(1),
            before: None,
        };
        assert!(entry.is_live());
        let text = serde_json::to_string(&entry).unwrap();
        assert_eq!(serde_json::from_str::<Entry>(&text).unwrap(), entry);
        entry.started += 1;
        assert!(!entry.is_live());
        // As an abandoned one has it.
        entry.started = 0;
        assert!(!entry.is_live());
    }
}
