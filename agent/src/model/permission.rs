//! What a peer of the pairing socket may do: what root's command line allows, by default nothing but
//! measure.

use std::time::Duration;

use agent_common::duration;

/// Root's command line, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Users that may connect, besides root.
    pub uids: Vec<u32>,
    /// Ports that may be measured; empty: any.
    pub ports: Vec<u16>,
    /// Interfaces of the service's namespace that may be impaired; empty: none.
    pub devices: Vec<String>,
    /// Longest delay that may be asked for.
    pub max_delay: Duration,
}

/// Why a peer may not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The user may not connect.
    #[error("user {0} may not use this agent; root allows it with `agent serve --allow-uid {0}`")]
    User(u32),
    /// The port may not be measured.
    #[error(
        "port {port} may not be measured (allowed: {}); root allows it with `agent serve \
         --allow-port {port}`", list(.allowed)
    )]
    Port {
        /// Asked for.
        port: u16,
        /// What may be.
        allowed: Vec<u16>,
    },
    /// The interface may not be impaired.
    #[error(
        "interface `{device}` may not be impaired (allowed: {}); root allows it with `agent serve \
         --allow-dev {device}`", list(.allowed)
    )]
    Device {
        /// Asked for.
        device: String,
        /// What may be.
        allowed: Vec<String>,
    },
    /// The delay is longer than allowed.
    #[error(
        "a delay of {} is more than the allowed {}; root raises that with `agent serve --max-delay \
         {}`", duration::format(*.asked), duration::format(*.allowed), duration::format(*.asked)
    )]
    Delay {
        /// Asked for.
        asked: Duration,
        /// The most that may be.
        allowed: Duration,
    },
}

fn list<T: ToString>(allowed: &[T]) -> String {
    if allowed.is_empty() {
        return "none".to_owned();
    }
    allowed.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

impl Policy {
    /// Whether a process of this user may connect. Root may.
    ///
    /// # Errors
    /// [`Refusal::User`].
    pub fn may_connect(&self, uid: u32) -> Result<(), Refusal> {
        if uid == 0 || self.uids.contains(&uid) { Ok(()) } else { Err(Refusal::User(uid)) }
    }

    /// Whether a service on this port may be measured.
    ///
    /// # Errors
    /// [`Refusal::Port`].
    pub fn may_measure(&self, port: u16) -> Result<(), Refusal> {
        if self.ports.is_empty() || self.ports.contains(&port) {
            return Ok(());
        }
        Err(Refusal::Port { port, allowed: self.ports.clone() })
    }

    /// Whether this interface may be impaired by this much.
    ///
    /// # Errors
    /// [`Refusal::Device`] or [`Refusal::Delay`].
    pub fn may_impair(&self, device: &str, delay: Duration) -> Result<(), Refusal> {
        if !self.devices.iter().any(|allowed| allowed == device) {
            return Err(Refusal::Device {
                device: device.to_owned(),
                allowed: self.devices.clone(),
            });
        }
        if delay > self.max_delay {
            return Err(Refusal::Delay { asked: delay, allowed: self.max_delay });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing_but_measure() -> Policy {
        Policy { uids: vec![], ports: vec![], devices: vec![], max_delay: Duration::from_secs(1) }
    }

    #[test]
    fn by_default_root_measures_and_nobody_impairs() {
        let policy = nothing_but_measure();
        assert_eq!(policy.may_connect(0), Ok(()));
        assert_eq!(policy.may_connect(1000), Err(Refusal::User(1000)));
        assert_eq!(policy.may_measure(8000), Ok(()));
        let refusal = policy.may_impair("eth0", Duration::from_millis(1)).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "interface `eth0` may not be impaired (allowed: none); root allows it with `agent \
             serve --allow-dev eth0`"
        );
    }

    #[test]
    fn what_is_allowed_is_all_that_is() {
        let policy = Policy {
            uids: vec![1000],
            ports: vec![8000, 8001],
            devices: vec!["eth0".into()],
            max_delay: Duration::from_millis(200),
        };
        assert_eq!(policy.may_connect(1000), Ok(()));
        assert!(policy.may_connect(1001).is_err());
        assert_eq!(policy.may_measure(8001), Ok(()));
        assert_eq!(
            policy.may_measure(80).unwrap_err().to_string(),
            "port 80 may not be measured (allowed: 8000, 8001); root allows it with `agent serve \
             --allow-port 80`"
        );
        assert_eq!(policy.may_impair("eth0", Duration::from_millis(200)), Ok(()));
        assert!(matches!(
            policy.may_impair("lo", Duration::from_millis(1)),
            Err(Refusal::Device { .. })
        ));
        assert_eq!(
            policy.may_impair("eth0", Duration::from_millis(201)).unwrap_err().to_string(),
            "a delay of 201ms is more than the allowed 200ms; root raises that with `agent serve \
             --max-delay 201ms`"
        );
    }
}
