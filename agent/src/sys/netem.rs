//! The netem engine on one interface, in one direction or both.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::netlink::Conn;
use super::qdisc::{self, QdiscError, Root};
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

/// How interface `index` is now, for [`restore`]. Call it before [`add`]. With `replace`, somebody
/// else's root qdisc is remembered instead of refused.
///
/// # Errors
/// Something of somebody else's is in the way, or the interface is gone.
pub fn look(
    route: &mut Conn,
    index: i32,
    direction: Direction,
    replace: bool,
) -> Result<Before, QdiscError> {
    Ok(Before {
        egress: direction.leaves().then(|| qdisc::look(route, index, replace)).transpose()?,
        ingress: direction.arrives().then(|| ingress::look(route, index)).transpose()?,
    })
}

/// Puts netem into force in the directions that `before` tells of, and returns the delay that the
/// kernel has in each.
///
/// # Errors
/// [`QdiscError`]; nothing is left then.
pub fn add(
    route: &mut Conn,
    index: i32,
    request: &Request,
    before: &Before,
) -> Result<Duration, QdiscError> {
    let mut delay = Duration::ZERO;
    if let Some(before) = &before.egress {
        delay = qdisc::add(route, index, request, before)?;
    }
    if let Some(arriving) = &before.ingress {
        match ingress::add(route, index, request, arriving) {
            Ok(added) => delay = added,
            Err(error) => {
                restore(route, index, before)?;
                return Err(error);
            }
        }
    }
    Ok(delay)
}

/// Takes away what is ours, in every direction, and puts the interface back as it was. Returns whether
/// it removed something.
///
/// # Errors
/// The first failure; what can be restored in spite of it is.
pub fn restore(route: &mut Conn, index: i32, before: &Before) -> Result<bool, QdiscError> {
    let arriving =
        before.ingress.as_ref().map_or(Ok(false), |was| ingress::restore(route, index, was));
    let leaving = before.egress.as_ref().map_or(Ok(false), |was| qdisc::restore(route, index, was));
    Ok(arriving? | leaving?)
}

/// Packets dropped so far, in all directions.
pub fn drops(route: &mut Conn, index: i32, before: &Before) -> u64 {
    let dropped = |root: Option<Root>| root.filter(Root::is_ours).map_or(0, |root| root.drops);
    let leaving = before.egress.as_ref().and_then(|_| qdisc::root(route, index).ok());
    let arriving = before.ingress.as_ref().and_then(|_| ingress::root(route, index).ok().flatten());
    dropped(leaving) + dropped(arriving)
}

/// Why it is no longer in force, if it is not. That the interface went is told by its own news.
pub fn failure(route: &mut Conn, index: i32, before: &Before) -> Option<String> {
    if before.egress.is_some()
        && let Ok(root) = qdisc::root(route, index)
        && !root.is_ours()
    {
        let (kind, handle) = (&root.kind, root.handle_text());
        return Some(format!("somebody replaced netem by the qdisc {kind} {handle}"));
    }
    if before.ingress.is_some()
        && let Ok(root) = ingress::root(route, index)
        && !root.is_some_and(|root| root.is_ours())
        && link::list(route).is_ok_and(|links| links.iter().any(|link| link.index == index))
    {
        return Some("somebody removed the redirect of what arrives, or its ifb".to_owned());
    }
    None
}
