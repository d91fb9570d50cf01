//! Network interfaces: which there are, making and removing them, and news of one going away.

use nix::errno::Errno;

use super::netlink::{Conn, NETLINK_ROUTE, Refusal};
use crate::model::nlmsg::{self, Attrs, Message, flag};
use crate::model::rtlink::{self, DELLINK, GETLINK, NEWLINK};

pub use crate::model::rtlink::{Link, Master};

/// The interfaces in the namespace that `route` was opened in.
///
/// # Errors
/// The kernel's refusal.
pub fn list(route: &mut Conn) -> Result<Vec<Link>, Refusal> {
    dump(route, &rtlink::about(0))
}

/// The interfaces in the namespace that is called `netnsid` in that of `route`.
///
/// # Errors
/// The kernel's refusal.
pub fn list_in(route: &mut Conn, netnsid: u32) -> Result<Vec<Link>, Refusal> {
    dump(route, &rtlink::all_in(netnsid))
}

fn dump(route: &mut Conn, content: &Attrs) -> Result<Vec<Link>, Refusal> {
    let mut links = Vec::new();
    route.dump(GETLINK, content, |message| links.extend(parse(message)))?;
    Ok(links)
}

fn parse(message: &Message<'_>) -> Option<Link> {
    if message.kind == NEWLINK { Link::parse(message.body) } else { None }
}

/// The interface that `wanted` picks.
///
/// # Errors
/// `ENODEV` if there is none; the kernel's refusal.
pub fn find(route: &mut Conn, wanted: impl Fn(&Link) -> bool) -> Result<Link, Refusal> {
    list(route)?.into_iter().find(wanted).ok_or_else(|| Errno::ENODEV.into())
}

/// Interface `index`, asked for by itself: a dump can miss one while others come and go.
///
/// # Errors
/// `ENODEV` if it is gone; the kernel's refusal.
pub fn get(route: &mut Conn, index: i32) -> Result<Link, Refusal> {
    let mut link = None;
    route.get(GETLINK, 0, &rtlink::about(index), |message| link = parse(message))?;
    link.filter(|link| link.index == index).ok_or_else(|| Errno::ENODEV.into())
}

/// Sets the length of an interface's transmit queue.
///
/// # Errors
/// The kernel's refusal.
pub fn set_tx_queue_len(route: &mut Conn, index: i32, packets: u32) -> Result<(), Refusal> {
    change(route, &rtlink::set_tx_queue_len(index, packets))
}

/// Makes an interface of a message by [`rtlink`].
///
/// # Errors
/// `EEXIST` if the name is taken; the kernel's refusal.
pub fn make(route: &mut Conn, content: &Attrs) -> Result<(), Refusal> {
    route.request(NEWLINK, flag::CREATE | flag::EXCL, content)
}

/// Changes an interface by a message of [`rtlink`].
///
/// # Errors
/// The kernel's refusal.
pub fn change(route: &mut Conn, content: &Attrs) -> Result<(), Refusal> {
    route.request(NEWLINK, 0, content)
}

/// Removes an interface; of a veth pair, both ends, wherever they are.
///
/// # Errors
/// `ENODEV` if it is gone; the kernel's refusal.
pub fn remove(route: &mut Conn, index: i32) -> Result<(), Refusal> {
    route.request(DELLINK, 0, &rtlink::about(index))
}

/// Makes an interface of `kind`, such as `ifb`.
///
/// # Errors
/// The kernel's refusal: `EEXIST` if the name is taken, `EOPNOTSUPP` if it lacks the kind.
pub fn add(route: &mut Conn, name: &str, kind: &str) -> Result<(), Refusal> {
    make(route, &rtlink::new_device(name, kind))
}

/// Brings an interface that needs no ARP up.
///
/// # Errors
/// The kernel's refusal.
pub fn set_up(route: &mut Conn, index: i32) -> Result<(), Refusal> {
    change(route, &rtlink::set_up(index))
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
                    message.kind == DELLINK
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
