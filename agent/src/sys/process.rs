//! Which processes there are.

use std::fs;

pub use crate::model::proc_stat::Stat;
use crate::model::proc_stat::parse;

/// Every pid, ascending.
#[must_use]
pub fn pids() -> Vec<u32> {
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids
}

/// The living process `pid`; None if there is none.
#[must_use]
pub fn stat(pid: u32) -> Option<Stat> {
    // The name in it may hold any bytes.
    parse(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_one_and_has_a_parent() {
        let me = std::process::id();
        assert!(pids().contains(&me));
        let stat_of_me = stat(me).unwrap();
        assert_eq!(stat_of_me.parent, std::os::unix::process::parent_id());
        assert!(stat_of_me.started > 0);
        assert_eq!(stat(4_194_305), None);
    }
}
