//! The allocator: a region handed out front to back.
//!
//! Every `qrun` command lives for a few milliseconds, and musl's allocator spends a measurable part of that in `mmap` and
//! `munmap`. Here memory comes from one static region; when that is used up, from chunks mapped on demand. What is freed
//! is only taken back when it was the latest allocation, which covers the usual "grow a string, drop it" patterns.
//! The one long-lived command, `run` in the foreground, does not allocate while it waits.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Size of the static region. A create with docker's default profile uses about half of it.
const STATIC_SIZE: usize = 512 * 1024;

/// Least size of a chunk mapped when the region is used up.
const CHUNK_SIZE: usize = 1024 * 1024;

/// Page-aligned bytes, zero until touched: they cost nothing in the file and nothing until used.
#[repr(C, align(4096))]
struct Region(UnsafeCell<[u8; STATIC_SIZE]>);

// SAFETY: bytes are handed out through the atomic cursor below, each range to one caller only.
unsafe impl Sync for Region {}

static REGION: Region = Region(UnsafeCell::new([0; STATIC_SIZE]));

/// Allocates from a region and hardly ever frees.
pub(crate) struct BumpAllocator {
    /// Next free address; 0 before the first allocation.
    next: AtomicUsize,
    /// End of the current region.
    end: AtomicUsize,
}

impl BumpAllocator {
    /// An allocator that has handed out nothing yet.
    pub(crate) const fn new() -> Self {
        Self {
            next: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
        }
    }

    /// Takes `size` bytes from the current region; `None` when it has not enough left.
    fn take(&self, size: usize, align: usize) -> Option<usize> {
        let mut next = self.next.load(Ordering::Relaxed);
        loop {
            let start = next.checked_add(align - 1)? & !(align - 1);
            let after = start.checked_add(size)?;
            if next == 0 || after > self.end.load(Ordering::Acquire) {
                return None;
            }
            match self
                .next
                .compare_exchange_weak(next, after, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Some(start),
                Err(current) => next = current,
            }
        }
    }

    /// Starts a new region with room for at least `size` bytes.
    ///
    /// Two threads may do this at once only in tests, where the standard allocator is in use instead.
    fn start_region(&self, size: usize, align: usize) -> Option<()> {
        if self.next.load(Ordering::Relaxed) == 0 && size.checked_add(align)? <= STATIC_SIZE {
            let start = REGION.0.get() as usize;
            self.end.store(start + STATIC_SIZE, Ordering::Release);
            self.next.store(start, Ordering::Relaxed);
            return Some(());
        }
        let length = size
            .checked_add(align)?
            .max(CHUNK_SIZE)
            .checked_next_multiple_of(4096)?;
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no existing memory.
        let chunk = unsafe {
            libc::mmap(
                null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if chunk == libc::MAP_FAILED {
            return None;
        }
        self.end.store(chunk as usize + length, Ordering::Release);
        self.next.store(chunk as usize, Ordering::Relaxed);
        Some(())
    }
}

// SAFETY: `alloc` returns ranges of the static region or of fresh mappings, aligned as asked and never handed out twice
// while in use: the cursor only moves back over a range in `dealloc` when that range is the latest one.
unsafe impl GlobalAlloc for BumpAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        loop {
            if let Some(start) = self.take(layout.size(), layout.align()) {
                return start as *mut u8;
            }
            if self.start_region(layout.size(), layout.align()).is_none() {
                return null_mut();
            }
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let start = pointer as usize;
        let _ = self.next.compare_exchange(
            start + layout.size(),
            start,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let start = pointer as usize;
        let Some(after) = start.checked_add(new_size) else {
            return null_mut();
        };
        let grown = after <= self.end.load(Ordering::Acquire)
            && self
                .next
                .compare_exchange(
                    start + layout.size(),
                    after,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok();
        if grown || new_size <= layout.size() {
            return pointer;
        }
        let Ok(new_layout) = Layout::from_size_align(new_size, layout.align()) else {
            return null_mut();
        };
        // SAFETY: `new_size` is not zero, as the contract of `realloc` demands of our caller.
        let fresh = unsafe { self.alloc(new_layout) };
        if !fresh.is_null() {
            // SAFETY: `pointer` holds `layout.size()` bytes, `fresh` at least as many, and they are distinct ranges.
            unsafe { std::ptr::copy_nonoverlapping(pointer, fresh, layout.size()) };
        }
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_the_latest_allocation_in_place_and_moves_others() {
        let allocator = BumpAllocator::new();
        let layout = Layout::from_size_align(16, 8).unwrap();
        // SAFETY: the layout is not empty.
        let first = unsafe { allocator.alloc(layout) };
        // SAFETY: `first` was allocated with this layout.
        let grown = unsafe { allocator.realloc(first, layout, 64) };
        assert_eq!(first, grown);
        // SAFETY: the layout is not empty.
        let second = unsafe { allocator.alloc(layout) };
        assert!(second as usize >= grown as usize + 64);
        let long = Layout::from_size_align(64, 8).unwrap();
        // SAFETY: `grown` holds 64 bytes.
        let moved = unsafe { allocator.realloc(grown, long, 128) };
        assert_ne!(moved, grown);
    }

    #[test]
    fn maps_more_than_the_region_holds() {
        let allocator = BumpAllocator::new();
        let layout = Layout::from_size_align(4 * STATIC_SIZE, 4096).unwrap();
        // SAFETY: the layout is not empty.
        let large = unsafe { allocator.alloc(layout) };
        assert!(!large.is_null());
        assert_eq!(large as usize % 4096, 0);
    }
}
