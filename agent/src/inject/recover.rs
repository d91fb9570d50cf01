//! Removes what dead agents left: entries of processes that are gone, and qdiscs with our handles
//! that no live process answers for.

use std::collections::{BTreeMap, BTreeSet};

use super::error::InjectError;
use super::registry::{self, Entry};
use super::running::{of_nfqueue, of_qdisc};
use crate::model::impairment::{Direction, Engine};
use crate::sys::guardian;
use crate::sys::ingress;
use crate::sys::link::{self, Link};
use crate::sys::netem::{self, Before};
use crate::sys::netlink::Conn;
use crate::sys::netns::Netns;
use crate::sys::nfqueue::Delay;
use crate::sys::process;
use crate::sys::qdisc;

/// Cleans up behind every dead agent that this one can tell to be dead, by its entry: a run without
/// delay must be without delay. A qdisc of ours that no entry tells of may be that of a live agent
/// with other files than this one's, so it is left to an explicit `clear`. Returns a line for each,
/// and for each that could not be put back.
///
/// # Errors
/// Not root, or the entries cannot be read.
pub fn all() -> Result<Vec<String>, InjectError> {
    super::engines::require_root()?;
    registry::prepare()?;
    let _lock = registry::lock()?;
    let Stale { cleaned, failed } = stale(|_| true)?;
    let failed = failed.iter().map(|(entry, error)| {
        format!("{} in network namespace {}: {error}", entry.device, entry.netns)
    });
    Ok(cleaned.iter().map(Cleaned::told).chain(failed).collect())
}

/// What became of the entries of dead agents.
#[derive(Debug, Default)]
pub(super) struct Stale {
    pub(super) cleaned: Vec<Cleaned>,
    /// Those whose interface could not be put back. They stay.
    pub(super) failed: Vec<(Entry, InjectError)>,
}

/// An entry that was removed.
#[derive(Debug)]
pub(super) struct Cleaned {
    entry: Entry,
    /// Whether its namespace was within reach. One that has neither a name nor a process has ended,
    /// unless something else holds it.
    reached: bool,
}

impl Cleaned {
    /// In words.
    pub(super) fn told(&self) -> String {
        let Entry { device, netns, pid, .. } = &self.entry;
        let what = if self.reached {
            "cleaned up"
        } else {
            "its namespace has neither a name nor a process any more: forgotten"
        };
        format!("{device} in network namespace {netns}: {what} behind process {pid}, which is gone")
    }
}

/// Cleans up behind every dead entry that `wanted` picks. Call it with the registry locked.
///
/// # Errors
/// The entries cannot be read.
pub(super) fn stale(wanted: impl Fn(&Entry) -> bool) -> Result<Stale, InjectError> {
    let (entries, _) = registry::read()?;
    let dead: Vec<Entry> = entries.into_iter().filter(|e| !e.is_live() && wanted(e)).collect();
    let namespaces = if dead.is_empty() { BTreeMap::new() } else { reachable() };
    let mut stale = Stale::default();
    for entry in dead {
        let netns = namespaces.get(&entry.netns_inode);
        let put_back = match netns {
            Some(netns) => netns.run(|| clean_up(&entry)).map_err(InjectError::from).flatten(),
            None => Ok(()),
        };
        match put_back {
            Ok(()) => {
                entry.remove();
                stale.cleaned.push(Cleaned { entry, reached: netns.is_some() });
            }
            Err(error) => stale.failed.push((entry, error)),
        }
    }
    Ok(stale)
}

fn clean_up(entry: &Entry) -> Result<(), InjectError> {
    match entry.engine {
        Engine::Netem => put_back(entry),
        Engine::Nfqueue => {
            Delay::await_stale(entry.index).map_err(|error| of_nfqueue(error, entry))
        }
    }
}

/// Puts the interface of `entry` back as it was, in the calling thread's namespace. What nfqueue made
/// goes with its sockets.
pub(super) fn put_back(entry: &Entry) -> Result<(), InjectError> {
    let Some(before) = &entry.before else { return Ok(()) };
    let mut route = link::open().map_err(|refusal| InjectError::Kernel {
        action: "open rtnetlink".to_owned(),
        source: refusal.into(),
    })?;
    netem::restore(&mut route, entry.index, before)
        .map(drop)
        .map_err(|error| of_qdisc(error, entry))
}

/// A qdisc of ours that no live entry tells of.
#[derive(Debug)]
pub(super) struct Orphan {
    /// `interface in namespace`.
    pub(super) place: String,
    /// Whether it was left alone, since its guardian lives.
    pub(super) guarded: bool,
    /// Length of the interface's transmit queue. What it was before is not known.
    pub(super) tx_queue_len: u32,
}

impl Orphan {
    /// In words.
    pub(super) fn told(&self) -> String {
        let Self { place, tx_queue_len, .. } = self;
        format!(
            "{place}: removed a qdisc that no agent answers for; the interface's transmit queue takes \
             {tx_queue_len} packets, and whether it did before is not known"
        )
    }
}

/// Removes qdiscs of ours that neither a live entry nor a live guardian answers for, on interfaces
/// that `wanted` picks by name and namespace inode. Call it with the registry locked.
pub(super) fn orphans(
    wanted: impl Fn(&str, u64) -> bool + Sync,
) -> Result<Vec<Orphan>, InjectError> {
    let known: Vec<(u64, i32)> = registry::read()?
        .0
        .iter()
        .filter(|entry| entry.is_live())
        .map(|entry| (entry.netns_inode, entry.index))
        .collect();
    let mut found = Vec::new();
    for netns in reachable().values() {
        // One that is gone meanwhile, or closed to us, has nothing to remove.
        let here = netns.run(|| {
            let Ok(mut route) = link::open() else { return vec![] };
            let links = link::list(&mut route).unwrap_or_default();
            links
                .iter()
                .filter_map(|link| {
                    // An ifb of ours stands for the interface that it serves, which may be gone.
                    let index = ingress::serves(link).unwrap_or(link.index);
                    let served = links.iter().find(|other| other.index == index).unwrap_or(link);
                    let unknown = !known.contains(&(netns.inode(), index));
                    (unknown && wanted(&served.name, netns.inode()))
                        .then(|| orphan(&mut route, link, index, served, netns.label()))?
                })
                .collect()
        });
        found.extend(here.unwrap_or_default());
    }
    Ok(found)
}

/// What of ours is on `link`: on interface `index`, or an ifb that serves it.
fn orphan(route: &mut Conn, link: &Link, index: i32, served: &Link, netns: &str) -> Option<Orphan> {
    let is_ifb = ingress::serves(link).is_some();
    let root = qdisc::root(route, link.index).ok().filter(qdisc::Root::is_ours);
    let own = match root {
        Some(root) => root.handle,
        None if is_ifb => 0,
        None => return None,
    };
    let guarded = guardian::watches(index, own);
    if !guarded {
        // How it was before is not known: the kernel's default it was, or ours would not have been
        // put there.
        let (kind, tx_queue_len) = (qdisc::HIDDEN.to_owned(), served.tx_queue_len);
        let before = Before {
            egress: (!is_ifb).then_some(qdisc::Before { kind, tx_queue_len, own, tree: None }),
            ingress: is_ifb.then_some(ingress::Before {
                tx_queue_len,
                own,
                direction: Direction::Both,
            }),
        };
        netem::restore(route, index, &before).ok().filter(|done| done.removed)?;
    }
    let place = format!("{} in network namespace {netns}", served.name);
    Some(Orphan { place, guarded, tx_queue_len: served.tx_queue_len })
}

/// The interface that is called `name` in the namespace of each entry, for those whose namespace is
/// within reach: by inode.
pub(super) fn indices(name: &str, entries: &[Entry]) -> BTreeMap<u64, Option<i32>> {
    let wanted: BTreeSet<u64> = entries.iter().map(|entry| entry.netns_inode).collect();
    let index = |netns: &Netns| {
        netns.run(|| {
            let links = link::list(&mut link::open().ok()?).ok()?;
            Some(links.into_iter().find(|link| link.name == name).map(|link| link.index))
        })
    };
    reachable()
        .into_iter()
        .filter(|(inode, _)| wanted.contains(inode))
        .filter_map(|(inode, netns)| Some((inode, index(&netns).ok()??)))
        .collect()
}

/// Every namespace that has a name or a process, by inode number.
fn reachable() -> BTreeMap<u64, Netns> {
    let mut found = BTreeMap::new();
    let current = Netns::current().into_iter();
    let named = Netns::names().into_iter().filter_map(|name| Netns::named(&name).ok());
    let of_processes = process::pids().into_iter().filter_map(|pid| Netns::of_pid(pid).ok());
    for netns in current.chain(named).chain(of_processes) {
        found.entry(netns.inode()).or_insert(netns);
    }
    found
}
