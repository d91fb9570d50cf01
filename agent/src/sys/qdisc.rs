//! The netem engine: an interface's root queueing discipline, over rtnetlink.
//!
//! Each of ours has a handle of its own, from a range that is told from everybody else's: whoever
//! takes one away names its handle, and the kernel refuses where another has taken its place. The
//! kernel keeps a qdisc when the process that made it ends: [`super::guardian`] and the registry on
//! disk see to that.

use std::time::Duration;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::link;
use super::netlink::{Conn, Refusal};
use super::tree;
use crate::model::netem::{DecodeError, NetemOptions, Request};
use crate::model::nlmsg::{self, Attrs, flag};
use crate::model::qdisc_tree::Tree;

pub(super) const RTM_NEWQDISC: u16 = 36;
pub(super) const RTM_DELQDISC: u16 = 37;
pub(super) const RTM_GETQDISC: u16 = 38;
pub(super) const TCA_KIND: u16 = 1;
pub(super) const TCA_OPTIONS: u16 = 2;
const TCA_STATS2: u16 = 7;
/// `TCA_STATS_QUEUE`: `struct gnet_stats_queue`, of which the first u32 is the packets it holds, and
/// the third drops.
const TCA_STATS_QUEUE: u16 = 3;
const TC_H_ROOT: u32 = 0xffff_ffff;
/// Length of `struct tcmsg`.
pub(super) const TCMSG: usize = 20;

/// Major numbers of our handles, `5d00:` to `5dff:`. The kernel gives those from `8001:` on to qdiscs
/// that are added without a handle (qdisc_alloc_handle), and people use small ones.
const OWN_MAJORS: std::ops::Range<u32> = 0x5d00..0x5e00;
/// What the kernel makes of an empty transmit queue when a qdisc is added (qdisc_create).
const KERNELS_TX_QUEUE_LEN: u32 = 1000;
const KIND: &str = "netem";
/// Kind of a root qdisc that is not shown.
pub(crate) const HIDDEN: &str = "noop";

/// A root queueing discipline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Its kind, such as `noqueue`.
    pub kind: String,
    /// Its handle; 0 if the kernel put it there by default.
    pub handle: u32,
    /// Packets it dropped.
    pub drops: u64,
    /// Packets in it.
    pub held: u64,
    options: Vec<u8>,
}

impl Root {
    /// Whether it is one of ours.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.kind == KIND && OWN_MAJORS.contains(&(self.handle >> 16))
    }

    /// Whether it is the one of ours that has this handle.
    #[must_use]
    pub fn is_own(&self, handle: u32) -> bool {
        self.is_ours() && self.handle == handle
    }

    /// What the kernel says about netem's options; None if it is another kind.
    ///
    /// # Errors
    /// The kernel's answer cannot be read.
    pub fn netem(&self) -> Option<Result<NetemOptions, DecodeError>> {
        (self.kind == KIND).then(|| NetemOptions::decode(&self.options))
    }

    /// Its handle as tc writes it.
    #[must_use]
    pub fn handle_text(&self) -> String {
        format!("{:x}:", self.handle >> 16)
    }
}

/// One of our handles. Numbers that follow each other give different ones.
#[must_use]
pub fn own_handle(number: u32) -> u32 {
    (OWN_MAJORS.start + number % OWN_MAJORS.len() as u32) << 16
}

/// How an interface was before ours was added, and which one that is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Before {
    /// Kind of its root qdisc.
    pub kind: String,
    /// Length of its transmit queue, which adding a qdisc may change.
    pub tx_queue_len: u32,
    /// Handle of ours, see [`own_handle`].
    pub own: u32,
    /// What somebody had configured and wants to have back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<Tree>,
}

/// What [`restore`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Whether ours was there, and was removed.
    pub removed: bool,
    /// Packets that were in it, and were lost with it.
    pub lost: u64,
}

/// Why netem could not be added or taken away.
#[derive(Debug, thiserror::Error)]
pub enum QdiscError {
    /// One of ours is there.
    #[error("the interface has a delay already")]
    Exists,
    /// Somebody else's is there.
    #[error("root qdisc {kind} {handle} is somebody else's")]
    Foreign {
        /// Kind, such as `htb`.
        kind: String,
        /// Handle, such as `1:`.
        handle: String,
    },
    /// Somebody else's, that could not be put back.
    #[error("root qdisc {kind} cannot be put back: {reason}")]
    Irreplaceable {
        /// Kind, such as `mq`.
        kind: String,
        /// Why not.
        reason: String,
    },
    /// Somebody else filters what arrives.
    #[error("a qdisc {kind} for what arrives is somebody else's")]
    ForeignIngress {
        /// `clsact` or `ingress`.
        kind: String,
    },
    /// The program that picks packets could not be loaded.
    #[error("load the program that picks packets: {0}")]
    Picker(String),
    /// The interface is gone.
    #[error("the interface is gone")]
    NoDevice,
    /// The kernel passed over something.
    #[error("kernel {kernel} does not know {options}, and passed over it")]
    Unknown {
        /// Release of the kernel.
        kernel: String,
        /// The options of the command line.
        options: String,
    },
    /// It is not what was asked for.
    #[error("asked for {asked}, but the kernel has {got}")]
    ReadBack {
        /// What was asked.
        asked: String,
        /// What there is.
        got: String,
    },
    /// After removal the interface is not as it was.
    #[error("{0}")]
    NotRestored(String),
    /// The kernel refused.
    #[error("{action}: {refusal}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// Its answer.
        refusal: Refusal,
    },
}

impl QdiscError {
    pub(super) fn refused(action: &'static str) -> impl FnOnce(Refusal) -> Self {
        move |refusal| match refusal.errno {
            Errno::ENODEV => Self::NoDevice,
            _ => Self::Refused { action, refusal },
        }
    }
}

pub(super) fn tcmsg(index: i32, handle: u32, parent: u32) -> Attrs {
    let mut bytes = [0; TCMSG];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&handle.to_ne_bytes());
    bytes[12..16].copy_from_slice(&parent.to_ne_bytes());
    Attrs::new().raw(&bytes)
}

/// The root qdisc of interface `index`, asked for by itself: a dump can miss one while interfaces
/// come and go. The kernel sends a qdisc that is asked for as news, hence `ECHO`, and acknowledges
/// without any where it is one that it does not show (tc_get_qdisc, tc_qdisc_dump_ignore).
///
/// # Errors
/// The kernel's refusal, or the interface is gone.
pub fn root(route: &mut Conn, index: i32) -> Result<Root, QdiscError> {
    let mut found = None;
    let content = tcmsg(index, 0, TC_H_ROOT);
    route
        .get(RTM_GETQDISC, flag::ECHO, &content, |message| {
            if message.kind == RTM_NEWQDISC {
                found = parse(message.body);
            }
        })
        .map_err(QdiscError::refused("look at the root qdisc"))?;
    Ok(found.unwrap_or_else(|| Root {
        kind: HIDDEN.to_owned(),
        handle: 0,
        drops: 0,
        held: 0,
        options: Vec::new(),
    }))
}

/// Every netem in the calling thread's namespace, at a root or below, of whomever, with the index of
/// its interface. A dump can miss one while interfaces come and go.
///
/// # Errors
/// The kernel's refusal.
pub fn netems(route: &mut Conn) -> Result<Vec<(i32, Root)>, Refusal> {
    let mut found = Vec::new();
    route.dump(RTM_GETQDISC, &tcmsg(0, 0, 0), |message| {
        let index = nlmsg::read_u32(message.body, 4).map(u32::cast_signed);
        let qdisc = parse(message.body).filter(|qdisc| qdisc.kind == KIND);
        found.extend(index.zip(qdisc).filter(|_| message.kind == RTM_NEWQDISC));
    })?;
    Ok(found)
}

fn parse(body: &[u8]) -> Option<Root> {
    let attributes = body.get(TCMSG..)?;
    let queue =
        nlmsg::find(attributes, TCA_STATS2).and_then(|stats| nlmsg::find(stats, TCA_STATS_QUEUE));
    let counter = |at| queue.and_then(|queue| nlmsg::read_u32(queue, at)).map_or(0, u64::from);
    Some(Root {
        kind: nlmsg::find(attributes, TCA_KIND).map(nlmsg::text)?,
        handle: nlmsg::read_u32(body, 8)?,
        drops: counter(8),
        held: counter(0),
        options: nlmsg::find(attributes, TCA_OPTIONS).unwrap_or(&[]).to_vec(),
    })
}

/// How interface `index` is now, for [`restore`], with the handle that ours will have. Call it
/// before [`add`]. A root qdisc that somebody configured is remembered with all that hangs on it if
/// it is to be replaced.
///
/// # Errors
/// It has such a qdisc and `replace` is false, or it cannot be put back; or the interface is gone.
pub fn look(route: &mut Conn, index: i32, own: u32, replace: bool) -> Result<Before, QdiscError> {
    let root = root(route, index)?;
    if root.is_ours() {
        return Err(QdiscError::Exists);
    }
    let tree = match (root.handle, replace) {
        (0, _) => None,
        (_, true) => Some(tree::remember(route, index, &root.kind)?),
        _ => return Err(QdiscError::Foreign { handle: root.handle_text(), kind: root.kind }),
    };
    Ok(Before { kind: root.kind, tx_queue_len: tx_queue_len(route, index)?, own, tree })
}

fn tx_queue_len(route: &mut Conn, index: i32) -> Result<u32, QdiscError> {
    link::get(route, index)
        .map(|link| link.tx_queue_len)
        .map_err(QdiscError::refused("look at the interface"))
}

/// Adds netem as the root qdisc of interface `index`, reads it back, and returns the delay that the
/// kernel has. Tables are not compared: no kernel tells them.
///
/// # Errors
/// [`QdiscError`]; nothing is left then.
pub fn add(
    route: &mut Conn,
    index: i32,
    request: &Request,
    before: &Before,
) -> Result<Duration, QdiscError> {
    // TCA_OPTIONS of netem is its struct followed by attributes: not marked as nested.
    let content = tcmsg(index, before.own, TC_H_ROOT)
        .put_text(TCA_KIND, KIND)
        .put(TCA_OPTIONS, request.encode().as_bytes());
    let how = if before.tree.is_some() { flag::REPLACE } else { flag::EXCL };
    match route.request(RTM_NEWQDISC, flag::CREATE | how, &content) {
        Ok(()) => {}
        // Somebody was faster than the look before.
        Err(Refusal { errno: Errno::EEXIST, .. }) => {
            return look(route, index, before.own, false).and(Err(QdiscError::Exists));
        }
        Err(refusal) => {
            // The kernel sets the length of the transmit queue before it reads the options.
            restore(route, index, before)?;
            return Err(QdiscError::refused("add netem")(refusal));
        }
    }
    let read_back = read_back(route, index, &request.options, before.own);
    if read_back.is_err() {
        restore(route, index, before)?;
    }
    read_back
}

/// Changes our netem on interface `index` in place: packets in it stay, and keep their times. Reads it
/// back, and returns the delay that the kernel has.
///
/// # Errors
/// [`QdiscError`]; it may be the old one, or a mixture, then.
pub fn change(
    route: &mut Conn,
    index: i32,
    request: &Request,
    own: u32,
) -> Result<Duration, QdiscError> {
    let content = tcmsg(index, own, TC_H_ROOT)
        .put_text(TCA_KIND, KIND)
        .put(TCA_OPTIONS, request.encode_change().as_bytes());
    // Without flags it is for what is there, and has that handle (tc_modify_qdisc).
    route.request(RTM_NEWQDISC, 0, &content).map_err(QdiscError::refused("change netem"))?;
    read_back(route, index, &request.options, own)
}

fn read_back(
    route: &mut Conn,
    index: i32,
    asked: &NetemOptions,
    own: u32,
) -> Result<Duration, QdiscError> {
    let root = root(route, index)?;
    let got = NetemOptions::decode(&root.options);
    if root.is_own(own) && got.map(|options| options.seen_through(asked)) == Ok(*asked) {
        return Ok(Duration::from_nanos(u64::try_from(asked.latency_ns).unwrap_or(0)));
    }
    let unknown = got.map(|dump| asked.unknown_to(&dump)).unwrap_or_default();
    if root.is_ours() && !unknown.is_empty() {
        let kernel = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        return Err(QdiscError::Unknown { kernel, options: unknown.join(", ") });
    }
    Err(QdiscError::ReadBack {
        asked: format!("{KIND} {asked:?}"),
        got: format!("{} {} {got:?}", root.kind, root.handle_text()),
    })
}

/// Takes our netem away if it is there, and puts the interface back as it was. Harmless when there is
/// none of ours, or no interface.
///
/// # Errors
/// The kernel refused, or the interface is not as it was.
pub fn restore(route: &mut Conn, index: i32, before: &Before) -> Result<Restored, QdiscError> {
    let mut done = Restored::default();
    match take_away(route, index, before, &mut done)
        .and_then(|()| put_right(route, index, before, done.removed))
    {
        Ok(()) | Err(QdiscError::NoDevice) => Ok(done),
        Err(error) => Err(error),
    }
}

fn take_away(
    route: &mut Conn,
    index: i32,
    before: &Before,
    done: &mut Restored,
) -> Result<(), QdiscError> {
    let found = root(route, index)?;
    if !found.is_own(before.own) {
        return Ok(());
    }
    if let Some(tree) = &before.tree {
        tree::put_back(route, index, tree)?;
        *done = Restored { removed: true, lost: found.held };
        return Ok(());
    }
    match route.request(RTM_DELQDISC, 0, &tcmsg(index, before.own, TC_H_ROOT)) {
        Ok(()) => *done = Restored { removed: true, lost: found.held },
        // Somebody was faster; what is there now has another handle.
        Err(Refusal { errno: Errno::ENOENT | Errno::EINVAL, .. }) => {}
        Err(refusal) => return Err(QdiscError::refused("remove netem")(refusal)),
    }
    Ok(())
}

/// Undoes what adding a qdisc did to an empty transmit queue. Any other length is somebody's wish.
pub(super) fn put_queue_right(
    route: &mut Conn,
    index: i32,
    before_packets: u32,
) -> Result<(), QdiscError> {
    if before_packets == 0 && tx_queue_len(route, index)? == KERNELS_TX_QUEUE_LEN {
        link::set_tx_queue_len(route, index, before_packets)
            .map_err(QdiscError::refused("set the length of the transmit queue"))?;
    }
    Ok(())
}

/// The second half: needed also where the first was done by somebody else, or by an agent that was
/// killed between the two.
fn put_right(
    route: &mut Conn,
    index: i32,
    before: &Before,
    removed: bool,
) -> Result<(), QdiscError> {
    let now = root(route, index)?;
    let tree_is_back = removed && before.tree.is_some();
    if now.handle == 0 || tree_is_back {
        put_queue_right(route, index, before.tx_queue_len)?;
    }
    if tree_is_back {
        return Ok(());
    }
    // An interface that went up or down meanwhile shows another default.
    let shown = now.kind != HIDDEN && before.kind != HIDDEN;
    if !removed || now.handle == 0 && (now.kind == before.kind || !shown) {
        return Ok(());
    }
    Err(QdiscError::NotRestored(format!(
        "its root qdisc was {} and is {} {} now",
        before.kind,
        now.kind,
        now.handle_text()
    )))
}

/// Tries whether the kernel has netem, in the calling thread's namespace, on interface 1. To be
/// called in a scratch namespace; nothing is left.
///
/// # Errors
/// What is missing.
pub fn probe() -> Result<(), QdiscError> {
    let mut route = link::open().map_err(QdiscError::refused("open rtnetlink"))?;
    let before = look(&mut route, 1, own_handle(0), false)?;
    let options = NetemOptions { latency_ns: 1_000_000, limit_packets: 1, ..Default::default() };
    let trial = Request { options, ..Request::default() };
    add(&mut route, 1, &trial, &before)?;
    restore(&mut route, 1, &before).map(drop)
}
