//! Where the running kernel keeps its fields, from its own BTF. Nothing is baked in: the offsets
//! of `task_struct` differ between any two kernel releases.

use std::path::Path;

use agent_common::abi::Offsets;
use btf_rs::{Backend, Btf, BtfType as _, Member, Struct, Type};

/// The kernel's own types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why an offset could not be found.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The kernel has no BTF, or it cannot be read.
    #[error(
        "cannot read the kernel's types from {path}: {source}; the kernel must be built with \
         CONFIG_DEBUG_INFO_BTF"
    )]
    Open {
        /// File.
        path: String,
        /// Cause.
        source: btf_rs::Error,
    },
    /// A type or field is not there: this kernel is newer or older than any Dwell knows.
    #[error("this kernel has no `{0}`: please report its release, Dwell does not know it yet")]
    Missing(String),
}

/// The running kernel's types.
pub struct KernelTypes {
    btf: Btf,
}

impl KernelTypes {
    /// Reads the types of the running kernel.
    ///
    /// # Errors
    /// [`BtfError::Open`].
    pub fn load() -> Result<Self, BtfError> {
        Self::open(Path::new(VMLINUX))
    }

    fn open(path: &Path) -> Result<Self, BtfError> {
        // Kernels before 6.16 cannot map the file (kernel/bpf/sysfs_btf.c): they are read whole. In
        // one go: btf-rs itself would ask for the position in the file once per type.
        Btf::from_file_with_backend(path, Backend::Mmap)
            .or_else(|_| Btf::from_bytes(&std::fs::read(path)?))
            .map(|btf| Self { btf })
            .map_err(|source| BtfError::Open { path: path.display().to_string(), source })
    }

    /// Whether a raw tracepoint of this name exists.
    #[must_use]
    pub fn has_tracepoint(&self, name: &str) -> bool {
        self.any(&format!("btf_trace_{name}"), |t| matches!(t, Type::Typedef(_)))
    }

    /// How many arguments a raw tracepoint hands to its programs.
    ///
    /// # Errors
    /// [`BtfError::Missing`] with the tracepoint's name.
    pub fn tracepoint_arguments(&self, name: &str) -> Result<usize, BtfError> {
        let pointer = self.types(&format!("btf_trace_{name}")).into_iter().find_map(|found| {
            let Type::Typedef(found) = found else { return None };
            self.btf.resolve_chained_type(&found).ok()
        });
        let prototype = pointer.and_then(|pointer| match pointer {
            Type::Ptr(pointer) => self.btf.resolve_chained_type(&pointer).ok(),
            _ => None,
        });
        match prototype {
            // The first parameter is the tracepoint's own (`__bpf_trace_##call`).
            Some(Type::FuncProto(prototype)) => Ok(prototype.parameters.len().saturating_sub(1)),
            _ => Err(BtfError::Missing(format!("tracepoint {name}"))),
        }
    }

    /// Whether a function of this name can be traced.
    #[must_use]
    pub fn has_function(&self, name: &str) -> bool {
        self.any(name, |t| matches!(t, Type::Func(_)))
    }

    /// Every offset that the programs read.
    ///
    /// # Errors
    /// [`BtfError::Missing`] with the name of the first field that is not there.
    pub fn offsets(&self) -> Result<Offsets, BtfError> {
        let iowait = self.bits("task_struct", "in_iowait")?;
        Ok(Offsets {
            task_pid: self.bytes("task_struct", "pid")?,
            task_tgid: self.bytes("task_struct", "tgid")?,
            task_state: self.bytes("task_struct", "__state")?,
            task_files: self.bytes("task_struct", "files")?,
            task_signal: self.bytes("task_struct", "signal")?,
            signal_live: self.bytes("signal_struct", "live")?,
            task_in_iowait_byte: iowait / 8,
            task_in_iowait_bit: iowait % 8,
            files_fdt: self.bytes("files_struct", "fdt")?,
            fdt_fd: self.bytes("fdtable", "fd")?,
            fdt_max_fds: self.bytes("fdtable", "max_fds")?,
            file_private_data: self.bytes("file", "private_data")?,
            file_inode: self.bytes("file", "f_inode")?,
            eventpoll_rbr: self.bytes("eventpoll", "rbr")?,
            epitem_rbn: self.bytes("epitem", "rbn")?,
            epitem_file: self.bytes("epitem", "ffd")? + self.bytes("epoll_filefd", "file")?,
            rb_left: self.bytes("rb_node", "rb_left")?,
            rb_right: self.bytes("rb_node", "rb_right")?,
            inode_mode: self.bytes("inode", "i_mode")?,
            socket_sk: self.bytes("socket", "sk")?,
            sk_family: self.bytes("sock_common", "skc_family")?,
            sk_state: self.bytes("sock_common", "skc_state")?,
            sk_num: self.bytes("sock_common", "skc_num")?,
            sk_dport: self.bytes("sock_common", "skc_dport")?,
            sk_rcv_saddr: self.bytes("sock_common", "skc_rcv_saddr")?,
            sk_daddr: self.bytes("sock_common", "skc_daddr")?,
            sk_v6_rcv_saddr: self.bytes("sock_common", "skc_v6_rcv_saddr")?,
            sk_v6_daddr: self.bytes("sock_common", "skc_v6_daddr")?,
            sk_net: self.bytes("sock_common", "skc_net")?,
            net_cookie: self.bytes("net", "net_cookie")?,
            tcp_rcv_nxt: self.bytes("tcp_sock", "rcv_nxt")?,
            tcp_copied_seq: self.bytes("tcp_sock", "copied_seq")?,
            unix_peer: self.bytes("unix_sock", "peer")?,
            unix_addr: self.bytes("unix_sock", "addr")?,
            unix_address_name: self.bytes("unix_address", "name")?,
        })
    }

    fn any(&self, name: &str, is: impl Fn(&Type) -> bool) -> bool {
        self.types(name).iter().any(is)
    }

    /// Types of that name; none if there are none, which the library reports as an error.
    fn types(&self, name: &str) -> Vec<Type> {
        self.btf.resolve_types_by_name(name).unwrap_or_default()
    }

    /// Offset of a field in bytes, members of anonymous structs and unions included.
    ///
    /// # Errors
    /// [`BtfError::Missing`] with the field's name.
    pub fn bytes(&self, of: &str, field: &str) -> Result<u32, BtfError> {
        self.bits(of, field).map(|bits| bits / 8)
    }

    /// Offset of a field in bits, members of anonymous structs and unions included.
    ///
    /// # Errors
    /// [`BtfError::Missing`] with the field's name.
    pub fn bits(&self, of: &str, field: &str) -> Result<u32, BtfError> {
        self.types(of)
            .iter()
            .filter_map(as_struct)
            // A forward declaration or an empty namesake does not count.
            .find_map(|found| self.find(found, field))
            .ok_or_else(|| BtfError::Missing(format!("struct {of}.{field}")))
    }

    fn find(&self, within: &Struct, field: &str) -> Option<u32> {
        within.members.iter().find_map(|member| {
            match self.btf.resolve_name(member).unwrap_or_default() {
                name if name == field => Some(member.bit_offset()),
                name if name.is_empty() => {
                    let inner = self.anonymous(member)?;
                    Some(member.bit_offset() + self.find(&inner, field)?)
                }
                _ => None,
            }
        })
    }

    fn anonymous(&self, member: &Member) -> Option<Struct> {
        let inner = self.btf.resolve_type_by_id(member.get_type_id()?).ok()?;
        as_struct(&inner).cloned()
    }
}

fn as_struct(found: &Type) -> Option<&Struct> {
    match found {
        Type::Struct(found) | Type::Union(found) => Some(found),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_running_kernel_are_found() {
        let types = KernelTypes::load().unwrap();
        let offsets = types.offsets().unwrap();
        // Facts that hold on every 64-bit kernel: destination before source, ports together.
        assert_eq!(offsets.sk_daddr, 0);
        assert_eq!(offsets.sk_rcv_saddr, 4);
        assert_eq!(offsets.sk_num, offsets.sk_dport + 2);
        assert_eq!(offsets.task_tgid, offsets.task_pid + 4);
    }

    #[test]
    fn what_is_missing_is_named() {
        let types = KernelTypes::load().unwrap();
        let error = types.bytes("task_struct", "no_such_field").unwrap_err();
        assert!(error.to_string().contains("struct task_struct.no_such_field"));
        let error = types.bytes("no_such_struct", "x").unwrap_err();
        assert!(error.to_string().contains("no_such_struct"));
        assert!(!types.has_tracepoint("no_such_tracepoint"));
        assert!(types.has_tracepoint("sched_switch"));
        let error = types.tracepoint_arguments("no_such_tracepoint").unwrap_err();
        assert!(error.to_string().contains("tracepoint no_such_tracepoint"));
        // `sk_buff` alone, on every kernel.
        assert_eq!(types.tracepoint_arguments("net_dev_queue").unwrap(), 1);
    }
}
