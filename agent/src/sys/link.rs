//! Network interfaces: which there are, what they belong to, and news of one going away.

use nix::errno::Errno;

use super::netlink::{Conn, NETLINK_ROUTE, Refusal};
use crate::model::nlmsg::{self, Attrs, Message, flag};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
/// `IFLA_INFO_KIND`, within [`IFLA_LINKINFO`].
const INFO_KIND: u16 = 1;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFF_UP: u32 = 1;
/// Length of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: i32,
    /// Its name.
    pub name: String,
    /// Length of its transmit queue in packets. Adding a qdisc to an interface without one sets it
    /// to 1000 (`net/sched/sch_api.c`, qdisc_create).
    pub tx_queue_len: u32,
    /// What it is a part of, if it is.
    pub master: Option<Master>,
}

/// What an interface is a part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    /// Index of that interface.
    pub index: i32,
    /// Its kind, such as `bridge`, `bond` or `vrf`; empty if it has none.
    pub kind: String,
}

fn ifinfomsg(index: i32) -> Attrs {
    let mut bytes = [0; IFINFOMSG];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    Attrs::new().raw(&bytes)
}

fn parse(message: &Message<'_>) -> Option<Link> {
    if message.kind != RTM_NEWLINK {
        return None;
    }
    let index = nlmsg::array(message.body, 4).map(i32::from_ne_bytes)?;
    let attributes = message.body.get(IFINFOMSG..)?;
    let number = |kind| nlmsg::find(attributes, kind).and_then(|value| nlmsg::read_u32(value, 0));
    let master = number(IFLA_MASTER).and_then(|index| i32::try_from(index).ok());
    let kind = nlmsg::find(attributes, IFLA_LINKINFO)
        .and_then(|info| nlmsg::find(info, IFLA_INFO_SLAVE_KIND))
        .map(nlmsg::text);
    Some(Link {
        index,
        name: nlmsg::text(nlmsg::find(attributes, IFLA_IFNAME)?),
        tx_queue_len: number(IFLA_TXQLEN).unwrap_or(0),
        master: master.map(|index| Master { index, kind: kind.unwrap_or_default() }),
    })
}

/// The interfaces in the namespace that `route` was opened in.
///
/// # Errors
/// The kernel's refusal.
pub fn list(route: &mut Conn) -> Result<Vec<Link>, Refusal> {
    let mut links = Vec::new();
    route.dump(RTM_GETLINK, &ifinfomsg(0), |message| links.extend(parse(message)))?;
    Ok(links)
}

/// Interface `index`, asked for by itself: a dump can miss one while others come and go.
///
/// # Errors
/// `ENODEV` if it is gone; the kernel's refusal.
pub fn get(route: &mut Conn, index: i32) -> Result<Link, Refusal> {
    let mut link = None;
    route.get(RTM_GETLINK, 0, &ifinfomsg(index), |message| link = parse(message))?;
    link.filter(|link| link.index == index).ok_or_else(|| Errno::ENODEV.into())
}

/// Sets the length of an interface's transmit queue.
///
/// # Errors
/// The kernel's refusal.
pub fn set_tx_queue_len(route: &mut Conn, index: i32, packets: u32) -> Result<(), Refusal> {
    route.request(RTM_NEWLINK, 0, &ifinfomsg(index).put_u32(IFLA_TXQLEN, packets))
}

/// Makes an interface of `kind`, such as `ifb`.
///
/// # Errors
/// The kernel's refusal: `EEXIST` if the name is taken, `EOPNOTSUPP` if it lacks the kind.
pub fn add(route: &mut Conn, name: &str, kind: &str) -> Result<(), Refusal> {
    let content = ifinfomsg(0)
        .put_text(IFLA_IFNAME, name)
        .put_nested(IFLA_LINKINFO, Attrs::new().put_text(INFO_KIND, kind));
    route.request(RTM_NEWLINK, flag::CREATE | flag::EXCL, &content)
}

/// Brings an interface up.
///
/// # Errors
/// The kernel's refusal.
pub fn set_up(route: &mut Conn, index: i32) -> Result<(), Refusal> {
    let mut bytes = ifinfomsg(index).as_bytes().to_vec();
    // ifi_flags and ifi_change.
    bytes[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
    bytes[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    route.request(RTM_NEWLINK, 0, &Attrs::new().raw(&bytes))
}

/// Deletes an interface.
///
/// # Errors
/// The kernel's refusal.
pub fn delete(route: &mut Conn, index: i32) -> Result<(), Refusal> {
    route.request(RTM_DELLINK, 0, &ifinfomsg(index))
}

/// Opens a socket for rtnetlink in the calling thread's namespace.
///
/// # Errors
/// The kernel's refusal.
pub fn open() -> Result<Conn, Refusal> {
    Conn::open(NETLINK_ROUTE)
}

/// Reads what news there is without waiting: whether interface `index` went away. To be called on a
/// thread in the namespace that `events` was opened in.
///
/// # Errors
/// The socket's. News that were lost for lack of room (`ENOBUFS`) are made good by asking.
pub fn went_away(events: &Conn, index: i32) -> Result<bool, Refusal> {
    let mut buffer = vec![0; 64 << 10];
    let (mut gone, mut lost) = (false, false);
    loop {
        match events.try_receive(&mut buffer) {
            Ok(len) => {
                gone |= nlmsg::messages(&buffer[..len]).any(|message| {
                    message.kind == RTM_DELLINK
                        && nlmsg::array(message.body, 4) == Some(index.to_ne_bytes())
                        // A bridge reports a port that leaves it as a DELLINK of family AF_BRIDGE.
                        && message.body.first() == Some(&0)
                });
            }
            Err(Errno::EAGAIN) => break,
            Err(Errno::EINTR) => {}
            Err(Errno::ENOBUFS) => lost = true,
            Err(errno) => return Err(errno.into()),
        }
    }
    if gone || !lost {
        return Ok(gone);
    }
    match get(&mut open()?, index) {
        Ok(_) => Ok(false),
        Err(Refusal { errno: Errno::ENODEV, .. }) => Ok(true),
        Err(refusal) => Err(refusal),
    }
}
