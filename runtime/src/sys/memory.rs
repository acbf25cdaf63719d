//! What of the program itself is in memory; the shim has this file, too.

use rustix::mm::{Advice, madvise};

unsafe extern "C" {
    /// The program's ELF header (elf(5)) in memory; made by the linker.
    safe static __ehdr_start: Header;
}

/// `Elf64_Ehdr`.
#[repr(C)]
struct Header {
    _identification: [u8; 16],
    _kind: [u32; 2],
    _entry: u64,
    program_headers: u64,
    _section_headers: u64,
    _flags: [u16; 4],
    program_headers_count: u16,
}

/// `Elf64_Phdr`.
#[repr(C)]
struct Segment {
    kind: u32,
    flags: u32,
    _offset: u64,
    address: u64,
    _physical_address: u64,
    _file_size: u64,
    size: u64,
    alignment: u64,
}

/// `PT_LOAD`
const LOADED: u32 = 1;
/// `PF_W`
const WRITABLE: u32 = 2;

/// Takes the program's code and constants out of this process's memory. What is needed of them comes back from the page
/// cache by itself.
///
/// The kernel maps 64 KiB around every page that is touched, so sooner or later nearly the whole program counts as resident,
/// most of it never used and the rest not used again. Costs about 20 microseconds, and as much for what comes back.
pub(crate) fn release_code() {
    let program = &raw const __ehdr_start;
    let offset = usize::try_from(__ehdr_start.program_headers).unwrap_or_default();
    let count = usize::from(__ehdr_start.program_headers_count);
    let first = program.wrapping_byte_add(offset).cast::<Segment>();
    // SAFETY: the header says so, and the kernel maps both with the program's first segment.
    let segments = unsafe { std::slice::from_raw_parts(first, count) };
    // A program that is not loaded elsewhere than linked has its first segment's address where it is.
    let first = segments.iter().find(|segment| segment.kind == LOADED);
    let moved = first.map_or(0, |first| program.addr() as u64 - first.address);
    for segment in segments {
        // What can be written to has been, by relocation at least.
        if segment.kind != LOADED || segment.flags & WRITABLE != 0 {
            continue;
        }
        let mask = !(segment.alignment.max(4096) - 1);
        let begin = (moved + segment.address) & mask;
        let (Ok(begin), Ok(size)) = (usize::try_from(begin), usize::try_from(segment.size)) else {
            continue;
        };
        // SAFETY: a private mapping of a file that was never written to has the file's content again when it is touched. A
        // refusal changes nothing.
        let _ = unsafe {
            madvise(
                program.with_addr(begin).cast_mut().cast(),
                size,
                Advice::LinuxDontNeed,
            )
        };
    }
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
