//! What the running kernel can do, found by trying: a version number says little about a vendor's
//! kernel, and a configuration file nothing about what a security module refuses.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{CgroupSockAddr, FEntry, RawTracePoint},
};

use super::{
    btf::{BtfError, KernelTypes},
    observe::{OBJECT, ObserveError},
};
use crate::model::plan::{FUNCTIONS, Facts, TRACEPOINTS};

/// Finds out. Loads (never attaches) one program of each type.
///
/// # Errors
/// [`ObserveError`] if nothing at all can be loaded: no BTF, no privilege, no BPF.
pub fn gather() -> Result<Facts, ObserveError> {
    if !in_first_pid_namespace() {
        return Err(ObserveError::PidNamespace);
    }
    let types = KernelTypes::load()?;
    let offsets = types.offsets()?;
    let session = agent_common::abi::Session::default();
    let mut ebpf = EbpfLoader::new()
        .override_global("OFFSETS", &offsets, true)
        .override_global("SESSION", &session, true)
        .load(OBJECT)
        .map_err(ObserveError::load)?;
    Ok(facts_of(&types, &mut ebpf))
}

/// Whether process ids here are those that the kernel half sees. `PROC_PID_INIT_INO` is the inode
/// of the first namespace (include/linux/proc_ns.h).
fn in_first_pid_namespace() -> bool {
    const PROC_PID_INIT_INO: u64 = 0xEFFF_FFFC;
    is_namespace("/proc/self/ns/pid", PROC_PID_INIT_INO)
}

/// Whether the root of the cgroup tree that is mounted here can be the root of all.
/// `PROC_CGROUP_INIT_INO` is the inode of the first namespace (include/linux/proc_ns.h).
fn in_first_cgroup_namespace() -> bool {
    const PROC_CGROUP_INIT_INO: u64 = 0xEFFF_FFFB;
    is_namespace("/proc/self/ns/cgroup", PROC_CGROUP_INIT_INO)
}

fn is_namespace(path: &str, inode: u64) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).is_ok_and(|file| file.ino() == inode)
}

fn facts_of(types: &KernelTypes, ebpf: &mut Ebpf) -> Facts {
    let named = |names: &[&str], has: &dyn Fn(&str) -> bool| {
        names.iter().filter(|name| has(name)).map(|&name| name.to_owned()).collect()
    };
    Facts {
        tracepoints: named(&TRACEPOINTS, &|name| types.has_tracepoint(name)),
        functions: named(&FUNCTIONS, &|name| types.has_function(name)),
        raw_tracepoint: raw_tracepoint(ebpf),
        tracing: tracing(ebpf),
        cgroup_getpeername: cgroup_getpeername(ebpf),
    }
}

fn raw_tracepoint(ebpf: &mut Ebpf) -> Result<(), String> {
    let program: &mut RawTracePoint = program(ebpf, "sched_process_fork")?;
    tried("raw tracepoint programs", program.load())
}

fn tracing(ebpf: &mut Ebpf) -> Result<(), String> {
    let btf = Btf::from_sys_fs().map_err(|error| error.to_string())?;
    let program: &mut FEntry = program(ebpf, "sock_def_readable")?;
    tried("fentry and fexit programs", program.load("sock_def_readable", &btf))
}

fn cgroup_getpeername(ebpf: &mut Ebpf) -> Result<(), String> {
    if !in_first_cgroup_namespace() {
        return Err(
            "cgroup/getpeername would see this container alone: run the agent on the host, \
                    or in a container with the host's cgroup namespace (--cgroupns=host)"
                .to_owned(),
        );
    }
    cgroup2_mount().map_err(|error| error.to_string())?;
    let program: &mut CgroupSockAddr = program(ebpf, "accept_getpeername4")?;
    tried("cgroup/getpeername programs", program.load())
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, String>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| format!("the eBPF object has no program {name}: rebuild it"))
}

fn tried(what: &str, loaded: Result<(), aya::programs::ProgramError>) -> Result<(), String> {
    loaded.map_err(|error| format!("{what} do not load: {}", brief(&error)))
}

/// The errno of a refused load, without the verifier's log.
fn brief(error: &aya::programs::ProgramError) -> String {
    match error {
        aya::programs::ProgramError::LoadError { io_error, .. } => io_error.to_string(),
        other => other.to_string(),
    }
}

/// The root of the cgroup2 tree, opened. Programs attached to it see every process.
///
/// # Errors
/// An I/O error whose message says that there is no cgroup2 mount and how to make one.
pub fn cgroup2_root() -> io::Result<File> {
    File::open(cgroup2_mount()?)
}

fn cgroup2_mount() -> io::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| Path::new(at).to_path_buf())
        })
        .next()
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "no cgroup2 file system is mounted; make one with \
                 `mkdir -p /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup`",
            )
        })
}

impl From<BtfError> for ObserveError {
    fn from(error: BtfError) -> Self {
        Self::Btf(error)
    }
}
