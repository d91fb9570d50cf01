//! Which filters contradict themselves, or take no packet at all.

use std::fmt::Display;

use agent_common::filter::MAX_RULES;

use super::{PacketFilter, Protocol, Selection};

/// Why a filter makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// No port has that number.
    #[error("{0} 0: there is no port 0; give 1 to 65535")]
    PortZero(&'static str),
    /// The same again.
    #[error("{option} {value} is given twice; leave one out")]
    Twice {
        /// Such as `--peer`.
        option: &'static str,
        /// What was given.
        value: String,
    },
    /// What is taken and left alone.
    #[error("--not-{kind} {not} leaves nothing of --{kind} {only}; leave one of them out")]
    Cancelled {
        /// Such as `peer`.
        kind: &'static str,
        /// What is taken.
        only: String,
        /// What is left alone.
        not: String,
    },
    /// Both families.
    #[error("--not-peer 0.0.0.0/0 and --not-peer ::/0 leave no packet; leave one of them out")]
    NoFamily,
    /// ICMP has none.
    #[error("--protocol icmp and {0}: icmp has no ports; leave one of them out")]
    PortsOfIcmp(&'static str),
    /// More than there is room for.
    #[error(
        "the filter comes to {0} rules (one for each combination of peer, port, peer's port and \
         protocol, and one for each exclusion), at most {MAX_RULES} of either are taken; join \
         ranges of addresses, or leave some out"
    )]
    TooMany(usize),
}

impl PacketFilter {
    /// Whether it makes sense.
    ///
    /// # Errors
    /// The first thing that does not.
    pub fn check(&self) -> Result<(), FilterError> {
        let Self { only, not } = self;
        only.check(["--peer", "--port", "--peer-port", "--protocol"])?;
        not.check(["--not-peer", "--not-port", "--not-peer-port", "--not-protocol"])?;
        if only.protocols.contains(&Protocol::Icmp) {
            // An exclusion by port is pointless only where nothing else is taken.
            let alone = only.protocols.len() == 1;
            let ports = [
                ("--port", !only.ports.is_empty()),
                ("--peer-port", !only.peer_ports.is_empty()),
                ("--not-port", alone && !not.ports.is_empty()),
                ("--not-peer-port", alone && !not.peer_ports.is_empty()),
            ];
            if let Some((option, _)) = ports.into_iter().find(|(_, given)| *given) {
                return Err(FilterError::PortsOfIcmp(option));
            }
        }
        cancelled("peer", &only.peers, &not.peers, |not, only| not.covers(only))?;
        cancelled("port", &only.ports, &not.ports, PartialEq::eq)?;
        cancelled("peer-port", &only.peer_ports, &not.peer_ports, PartialEq::eq)?;
        cancelled("protocol", &only.protocols, &not.protocols, PartialEq::eq)?;
        let families = |v4| not.peers.iter().any(|peer| peer.is_family() && peer.is_ipv4() == v4);
        if families(true) && families(false) {
            return Err(FilterError::NoFamily);
        }
        self.rules(0).map(drop)
    }
}

impl Selection {
    fn check(
        &self,
        [peer, port, peer_port, protocol]: [&'static str; 4],
    ) -> Result<(), FilterError> {
        for (option, ports) in [(port, &self.ports), (peer_port, &self.peer_ports)] {
            if ports.contains(&0) {
                return Err(FilterError::PortZero(option));
            }
            once(option, ports)?;
        }
        once(peer, &self.peers)?;
        once(protocol, &self.protocols)
    }
}

fn once<T: PartialEq + Display>(option: &'static str, values: &[T]) -> Result<(), FilterError> {
    let again = values.iter().enumerate().find(|(index, value)| values[..*index].contains(value));
    match again {
        None => Ok(()),
        Some((_, value)) => Err(FilterError::Twice { option, value: value.to_string() }),
    }
}

fn cancelled<T: Display>(
    kind: &'static str,
    only: &[T],
    not: &[T],
    covers: impl Fn(&T, &T) -> bool,
) -> Result<(), FilterError> {
    let pairs = only.iter().flat_map(|only| not.iter().map(move |not| (only, not)));
    match pairs.into_iter().find(|(only, not)| covers(not, only)) {
        None => Ok(()),
        Some((only, not)) => {
            Err(FilterError::Cancelled { kind, only: only.to_string(), not: not.to_string() })
        }
    }
}
