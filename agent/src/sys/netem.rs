//! The netem engine on one interface, in one direction or both.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::netlink::Conn;
use super::qdisc::{self, QdiscError, Restored, Root};
use super::{ingress, link};
use crate::model::impairment::Direction;
use crate::model::netem::Request;

/// How an interface was, for each direction that is impaired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Before {
    /// Of what leaves.
    pub egress: Option<qdisc::Before>,
    /// Of what arrives.
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
/// [`add`]. With `replace`, somebody else's root qdisc is remembered instead of refused.
///
/// # Errors
/// Something of somebody else's is in the way, or the interface is gone.
pub fn look(
    route: &mut Conn,
    index: i32,
    direction: Direction,
    own: u32,
    replace: bool,
) -> Result<Before, QdiscError> {
    Ok(Before {
        egress: direction.leaves().then(|| qdisc::look(route, index, own, replace)).transpose()?,
        ingress: direction.arrives().then(|| ingress::look(route, index, own)).transpose()?,
    })
}

/// Puts netem into force in the directions that `before` tells of, and returns the delay that the
/// kernel has in each. `ifb_is_there` is told the index of the ifb of what arrives before the first
/// packet can go there.
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
    let mut delay = Duration::ZERO;
    if let Some(before) = &before.egress {
        delay = qdisc::add(route, index, request, before)?;
    }
    if let Some(arriving) = &before.ingress {
        match ingress::add(route, index, request, arriving, ifb_is_there) {
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
        let ifb = ingress::ifb(route, index)?.ok_or(QdiscError::NoDevice)?;
        delay = qdisc::change(route, ifb.index, request, before.own)?;
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
    let arriving = before.ingress.as_ref().and_then(|_| ingress::root(route, index).ok().flatten());
    leaving.into_iter().chain(arriving).filter(|root| root.is_own(own)).collect()
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
        && !ingress::root(route, index)?.is_some_and(|root| root.is_own(before.own))
    {
        link::get(route, index).map_err(QdiscError::refused("look at the interface"))?;
        return Ok(Some("somebody removed the redirect of what arrives, or its ifb".to_owned()));
    }
    Ok(None)
}
