//! Removes what dead agents left: entries of processes that are gone, and qdiscs with our handle
//! that no live process answers for.

use std::collections::BTreeMap;

use super::error::InjectError;
use super::registry::{self, Entry};
use super::running::{of_nfqueue, of_qdisc};
use crate::model::impairment::Engine;
use crate::sys::link;
use crate::sys::netns::{NAMED, Netns};
use crate::sys::nfqueue::Delay;
use crate::sys::qdisc::{self, Before};

/// Removes all that dead agents left on this machine: a run without delay must be without delay.
/// Returns a line for each.
///
/// # Errors
/// Not root, or the kernel refuses.
pub fn all() -> Result<Vec<String>, InjectError> {
    super::engines::require_root()?;
    registry::prepare()?;
    let _lock = registry::lock()?;
    let dead = stale(|_| true)?;
    let mut removed: Vec<String> = dead
        .iter()
        .map(|entry| format!("{} (agent {} is gone)", entry.device, entry.pid))
        .collect();
    removed.extend(orphans(|_, _| true)?);
    Ok(removed)
}

/// Cleans up behind every dead entry that `wanted` picks, and returns them. Call it with the
/// registry locked.
pub(super) fn stale(wanted: impl Fn(&Entry) -> bool) -> Result<Vec<Entry>, InjectError> {
    let dead: Vec<Entry> =
        registry::read()?.0.into_iter().filter(|e| !e.is_live() && wanted(e)).collect();
    if !dead.is_empty() {
        let namespaces = reachable();
        for entry in &dead {
            // A namespace that cannot be found has ended, and its interfaces with it.
            let Some(netns) = namespaces.get(&entry.netns_inode) else { continue };
            match (entry.engine, &entry.before) {
                (Engine::Netem, Some(before)) => netns.run(|| restore(entry, before))??,
                (Engine::Netem, None) => {}
                (Engine::Nfqueue, _) => netns
                    .run(|| Delay::remove_stale(entry.index))?
                    .map_err(|error| of_nfqueue(error, entry))?,
            }
        }
    }
    dead.iter().for_each(Entry::remove);
    Ok(dead)
}

fn restore(entry: &Entry, before: &Before) -> Result<(), InjectError> {
    let mut route = link::open().map_err(|refusal| InjectError::Kernel {
        action: "open rtnetlink".to_owned(),
        source: refusal.into(),
    })?;
    qdisc::restore(&mut route, entry.index, before)
        .map(drop)
        .map_err(|error| of_qdisc(error, entry))
}

/// Removes qdiscs of ours that no live entry tells of, on interfaces that `wanted` picks by name and
/// namespace inode. Returns `interface in namespace` for each. Call it with the registry locked.
pub(super) fn orphans(
    wanted: impl Fn(&str, u64) -> bool + Sync,
) -> Result<Vec<String>, InjectError> {
    let known: Vec<(u64, i32)> = registry::read()?
        .0
        .iter()
        .filter(|entry| entry.is_live())
        .map(|entry| (entry.netns_inode, entry.index))
        .collect();
    let mut removed = Vec::new();
    for netns in reachable().values() {
        // One that is gone meanwhile, or closed to us, has nothing to remove.
        let found = netns.run(|| {
            let Ok(mut route) = link::open() else { return vec![] };
            let links = link::list(&mut route).unwrap_or_default();
            links
                .into_iter()
                .filter(|link| wanted(&link.name, netns.inode()))
                .filter(|link| !known.contains(&(netns.inode(), link.index)))
                .filter_map(|link| {
                    // How it was before is not known: the kernel's default it was, or ours would
                    // not have been put there.
                    let before =
                        Before { kind: qdisc::HIDDEN.to_owned(), tx_queue_len: link.tx_queue_len };
                    let restored = qdisc::restore(&mut route, link.index, &before);
                    restored.ok().filter(|done| *done).map(|_| link.name)
                })
                .collect()
        });
        for device in found.unwrap_or_default() {
            removed.push(format!("{device} in network namespace {}", netns.label()));
        }
    }
    Ok(removed)
}

/// Every namespace that has a name or a process, by inode number.
fn reachable() -> BTreeMap<u64, Netns> {
    let mut found = BTreeMap::new();
    let current = Netns::current().into_iter();
    let named = Netns::names()
        .into_iter()
        .filter_map(|name| Netns::open(&format!("{NAMED}/{name}"), name).ok());
    let of_processes = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Netns::of_pid(pid).ok());
    for netns in current.chain(named).chain(of_processes) {
        found.entry(netns.inode()).or_insert(netns);
    }
    found
}
