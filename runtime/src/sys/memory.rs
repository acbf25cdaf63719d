//! What of the program itself is in memory; the shim has this file, too.

use rustix::mm::{Advice, madvise};

unsafe extern "C" {
    /// Where the program begins in memory; made by the linker.
    safe static __ehdr_start: u8;
    /// Where its code ends (`etext` of ld(1)). What can be written to comes after that.
    safe static etext: u8;
}

/// Takes the program's code out of this process's memory. What is needed of it comes back from the page cache by itself.
///
/// The kernel maps 64 KiB around every page that is touched, so sooner or later nearly the whole program counts as resident,
/// most of it never used and the rest not used again. Costs about 60 microseconds with what comes back.
pub(crate) fn release_code() {
    let begin = &raw const __ehdr_start;
    let size = (&raw const etext).addr().saturating_sub(begin.addr());
    // SAFETY: a private mapping of a file that was never written to has the file's content again when it is touched. A
    // refusal changes nothing.
    let _ = unsafe { madvise(begin.cast_mut().cast(), size, Advice::LinuxDontNeed) };
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_needed_comes_back() {
        let mut written = vec![1; 10_000];
        super::release_code();
        written.push(2);
        assert_eq!(written.iter().sum::<i32>(), 10_002);
    }
}
