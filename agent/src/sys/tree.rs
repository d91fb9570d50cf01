//! Somebody's tree of queueing disciplines: remembering it, and putting it back.
//!
//! Whether a kind can be put back from its dump is not known from its name: it is tried, in a
//! namespace made for that, before anything is touched.

use nix::errno::Errno;

use super::link;
use super::netlink::{Conn, Refusal};
use super::netns::Netns;
use super::qdisc::{QdiscError, tcmsg};
use crate::model::nlmsg::flag;
use crate::model::qdisc_tree::{Part, RTM_NEWQDISC, RTM_NEWTCLASS, Tree};

const RTM_GETQDISC: u16 = 38;
const RTM_GETTCLASS: u16 = 42;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
/// Where the rehearsal takes place.
const STAGE: &str = "rehearsal";

/// The tree on interface `index`, after a rehearsal of putting it back.
///
/// # Errors
/// [`QdiscError::Irreplaceable`] says what cannot be put back; or the kernel refused to tell.
pub fn remember(route: &mut Conn, index: i32, kind: &str) -> Result<Tree, QdiscError> {
    let irreplaceable =
        |reason: String| QdiscError::Irreplaceable { kind: kind.to_owned(), reason };
    let tree = read(route, index)?.map_err(irreplaceable)?;
    if has_filters(route, index, &tree)? {
        return Err(irreplaceable("it has filters".to_owned()));
    }
    let links = link::list(route).map_err(QdiscError::refused("list the interfaces"))?;
    let length = links.iter().find(|link| link.index == index).map_or(0, |link| link.tx_queue_len);
    Netns::run_in_scratch(|| rehearse(&tree, length))
        .map_err(|error| irreplaceable(error.to_string()))?
        .map_err(|error| irreplaceable(error.to_string()))?;
    Ok(tree)
}

fn rehearse(tree: &Tree, tx_queue_len: u32) -> Result<(), QdiscError> {
    let mut route = link::open().map_err(QdiscError::refused("open rtnetlink"))?;
    let step = QdiscError::refused("add a dummy device for a rehearsal");
    link::add(&mut route, STAGE, "dummy").map_err(step)?;
    let links = link::list(&mut route).map_err(QdiscError::refused("list the interfaces"))?;
    let stage = links.iter().find(|link| link.name == STAGE).ok_or(QdiscError::NoDevice)?;
    link::set_tx_queue_len(&mut route, stage.index, tx_queue_len)
        .map_err(QdiscError::refused("set the length of the transmit queue"))?;
    link::set_up(&mut route, stage.index).map_err(QdiscError::refused("bring it up"))?;
    put_back(&mut route, stage.index, tree)
}

/// Puts `tree` in the place of whatever is interface `index`'s root, and checks that it is the one.
///
/// # Errors
/// A part could not be made, or is not as it was.
pub fn put_back(route: &mut Conn, index: i32, tree: &Tree) -> Result<(), QdiscError> {
    for part in tree.parts() {
        let flags = if part.is_root() { flag::CREATE | flag::REPLACE } else { flag::CREATE };
        route.request(part.message, flags, &part.content(index)).map_err(|refusal| {
            QdiscError::NotRestored(format!("{part} cannot be made again: {refusal}"))
        })?;
    }
    let now = read(route, index)?.map_err(QdiscError::NotRestored)?;
    match tree.difference(&now) {
        None => Ok(()),
        Some(part) => Err(QdiscError::NotRestored(format!("{part} is not as it was"))),
    }
}

/// Reads the tree; the inner error says why it cannot be put back.
fn read(route: &mut Conn, index: i32) -> Result<Result<Tree, String>, QdiscError> {
    let (mut parts, mut error) = (Vec::new(), None);
    for (ask, answer) in [(RTM_GETQDISC, RTM_NEWQDISC), (RTM_GETTCLASS, RTM_NEWTCLASS)] {
        route
            .dump(ask, &tcmsg(index, 0, 0), |message| {
                if message.kind != answer {
                    return;
                }
                match Part::read(answer, message.body, index) {
                    Ok(part) => parts.extend(part),
                    Err(untold) => error = Some(untold),
                }
            })
            .map_err(QdiscError::refused("look at the queueing disciplines"))?;
    }
    let tree = error.map_or_else(|| Tree::new(parts), Err);
    Ok(tree.map_err(|error| error.to_string()))
}

fn has_filters(route: &mut Conn, index: i32, tree: &Tree) -> Result<bool, QdiscError> {
    let mut found = false;
    for part in tree.parts() {
        let listed = route.dump(RTM_GETTFILTER, &tcmsg(index, 0, part.handle), |message| {
            found |= message.kind == RTM_NEWTFILTER;
        });
        match listed {
            Ok(()) => {}
            // Classless ones have no filters.
            Err(Refusal { errno: Errno::EINVAL, .. }) => {}
            Err(refusal) => return Err(QdiscError::refused("list the filters")(refusal)),
        }
    }
    Ok(found)
}
