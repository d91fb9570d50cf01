//! What every object must have: a handler of panics, of which the verifier sees to it that there are
//! none, and the licence that lets it call the kernel's GPL-only helpers.

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// A constant of the object. Volatile, or the compiler would fold the zero that stands in its file.
#[inline(always)]
pub(crate) fn constant<T: Copy>(place: *const T) -> T {
    unsafe { core::ptr::read_volatile(place) }
}
