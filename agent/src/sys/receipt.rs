//! What packets really got of netem: how long each stayed in the interface's queueing discipline,
//! from a histogram that eBPF programs keep.

use agent_common::histogram::{COLUMNS, ROWS};
use aya::maps::{MapData, PerCpuArray};
use aya::programs::RawTracePoint;
use aya::{Ebpf, EbpfLoader};

use super::btf::KernelTypes;
use super::netns_cookie;
use super::observe::ObserveError;
use crate::model::impairment::Receipt;
use crate::model::stays;

/// The programs, as `cargo xtask build-ebpf` made them.
#[cfg(not(ebpf_object_missing))]
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("DWELL_RECEIPT_OBJECT"));
#[cfg(ebpf_object_missing)]
static OBJECT: &[u8] = &[];

/// The one that stamps comes last: what is stamped is also seen to leave.
const PROGRAMS: [&str; 3] = ["net_dev_start_xmit", "qdisc_dequeue", "net_dev_queue"];

/// Programs in place; they go when this is dropped, whatever way the process ends.
pub struct Stays {
    rows: PerCpuArray<MapData, [u64; COLUMNS]>,
    longest: PerCpuArray<MapData, u64>,
    _programs: Ebpf,
}

impl std::fmt::Debug for Stays {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stays").finish_non_exhaustive()
    }
}

impl Stays {
    /// Watches interface `index` of the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel has no BTF or refuses the programs; nothing stays attached then.
    pub fn watch(index: i32) -> Result<Self, ObserveError> {
        let types = KernelTypes::load()?;
        let cookie = netns_cookie::current().map_err(|e| ObserveError::Load(e.to_string()))?;
        let mut programs = EbpfLoader::new()
            .override_global("DEVICE", &index.cast_unsigned(), true)
            .override_global("NETNS", &cookie, true)
            .override_global("SKB_DEV", &types.bytes("sk_buff", "dev")?, true)
            .override_global("DEV_IFINDEX", &types.bytes("net_device", "ifindex")?, true)
            .override_global("DEV_NET", &types.bytes("net_device", "nd_net")?, true)
            .override_global("NET_COOKIE", &types.bytes("net", "net_cookie")?, true)
            .load(OBJECT)
            .map_err(ObserveError::load)?;
        for name in PROGRAMS {
            attach(&mut programs, name).map_err(|reason| ObserveError::Attach {
                program: name,
                hook: format!("raw_tracepoint/{name}"),
                reason,
            })?;
        }
        Ok(Self {
            rows: map(&mut programs, "STAYS")?,
            longest: map(&mut programs, "LONGEST")?,
            _programs: programs,
        })
    }

    /// What packets got so far.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn receipt(&self) -> Result<Receipt, ObserveError> {
        let failed = |map| {
            move |error: aya::maps::MapError| ObserveError::Map { map, reason: error.to_string() }
        };
        let mut sums = vec![[0; COLUMNS]; ROWS];
        for (index, sum) in (0..).zip(&mut sums) {
            for row in self.rows.get(&index, 0).map_err(failed("STAYS"))?.iter() {
                sum.iter_mut().zip(row).for_each(|(sum, cell)| *sum += cell);
            }
        }
        let longest = self.longest.get(&0, 0).map_err(failed("LONGEST"))?;
        Ok(stays::receipt(&sums, longest.iter().copied().max().unwrap_or(0)))
    }
}

fn attach(programs: &mut Ebpf, name: &str) -> Result<(), String> {
    let program: &mut RawTracePoint = programs
        .program_mut(name)
        .ok_or("it is not in the eBPF object: rebuild it")?
        .try_into()
        .map_err(|error: aya::programs::ProgramError| error.to_string())?;
    program.load().map_err(|error| error.to_string())?;
    program.attach(name).map(drop).map_err(|error| error.to_string())
}

fn map<V: aya::Pod>(
    programs: &mut Ebpf,
    name: &'static str,
) -> Result<PerCpuArray<MapData, V>, ObserveError> {
    programs
        .take_map(name)
        .ok_or_else(|| "it is not in the eBPF object: rebuild it".to_owned())
        .and_then(|map| PerCpuArray::try_from(map).map_err(|error| error.to_string()))
        .map_err(|reason| ObserveError::Map { map: name, reason })
}
