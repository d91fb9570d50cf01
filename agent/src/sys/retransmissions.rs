//! What TCP sends again, of the connections of a network namespace that leave by one interface.
//!
//! Known limits: a connection that leaves by a device on top of the interface (a VLAN, a bridge) is
//! not counted, nor is one that is only forwarded; a SYN/ACK that is sent again does not tell its
//! interface, so that those of all but this host's own connections count.

use agent_common::receipt::retransmit;
use aya::maps::{MapData, PerCpuArray};
use aya::{Ebpf, EbpfLoader};

use super::btf::KernelTypes;
use super::netns_cookie;
use super::observe::ObserveError;
use super::raw_tracepoint;
use crate::model::impairment::Retransmissions;

/// The programs, as `cargo xtask build-ebpf` made them.
#[cfg(not(ebpf_object_missing))]
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("DWELL_RETRANSMIT_OBJECT"));
#[cfg(ebpf_object_missing)]
static OBJECT: &[u8] = &[];

const PROGRAMS: [&str; 3] = ["tcp_retransmit_synack", "tcp_cong_state_set", "tcp_retransmit_skb"];
/// Arguments of `tcp_retransmit_skb` where it also tells of what could not be sent.
const WITH_ERROR: usize = 3;

/// Programs in place; they go when this is dropped, whatever way the process ends.
pub struct Watch {
    counts: PerCpuArray<MapData, u64>,
    _programs: Ebpf,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Watch {
    /// Counts from now on, for interface `index` of the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel has no BTF or refuses the programs; nothing stays attached then.
    pub fn start(types: &KernelTypes, index: i32, is_loopback: bool) -> Result<Self, ObserveError> {
        let cookie = netns_cookie::current().map_err(|e| ObserveError::Load(e.to_string()))?;
        let common = |field| types.bytes("sock_common", field);
        let tells = types.tracepoint_arguments("tcp_retransmit_skb")? >= WITH_ERROR;
        let segments = types.bytes("sk_buff", "cb")? + types.bytes("tcp_skb_cb", "tcp_gso_segs")?;
        let ca_state = types.bits("inet_connection_sock", "icsk_ca_state")?;
        let mut programs = EbpfLoader::new()
            .override_global("DEVICE", &index.cast_unsigned(), true)
            .override_global("IS_LOOPBACK", &u32::from(is_loopback), true)
            .override_global("NETNS", &cookie, true)
            .override_global("TELLS_ERRORS", &u32::from(tells), true)
            .override_global("SK_NET", &common("skc_net")?, true)
            .override_global("SK_DADDR", &common("skc_daddr")?, true)
            .override_global("SK_RCV_SADDR", &common("skc_rcv_saddr")?, true)
            .override_global("SK_V6_DADDR", &common("skc_v6_daddr")?, true)
            .override_global("SK_V6_RCV_SADDR", &common("skc_v6_rcv_saddr")?, true)
            .override_global("SK_DST", &types.bytes("sock", "sk_dst_cache")?, true)
            .override_global("DST_DEV", &types.bytes("dst_entry", "dev")?, true)
            .override_global("DEV_IFINDEX", &types.bytes("net_device", "ifindex")?, true)
            .override_global("NET_COOKIE", &types.bytes("net", "net_cookie")?, true)
            .override_global("PENDING", &types.bytes("inet_connection_sock", "icsk_pending")?, true)
            .override_global("CA_STATE_BIT", &ca_state, true)
            .override_global("SKB_SEGMENTS", &segments, true)
            .override_global("REQUEST_OPS", &types.bytes("request_sock", "rsk_ops")?, true)
            .override_global("OPS_FAMILY", &types.bytes("request_sock_ops", "family")?, true)
            .load(OBJECT)
            .map_err(ObserveError::load)?;
        for name in PROGRAMS {
            raw_tracepoint::attach(&mut programs, name)?;
        }
        Ok(Self { counts: raw_tracepoint::map(&mut programs, "COUNTS")?, _programs: programs })
    }

    /// What was sent again so far.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn count(&self) -> Result<Retransmissions, ObserveError> {
        let sum = |which: u32| {
            self.counts
                .get(&which, 0)
                .map(|values| values.iter().sum())
                .map_err(|error| ObserveError::Map { map: "COUNTS", reason: error.to_string() })
        };
        Ok(Retransmissions {
            segments: sum(retransmit::SEGMENTS)?,
            synacks: sum(retransmit::SYNACKS)?,
            probes: sum(retransmit::PROBES)?,
            timeouts: sum(retransmit::TIMEOUTS)?,
        })
    }
}
