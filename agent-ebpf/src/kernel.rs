//! Reads of kernel memory, at offsets that the agent took from the running kernel's BTF.
//!
//! `bpf_probe_read_kernel` checks every address, so a stale pointer costs a failed read, never a
//! fault. What it cannot check is that an address still means what it meant: callers use sockets
//! only inside the tracepoint that handed them over, and tasks only while they are current.

use agent_common::abi::Tuple;
use aya_ebpf::helpers::{bpf_probe_read_kernel, generated};

use crate::maps::offset;

/// `AF_INET`
pub(crate) const AF_INET: u16 = 2;
/// `AF_INET6`
pub(crate) const AF_INET6: u16 = 10;

/// States of include/net/tcp_states.h.
pub(crate) mod tcp {
    pub(crate) const ESTABLISHED: u8 = 1;
    pub(crate) const SYN_SENT: u8 = 2;
    pub(crate) const SYN_RECV: u8 = 3;
    pub(crate) const FIN_WAIT1: u8 = 4;
    pub(crate) const CLOSE: u8 = 7;
    pub(crate) const CLOSE_WAIT: u8 = 8;
    pub(crate) const LAST_ACK: u8 = 9;
    pub(crate) const LISTEN: u8 = 10;
}

/// Reads a value at `base + offset`; None if the address cannot be read.
#[inline(always)]
pub(crate) fn read<T: Copy>(base: u64, offset: usize) -> Option<T> {
    unsafe { bpf_probe_read_kernel((base as usize + offset) as *const T) }.ok()
}

/// Reads a value, or its zero.
#[inline(always)]
pub(crate) fn read_or_default<T: Copy + Default>(base: u64, offset: usize) -> T {
    read(base, offset).unwrap_or_default()
}

#[inline(always)]
pub(crate) fn now() -> u64 {
    unsafe { generated::bpf_ktime_get_ns() }
}

/// (tgid, pid) of the current task, as the kernel numbers them.
#[inline(always)]
pub(crate) fn current() -> (u32, u32) {
    let both = aya_ebpf::helpers::bpf_get_current_pid_tgid();
    ((both >> 32) as u32, both as u32)
}

#[inline(always)]
pub(crate) fn family(sk: u64) -> u16 {
    read_or_default(sk, offset!(sk_family))
}

#[inline(always)]
pub(crate) fn state(sk: u64) -> u8 {
    read_or_default(sk, offset!(sk_state))
}

#[inline(always)]
pub(crate) fn local_port(sk: u64) -> u16 {
    read_or_default(sk, offset!(sk_num))
}

#[inline(always)]
pub(crate) fn remote_port(sk: u64) -> u16 {
    u16::from_be(read_or_default(sk, offset!(sk_dport)))
}

#[inline(always)]
pub(crate) fn netns_cookie(sk: u64) -> u64 {
    let net: u64 = read_or_default(sk, offset!(sk_net));
    read_or_default(net, offset!(net_cookie))
}

/// Fills in the socket's four-tuple, IPv4 in v4-mapped form. `tuple` was zero or held the same
/// family before.
#[inline(always)]
pub(crate) fn read_tuple(sk: u64, tuple: &mut Tuple) {
    tuple.local_port = local_port(sk);
    tuple.remote_port = remote_port(sk);
    if family(sk) == AF_INET {
        mapped(&mut tuple.local, read_or_default(sk, offset!(sk_rcv_saddr)));
        mapped(&mut tuple.remote, read_or_default(sk, offset!(sk_daddr)));
    } else {
        tuple.local = read_or_default(sk, offset!(sk_v6_rcv_saddr));
        tuple.remote = read_or_default(sk, offset!(sk_v6_daddr));
    }
}

#[inline(always)]
fn mapped(to: &mut [u8; 16], from: [u8; 4]) {
    to[10] = 0xff;
    to[11] = 0xff;
    to[12] = from[0];
    to[13] = from[1];
    to[14] = from[2];
    to[15] = from[3];
}

/// Sequence number up to which payload has arrived; a FIN, which takes one number, not counted.
#[inline(always)]
pub(crate) fn payload_end(sk: u64) -> u32 {
    let rcv_nxt: u32 = read_or_default(sk, offset!(tcp_rcv_nxt));
    rcv_nxt.wrapping_sub(u32::from(state(sk) == tcp::CLOSE_WAIT))
}

/// Bytes of payload in the receive queue.
#[inline(always)]
pub(crate) fn unread(sk: u64) -> i32 {
    let copied: u32 = read_or_default(sk, offset!(tcp_copied_seq));
    payload_end(sk).wrapping_sub(copied) as i32
}

/// The saved user registers that carry a system call, x86-64 (struct pt_regs from r10 to orig_ax).
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Syscall {
    /// Fourth argument.
    pub(crate) r10: u64,
    r9: u64,
    r8: u64,
    rax: u64,
    rcx: u64,
    /// Third argument.
    pub(crate) rdx: u64,
    /// Second argument.
    pub(crate) rsi: u64,
    /// First argument.
    pub(crate) rdi: u64,
    /// Number, or -1 when the task entered the kernel another way.
    pub(crate) number: i64,
}

/// Bytes from the start of struct pt_regs to r10 (arch/x86/include/uapi/asm/ptrace.h).
const R10: usize = 7 * 8;

/// The system call that the current task is in.
#[inline(always)]
pub(crate) fn syscall() -> Option<Syscall> {
    let task = unsafe { generated::bpf_get_current_task_btf() };
    let registers = unsafe { generated::bpf_task_pt_regs(task) };
    read(registers as u64, R10)
}

/// What a file descriptor of the current task leads to.
pub(crate) enum Descriptor {
    /// A socket, by the address of its struct sock.
    Socket(u64),
    /// Some other file.
    File,
    /// Nothing that could be read.
    Unknown,
}

/// Follows task -> files -> fdtable -> file.
#[inline(always)]
fn file(fd: u64) -> Option<u64> {
    let task = unsafe { generated::bpf_get_current_task() };
    let files: u64 = read(task, offset!(task_files))?;
    let table: u64 = read(files, offset!(files_fdt))?;
    let max: u32 = read(table, offset!(fdt_max_fds))?;
    if fd >= u64::from(max) {
        return None;
    }
    let array: u64 = read(table, offset!(fdt_fd))?;
    read(array, fd as usize * 8)
}

/// What a descriptor of the current task leads to.
#[inline(always)]
pub(crate) fn descriptor(fd: u64) -> Descriptor {
    match file(fd) {
        Some(file) => open_file(file),
        None => Descriptor::Unknown,
    }
}

/// What the one descriptor in an epoll set leads to; None if it holds several or none. `fd` is of an
/// epoll set: struct eventpoll is the file's private data, and its items are a tree by descriptor
/// (fs/eventpoll.c).
#[inline(always)]
pub(crate) fn only_polled(fd: u64) -> Option<Descriptor> {
    let set: u64 = read(file(fd)?, offset!(file_private_data))?;
    // struct rb_root_cached starts with the pointer to its root.
    let root: u64 = read(set, offset!(eventpoll_rbr))?;
    if root == 0 {
        return None;
    }
    let left: u64 = read(root, offset!(rb_left))?;
    let right: u64 = read(root, offset!(rb_right))?;
    if left != 0 || right != 0 {
        return None;
    }
    let item = root - offset!(epitem_rbn) as u64;
    Some(open_file(read(item, offset!(epitem_file))?))
}

/// Follows file -> socket.
#[inline(always)]
fn open_file(file: u64) -> Descriptor {
    const S_IFMT: u16 = 0o170_000;
    const S_IFSOCK: u16 = 0o140_000;
    let inode: u64 = read_or_default(file, offset!(file_inode));
    let Some(mode) = read::<u16>(inode, offset!(inode_mode)) else { return Descriptor::Unknown };
    if mode & S_IFMT != S_IFSOCK {
        return Descriptor::File;
    }
    let socket: u64 = read_or_default(file, offset!(file_private_data));
    match read::<u64>(socket, offset!(socket_sk)) {
        Some(sk) if sk != 0 => Descriptor::Socket(sk),
        _ => Descriptor::Unknown,
    }
}
