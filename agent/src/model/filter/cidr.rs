//! A range of addresses, as `10.0.0.0/8`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use agent_common::filter::Rule;
use serde::{Deserialize, Serialize};

/// Addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is no range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// No address before the slash.
    #[error("`{0}` is not an address such as 10.0.0.1, 10.0.0.0/8 or 2001:db8::/32")]
    NoAddress(String),
    /// No number of bits after it.
    #[error("`{text}`: give 0 to {most} bits after the slash")]
    NoPrefix {
        /// What was given.
        text: String,
        /// Bits of an address.
        most: u8,
    },
    /// An address, not a range.
    #[error(
        "`{text}` has bits set beyond the first {prefix}: write {network}, or {address} for one address"
    )]
    HostBits {
        /// What was given.
        text: String,
        /// Bits of the range.
        prefix: u8,
        /// The range that it is in.
        network: Cidr,
        /// The address.
        address: IpAddr,
    },
    /// `::ffff:0:0/96`.
    #[error(
        "`{0}` is an IPv4 address in IPv6's clothes, which no packet carries: write it as IPv4"
    )]
    Mapped(String),
}

impl Cidr {
    /// One address.
    #[must_use]
    pub fn one(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self { address, prefix: bits(address) }
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn holds(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.prefix) == self.address
    }

    /// Whether every address of the other is in it.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.prefix <= other.prefix && self.holds(other.address)
    }

    /// Whether it is all of IPv4 or of IPv6.
    #[must_use]
    pub const fn is_family(&self) -> bool {
        self.prefix == 0
    }

    /// Whether it is IPv4.
    #[must_use]
    pub const fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// The rule with this peer.
    pub(super) fn narrow(&self, rule: Rule) -> Rule {
        let ones: IpAddr = match self.address {
            IpAddr::V4(_) => Ipv4Addr::BROADCAST.into(),
            IpAddr::V6(_) => Ipv6Addr::from(u128::MAX).into(),
        };
        let (family, peer) = super::address(self.address);
        let (_, mask) = super::address(masked(ones, self.prefix));
        Rule { peer, mask, family, ..rule }
    }
}

const fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    let beyond = u32::from(bits(address).saturating_sub(prefix));
    match address {
        IpAddr::V4(ip) => {
            Ipv4Addr::from(u32::from(ip) & u32::MAX.checked_shl(beyond).unwrap_or(0)).into()
        }
        IpAddr::V6(ip) => {
            Ipv6Addr::from(u128::from(ip) & u128::MAX.checked_shl(beyond).unwrap_or(0)).into()
        }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (ip, prefix) = match text.split_once('/') {
            Some((ip, prefix)) => (ip, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = ip.parse().map_err(|_| CidrError::NoAddress(text.to_owned()))?;
        if address.to_canonical() != address {
            return Err(CidrError::Mapped(text.to_owned()));
        }
        let most = bits(address);
        let no_prefix = || CidrError::NoPrefix { text: text.to_owned(), most };
        let prefix = match prefix {
            None => most,
            // No sign, no space: what `u8` would take beyond digits.
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().ok().filter(|bits| *bits <= most).ok_or_else(no_prefix)?
            }
            Some(_) => return Err(no_prefix()),
        };
        let network = masked(address, prefix);
        if network != address {
            let (text, network) = (text.to_owned(), Self { address: network, prefix });
            return Err(CidrError::HostBits { text, prefix, network, address });
        }
        Ok(Self { address, prefix })
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == bits(self.address) {
            self.address.fmt(f)
        } else {
            write!(f, "{}/{}", self.address, self.prefix)
        }
    }
}
