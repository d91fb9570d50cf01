//! Removes what dead agents left: entries of processes that are gone, and qdiscs with our handle
//! that no live process answers for.

use std::collections::BTreeMap;

use super::error::InjectError;
use super::registry::{self, Entry};
use super::running::of_qdisc;
use crate::model::impairment::Engine;
use crate::sys::ingress;
use crate::sys::link::{self, Link};
use crate::sys::netem::{self, Before};
use crate::sys::netlink::Conn;
use crate::sys::netns::{NAMED, Netns};
use crate::sys::qdisc;

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
    if dead.iter().any(|entry| entry.engine == Engine::Netem) {
        let namespaces = reachable();
        for entry in &dead {
            // A namespace that cannot be found has ended, and its interfaces with it.
            if let (Some(netns), Some(before)) = (namespaces.get(&entry.netns_inode), &entry.before)
            {
                netns.run(|| restore(entry, before))??;
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
    netem::restore(&mut route, entry.index, before)
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
            let mut found = Vec::new();
            for link in &links {
                // An ifb of ours stands for the interface that it serves, which may be gone.
                let index = ingress::serves(link).unwrap_or(link.index);
                let served = links.iter().find(|other| other.index == index).unwrap_or(link);
                if wanted(&served.name, netns.inode())
                    && !known.contains(&(netns.inode(), index))
                    && remove(&mut route, index, served)
                {
                    found.push(served.name.clone());
                }
            }
            found
        });
        for device in found.unwrap_or_default() {
            removed.push(format!("{device} in network namespace {}", netns.label()));
        }
    }
    Ok(removed)
}

/// Removes what of ours is on interface `index`; true if there was something.
fn remove(route: &mut Conn, index: i32, served: &Link) -> bool {
    // How it was before is not known: the kernel's default it was, or ours would not have been put
    // there.
    let tx_queue_len = served.tx_queue_len;
    let before = Before {
        egress: Some(qdisc::Before { kind: qdisc::HIDDEN.to_owned(), tx_queue_len, tree: None }),
        ingress: Some(ingress::Before { tx_queue_len }),
    };
    netem::restore(route, index, &before).unwrap_or(false)
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
