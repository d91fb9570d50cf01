//! The filters in an interface's clsact that redirect packets to an ifb.

use std::os::fd::AsRawFd;

use agent_common::filter::{ARRIVING, LEAVING};
use nix::errno::Errno;

use super::Way;
use crate::model::filter::PacketFilter;
use crate::model::nlmsg::{self, Attrs};
use crate::sys::netlink::{Conn, Refusal};
use crate::sys::qdisc::{QdiscError, TCA_KIND, TCA_OPTIONS, tcmsg};
use crate::sys::scope::Picker;

pub(super) const RTM_NEWTFILTER: u16 = 44;
pub(super) const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
/// `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS` of a clsact: where its filters are.
pub(super) const FILTERS_IN: u32 = 0xffff_fff2;
pub(super) const FILTERS_OUT: u32 = 0xffff_fff3;
/// Our filter's preference, by which it is told from others.
const PREFERENCE: u32 = 0x5d00_0000;
const ETH_P_ALL: u16 = 3;
/// `TCA_MATCHALL_ACT`.
const MATCHALL_ACT: u16 = 2;
/// `TCA_BPF_ACT`, `TCA_BPF_FD` and `TCA_BPF_NAME`.
const BPF_ACT: u16 = 1;
const BPF_FD: u16 = 6;
const BPF_NAME: u16 = 7;
/// `TCA_ACT_KIND`, `TCA_ACT_OPTIONS`, and within these `TCA_MIRRED_PARMS`.
const ACT_KIND: u16 = 1;
const ACT_OPTIONS: u16 = 2;
const MIRRED_PARMS: u16 = 2;
/// `TC_ACT_STOLEN`: the packet goes on nowhere else. `TCA_EGRESS_REDIR`: it leaves by another device.
const STOLEN: u32 = 4;
const REDIRECT: u32 = 1;

/// The program for a filter; None where all packets are meant.
pub(super) fn picker(
    way: Way,
    filter: &PacketFilter,
    loopback: bool,
) -> Result<Option<Picker>, QdiscError> {
    if filter.is_all() {
        return Ok(None);
    }
    let ways = match way {
        _ if loopback => LEAVING | ARRIVING,
        Way::In => ARRIVING,
        Way::Out => LEAVING,
    };
    let rules = filter.rules(ways).map_err(|error| QdiscError::Picker(error.to_string()))?;
    Picker::for_tc(&rules).map(Some).map_err(QdiscError::Picker)
}

/// The filter that sends packets of `index` through the device `ifb`: all, or those picked.
pub(super) fn redirect(
    way: Way,
    index: i32,
    ifb: i32,
    picker: Option<&Picker>,
) -> Result<Attrs, QdiscError> {
    // struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex.
    let fields = [0, 0, STOLEN, 0, 0, REDIRECT, ifb as u32];
    let parms: Vec<u8> = fields.iter().flat_map(|field| field.to_ne_bytes()).collect();
    let mirred = Attrs::new()
        .put_text(ACT_KIND, "mirred")
        .put_nested(ACT_OPTIONS, Attrs::new().put(MIRRED_PARMS, &parms));
    // Actions are numbered from 1.
    let actions = Attrs::new().put_nested(1, mirred);
    let (kind, options) = match picker {
        None => ("matchall", Attrs::new().put_nested(MATCHALL_ACT, actions)),
        Some(picker) => {
            let program = picker.fd().map_err(QdiscError::Picker)?.as_raw_fd().cast_unsigned();
            let named = Attrs::new().put_u32(BPF_FD, program).put_text(BPF_NAME, "dwell");
            ("bpf", named.put_nested(BPF_ACT, actions))
        }
    };
    Ok(our_filter(way, index).put_text(TCA_KIND, kind).put_nested(TCA_OPTIONS, options))
}

pub(super) fn our_filter(way: Way, index: i32) -> Attrs {
    filters(index, way.parent(), PREFERENCE | u32::from(ETH_P_ALL.to_be()))
}

fn filters(index: i32, parent: u32, info: u32) -> Attrs {
    let mut bytes = tcmsg(index, 0, parent).as_bytes().to_vec();
    bytes[16..20].copy_from_slice(&info.to_ne_bytes());
    Attrs::new().raw(&bytes)
}

/// How many filters there are at `parent`: ours, or those of others.
pub(super) fn count(
    route: &mut Conn,
    index: i32,
    parent: u32,
    ours: bool,
) -> Result<usize, QdiscError> {
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
