//! What impairs a network namespace that this process did not put there: a run measured there is no
//! undelayed one.

use std::time::Duration;

use agent_common::duration;

use super::error::InjectError;
use super::registry::{self, Entry};
use crate::model::impairment::{Direction, Engine};
use crate::model::netem::NetemOptions;
use crate::sys::netem::Before;
use crate::sys::netns::Netns;
use crate::sys::qdisc::Root;
use crate::sys::{ingress, link, qdisc};

/// An impairment of somebody else's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Interface.
    pub device: String,
    /// Which packets.
    pub direction: Direction,
    /// How.
    pub engine: Engine,
    /// In words, as it would follow "packets are".
    pub words: String,
    /// Delay, without its random part.
    pub delay: Duration,
    /// Agent that holds it; None for a netem that no living agent answers for.
    pub pid: Option<u32>,
}

/// Everything in force in `netns` but what this process holds: what other agents have written down,
/// and every netem that the kernel shows there.
///
/// # Errors
/// The namespace is gone, or the kernel or `/run/dwell` could not be read.
pub fn in_force(netns: &Netns) -> Result<Vec<Other>, InjectError> {
    let known: Vec<Entry> = registry::read()?
        .0
        .into_iter()
        .filter(|entry| entry.netns_inode == netns.inode() && entry.is_live())
        .collect();
    let of_nobody = netns.run(|| unanswered(&known))??;
    let of_agents =
        known.iter().filter(|entry| entry.pid != std::process::id()).map(|entry| Other {
            device: entry.device.clone(),
            direction: entry.direction,
            engine: entry.engine,
            words: entry.words(),
            delay: entry.impairment_now().delay,
            pid: Some(entry.pid),
        });
    Ok(of_agents.chain(of_nobody).collect())
}

/// Every netem on an interface for which nobody in `known` answers.
fn unanswered(known: &[Entry]) -> Result<Vec<Other>, InjectError> {
    let failed = |action: &str, source| InjectError::Kernel { action: action.to_owned(), source };
    let mut route = link::open().map_err(|refusal| failed("open rtnetlink", refusal.into()))?;
    let netems = qdisc::netems(&mut route)
        .map_err(|refusal| failed("list the queueing disciplines", refusal.into()))?;
    if netems.is_empty() {
        return Ok(Vec::new());
    }
    let links =
        link::list(&mut route).map_err(|refusal| failed("list the interfaces", refusal.into()))?;
    let other = |(index, netem): (i32, Root)| {
        let link = links.iter().find(|link| link.index == index)?;
        // An ifb of an agent's stands for the interface that it serves.
        let served = ingress::serves(link);
        let index = served.unwrap_or(index);
        let is_entrys = |entry: &Entry| {
            let own = entry.before.as_ref().map(Before::own);
            entry.index == index && own.is_some_and(|own| netem.is_own(own))
        };
        if known.iter().any(is_entrys) {
            return None;
        }
        let device = links.iter().find(|other| other.index == index).unwrap_or(link);
        let options = netem.netem().and_then(Result::ok);
        Some(Other {
            device: device.name.clone(),
            direction: ingress::direction(link).unwrap_or(Direction::Egress),
            engine: Engine::Netem,
            words: options.as_ref().map_or_else(|| "impaired".to_owned(), words),
            delay: options.map_or(Duration::ZERO, |options| nanoseconds(options.latency_ns)),
            pid: None,
        })
    };
    Ok(netems.into_iter().filter_map(other).collect())
}

fn nanoseconds(ns: i64) -> Duration {
    Duration::from_nanos(u64::try_from(ns).unwrap_or(0))
}

/// The gist of a netem that was not made from an [`crate::model::impairment::Impairment`].
fn words(options: &NetemOptions) -> String {
    let mut text = match options.latency_ns {
        0 => "not delayed".to_owned(),
        ns => format!("delayed by {}", duration::format(nanoseconds(ns))),
    };
    if options.jitter_ns != 0 {
        text += &format!(" \u{b1} {}", duration::format(nanoseconds(options.jitter_ns)));
    }
    let plain = NetemOptions {
        latency_ns: options.latency_ns,
        jitter_ns: options.jitter_ns,
        delay_correlation: options.delay_correlation,
        limit_packets: options.limit_packets,
        prng_seed: options.prng_seed,
        ..NetemOptions::default()
    };
    if *options != plain {
        text += " and impaired in other ways";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::netem::{Correlated, Probability};

    #[test]
    fn a_foreign_netem_is_told_in_words() {
        let mut options = NetemOptions { latency_ns: 50_000_000, ..NetemOptions::default() };
        assert_eq!(words(&options), "delayed by 50ms");
        options.jitter_ns = 5_000_000;
        options.limit_packets = 1000;
        assert_eq!(words(&options), "delayed by 50ms \u{b1} 5ms");
        options.loss = Correlated { probability: Probability::ALWAYS, ..options.loss };
        assert_eq!(words(&options), "delayed by 50ms \u{b1} 5ms and impaired in other ways");
        options = NetemOptions { jitter_ns: 0, latency_ns: 0, ..options };
        assert_eq!(words(&options), "not delayed and impaired in other ways");
    }
}
