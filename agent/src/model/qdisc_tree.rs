//! Somebody's queueing disciplines as the kernel dumped them, to be put back later.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::nlmsg::{self, Attrs, attributes, find};

/// `RTM_NEWQDISC`: a queueing discipline.
pub const RTM_NEWQDISC: u16 = 36;
/// `RTM_NEWTCLASS`: a class.
pub const RTM_NEWTCLASS: u16 = 40;

/// Length of `struct tcmsg`.
const TCMSG: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
/// Attributes that say what the dump does not wholly tell: `TCA_STAB` and shared blocks.
const UNTOLD: [u16; 3] = [8, 13, 14];
const ROOT: u32 = 0xffff_ffff;
/// Parent of clsact and ingress.
const INGRESS: u32 = 0xffff_fff1;
const MAJOR: u32 = 0xffff_0000;

/// Kinds whose classes somebody made; those of others come with the qdisc, or with its packets.
const CLASSES_ARE_MADE: [&str; 4] = ["htb", "hfsc", "drr", "qfq"];
/// Kinds of which a dump leaves something out: the tables of distributions.
const PARTLY_DUMPED: [&str; 1] = ["netem"];
/// `TCA_HTB_INIT`, of a qdisc: `struct tc_htb_glob`.
const HTB_INIT: u16 = 2;
/// Bytes of all parts that are taken. They travel to the guardian as one argument.
const MAX_BYTES: usize = 16 << 10;

/// Everything that hangs below an interface's root, filters excepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tree {
    /// Each after the one that it hangs on.
    parts: Vec<Part>,
}

/// A qdisc or a class.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// [`RTM_NEWQDISC`] or [`RTM_NEWTCLASS`].
    pub message: u16,
    /// Its handle.
    pub handle: u32,
    /// What it hangs on.
    pub parent: u32,
    /// Its kind.
    kind: String,
    /// Its options, without what counts packets; None if it has none.
    options: Option<Vec<u8>>,
}

/// Why a tree cannot be put back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The kernel does not tell all of it.
    #[error("the kernel does not tell all of its {0}")]
    Untold(String),
    /// A dump that is no tree.
    #[error("its parts do not hang together")]
    Loose,
    /// Too large.
    #[error("it takes {0} bytes, more than {MAX_BYTES}")]
    TooLarge(usize),
}

impl Part {
    /// Reads the body of a dumped qdisc or class of interface `index`. None for what need not be put
    /// back: what belongs to other interfaces, to what arrives, or came by itself.
    ///
    /// # Errors
    /// The kernel tells only a part of it.
    pub fn read(message: u16, body: &[u8], index: i32) -> Result<Option<Self>, TreeError> {
        let (Some(handle), Some(parent), Some(rest)) =
            (nlmsg::read_u32(body, 8), nlmsg::read_u32(body, 12), body.get(TCMSG..))
        else {
            return Err(TreeError::Loose);
        };
        if nlmsg::array(body, 4) != Some(index.to_ne_bytes()) || parent == INGRESS {
            return Ok(None);
        }
        let kind = find(rest, TCA_KIND).map(nlmsg::text).unwrap_or_default();
        let by_itself = match message {
            RTM_NEWQDISC => handle == 0,
            _ => !CLASSES_ARE_MADE.contains(&kind.as_str()) || handle & !MAJOR == 0,
        };
        if by_itself {
            return Ok(None);
        }
        if PARTLY_DUMPED.contains(&kind.as_str())
            || attributes(rest).any(|(attribute, _)| UNTOLD.contains(&attribute))
        {
            return Err(TreeError::Untold(kind));
        }
        let options =
            find(rest, TCA_OPTIONS).map(|options| without_counters(&kind, message, options));
        Ok(Some(Self { message, handle, parent, kind, options }))
    }

    /// The content of the message that makes it, on interface `index`.
    #[must_use]
    pub fn content(&self, index: i32) -> Attrs {
        let mut header = [0; TCMSG];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        header[8..12].copy_from_slice(&self.handle.to_ne_bytes());
        header[12..16].copy_from_slice(&self.parent.to_ne_bytes());
        let content = Attrs::new().raw(&header).put_text(TCA_KIND, &self.kind);
        match &self.options {
            Some(options) => content.put(TCA_OPTIONS, &as_it_was_set(&self.kind, options)),
            None => content,
        }
    }

    /// Whether it is the root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.message == RTM_NEWQDISC && self.parent == ROOT
    }

    fn hangs_on(&self, there: &BTreeSet<(u16, u32)>) -> bool {
        let qdisc = |handle: u32| there.contains(&(RTM_NEWQDISC, handle & MAJOR));
        let class = |handle: u32| there.contains(&(RTM_NEWTCLASS, handle));
        match self.message {
            RTM_NEWQDISC => self.is_root() || class(self.parent) || qdisc(self.parent),
            _ => {
                let top = self.parent == ROOT || self.parent & !MAJOR == 0;
                qdisc(self.handle) && (top || class(self.parent))
            }
        }
    }

    fn name(&self) -> String {
        let what = if self.message == RTM_NEWQDISC { "qdisc" } else { "class" };
        format!("{what} {} {:x}:{:x}", self.kind, self.handle >> 16, self.handle & !MAJOR)
    }
}

/// `struct tc_htb_glob` ends with a number of packets.
fn without_counters(kind: &str, message: u16, options: &[u8]) -> Vec<u8> {
    const DIRECT_PACKETS_AT: usize = 16;
    if kind != "htb" || message != RTM_NEWQDISC {
        return options.to_vec();
    }
    let masked = attributes(options).fold(Attrs::new(), |all, (attribute, value)| {
        let mut value = value.to_vec();
        if attribute == HTB_INIT {
            value.iter_mut().skip(DIRECT_PACKETS_AT).for_each(|byte| *byte = 0);
        }
        all.put(attribute, &value)
    });
    masked.as_bytes().to_vec()
}

/// What has to be sent for the kernel to tell `options` again.
fn as_it_was_set(kind: &str, options: &[u8]) -> Vec<u8> {
    let number = |value: &[u8], change: fn(u32) -> u32| {
        let mut value = value.to_vec();
        if let Some(told) = nlmsg::read_u32(&value, 0) {
            value[..4].copy_from_slice(&change(told).to_ne_bytes());
        }
        value
    };
    let set = attributes(options).fold(Attrs::new(), |all, (attribute, value)| {
        all.put(
            attribute,
            &match (kind, attribute) {
                // CoDel keeps its times (target, interval, ce_threshold) in units of 1024 ns and tells
                // them in microseconds, both rounded down (`include/net/codel.h`): one unit less would
                // come of what it tells, and the right one of the next number.
                ("codel", 1 | 3 | 5) | ("fq_codel", 1 | 3 | 7) => {
                    number(value, |us| us.saturating_add(1))
                }
                // Its version (`TCA_HTB_INIT`) is told whole, and taken without the lower half.
                ("htb", HTB_INIT) => number(value, |version| version >> 16),
                _ => value.to_vec(),
            },
        )
    });
    // Options of other kinds may be a plain struct, which reads as no attributes.
    match kind {
        "codel" | "fq_codel" | "htb" => set.as_bytes().to_vec(),
        "sfq" => sfq_as_it_was_set(options.to_vec()),
        _ => options.to_vec(),
    }
}

/// `struct tc_sfq_qopt`: quantum, perturb_period, limit, divisor, flows. More flows than packets are
/// there only where no limit was given: one that is given lowers the flows (`net/sched/sch_sfq.c`).
fn sfq_as_it_was_set(mut options: Vec<u8>) -> Vec<u8> {
    const LIMIT_AT: usize = 8;
    const FLOWS_AT: usize = 16;
    let (limit, flows) = (nlmsg::read_u32(&options, LIMIT_AT), nlmsg::read_u32(&options, FLOWS_AT));
    if let Some(unset) = options.get_mut(LIMIT_AT..LIMIT_AT + 4)
        && flows > limit
    {
        unset.fill(0);
    }
    options
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

impl Tree {
    /// Orders parts so that each comes after what it hangs on.
    ///
    /// # Errors
    /// They do not hang together, or are too large.
    pub fn new(parts: Vec<Part>) -> Result<Self, TreeError> {
        let length = |part: &Part| part.options.as_ref().map_or(0, Vec::len);
        let bytes = parts.iter().map(length).sum();
        if bytes > MAX_BYTES {
            return Err(TreeError::TooLarge(bytes));
        }
        let (mut waiting, mut ordered) = (parts, Vec::new());
        // The kernel dumps in the order of a hash table.
        waiting.sort();
        let mut there = BTreeSet::new();
        while !waiting.is_empty() {
            // A qdisc on a class that is made comes after that class; on one that is not, after its qdisc.
            let made: BTreeSet<u32> = waiting
                .iter()
                .filter(|part| part.message == RTM_NEWTCLASS)
                .map(|part| part.handle)
                .collect();
            let ready = |part: &Part| {
                part.hangs_on(&there)
                    && !(part.message == RTM_NEWQDISC && made.contains(&part.parent))
            };
            let Some(at) = waiting.iter().position(ready) else { return Err(TreeError::Loose) };
            let part = waiting.remove(at);
            there.insert((part.message, part.handle));
            ordered.push(part);
        }
        match ordered.iter().filter(|part| part.is_root()).count() {
            1 => Ok(Self { parts: ordered }),
            _ => Err(TreeError::Loose),
        }
    }

    /// Its parts, each after the one that it hangs on.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The first part that `other` has not, or has otherwise; None if all is there and nothing else.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<String> {
        let lacking = |these: &Self, those: &Self| {
            these.parts.iter().find(|part| !those.parts.contains(part)).map(Part::to_string)
        };
        lacking(self, other).or_else(|| lacking(other, self))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(message: u16, kind: &str, handle: u32, parent: u32) -> Part {
        let options = Some(vec![1, 2, 3, 4]);
        Part { message, handle, parent, kind: kind.to_owned(), options }
    }

    /// htb 1: with classes 1:1 > 1:10 > fq_codel 10:, and prio 20: on 1:20 with a tbf on 20:1.
    fn htb() -> Vec<Part> {
        vec![
            part(RTM_NEWQDISC, "htb", 0x1_0000, ROOT),
            part(RTM_NEWTCLASS, "htb", 0x1_0001, ROOT),
            part(RTM_NEWTCLASS, "htb", 0x1_0010, 0x1_0001),
            part(RTM_NEWTCLASS, "htb", 0x1_0020, 0x1_0001),
            part(RTM_NEWQDISC, "fq_codel", 0x10_0000, 0x1_0010),
            part(RTM_NEWQDISC, "prio", 0x20_0000, 0x1_0020),
            part(RTM_NEWQDISC, "tbf", 0x30_0000, 0x20_0001),
        ]
    }

    #[test]
    fn what_is_dumped_is_read() {
        let asked = part(RTM_NEWQDISC, "tbf", 0x1_0000, ROOT);
        let body = asked.content(7);
        let read = |message, index| Part::read(message, body.as_bytes(), index);
        assert_eq!(read(RTM_NEWQDISC, 7), Ok(Some(asked.clone())));
        assert_eq!(read(RTM_NEWQDISC, 8), Ok(None), "another interface's");
        assert_eq!(read(RTM_NEWTCLASS, 7), Ok(None), "no class that somebody made");
        let netem = part(RTM_NEWQDISC, "netem", 0x1_0000, ROOT).content(7);
        let untold = Part::read(RTM_NEWQDISC, netem.as_bytes(), 7);
        assert_eq!(untold, Err(TreeError::Untold("netem".to_owned())));
        let sized = body.clone().put(8, &[]);
        assert!(Part::read(RTM_NEWQDISC, sized.as_bytes(), 7).is_err(), "a size table");
    }

    #[test]
    fn counted_packets_are_no_parameter() {
        let glob = |direct: u32| {
            let fields = [3u32, 10, 0x20, 0, direct];
            let bytes: Vec<u8> = fields.iter().flat_map(|field| field.to_ne_bytes()).collect();
            let options = Attrs::new().put(2, &bytes).put_u32(5, 1000).as_bytes().to_vec();
            let htb = Part { options: Some(options), ..part(RTM_NEWQDISC, "htb", 0x1_0000, ROOT) };
            Part::read(RTM_NEWQDISC, htb.content(7).as_bytes(), 7).unwrap().unwrap()
        };
        assert_eq!(glob(0), glob(77));
    }

    #[test]
    fn times_of_codel_survive_their_rounding() {
        let told = |set_us: u64| (((set_us * 1000) >> 10) << 10) / 1000;
        for us in (1..200_000).step_by(7) {
            let options = Attrs::new().put_u32(1, told(us) as u32).put_u32(2, 9);
            let again = as_it_was_set("fq_codel", options.as_bytes());
            let target = nlmsg::read_u32(find(&again, 1).unwrap(), 0).unwrap();
            assert_eq!(told(target.into()), told(us), "{us}");
            assert_eq!(find(&again, 2), Some(&9u32.to_ne_bytes()[..]), "the limit is no time");
        }
        let options = Attrs::new().put_u32(1, 5);
        assert_eq!(as_it_was_set("sfq", options.as_bytes()), options.as_bytes());
    }

    #[test]
    fn trees_that_are_none() {
        assert_eq!(Tree::new(vec![]), Err(TreeError::Loose));
        assert_eq!(Tree::new(htb()[1..].to_vec()), Err(TreeError::Loose), "no root");
        let mut without_a_class = htb();
        without_a_class.remove(1);
        assert_eq!(Tree::new(without_a_class), Err(TreeError::Loose));
        let large = Part { options: Some(vec![0; MAX_BYTES + 1]), ..htb().remove(0) };
        assert!(matches!(Tree::new(vec![large]), Err(TreeError::TooLarge(_))));
    }

    #[test]
    fn a_difference_is_named() {
        let tree = Tree::new(htb()).unwrap();
        assert_eq!(tree.difference(&tree), None);
        let mut other = htb();
        other[4].options = None;
        let other = Tree::new(other).unwrap();
        assert_eq!(tree.difference(&other).as_deref(), Some("qdisc fq_codel 10:0"));
    }

    proptest! {
        #[test]
        fn any_order_of_a_dump_is_put_right(parts in Just(htb()).prop_shuffle()) {
            let tree = Tree::new(parts).unwrap();
            let place = |handle| tree.parts().iter().position(|part| part.handle == handle).unwrap();
            prop_assert!(tree.parts()[0].is_root());
            prop_assert!(place(0x1_0001) < place(0x1_0010));
            prop_assert!(place(0x1_0010) < place(0x10_0000));
            prop_assert!(place(0x20_0000) < place(0x30_0000));
            let text = serde_json::to_string(&tree).unwrap();
            prop_assert_eq!(serde_json::from_str::<Tree>(&text).unwrap(), tree);
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>, message: u16) {
            let _ = Part::read(message, &bytes, 1);
        }
    }
}
