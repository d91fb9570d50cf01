//! On what is a thread going to wait? Read from the system call it is in, at the moment when the
//! scheduler takes it off its processor.

use agent_common::abi::{UNIX_PATH_LEN, class, counter, role};
use aya_ebpf::helpers::{bpf_probe_read_user, generated};

use crate::{
    kernel::{self, Descriptor, read_or_default, tcp},
    maps::{self, SOCKETS, UNIX_PEERS, count, offset},
};

/// System calls that block, x86-64.
mod nr {
    pub(crate) const READ: i64 = 0;
    pub(crate) const WRITE: i64 = 1;
    pub(crate) const POLL: i64 = 7;
    pub(crate) const READV: i64 = 19;
    pub(crate) const WRITEV: i64 = 20;
    pub(crate) const SELECT: i64 = 23;
    pub(crate) const NANOSLEEP: i64 = 35;
    pub(crate) const SENDFILE: i64 = 40;
    pub(crate) const CONNECT: i64 = 42;
    pub(crate) const ACCEPT: i64 = 43;
    pub(crate) const SENDTO: i64 = 44;
    pub(crate) const RECVFROM: i64 = 45;
    pub(crate) const SENDMSG: i64 = 46;
    pub(crate) const RECVMSG: i64 = 47;
    pub(crate) const FUTEX: i64 = 202;
    pub(crate) const CLOCK_NANOSLEEP: i64 = 230;
    pub(crate) const EPOLL_WAIT: i64 = 232;
    pub(crate) const PSELECT6: i64 = 270;
    pub(crate) const PPOLL: i64 = 271;
    pub(crate) const EPOLL_PWAIT: i64 = 281;
    pub(crate) const ACCEPT4: i64 = 288;
    pub(crate) const EPOLL_PWAIT2: i64 = 441;
}

/// Descriptors of one poll() or select() that are looked at: libpq waits on one, a worker on its
/// listener and a pipe.
const LOOKED_AT: u64 = 4;
/// `AF_UNIX`
const AF_UNIX: u16 = 1;

/// What a descriptor that is waited for says, weakest first: of several, the strongest counts. A
/// database or a client tells more than a listener, and a listener more than a pipe.
mod says {
    pub(crate) const NOTHING: u32 = 0;
    pub(crate) const IDLE: u32 = 1;
    pub(crate) const CLIENT: u32 = 2;
    pub(crate) const DATABASE: u32 = 3;
}

/// How the descriptors of a wait are found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Among {
    /// In a register.
    One,
    /// In an array of struct pollfd: int fd; short events; short revents.
    Poll,
    /// In the bits of a word of an fd_set.
    Select,
}

/// The class of the sleep that `task`, the current one, begins. `in_hand`: it has a request;
/// `asks`: it has begun database turns before.
#[inline(always)]
pub(crate) fn classify(task: u64, in_hand: bool, asks: bool) -> usize {
    let bits: u8 = read_or_default(task, offset!(task_in_iowait_byte));
    if (bits >> (offset!(task_in_iowait_bit) & 7)) & 1 != 0 {
        return class::DISK;
    }
    let Some(call) = kernel::syscall() else { return class::OTHER };
    let (among, from, mut left) = match call.number {
        nr::READ
        | nr::WRITE
        | nr::READV
        | nr::WRITEV
        | nr::SENDFILE
        | nr::CONNECT
        | nr::SENDTO
        | nr::RECVFROM
        | nr::SENDMSG
        | nr::RECVMSG => (Among::One, call.rdi, 1),
        nr::POLL | nr::PPOLL => (Among::Poll, call.rdi, call.rsi),
        // Descriptors below 64: a worker's listener, pipe and database connection are.
        nr::SELECT | nr::PSELECT6 => (Among::Select, 0, user_word(call.rsi) | user_word(call.rdx)),
        nr::ACCEPT | nr::ACCEPT4 => return class::IDLE,
        nr::EPOLL_WAIT | nr::EPOLL_PWAIT | nr::EPOLL_PWAIT2 => return by_epoll(call.rdi, asks),
        nr::NANOSLEEP | nr::CLOCK_NANOSLEEP => return class::SLEEP,
        nr::FUTEX => return by_futex(call.rsi, call.r10, in_hand),
        _ => return class::OTHER,
    };
    if left == 0 {
        // poll() or select() of nothing is how some programs sleep.
        return class::SLEEP;
    }
    let mut said = says::NOTHING;
    let mut looked = 0;
    while looked < LOOKED_AT && left != 0 {
        let fd = match among {
            Among::One => from,
            Among::Poll => user_fd(from + looked * 8),
            Among::Select => u64::from(left.trailing_zeros()),
        };
        left = match among {
            Among::Select => left & (left - 1),
            _ => left - 1,
        };
        let one = by_descriptor(fd);
        if one > said {
            said = one;
        }
        looked += 1;
    }
    match said {
        says::DATABASE => class::DATABASE,
        says::CLIENT => class::CLIENT_IO,
        says::IDLE => class::IDLE,
        _ => class::OTHER,
    }
}

/// A loop's set holds its listener, a pipe and all its connections, and waiting on it is waiting for
/// work. A driver that makes a set for its one connection (psycopg 3) waits for the database. Only
/// threads that use one are looked at: the way to the set costs a loop more than the answer is worth.
#[inline(always)]
fn by_epoll(fd: u64, asks: bool) -> usize {
    if asks
        && let Some(Descriptor::Socket(sk)) = kernel::only_polled(fd)
        && by_socket(sk) == says::DATABASE
    {
        return class::DATABASE;
    }
    class::IDLE
}

/// CPython waits for its interpreter lock 5 ms at a time; thread pools wait for work without a
/// limit, or for long. Without a request in hand, a wait that may last is therefore idleness.
#[inline(always)]
fn by_futex(operation: u64, timeout: u64, in_hand: bool) -> usize {
    /// `FUTEX_WAIT_BITSET`, whose timeout is a point in time; that of the others is a length.
    const WAIT_BITSET: u64 = 9;
    const COMMAND_MASK: u64 = 0x7f;
    const LASTING_NS: u64 = 50_000_000;
    if in_hand {
        return class::LOCK;
    }
    if timeout == 0 {
        return class::IDLE;
    }
    let Ok([seconds, nanos]) = (unsafe { bpf_probe_read_user(timeout as *const [u64; 2]) }) else {
        return class::LOCK;
    };
    let mut left = seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos);
    if operation & COMMAND_MASK == WAIT_BITSET {
        left = left.saturating_sub(kernel::now());
    }
    if left >= LASTING_NS { class::IDLE } else { class::LOCK }
}

#[inline(always)]
fn by_descriptor(fd: u64) -> u32 {
    match kernel::descriptor(fd) {
        Descriptor::Socket(sk) => by_socket(sk),
        Descriptor::File => says::NOTHING,
        Descriptor::Unknown => {
            count(counter::UNRESOLVED_WAIT);
            says::NOTHING
        }
    }
}

#[inline(always)]
fn by_socket(sk: u64) -> u32 {
    if let Some(socket) = SOCKETS.get_ptr(sk) {
        return match unsafe { (*socket).role } as u8 {
            role::DATABASE => says::DATABASE,
            role::SERVER => says::CLIENT,
            _ => says::NOTHING,
        };
    }
    match kernel::family(sk) {
        AF_UNIX => by_unix_socket(sk),
        kernel::AF_INET | kernel::AF_INET6 if kernel::state(sk) == tcp::LISTEN => says::IDLE,
        // Open before the probes were, and not yet written to since.
        kernel::AF_INET | kernel::AF_INET6 if maps::is_db_port(kernel::remote_port(sk)) => {
            says::DATABASE
        }
        _ => says::NOTHING,
    }
}

/// A Unix socket is what the agent said of its peer's path; new ones are noted for it.
#[inline(always)]
fn by_unix_socket(sk: u64) -> u32 {
    let peer: u64 = read_or_default(sk, offset!(unix_peer));
    let address: u64 = read_or_default(peer, offset!(unix_addr));
    if address == 0 {
        return says::NOTHING;
    }
    if let Some(known) = UNIX_PEERS.get_ptr_mut(address) {
        let known = unsafe { &mut *known };
        known.waits += 1;
        return if known.class == class::DATABASE as u32 { says::DATABASE } else { says::NOTHING };
    }
    if let Some(new) = maps::new_unix_peer(address) {
        new.class = class::OTHER as u32;
        new.waits = 1;
        // sun_path follows the two bytes of the family.
        let from = address as usize + offset!(unix_address_name) + 2;
        let to = new.path.as_mut_ptr().cast();
        unsafe {
            generated::bpf_probe_read_kernel_str(to, UNIX_PATH_LEN as u32, from as *const _);
        }
    }
    says::NOTHING
}

/// A word of the caller's memory, 0 if there is none.
#[inline(always)]
fn user_word(address: u64) -> u64 {
    if address == 0 {
        return 0;
    }
    unsafe { bpf_probe_read_user(address as *const u64) }.unwrap_or(0)
}

/// The descriptor of a struct pollfd; one that no task has if it cannot be read or is negative.
#[inline(always)]
fn user_fd(address: u64) -> u64 {
    match unsafe { bpf_probe_read_user(address as *const i32) } {
        Ok(fd) if fd >= 0 => fd as u64,
        _ => u64::MAX,
    }
}
