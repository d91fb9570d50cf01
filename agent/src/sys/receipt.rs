//! What packets really got of netem: how long each stayed in the interface's queueing discipline,
//! which went out of order, and how many were in it, as eBPF programs count it.

use agent_common::histogram::{COLUMNS, ROWS};
use agent_common::receipt::line;
use aya::maps::{Array, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::{Ebpf, EbpfLoader};

use super::btf::KernelTypes;
use super::clock;
use super::netns_cookie;
use super::observe::ObserveError;
use super::raw_tracepoint;
use crate::model::impairment::Receipt;
use crate::model::stays;

/// The programs, as `cargo xtask build-ebpf` made them.
#[cfg(not(ebpf_object_missing))]
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("DWELL_RECEIPT_OBJECT"));
#[cfg(ebpf_object_missing)]
static OBJECT: &[u8] = &[];

/// The one that stamps comes last: what is stamped is also seen to leave.
const PROGRAMS: [&str; 4] =
    ["net_dev_start_xmit", "qdisc_dequeue", "qdisc_enqueue", "net_dev_queue"];
/// Places of the interfaces that are watched.
const LEAVING: u32 = 0;
const ARRIVING: u32 = 1;

/// Programs in place; they go when this is dropped, whatever way the process ends.
pub struct Stays {
    devices: Array<MapData, u32>,
    rows: PerCpuArray<MapData, [u64; COLUMNS]>,
    longest: PerCpuArray<MapData, u64>,
    since: Array<MapData, u64>,
    /// Stays that were counted before the last change.
    base: Vec<[u64; COLUMNS]>,
    lines: Array<MapData, [u64; line::COUNT]>,
    _programs: Ebpf,
}

/// What packets got so far, in all directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Got {
    /// How long those stayed that came since the last change.
    pub receipt: Receipt,
    /// Those that left after one that came later.
    pub reordered: u64,
    /// Most that were in it at once, of either direction.
    pub largest_backlog: u64,
}

impl std::fmt::Debug for Stays {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stays").finish_non_exhaustive()
    }
}

impl Stays {
    /// Attaches the programs, for interfaces of the calling thread's namespace. None is watched yet.
    ///
    /// # Errors
    /// The kernel has no BTF or refuses the programs; nothing stays attached then.
    pub fn attach(types: &KernelTypes) -> Result<Self, ObserveError> {
        let cookie = netns_cookie::current().map_err(|e| ObserveError::Load(e.to_string()))?;
        let length = types.bytes("Qdisc", "q")? + types.bytes("qdisc_skb_head", "qlen")?;
        let mut programs = EbpfLoader::new()
            .override_global("NETNS", &cookie, true)
            .override_global("SKB_DEV", &types.bytes("sk_buff", "dev")?, true)
            .override_global("DEV_IFINDEX", &types.bytes("net_device", "ifindex")?, true)
            .override_global("DEV_NET", &types.bytes("net_device", "nd_net")?, true)
            .override_global("NET_COOKIE", &types.bytes("net", "net_cookie")?, true)
            .override_global("QUEUE_DEV", &types.bytes("netdev_queue", "dev")?, true)
            .override_global("QDISC_LENGTH", &length, true)
            .load(OBJECT)
            .map_err(ObserveError::load)?;
        for name in PROGRAMS {
            raw_tracepoint::attach(&mut programs, name)?;
        }
        Ok(Self {
            devices: raw_tracepoint::map(&mut programs, "DEVICES")?,
            rows: raw_tracepoint::map(&mut programs, "STAYS")?,
            longest: raw_tracepoint::map(&mut programs, "LONGEST")?,
            since: raw_tracepoint::map(&mut programs, "SINCE")?,
            base: vec![[0; COLUMNS]; ROWS],
            lines: raw_tracepoint::map(&mut programs, "LINES")?,
            _programs: programs,
        })
    }

    /// Watches what leaves by interface `index`.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn watch(&mut self, index: i32) -> Result<(), ObserveError> {
        self.set(LEAVING, index)
    }

    /// Watches what goes through the ifb device `index`.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn watch_ifb(&mut self, index: i32) -> Result<(), ObserveError> {
        self.set(ARRIVING, index)
    }

    fn set(&mut self, place: u32, index: i32) -> Result<(), ObserveError> {
        self.devices.set(place, index.cast_unsigned(), 0).map_err(failed("DEVICES"))
    }

    /// Counts the stays of those packets only that are handed over from now on.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub fn start_over(&mut self) -> Result<(), ObserveError> {
        self.since.set(0, clock::monotonic_ns(), 0).map_err(failed("SINCE"))?;
        self.base = self.sums()?;
        let processors = self.longest.get(&0, 0).map_err(failed("LONGEST"))?.len();
        let none = PerCpuValues::try_from(vec![0; processors])
            .map_err(|e| ObserveError::Map { map: "LONGEST", reason: e.to_string() })?;
        self.longest.set(0, none, 0).map_err(failed("LONGEST"))
    }

    fn sums(&self) -> Result<Vec<[u64; COLUMNS]>, ObserveError> {
        let mut sums = vec![[0; COLUMNS]; ROWS];
        for (index, sum) in (0..).zip(&mut sums) {
            for row in self.rows.get(&index, 0).map_err(failed("STAYS"))?.iter() {
                sum.iter_mut().zip(row).for_each(|(sum, cell)| *sum += cell);
            }
        }
        Ok(sums)
    }

    /// What packets got so far.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn got(&self) -> Result<Got, ObserveError> {
        let mut sums = self.sums()?;
        for (sum, base) in sums.iter_mut().zip(&self.base) {
            sum.iter_mut().zip(base).for_each(|(sum, base)| *sum -= base);
        }
        let longest = self.longest.get(&0, 0).map_err(failed("LONGEST"))?;
        let receipt = stays::receipt(&sums, longest.iter().copied().max().unwrap_or(0));
        let mut got = Got { receipt, reordered: 0, largest_backlog: 0 };
        for place in [LEAVING, ARRIVING] {
            let counts = self.lines.get(&place, 0).map_err(failed("LINES"))?;
            got.reordered += counts[line::REORDERED];
            got.largest_backlog = got.largest_backlog.max(counts[line::LARGEST]);
        }
        Ok(got)
    }
}

fn failed(map: &'static str) -> impl Fn(MapError) -> ObserveError {
    move |error| ObserveError::Map { map, reason: error.to_string() }
}
