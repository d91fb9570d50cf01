//! netem for what arrives: packets are redirected to an ifb device of our own, whose root queueing
//! discipline is netem, and come back to the interface from there.
//!
//! The redirect is a filter in the interface's clsact. Packets that come back from an ifb skip the
//! filters of the interface (`drivers/net/ifb.c`, ifb_ri_tasklet): beside anybody else's clsact, one of
//! the two would go without its packets. So there must be none before.

use std::time::Duration;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::link::{self, Link};
use super::netlink::{Conn, Refusal};
use super::qdisc::{
    self, QdiscError, RTM_DELQDISC, RTM_GETQDISC, RTM_NEWQDISC, Restored, Root, TCA_KIND,
    TCA_OPTIONS, TCMSG, tcmsg,
};
use crate::model::netem::Request;
use crate::model::nlmsg::{self, Attrs, flag};

const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
/// Parent and handle of ingress and clsact qdiscs (`TC_H_CLSACT`, `TC_H_MAKE(TC_H_INGRESS, 0)`).
const CLSACT_PARENT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
/// `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS` of a clsact: where its filters are.
const FILTERS_IN: u32 = 0xffff_fff2;
const FILTERS_OUT: u32 = 0xffff_fff3;
/// Our filter's preference, by which it is told from others.
const PREFERENCE: u32 = 0x5d00_0000;
const ETH_P_ALL: u16 = 3;
/// `TCA_MATCHALL_ACT`.
const MATCHALL_ACT: u16 = 2;
/// `TCA_ACT_KIND`, `TCA_ACT_OPTIONS`, and within these `TCA_MIRRED_PARMS`.
const ACT_KIND: u16 = 1;
const ACT_OPTIONS: u16 = 2;
const MIRRED_PARMS: u16 = 2;
/// `TC_ACT_STOLEN`: the packet goes on nowhere else. `TCA_EGRESS_REDIR`: it leaves by another device.
const STOLEN: u32 = 4;
const REDIRECT: u32 = 1;

/// What names of our ifb devices begin with; the index of the interface they serve follows.
const PREFIX: &str = "dwell-in";

/// How an interface was before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Before {
    /// Length of its transmit queue: adding a clsact changes one of zero.
    pub tx_queue_len: u32,
    /// Handle of our qdisc on the ifb, see [`qdisc::own_handle`].
    pub own: u32,
}

/// Name of the ifb that serves interface `index`.
fn device_name(index: i32) -> String {
    format!("{PREFIX}{index}")
}

/// The index of the interface that a link serves, if it is an ifb of ours.
#[must_use]
pub fn serves(link: &Link) -> Option<i32> {
    link.name.strip_prefix(PREFIX)?.parse().ok()
}

/// How interface `index` is now, for [`restore`], with the handle that ours will have. Call it
/// before [`add`].
///
/// # Errors
/// It has a clsact or ingress qdisc, or is gone.
pub fn look(route: &mut Conn, index: i32, own: u32) -> Result<Before, QdiscError> {
    let links = list(route)?;
    let link = links.iter().find(|link| link.index == index).ok_or(QdiscError::NoDevice)?;
    if links.iter().any(|link| serves(link) == Some(index)) {
        return Err(QdiscError::Exists);
    }
    match clsact(route, index)? {
        None => Ok(Before { tx_queue_len: link.tx_queue_len, own }),
        Some(kind) => Err(QdiscError::ForeignIngress { kind }),
    }
}

/// Delays what arrives at interface `index`, and returns the delay that the kernel has. `ifb_is_there`
/// is told the ifb's index before the first packet can go there.
///
/// # Errors
/// [`QdiscError`]; nothing is left then.
pub fn add(
    route: &mut Conn,
    index: i32,
    request: &Request,
    before: &Before,
    ifb_is_there: &mut dyn FnMut(i32),
) -> Result<Duration, QdiscError> {
    let added = try_add(route, index, request, before.own, ifb_is_there);
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
    own: u32,
    ifb_is_there: &mut dyn FnMut(i32),
) -> Result<Duration, QdiscError> {
    let name = device_name(index);
    link::add(route, &name, "ifb").map_err(|refusal| match refusal.errno {
        Errno::EEXIST => QdiscError::Exists,
        _ => QdiscError::refused("add an ifb device (module ifb)")(refusal),
    })?;
    let ifb = find(route, &name)?;
    let before = qdisc::look(route, ifb.index, own, false)?;
    let delay = qdisc::add(route, ifb.index, request, &before)?;
    link::set_up(route, ifb.index).map_err(QdiscError::refused("bring the ifb device up"))?;
    ifb_is_there(ifb.index);

    let clsact = tcmsg(index, CLSACT_HANDLE, CLSACT_PARENT).put_text(TCA_KIND, "clsact");
    route.request(RTM_NEWQDISC, flag::CREATE | flag::EXCL, &clsact).map_err(
        |refusal| match refusal.errno {
            Errno::EEXIST => QdiscError::ForeignIngress { kind: "clsact".to_owned() },
            _ => QdiscError::refused("add a clsact (module sch_ingress)")(refusal),
        },
    )?;
    route
        .request(RTM_NEWTFILTER, flag::CREATE | flag::EXCL, &redirect(index, ifb.index))
        .map_err(QdiscError::refused("redirect what arrives (modules cls_matchall, act_mirred)"))?;
    Ok(delay)
}

/// The filter that sends all that arrives at `index` through the device `ifb`.
fn redirect(index: i32, ifb: i32) -> Attrs {
    // struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex.
    let fields = [0, 0, STOLEN, 0, 0, REDIRECT, ifb as u32];
    let parms: Vec<u8> = fields.iter().flat_map(|field| field.to_ne_bytes()).collect();
    let mirred = Attrs::new()
        .put_text(ACT_KIND, "mirred")
        .put_nested(ACT_OPTIONS, Attrs::new().put(MIRRED_PARMS, &parms));
    // Actions are numbered from 1.
    let actions = Attrs::new().put_nested(1, mirred);
    our_filter(index)
        .put_text(TCA_KIND, "matchall")
        .put_nested(TCA_OPTIONS, Attrs::new().put_nested(MATCHALL_ACT, actions))
}

fn our_filter(index: i32) -> Attrs {
    filters(index, FILTERS_IN, PREFERENCE | u32::from(ETH_P_ALL.to_be()))
}

fn filters(index: i32, parent: u32, info: u32) -> Attrs {
    let mut bytes = tcmsg(index, 0, parent).as_bytes().to_vec();
    bytes[16..20].copy_from_slice(&info.to_ne_bytes());
    Attrs::new().raw(&bytes)
}

/// The ifb that serves interface `index`.
///
/// # Errors
/// The kernel's refusal.
pub fn ifb(route: &mut Conn, index: i32) -> Result<Option<Link>, QdiscError> {
    Ok(list(route)?.into_iter().find(|link| serves(link) == Some(index)))
}

/// netem on the ifb that serves interface `index`; None if what arrives is not redirected.
///
/// # Errors
/// The kernel's refusal.
pub fn root(route: &mut Conn, index: i32) -> Result<Option<Root>, QdiscError> {
    let Some(ifb) = ifb(route, index)? else { return Ok(None) };
    if clsact(route, index)?.is_none() || count(route, index, FILTERS_IN, true)? == 0 {
        return Ok(None);
    }
    qdisc::root(route, ifb.index).map(Some)
}

/// Takes our redirect and our ifb away if they are there, and puts the interface back as it was.
/// The interface may be gone: the ifb stays when it goes.
///
/// # Errors
/// The kernel refused, or the interface is not as it was.
pub fn restore(route: &mut Conn, index: i32, before: &Before) -> Result<Restored, QdiscError> {
    let links = list(route)?;
    let ifb = links.iter().find(|link| serves(link) == Some(index));
    let mut held = 0;
    if let Some(ifb) = ifb {
        let root = qdisc::root(route, ifb.index)?;
        if root.is_ours() && !root.is_own(before.own) {
            // Another agent's, who came after.
            return Ok(Restored::default());
        }
        held = root.held;
    }
    // The redirect first: without its ifb it swallows every packet, so it is looked for in any case.
    let mut removed = false;
    if let Some(link) = links.iter().find(|link| link.index == index) {
        removed = clsact(route, index)?.is_some() && count(route, index, FILTERS_IN, true)? > 0;
        if removed || ifb.is_some() {
            unhook(route, link, before)?;
        }
    }
    if let Some(ifb) = ifb {
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
        match route.request(RTM_DELTFILTER, 0, &our_filter(index)) {
            Ok(()) | Err(Refusal { errno: Errno::ENOENT | Errno::ENODEV | Errno::EINVAL, .. }) => {}
            Err(refusal) => return Err(QdiscError::refused("remove the redirect")(refusal)),
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

/// How many filters there are at `parent`: ours, or those of others.
fn count(route: &mut Conn, index: i32, parent: u32, ours: bool) -> Result<usize, QdiscError> {
    let mut preferences = std::collections::BTreeSet::new();
    let counted = route.dump(RTM_GETTFILTER, &filters(index, parent, 0), |message| {
        if message.kind == RTM_NEWTFILTER
            && let Some(info) = nlmsg::read_u32(message.body, 16)
        {
            preferences.insert(info & 0xffff_0000);
        }
    });
    match counted {
        // Only a clsact has filters for what leaves.
        Ok(()) | Err(Refusal { errno: Errno::EINVAL | Errno::ENOENT, .. }) => {}
        Err(refusal) => return Err(QdiscError::refused("list the filters")(refusal)),
    }
    Ok(preferences.iter().filter(|preference| (**preference == PREFERENCE) == ours).count())
}

fn list(route: &mut Conn) -> Result<Vec<Link>, QdiscError> {
    link::list(route).map_err(QdiscError::refused("list the interfaces"))
}

fn find(route: &mut Conn, name: &str) -> Result<Link, QdiscError> {
    list(route)?.into_iter().find(|link| link.name == name).ok_or(QdiscError::NoDevice)
}
