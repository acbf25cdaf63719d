//! What of the program itself is in memory; the shim has this file, too.

use rustix::mm::{Advice, madvise};

unsafe extern "C" {
    // Made by the linker (ld(1), "etext"): where the program begins, and where its code ends. What can be written to comes after.
    safe static __ehdr_start: u8;
    safe static etext: u8;
}

/// Takes the program's code out of this process's memory. What is needed of it comes back from the page cache by itself.
///
/// The kernel maps 64 KiB around every page that is touched, so sooner or later nearly the whole program counts as resident,
/// most of it never used and the rest not used again. Costs about 20 microseconds, and as much for what comes back.
pub(crate) fn release_code() {
    let begin = &raw const __ehdr_start;
    let length = (&raw const etext).addr().saturating_sub(begin.addr());
    // SAFETY: a private mapping of a file that was never written to has the file's content again when it is touched. A
    // refusal changes nothing.
    let _ = unsafe { madvise(begin.cast_mut().cast(), length, Advice::LinuxDontNeed) };
}
