//! What a peer of the pairing socket may do: what root's command line allows, by default nothing but
//! measure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use agent_common::duration;

/// What stands for the agent's own network namespace.
pub const HOST: &str = "host";

/// An interface that may be impaired, as root wrote it: `DEV` or `DEV@NETNS`.
///
/// The peer chooses the service, and with it the namespace. So a bare name means that interface
/// wherever the service is, but not where the agent itself runs: on a host, `eth0` may well be what
/// root is logged in through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Name.
    pub name: String,
    /// Namespace: [`HOST`], or a name of `ip netns`; None: any but the agent's own.
    pub netns: Option<String>,
}

impl FromStr for Device {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, netns) = match text.split_once('@') {
            Some((name, netns)) => (name, Some(netns)),
            None => (text, None),
        };
        // See dev_valid_name in net/core/dev.c.
        let valid = !name.is_empty()
            && name.len() < 16
            && name != "."
            && name != ".."
            && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
        if !valid {
            return Err("no interface can have that name; see `ip link`");
        }
        if netns.is_some_and(|netns| netns.is_empty() || netns.contains('/')) {
            return Err(
                "no network namespace can have that name; give one of `ip netns list`, or `host` \
                 for the agent's own",
            );
        }
        Ok(Self { name: name.to_owned(), netns: netns.map(str::to_owned) })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.netns {
            Some(netns) => write!(f, "{}@{netns}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// What root may call the network namespace of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// It is the one the agent itself runs in.
    pub host: bool,
    /// What `ip netns` calls it.
    pub names: Vec<String>,
}

impl Device {
    fn is(&self, name: &str, place: &Place) -> bool {
        self.name == name
            && match self.netns.as_deref() {
                None => !place.host,
                Some(HOST) => place.host,
                Some(netns) => place.names.iter().any(|name| name == netns),
            }
    }

    /// What would allow `name` in `place`.
    fn asked(name: &str, place: &Place) -> Self {
        let netns = place.host.then(|| HOST.to_owned());
        Self { name: name.to_owned(), netns }
    }
}

/// Root's command line, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Users that may connect, besides root.
    pub uids: Vec<u32>,
    /// Ports that may be measured; empty: any.
    pub ports: Vec<u16>,
    /// Interfaces that may be impaired; empty: none.
    pub devices: Vec<Device>,
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
        "interface `{}`{} may not be impaired (allowed: {}); root allows it with `agent serve \
         --allow-dev {device}`", .device.name,
        if .device.netns.is_some() { " of the agent's own network namespace" } else { "" },
        list(.allowed)
    )]
    Device {
        /// Asked for, as it would have to be allowed.
        device: Device,
        /// What may be.
        allowed: Vec<Device>,
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

    /// Whether this interface in that namespace may be impaired by this much.
    ///
    /// # Errors
    /// [`Refusal::Device`] or [`Refusal::Delay`].
    pub fn may_impair(&self, name: &str, place: &Place, delay: Duration) -> Result<(), Refusal> {
        if !self.devices.iter().any(|allowed| allowed.is(name, place)) {
            return Err(Refusal::Device {
                device: Device::asked(name, place),
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

    fn devices(text: &str) -> Vec<Device> {
        text.split(' ').map(|device| device.parse().unwrap()).collect()
    }

    fn inside() -> Place {
        Place { host: false, names: vec!["blue".into()] }
    }

    fn host() -> Place {
        Place { host: true, names: vec![] }
    }

    #[test]
    fn a_bare_name_is_not_the_hosts_own() {
        let some = Duration::from_millis(1);
        for (allowed, here, there) in [
            ("eth0", false, true),
            ("eth0@host", true, false),
            ("eth0@blue", false, true),
            ("eth0@red", false, false),
            ("eth0 eth0@host", true, true),
            ("eth1 eth1@host", false, false),
        ] {
            let policy = Policy { devices: devices(allowed), ..nothing_but_measure() };
            assert_eq!(policy.may_impair("eth0", &host(), some).is_ok(), here, "{allowed}");
            assert_eq!(policy.may_impair("eth0", &inside(), some).is_ok(), there, "{allowed}");
        }
        let policy = Policy { devices: devices("eth0"), ..nothing_but_measure() };
        assert_eq!(
            policy.may_impair("eth0", &host(), some).unwrap_err().to_string(),
            "interface `eth0` of the agent's own network namespace may not be impaired (allowed: \
             eth0); root allows it with `agent serve --allow-dev eth0@host`"
        );
    }

    #[test]
    fn what_can_be_no_device_is_refused() {
        for text in
            ["", "@host", "a/b", "..", "a b", "a:1", "sixteen-letters-", "eth0@", "eth0@../x"]
        {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
        assert_eq!("eth0@host".parse::<Device>().unwrap().to_string(), "eth0@host");
        assert_eq!("eth0".parse::<Device>().unwrap().to_string(), "eth0");
    }

    #[test]
    fn by_default_root_measures_and_nobody_impairs() {
        let policy = nothing_but_measure();
        assert_eq!(policy.may_connect(0), Ok(()));
        assert_eq!(policy.may_connect(1000), Err(Refusal::User(1000)));
        assert_eq!(policy.may_measure(8000), Ok(()));
        let refusal = policy.may_impair("eth0", &inside(), Duration::from_millis(1)).unwrap_err();
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
            devices: devices("eth0"),
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
        assert_eq!(policy.may_impair("eth0", &inside(), Duration::from_millis(200)), Ok(()));
        assert!(matches!(
            policy.may_impair("lo", &inside(), Duration::from_millis(1)),
            Err(Refusal::Device { .. })
        ));
        assert_eq!(
            policy
                .may_impair("eth0", &inside(), Duration::from_millis(201))
                .unwrap_err()
                .to_string(),
            "a delay of 201ms is more than the allowed 200ms; root raises that with `agent serve \
             --max-delay 201ms`"
        );
    }
}
