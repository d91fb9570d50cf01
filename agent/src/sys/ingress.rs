//! netem for what arrives, and for what leaves where that is only some packets: they are redirected to
//! an ifb device of our own, whose root queueing discipline is netem, and come back to the interface
//! from there. The other packets do not notice.
//!
//! The redirects are filters in the interface's clsact. Packets that come back from an ifb skip the
//! filters' actions (`drivers/net/ifb.c`, ifb_ri_tasklet): beside anybody else's clsact, one of the two
//! would go without its packets. So there must be none before.

mod filters;

use std::time::Duration;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::link::{self, Link};
use super::netlink::{Conn, Refusal};
use super::qdisc::{
    self, QdiscError, RTM_DELQDISC, RTM_GETQDISC, RTM_NEWQDISC, Restored, Root, TCA_KIND, TCMSG,
    tcmsg,
};
use crate::model::filter::PacketFilter;
use crate::model::impairment::Direction;
use crate::model::netem::Request;
use crate::model::nlmsg::{self, flag};
use crate::model::rtlink;
use filters::{
    FILTERS_IN, FILTERS_OUT, RTM_DELTFILTER, RTM_NEWTFILTER, count, our_filter, picker, redirect,
};

/// Parent and handle of ingress and clsact qdiscs (`TC_H_CLSACT`, `TC_H_MAKE(TC_H_INGRESS, 0)`).
const CLSACT_PARENT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;

/// Which packets an ifb of ours has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

impl Way {
    const ALL: [Self; 2] = [Self::In, Self::Out];

    /// What the name of its ifb begins with; the index of the interface that it serves follows.
    const fn prefix(self) -> &'static str {
        match self {
            Self::In => "dwell-in",
            Self::Out => "dwell-out",
        }
    }

    const fn direction(self) -> Direction {
        match self {
            Self::In => Direction::Ingress,
            Self::Out => Direction::Egress,
        }
    }

    /// Where its filter is.
    const fn parent(self) -> u32 {
        match self {
            Self::In => FILTERS_IN,
            Self::Out => FILTERS_OUT,
        }
    }

    fn of(direction: Direction) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |way| match way {
            Self::In => direction.arrives(),
            Self::Out => direction.leaves(),
        })
    }
}

/// Is told an ifb's index, and which packets go through it.
pub type IfbIsThere<'a> = dyn FnMut(Direction, i32) + 'a;

/// How an interface was before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Before {
    /// Length of its transmit queue: adding a clsact changes one of zero.
    pub tx_queue_len: u32,
    /// Handle of our qdisc on the ifb, see [`qdisc::own_handle`].
    pub own: u32,
    /// Which packets are redirected. Entries from before there was a choice are of what arrives.
    #[serde(default = "arriving")]
    pub direction: Direction,
}

fn arriving() -> Direction {
    Direction::Ingress
}

/// Name of the ifb that serves interface `index`.
fn device_name(way: Way, index: i32) -> String {
    format!("{}{index}", way.prefix())
}

/// The index of the interface that a link serves, if it is an ifb of ours.
#[must_use]
pub fn serves(link: &Link) -> Option<i32> {
    Way::ALL.into_iter().find_map(|way| link.name.strip_prefix(way.prefix())?.parse().ok())
}

/// Which packets go through a link, if it is an ifb of ours.
#[must_use]
pub fn direction(link: &Link) -> Option<Direction> {
    let way = Way::ALL.into_iter().find(|way| link.name.starts_with(way.prefix()))?;
    serves(link).map(|_| way.direction())
}

/// Those of a list that serve interface `index`, with their way.
fn ifbs(links: &[Link], index: i32) -> impl Iterator<Item = (Way, &Link)> {
    Way::ALL.into_iter().filter_map(move |way| {
        let name = device_name(way, index);
        links.iter().find(|link| link.name == name).map(|link| (way, link))
    })
}

/// How interface `index` is now, for [`restore`], with the handle that ours will have. Call it
/// before [`add`].
///
/// # Errors
/// It has a clsact or ingress qdisc, or is gone.
pub fn look(
    route: &mut Conn,
    index: i32,
    own: u32,
    direction: Direction,
) -> Result<Before, QdiscError> {
    let links = list(route)?;
    let link = links.iter().find(|link| link.index == index).ok_or(QdiscError::NoDevice)?;
    if links.iter().any(|link| serves(link) == Some(index)) {
        return Err(QdiscError::Exists);
    }
    match clsact(route, index)? {
        None => Ok(Before { tx_queue_len: link.tx_queue_len, own, direction }),
        Some(kind) => Err(QdiscError::ForeignIngress { kind }),
    }
}

/// Delays what `filter` takes of what arrives at interface `index`, leaves it, or both, as `before`
/// says, and returns the delay that the kernel has. On `loopback` either end may be ours.
/// `ifb_is_there` is told each ifb's index, and of which packets it is, before the first can go there.
///
/// # Errors
/// [`QdiscError`]; nothing is left then.
pub fn add(
    route: &mut Conn,
    index: i32,
    request: &Request,
    before: &Before,
    (filter, loopback): (&PacketFilter, bool),
    ifb_is_there: &mut IfbIsThere<'_>,
) -> Result<Duration, QdiscError> {
    let added = try_add(route, index, request, before, (filter, loopback), ifb_is_there);
    // What exists is another agent's.
    if added.as_ref().is_err_and(|error| !matches!(error, QdiscError::Exists)) {
        restore(route, index, before)?;
    }
    added
}

fn try_add(
    route: &mut Conn,
    index: i32,
    request: &Request,
    before: &Before,
    (filter, loopback): (&PacketFilter, bool),
    ifb_is_there: &mut IfbIsThere<'_>,
) -> Result<Duration, QdiscError> {
    let mut delay = Duration::ZERO;
    let mut redirects = Vec::new();
    for way in Way::of(before.direction) {
        let picker = picker(way, filter, loopback)?;
        let name = device_name(way, index);
        link::add(route, &name, "ifb").map_err(|refusal| match refusal.errno {
            Errno::EEXIST => QdiscError::Exists,
            _ => QdiscError::refused("add an ifb device (module ifb)")(refusal),
        })?;
        let ifb = find(route, &name)?;
        let empty = qdisc::look(route, ifb.index, before.own, false)?;
        delay = qdisc::add(route, ifb.index, request, &empty)?;
        // A packet of its own would count among those that are impaired.
        let _ = link::change(route, &rtlink::set_no_ipv6_address(ifb.index));
        link::set_up(route, ifb.index).map_err(QdiscError::refused("bring the ifb device up"))?;
        ifb_is_there(way.direction(), ifb.index);
        redirects.push((way, ifb.index, picker));
    }

    let clsact = tcmsg(index, CLSACT_HANDLE, CLSACT_PARENT).put_text(TCA_KIND, "clsact");
    route.request(RTM_NEWQDISC, flag::CREATE | flag::EXCL, &clsact).map_err(
        |refusal| match refusal.errno {
            Errno::EEXIST => QdiscError::ForeignIngress { kind: "clsact".to_owned() },
            _ => QdiscError::refused("add a clsact (module sch_ingress)")(refusal),
        },
    )?;
    for (way, ifb, picker) in redirects {
        let action = match picker {
            None => "redirect what arrives (modules cls_matchall, act_mirred)",
            Some(_) => "redirect what is in scope (modules cls_bpf, act_mirred)",
        };
        let content = redirect(way, index, ifb, picker.as_ref())?;
        route
            .request(RTM_NEWTFILTER, flag::CREATE | flag::EXCL, &content)
            .map_err(QdiscError::refused(action))?;
    }
    Ok(delay)
}

/// The ifbs that serve interface `index`.
///
/// # Errors
/// The kernel's refusal.
pub fn all_ifbs(route: &mut Conn, index: i32) -> Result<Vec<Link>, QdiscError> {
    let links = list(route)?;
    Ok(ifbs(&links, index).map(|(_, link)| link.clone()).collect())
}

/// Whether an ifb of ours has some of what leaves interface `index`.
///
/// # Errors
/// The kernel's refusal.
pub fn has_leaving(route: &mut Conn, index: i32) -> Result<bool, QdiscError> {
    let links = list(route)?;
    Ok(ifbs(&links, index).any(|(way, _)| way == Way::Out))
}

/// The root qdiscs of the ifbs that serve interface `index`, of those to which packets are redirected.
///
/// # Errors
/// The kernel's refusal.
pub fn roots(route: &mut Conn, index: i32) -> Result<Vec<Root>, QdiscError> {
    let links = list(route)?;
    let mut roots = Vec::new();
    if clsact(route, index)?.is_some() {
        for (way, ifb) in ifbs(&links, index) {
            if count(route, index, way.parent(), true)? > 0 {
                roots.push(qdisc::root(route, ifb.index)?);
            }
        }
    }
    Ok(roots)
}

/// Whether every redirect that there was is in force, and leads to netem of ours.
///
/// # Errors
/// The kernel's refusal.
pub fn in_force(route: &mut Conn, index: i32, before: &Before) -> Result<bool, QdiscError> {
    let roots = roots(route, index)?;
    let ours = roots.iter().filter(|root| root.is_own(before.own)).count();
    Ok(ours == Way::of(before.direction).count())
}

/// Takes our redirects and our ifbs away if they are there, and puts the interface back as it was.
/// The interface may be gone: an ifb stays when it goes.
///
/// # Errors
/// The kernel refused, or the interface is not as it was.
pub fn restore(route: &mut Conn, index: i32, before: &Before) -> Result<Restored, QdiscError> {
    let links = list(route)?;
    let ifbs: Vec<&Link> = ifbs(&links, index).map(|(_, link)| link).collect();
    let mut held = 0;
    for ifb in &ifbs {
        let root = qdisc::root(route, ifb.index)?;
        if root.is_ours() && !root.is_own(before.own) {
            // Another agent's, who came after.
            return Ok(Restored::default());
        }
        held += root.held;
    }
    // The redirect first: without its ifb it swallows every packet, so it is looked for in any case.
    let mut removed = false;
    if let Some(link) = links.iter().find(|link| link.index == index) {
        if clsact(route, index)?.is_some() {
            for way in Way::ALL {
                removed |= count(route, index, way.parent(), true)? > 0;
            }
        }
        if removed || !ifbs.is_empty() {
            unhook(route, link, before)?;
        }
    }
    for ifb in ifbs {
        removed = true;
        match link::remove(route, ifb.index) {
            Ok(()) | Err(Refusal { errno: Errno::ENODEV, .. }) => {}
            Err(refusal) => return Err(QdiscError::refused("remove the ifb device")(refusal)),
        }
    }
    Ok(Restored { removed, lost: held })
}

fn unhook(route: &mut Conn, link: &Link, before: &Before) -> Result<(), QdiscError> {
    let index = link.index;
    if clsact(route, index)?.is_some() {
        for way in Way::ALL {
            match route.request(RTM_DELTFILTER, 0, &our_filter(way, index)) {
                Ok(()) => {}
                Err(Refusal { errno: Errno::ENOENT | Errno::ENODEV | Errno::EINVAL, .. }) => {}
                Err(refusal) => return Err(QdiscError::refused("remove the redirect")(refusal)),
            }
        }
        let others =
            count(route, index, FILTERS_IN, false)? + count(route, index, FILTERS_OUT, false)?;
        if others > 0 {
            return Err(QdiscError::NotRestored(format!(
                "somebody put {others} filters into our clsact, which is left for them"
            )));
        }
        match route.request(RTM_DELQDISC, 0, &tcmsg(index, CLSACT_HANDLE, CLSACT_PARENT)) {
            Ok(()) | Err(Refusal { errno: Errno::ENOENT | Errno::ENODEV | Errno::EINVAL, .. }) => {}
            Err(refusal) => return Err(QdiscError::refused("remove the clsact")(refusal)),
        }
    }
    qdisc::put_queue_right(route, index, before.tx_queue_len)?;
    match clsact(route, index)? {
        None => Ok(()),
        Some(kind) => Err(QdiscError::NotRestored(format!("it has a qdisc {kind} now"))),
    }
}

/// The kind of the qdisc that holds filters for what arrives: `clsact` or `ingress`.
fn clsact(route: &mut Conn, index: i32) -> Result<Option<String>, QdiscError> {
    let mut found = None;
    route
        .dump(RTM_GETQDISC, &tcmsg(index, 0, 0), |message| {
            let body = message.body;
            if nlmsg::array(body, 4) == Some(index.to_ne_bytes())
                && nlmsg::read_u32(body, 12) == Some(CLSACT_PARENT)
            {
                let kind = body.get(TCMSG..).and_then(|rest| nlmsg::find(rest, TCA_KIND));
                found = Some(kind.map(nlmsg::text).unwrap_or_default());
            }
        })
        .map_err(QdiscError::refused("look at the qdiscs"))?;
    Ok(found)
}

fn list(route: &mut Conn) -> Result<Vec<Link>, QdiscError> {
    link::list(route).map_err(QdiscError::refused("list the interfaces"))
}

fn find(route: &mut Conn, name: &str) -> Result<Link, QdiscError> {
    list(route)?.into_iter().find(|link| link.name == name).ok_or(QdiscError::NoDevice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_before_there_was_a_choice_are_of_what_arrives() {
        let before: Before = serde_json::from_str(r#"{"tx_queue_len": 0, "own": 9}"#).unwrap();
        assert_eq!(before, Before { tx_queue_len: 0, own: 9, direction: Direction::Ingress });
    }
}
