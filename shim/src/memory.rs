//! What of the program itself is in memory.

use rustix::mm::{Advice, madvise};

/// The smallest size of a page there is.
const PAGE: usize = 4096;

unsafe extern "C" {
    /// Where the program begins in memory; made by the linker.
    safe static __ehdr_start: u8;
    /// Where what can be written to begins, after code and constants; but for the initial values of thread-locals, which
    /// only a new thread reads.
    safe static __init_array_start: u8;
}

/// Takes the program's code and constants out of this process's memory. What is needed of it comes back from the page
/// cache by itself.
///
/// The kernel maps 64 KiB around every page that is touched, so sooner or later nearly the whole program counts as resident,
/// most of it never used and the rest not used again. Costs about 60 microseconds with what comes back.
pub(crate) fn release_code() {
    let begin = &raw const __ehdr_start;
    let end = (&raw const __init_array_start).addr() & !(PAGE - 1);
    let size = end.saturating_sub(begin.addr());
    // SAFETY: a private mapping of a file that was never written to has the file's content again when it is touched. A
    // refusal changes nothing; a complaint about gaps between the mappings (ENOMEM) comes after all of them were done.
    let _ = unsafe { madvise(begin.cast_mut().cast(), size, Advice::LinuxDontNeed) };
}

#[cfg(test)]
mod tests {
    /// Not in pages that anybody writes to.
    static CONSTANT: [u64; 4096] = [7; 4096];

    #[test]
    fn what_is_needed_comes_back() {
        let mut written = vec![1; 10_000];
        super::release_code();
        written.push(2);
        assert_eq!(
            std::hint::black_box(&CONSTANT).iter().sum::<u64>(),
            7 * 4096
        );
        assert_eq!(written.iter().sum::<i32>(), 10_002);
    }
}
