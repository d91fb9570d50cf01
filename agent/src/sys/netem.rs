//! The netem engine on one interface, in one direction or both.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ingress::{self, IfbIsThere};
use super::link;
use super::netlink::Conn;
use super::qdisc::{self, QdiscError, Restored, Root};
use crate::model::filter::PacketFilter;
use crate::model::impairment::Direction;
use crate::model::netem::Request;
use crate::model::rtlink::ARPHRD_LOOPBACK;

/// How an interface was, for each direction that is impaired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Before {
    /// Of what leaves, if that is all packets.
    pub egress: Option<qdisc::Before>,
    /// Of what is redirected: what arrives, and what leaves where that is only some packets.
    pub ingress: Option<ingress::Before>,
}

impl Before {
    /// The handle of ours, the same in each direction.
    #[must_use]
    pub fn own(&self) -> u32 {
        let arriving = || self.ingress.as_ref().map(|before| before.own);
        self.egress.as_ref().map(|before| before.own).or_else(arriving).unwrap_or(0)
    }
}

/// How interface `index` is now, for [`restore`], with the handle that ours will have. Call it before
/// [`add`]. With `replace`, somebody else's root qdisc is remembered instead of refused. For only some
/// packets (`filtered`) the root qdisc is not touched.
///
/// # Errors
/// Something of somebody else's is in the way, or the interface is gone.
pub fn look(
    route: &mut Conn,
    index: i32,
    direction: Direction,
    own: u32,
    (replace, filtered): (bool, bool),
) -> Result<Before, QdiscError> {
    if filtered {
        let root = qdisc::root(route, index)?;
        if root.is_ours() {
            return Err(QdiscError::Exists);
        }
        let before = ingress::look(route, index, own, direction)?;
        return Ok(Before { egress: None, ingress: Some(before) });
    }
    if direction.leaves() && ingress::has_leaving(route, index)? {
        return Err(QdiscError::Exists);
    }
    let egress = direction.leaves().then(|| qdisc::look(route, index, own, replace));
    let egress = egress.transpose()?;
    let arrives = direction.arrives();
    let ingress = arrives.then(|| ingress::look(route, index, own, Direction::Ingress));
    Ok(Before { egress, ingress: ingress.transpose()? })
}

/// Puts netem into force in the directions that `before` tells of, for what `filter` takes, and returns
/// the delay that the kernel has in each. `ifb_is_there` is told the index of each ifb, and of which
/// packets it is, before the first can go there.
///
/// # Errors
/// [`QdiscError`]; nothing is left then.
pub fn add(
    route: &mut Conn,
    index: i32,
    request: &Request,
    before: &Before,
    filter: &PacketFilter,
    ifb_is_there: &mut IfbIsThere<'_>,
) -> Result<Duration, QdiscError> {
    let mut delay = Duration::ZERO;
    if let Some(before) = &before.egress {
        delay = qdisc::add(route, index, request, before)?;
    }
    if let Some(arriving) = &before.ingress {
        let device =
            link::get(route, index).map_err(QdiscError::refused("look at the interface"))?;
        let loopback = device.hardware == ARPHRD_LOOPBACK;
        match ingress::add(route, index, request, arriving, (filter, loopback), ifb_is_there) {
            Ok(added) => delay = added,
            Err(error) => {
                restore(route, index, before)?;
                return Err(error);
            }
        }
    }
    Ok(delay)
}

/// Changes netem in every direction, without touching the packets in it.
///
/// # Errors
/// [`QdiscError`]; it may be changed in part then.
pub fn change(
    route: &mut Conn,
    index: i32,
    request: &Request,
    before: &Before,
) -> Result<Duration, QdiscError> {
    let mut delay = Duration::ZERO;
    if let Some(before) = &before.egress {
        delay = qdisc::change(route, index, request, before.own)?;
    }
    if let Some(before) = &before.ingress {
        let ifbs = ingress::all_ifbs(route, index)?;
        if ifbs.is_empty() {
            return Err(QdiscError::NoDevice);
        }
        for ifb in ifbs {
            delay = qdisc::change(route, ifb.index, request, before.own)?;
        }
    }
    Ok(delay)
}

/// Packets in netem now, in all directions.
pub fn held(route: &mut Conn, index: i32, before: &Before) -> u64 {
    own_roots(route, index, before).iter().map(|root| root.held).sum()
}

/// Takes away what is ours, in every direction, and puts the interface back as it was.
///
/// # Errors
/// The first failure; what can be restored in spite of it is.
pub fn restore(route: &mut Conn, index: i32, before: &Before) -> Result<Restored, QdiscError> {
    let nothing = || Ok(Restored::default());
    let arriving =
        before.ingress.as_ref().map_or_else(nothing, |was| ingress::restore(route, index, was));
    let leaving =
        before.egress.as_ref().map_or_else(nothing, |was| qdisc::restore(route, index, was));
    let (arriving, leaving) = (arriving?, leaving?);
    Ok(Restored { removed: arriving.removed | leaving.removed, lost: arriving.lost + leaving.lost })
}

/// Packets dropped so far, in all directions.
pub fn drops(route: &mut Conn, index: i32, before: &Before) -> u64 {
    own_roots(route, index, before).iter().map(|root| root.drops).sum()
}

/// Our root qdiscs that are there.
fn own_roots(route: &mut Conn, index: i32, before: &Before) -> Vec<Root> {
    let own = before.own();
    let leaving = before.egress.as_ref().and_then(|_| qdisc::root(route, index).ok());
    let redirected = before.ingress.as_ref().and_then(|_| ingress::roots(route, index).ok());
    let all = leaving.into_iter().chain(redirected.into_iter().flatten());
    all.filter(|root| root.is_own(own)).collect()
}

/// Why it is no longer in force, if it is not.
///
/// # Errors
/// [`QdiscError::NoDevice`] if the interface is gone; or the kernel refused to tell.
pub fn failure(
    route: &mut Conn,
    index: i32,
    before: &Before,
) -> Result<Option<String>, QdiscError> {
    if let Some(before) = &before.egress {
        let root = qdisc::root(route, index)?;
        if !root.is_own(before.own) {
            let (kind, handle) = (&root.kind, root.handle_text());
            return Ok(Some(format!("somebody replaced netem by the qdisc {kind} {handle}")));
        }
    }
    if let Some(before) = &before.ingress
        && !ingress::in_force(route, index, before)?
    {
        link::get(route, index).map_err(QdiscError::refused("look at the interface"))?;
        return Ok(Some("somebody removed a redirect of ours, or its ifb".to_owned()));
    }
    Ok(None)
}
