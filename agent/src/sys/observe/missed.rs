//! Probes that the kernel skipped: a program that is active on a processor is not entered there a
//! second time (`bpf_prog_inc_misses_counter`, kernel/bpf/syscall.c). Only the kernel counts that.

use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::Ebpf;

/// How often any of these programs was skipped since it was loaded, whosever event it was. A
/// program that cannot be asked counts as never skipped.
pub(super) fn missed(ebpf: &Ebpf) -> u64 {
    ebpf.programs()
        .filter_map(|(_, program)| {
            let fd = program.fd().ok()?.as_fd().as_raw_fd();
            misses(&std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?)
        })
        .sum()
}

/// `recursion_misses` of a program's fdinfo, since Linux 5.12.
fn misses(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_kernel_is_read() {
        let fdinfo = "pos:\t0\nflags:\t02000002\nprog_type:\t17\nprog_jited:\t1\n\
                      run_time_ns:\t0\nrun_cnt:\t0\nrecursion_misses:\t41\nverified_insns:\t9\n";
        assert_eq!(misses(fdinfo), Some(41));
        assert_eq!(misses(&fdinfo.replace("recursion", "other")), None);
    }
}
