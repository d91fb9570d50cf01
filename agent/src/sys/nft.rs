//! nftables: the rule that sends packets to a netfilter queue.
//!
//! Its table is owned (`NFT_TABLE_F_OWNER`): the kernel removes it when the socket that made it
//! closes, however the process ends. The rule uses the iptables target NFQUEUE through nft_compat,
//! which more kernels have than nftables' own `queue`. Layouts: `linux/netfilter/nf_tables.h`,
//! `nf_tables_compat.h`, `xt_NFQUEUE.h`.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::netlink::{Conn, NETLINK_NETFILTER, Refusal, Request};
use crate::model::nlmsg::{self, Attrs, flag};

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const SUBSYSTEM: u16 = 10;
const NEWTABLE: u16 = SUBSYSTEM << 8;
const DELTABLE: u16 = SUBSYSTEM << 8 | 2;
const NEWCHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEWRULE: u16 = SUBSYSTEM << 8 | 6;
const GETRULE: u16 = SUBSYSTEM << 8 | 7;
const DELRULE: u16 = SUBSYSTEM << 8 | 8;

const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_F_OWNER: u32 = 2;

const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_PREROUTING: u32 = 0;
const HOOK_OUTPUT: u32 = 3;
const HOOK_POSTROUTING: u32 = 4;
const POLICY_DROP: u32 = 0;

const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;

const META_DREG: u16 = 1;
const META_KEY: u16 = 2;
const META_IIF: u32 = 4;
const META_OIF: u32 = 5;
const CMP_SREG: u16 = 1;
const CMP_OP: u16 = 2;
const CMP_DATA: u16 = 3;
const CMP_EQ: u32 = 0;
const DATA_VALUE: u16 = 1;
const REGISTER_1: u32 = 1;
const COUNTER_PACKETS: u16 = 2;

const MATCH_NAME: u16 = 1;
const MATCH_REVISION: u16 = 2;
const MATCH_INFO: u16 = 3;
/// `struct xt_bpf_info_v1` has other ways to name a program than its code.
const BPF_REVISION: u32 = 1;
/// `XT_BPF_MODE_FD_ELF`: by descriptor.
const BPF_BY_DESCRIPTOR: u16 = 2;

const TARGET_NAME: u16 = 1;
const TARGET_REVISION: u16 = 2;
const TARGET_INFO: u16 = 3;
/// `struct xt_NFQ_info_v3` has flags; with this one packets pass while nobody serves the queue.
const NFQUEUE_REVISION: u32 = 3;
const NFQ_FLAG_BYPASS: u16 = 1;

const CHAIN: &str = "delay";
const SILENCE: &str = "silence";
const FAMILIES: [u8; 2] = [nix::libc::AF_INET as u8, nix::libc::AF_INET6 as u8];

fn family(family: u8, resource: u16) -> Attrs {
    let resource = resource.to_be_bytes();
    Attrs::new().raw(&[family, 0, resource[0], resource[1]])
}

/// Name of the table for a place. One for each: the kernel itself then refuses a second impairment.
fn table_name(place: Place) -> String {
    match place {
        Place::In(index) => format!("dwell_{index}_in"),
        Place::Out(index) => format!("dwell_{index}_out"),
        Place::Bridge(index) => format!("dwell_{index}"),
    }
}

/// Where packets are sent to the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// What comes in by an interface, before connection tracking (-200) and the raw tables (-300).
    In(i32),
    /// What leaves by an interface, after source NAT (100) and connection-tracking helpers (300):
    /// the packet is as it will leave.
    Out(i32),
    /// Everything that crosses the one bridge of a namespace of ours, which has to be silent itself.
    /// The number names the table.
    Bridge(i32),
}

impl Place {
    /// Hook, priority, and the interface to compare as (`NFT_META_*`, index).
    const fn hook(self) -> (u32, i32, Option<(u32, i32)>) {
        match self {
            Self::In(index) => (HOOK_PREROUTING, -301, Some((META_IIF, index))),
            Self::Out(index) => (HOOK_POSTROUTING, 400, Some((META_OIF, index))),
            Self::Bridge(_) => (HOOK_PREROUTING, -301, None),
        }
    }
}

/// Tables (IPv4 and IPv6) that send packets to a queue. They vanish when this is dropped, or with
/// the process.
#[derive(Debug)]
pub struct QueueRules {
    conn: Conn,
    table: String,
}

impl QueueRules {
    /// Puts the rules into force in the calling thread's namespace, for the packets that a socket
    /// filter program returns other than 0 for.
    ///
    /// # Errors
    /// `EEXIST` or `EPERM` if the interface has such tables, this process's or another's; what the
    /// kernel says where it lacks a part.
    pub fn add(place: Place, queue: u16, program: Option<BorrowedFd<'_>>) -> Result<Self, Refusal> {
        let mut conn = Conn::open(NETLINK_NETFILTER)?;
        let table = table_name(place);
        let requests: Vec<Request> =
            FAMILIES.iter().flat_map(|f| requests(*f, &table, place, queue, program)).collect();
        batch(&mut conn, &requests)?;
        Ok(Self { conn, table })
    }

    /// Packets that met the rules so far.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn packets(&mut self) -> Result<u64, Refusal> {
        let mut packets = 0;
        for f in FAMILIES {
            let content =
                family(f, 0).put_text(RULE_TABLE, &self.table).put_text(RULE_CHAIN, CHAIN);
            self.conn.dump(GETRULE, &content, |message| {
                packets += message.body.get(4..).and_then(counted).unwrap_or(0);
            })?;
        }
        Ok(packets)
    }

    /// Takes the rules away and leaves the tables: no more packets come, and those in the queue stay
    /// there. (Removing a chain makes the kernel drop everything queued in the namespace.)
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn stop(&mut self) -> Result<(), Refusal> {
        let requests = FAMILIES.map(|f| {
            let rules = family(f, 0).put_text(RULE_TABLE, &self.table).put_text(RULE_CHAIN, CHAIN);
            (DELRULE, 0, rules)
        });
        batch(&mut self.conn, &requests)
    }

    /// Removes the tables and waits until they are gone.
    ///
    /// # Errors
    /// The kernel's refusal; they vanish with the socket then.
    pub fn remove(mut self) -> Result<(), Refusal> {
        let requests =
            FAMILIES.map(|f| (DELTABLE, 0, family(f, 0).put_text(TABLE_NAME, &self.table)));
        batch(&mut self.conn, &requests)
    }
}

fn batch(conn: &mut Conn, requests: &[Request]) -> Result<(), Refusal> {
    let edge = || family(0, SUBSYSTEM);
    conn.batch((BATCH_BEGIN, edge()), requests, (BATCH_END, edge()))
}

fn requests(
    f: u8,
    table: &str,
    place: Place,
    queue: u16,
    program: Option<BorrowedFd<'_>>,
) -> Vec<Request> {
    let (hook, priority, interface) = place.hook();
    let new_table = family(f, 0).put_text(TABLE_NAME, table).put_be32(TABLE_FLAGS, TABLE_F_OWNER);
    let mut requests = vec![
        (NEWTABLE, flag::CREATE | flag::EXCL, new_table),
        (NEWCHAIN, flag::CREATE | flag::EXCL, chain(f, table, CHAIN, hook, priority)),
    ];
    if let Place::Bridge(_) = place {
        let silence = chain(f, table, SILENCE, HOOK_OUTPUT, 0).put_be32(CHAIN_POLICY, POLICY_DROP);
        requests.push((NEWCHAIN, flag::CREATE | flag::EXCL, silence));
    }
    let target = Attrs::new()
        .put_text(TARGET_NAME, "NFQUEUE")
        .put_be32(TARGET_REVISION, NFQUEUE_REVISION)
        .put(TARGET_INFO, &nfqueue_info(queue));
    let mut expressions = Vec::new();
    if let Some((key, index)) = interface {
        let load = Attrs::new().put_be32(META_DREG, REGISTER_1).put_be32(META_KEY, key);
        let compare = Attrs::new()
            .put_be32(CMP_SREG, REGISTER_1)
            .put_be32(CMP_OP, CMP_EQ)
            .put_nested(CMP_DATA, Attrs::new().put(DATA_VALUE, &index.to_ne_bytes()));
        expressions.extend([("meta", load), ("cmp", compare)]);
    }
    if let Some(program) = program {
        let picked = Attrs::new()
            .put_text(MATCH_NAME, "bpf")
            .put_be32(MATCH_REVISION, BPF_REVISION)
            .put(MATCH_INFO, &bpf_info(program.as_raw_fd()));
        expressions.push(("match", picked));
    }
    expressions.extend([("counter", Attrs::new()), ("target", target)]);
    let list = expressions.into_iter().fold(Attrs::new(), |list, (name, data)| {
        let expression = Attrs::new().put_text(EXPR_NAME, name).put_nested(EXPR_DATA, data);
        list.put_nested(LIST_ELEM, expression)
    });
    let new_rule = family(f, 0)
        .put_text(RULE_TABLE, table)
        .put_text(RULE_CHAIN, CHAIN)
        .put_nested(RULE_EXPRESSIONS, list);
    requests.push((NEWRULE, flag::CREATE | flag::APPEND, new_rule));
    requests
}

fn chain(f: u8, table: &str, name: &str, hook: u32, priority: i32) -> Attrs {
    let hook =
        Attrs::new().put_be32(HOOK_NUMBER, hook).put_be32(HOOK_PRIORITY, priority.cast_unsigned());
    family(f, 0)
        .put_text(CHAIN_TABLE, table)
        .put_text(CHAIN_NAME, name)
        .put_nested(CHAIN_HOOK, hook)
        .put_text(CHAIN_TYPE, "filter")
}

/// `struct xt_NFQ_info_v3`: queue, number of queues, flags, padded to `XT_ALIGN`.
fn nfqueue_info(queue: u16) -> [u8; 8] {
    let mut info = [0; 8];
    info[0..2].copy_from_slice(&queue.to_ne_bytes());
    info[2..4].copy_from_slice(&1u16.to_ne_bytes());
    info[4..6].copy_from_slice(&NFQ_FLAG_BYPASS.to_ne_bytes());
    info
}

/// `struct xt_bpf_info_v1`: mode, length of the code that there is not, descriptor, room for that
/// code, and the kernel's own pointer.
fn bpf_info(program: i32) -> [u8; 528] {
    let mut info = [0; 528];
    info[0..2].copy_from_slice(&BPF_BY_DESCRIPTOR.to_ne_bytes());
    info[4..8].copy_from_slice(&program.to_ne_bytes());
    info
}

/// The packets that a rule's counter counted.
fn counted(rule: &[u8]) -> Option<u64> {
    nlmsg::attributes(nlmsg::find(rule, RULE_EXPRESSIONS)?).find_map(|(_, expression)| {
        let name = nlmsg::find(expression, EXPR_NAME).map(nlmsg::text)?;
        let data = nlmsg::find(expression, EXPR_DATA).filter(|_| name == "counter")?;
        nlmsg::array(nlmsg::find(data, COUNTER_PACKETS)?, 0).map(u64::from_be_bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_is_laid_out_as_the_kernels_struct() {
        let info = nfqueue_info(0x0102);
        assert_eq!(info[0..2], 0x0102u16.to_ne_bytes());
        assert_eq!(info[2..4], 1u16.to_ne_bytes());
        assert_eq!(info[4..], [1, 0, 0, 0]);
    }

    #[test]
    fn a_counter_is_found_among_expressions() {
        let counter = Attrs::new().put(1, &9u64.to_be_bytes()).put(2, &7u64.to_be_bytes());
        let expression =
            |name, data| Attrs::new().put_text(EXPR_NAME, name).put_nested(EXPR_DATA, data);
        let list = Attrs::new()
            .put_nested(LIST_ELEM, expression("meta", Attrs::new().put_be32(2, 5)))
            .put_nested(LIST_ELEM, expression("counter", counter));
        let rule = Attrs::new().put_text(RULE_TABLE, "t").put_nested(RULE_EXPRESSIONS, list);
        assert_eq!(counted(rule.as_bytes()), Some(7));
        assert_eq!(counted(&[]), None);
    }
}
