//! What the injector's objects read of the kernel, at offsets that the agent took from its BTF.

use aya_ebpf::helpers::bpf_probe_read_kernel;

/// Reads a value at `base + offset`; None if the address cannot be read.
#[inline(always)]
pub(crate) fn read<T: Copy>(base: u64, offset: u32) -> Option<T> {
    unsafe { bpf_probe_read_kernel((base as usize + offset as usize) as *const T) }.ok()
}
