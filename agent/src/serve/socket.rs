//! The pairing socket in the file system: made with the right owner and mode, replaced where its
//! agent is dead, removed at the end.

use std::fs;
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{AtFlags, Flock, FlockArg};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Uid, fchownat, geteuid};

/// Longest path that `sockaddr_un` can hold.
const MAX_PATH: usize = 107;
/// Where agents keep the lock under which they make their sockets.
pub(super) const LOCKS: &str = "/run/dwell";
/// Another agent may be making its socket.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Why there is no pairing socket.
#[derive(Debug, thiserror::Error)]
pub(super) enum SocketError {
    /// Longer than the kernel takes.
    #[error("socket path {path} is longer than {MAX_PATH} bytes; give a shorter one", path = .0.display())]
    TooLong(PathBuf),
    /// Another agent lives.
    #[error(
        "another agent serves on {path} already; end it, or give another path", path = .0.display()
    )]
    Alive(PathBuf),
    /// Something else is there.
    #[error("{path} exists and is no socket; give another path", path = .0.display())]
    NoSocket(PathBuf),
    /// The file system refused.
    #[error("cannot {action} {path}: {source}", path = .path.display())]
    Refused {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A listening socket. Its file goes when this is dropped.
#[derive(Debug)]
pub(super) struct PairingSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    file: (u64, u64),
}

impl PairingSocket {
    /// Makes the socket for root and these users.
    ///
    /// The file belongs to root with mode 0600, so that nobody else can connect. One user is made
    /// its owner. For several it is 0666, since a file has one owner: every connection's
    /// credentials are checked in any case.
    ///
    /// `locks` is a directory that is nobody else's.
    pub(super) fn bind(path: &Path, uids: &[u32], locks: &Path) -> Result<Self, SocketError> {
        if path.as_os_str().len() > MAX_PATH {
            return Err(SocketError::TooLong(path.to_owned()));
        }
        let refused =
            |action| move |source| SocketError::Refused { action, path: path.to_owned(), source };
        // Held while looking and making, so that of two agents that start at once one wins.
        let _lock = lock(locks)?;
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(refused("look at")(error)),
            Ok(file) if !file.file_type().is_socket() => {
                return Err(SocketError::NoSocket(path.to_owned()));
            }
            Ok(_) => match UnixStream::connect(path) {
                Ok(_) => return Err(SocketError::Alive(path.to_owned())),
                // The file outlived its agent.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(refused("replace the dead socket"))?;
                }
                Err(error) => return Err(refused("find out who serves on")(error)),
            },
        }
        // Never more open than it will be, and no chmod() later: that would follow a symlink which
        // the directory's owner may have put in the socket's place.
        let mask = if uids.len() > 1 { 0o111 } else { 0o177 };
        let before = umask(Mode::from_bits_truncate(mask));
        let bound = UnixListener::bind(path);
        umask(before);
        let listener = bound.map_err(refused("listen on"))?;
        let file = fs::symlink_metadata(path).map_err(refused("look at"))?;
        let socket = Self { listener, path: path.to_owned(), file: (file.dev(), file.ino()) };
        if let [uid] = uids {
            give(path, *uid).map_err(refused("give away"))?;
        }
        socket.listener.set_nonblocking(true).map_err(refused("listen on"))?;
        Ok(socket)
    }
}

impl Drop for PairingSocket {
    fn drop(&mut self) {
        // Only if it is still ours: somebody may have replaced it.
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == self.file);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes a user the socket's owner: that of the socket that was just made, whatever the directory's
/// owner may have put in its place.
fn give(path: &Path, uid: u32) -> io::Result<()> {
    // Opens the file without following or using it; what is checked is then what is given away.
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)?;
    let found = file.metadata()?;
    // A second name would be that of somebody else's socket.
    let ours =
        found.file_type().is_socket() && found.uid() == geteuid().as_raw() && found.nlink() == 1;
    if !ours {
        return Err(io::Error::other("somebody has replaced it"));
    }
    fchownat(&file, "", Some(Uid::from_raw(uid)), None, AtFlags::AT_EMPTY_PATH)?;
    Ok(())
}

/// Takes the lock of all agents. Not on the socket's directory, which anybody who can read it could
/// lock, for ever.
fn lock(directory: &Path) -> Result<Flock<fs::File>, SocketError> {
    let path = directory.join("serve.lock");
    let refused = |action, source| SocketError::Refused { action, path: path.clone(), source };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|e| refused("make the directory of", e))?;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(|e| refused("open", e))?;
    for _ in 0..LOCK_TRIES {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::errno::Errno::EWOULDBLOCK)) => file = back,
            Err((_, errno)) => return Err(refused("lock", errno.into())),
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    Err(refused("lock", io::Error::other("another process keeps it locked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(path: &Path, uids: &[u32]) -> Result<PairingSocket, SocketError> {
        let locks = tempfile::tempdir().unwrap();
        PairingSocket::bind(path, uids, locks.path())
    }

    #[test]
    fn made_for_root_only_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let socket = bind(&path, &[]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        drop(socket);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn several_users_need_an_open_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let _socket = bind(&path, &[1000, 1001]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o666);
    }

    #[test]
    fn the_dead_are_replaced_the_living_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        // A listener of std leaves its file behind, as a killed agent does.
        drop(UnixListener::bind(&path).unwrap());
        let socket = bind(&path, &[]).unwrap();
        let error = bind(&path, &[]).unwrap_err().to_string();
        assert!(error.contains("another agent serves on"), "{error}");
        assert!(path.exists());
        drop(socket);
    }

    #[test]
    fn other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        fs::write(&path, "mine").unwrap();
        let error = bind(&path, &[]).unwrap_err().to_string();
        assert!(error.contains("is no socket"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"mine");

        let missing = dir.path().join("no/agent.sock");
        let error = bind(&missing, &[]).unwrap_err().to_string();
        assert!(error.contains("no/agent.sock: No such file"), "{error}");
        let long = dir.path().join("x".repeat(200));
        assert!(matches!(bind(&long, &[]), Err(SocketError::TooLong(_))));
    }

    #[test]
    fn a_socket_that_replaced_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let socket = bind(&path, &[]).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }

    #[test]
    fn a_locked_directory_is_no_obstacle_but_another_agent_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let here = fs::File::open(dir.path()).unwrap();
        let _held = Flock::lock(here, FlockArg::LockExclusive).unwrap();
        let path = dir.path().join("agent.sock");
        drop(bind(&path, &[]).unwrap());

        let locks = tempfile::tempdir().unwrap();
        let held = lock(locks.path()).unwrap();
        assert_eq!(fs::metadata(locks.path().join("serve.lock")).unwrap().mode() & 0o777, 0o600);
        let error = PairingSocket::bind(&path, &[], locks.path()).unwrap_err().to_string();
        assert!(error.contains("keeps it locked"), "{error}");
        drop(held);
        PairingSocket::bind(&path, &[], locks.path()).unwrap();
    }

    #[test]
    fn only_the_socket_itself_is_given_away() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("agent.sock"), dir.path().join("other"));
        let me = geteuid().as_raw();
        let _socket = bind(&path, &[]).unwrap();
        give(&path, me).unwrap();
        // A second name for it, a link to it, and something else.
        fs::hard_link(&path, &other).unwrap();
        assert!(give(&path, me).unwrap_err().to_string().contains("replaced"));
        fs::remove_file(&other).unwrap();
        std::os::unix::fs::symlink(&path, &other).unwrap();
        assert!(give(&other, me).unwrap_err().to_string().contains("replaced"));
        fs::remove_file(&other).unwrap();
        fs::write(&other, "mine").unwrap();
        assert!(give(&other, me).unwrap_err().to_string().contains("replaced"));
        assert_eq!(fs::metadata(&path).unwrap().nlink(), 1);
        give(&path, me).unwrap();
    }
}
