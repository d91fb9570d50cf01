//! Which container a process is in, read from the control groups that it is in.
//!
//! Docker, podman, containerd and CRI-O all name a container's group after its id, 64 hexadecimal
//! digits, alone or within a systemd unit's name: `docker-ID.scope`, `libpod-ID.scope`,
//! `cri-containerd-ID.scope`, `crio-ID.scope`. No daemon is asked.

/// Digits of a whole id.
pub const ID_LEN: usize = 64;
/// Digits that a given one has at least; a shorter one would often fit several.
pub const MIN_PREFIX: usize = 4;

/// A process that is in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inside {
    /// Its number as the host knows it.
    pub pid: u32,
    /// Its number in its innermost pid namespace: 1 is the container's first.
    pub inner_pid: u32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
    /// The container's id.
    pub id: String,
}

/// Why there is no container to be had by an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContainerError {
    /// Not hexadecimal, too short or too long.
    #[error(
        "`{0}` is not a container id: give {MIN_PREFIX} to {ID_LEN} of its hexadecimal digits, as \
         `docker ps` and `podman ps` list them (a name needs the daemon: `docker inspect -f \
         '{{{{.Id}}}}' NAME`)"
    )]
    NotAnId(String),
    /// No process is in such a container.
    #[error("no running container's id begins with `{id}`; {}", known_text(.known))]
    None {
        /// What was given.
        id: String,
        /// Ids there are.
        known: Vec<String>,
    },
    /// More than one container.
    #[error("several containers' ids begin with `{id}`: {}; give more digits", .found.join(", "))]
    Several {
        /// What was given.
        id: String,
        /// The first digits of those that fit.
        found: Vec<String>,
    },
}

fn known_text(known: &[String]) -> String {
    if known.is_empty() {
        "no process of this host is in a container whose control group names it".to_owned()
    } else {
        format!("there are: {}", known.join(", "))
    }
}

/// The id in the text of `/proc/PID/cgroup`: that of the innermost container, where they are nested.
#[must_use]
pub fn id_of(cgroup: &str) -> Option<&str> {
    // hierarchy-ID:controllers:path, one line each; version 2 has one line.
    cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find_map(|path| {
        path.rsplit('/').find_map(|component| {
            let name = component.strip_suffix(".scope").unwrap_or(component);
            // Kubernetes' CRI writes `cri-containerd:ID` in some set-ups.
            let id = name.rsplit(['-', ':']).next()?;
            is_id(id).then_some(id)
        })
    })
}

fn is_id(text: &str) -> bool {
    text.len() == ID_LEN && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The innermost pid in the text of `/proc/PID/status`.
#[must_use]
pub fn inner_pid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}

/// The first process of the one container whose id begins with `given`: the one with number 1 in
/// there, else the oldest.
///
/// # Errors
/// No container fits, or several do.
pub fn first_process(given: &str, all: &[Inside]) -> Result<Inside, ContainerError> {
    let hex = given.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !hex || !(MIN_PREFIX..=ID_LEN).contains(&given.len()) {
        return Err(ContainerError::NotAnId(given.to_owned()));
    }
    let given = given.to_ascii_lowercase();
    let fits = |one: &&Inside| one.id.to_ascii_lowercase().starts_with(&given);
    let found = ids(all.iter().filter(fits));
    match found.len() {
        0 => return Err(ContainerError::None { id: given, known: ids(all.iter()) }),
        1 => {}
        _ => return Err(ContainerError::Several { id: given, found }),
    }
    let first =
        all.iter().filter(fits).min_by_key(|one| (one.inner_pid != 1, one.started, one.pid));
    first.cloned().ok_or(ContainerError::None { id: given, known: Vec::new() })
}

/// First digits of distinct ids, as container tools show them.
fn ids<'a>(of: impl Iterator<Item = &'a Inside>) -> Vec<String> {
    let mut ids: Vec<String> = of.map(|one| one.id.clone()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.iter().map(|id| id.chars().take(12).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "4f3a1b6a0c6c4f2f9d8e7b6a5c4d3e2f1a0b9c8d7e6f5a4b3c2d1e0f9a8b7c6d";
    const B: &str = "4f3a99990c6c4f2f9d8e7b6a5c4d3e2f1a0b9c8d7e6f5a4b3c2d1e0f9a8b7c6d";

    #[test]
    fn every_runtimes_way_of_naming_is_known() {
        for path in [
            format!("0::/system.slice/docker-{A}.scope"),
            format!("0::/docker/{A}"),
            format!("0::/machine.slice/libpod-{A}.scope/container"),
            format!("0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope"),
            format!("0::/kubepods.slice/kubepods-besteffort.slice/cri-containerd-{A}.scope"),
            format!("0::/kubepods/besteffort/pod1/crio-{A}.scope"),
            format!("0::/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{A}"),
            format!("12:pids:/docker/{A}\n1:name=systemd:/docker/{A}\n0::/"),
            format!("0::/docker/{B}/docker/{A}"),
        ] {
            assert_eq!(id_of(&path), Some(A), "{path}");
        }
        for path in ["0::/", "0::/system.slice/ssh.service", "", "0::/docker/4f3a", "nonsense"] {
            assert_eq!(id_of(path), None, "{path}");
        }
    }

    #[test]
    fn the_innermost_number_comes_last() {
        assert_eq!(inner_pid("Name:\tx\nNSpid:\t4242\t17\t1\nThreads:\t1\n"), Some(1));
        assert_eq!(inner_pid("NSpid:\t4242\n"), Some(4242));
        assert_eq!(inner_pid("Name:\tx\n"), None);
    }

    fn inside(pid: u32, inner_pid: u32, started: u64, id: &str) -> Inside {
        Inside { pid, inner_pid, started, id: id.to_owned() }
    }

    #[test]
    fn the_first_process_stands_for_its_container() {
        let all = [inside(30, 7, 5, A), inside(20, 1, 9, A), inside(40, 1, 1, B)];
        assert_eq!(first_process(&A[..12], &all).unwrap().pid, 20);
        assert_eq!(first_process(&A.to_ascii_uppercase(), &all).unwrap().pid, 20);
        assert_eq!(first_process("4f3a9999", &all).unwrap().pid, 40);
        // One that shares its host's numbers: the oldest.
        let host = [inside(30, 30, 5, A), inside(20, 20, 9, A)];
        assert_eq!(first_process(&A[..12], &host).unwrap().pid, 30);
    }

    #[test]
    fn none_and_several_are_told_apart() {
        let all = [inside(20, 1, 9, A), inside(40, 1, 1, B)];
        let error = |given: &str| first_process(given, &all).unwrap_err().to_string();
        assert!(error("4f3a").contains("4f3a1b6a0c6c, 4f3a99990c6c; give more digits"));
        assert!(error("beef").contains("there are: 4f3a1b6a0c6c, 4f3a99990c6c"));
        for bad in ["web", "", "4f3", "../x", &format!("{A}0")] {
            assert!(error(bad).contains("is not a container id"), "{bad}");
        }
        let nowhere = first_process("beef", &[]).unwrap_err().to_string();
        assert!(nowhere.contains("no process of this host"), "{nowhere}");
    }
}
