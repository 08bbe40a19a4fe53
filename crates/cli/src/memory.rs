//! The process's memory, counted where it is taken.
//!
//! mimalloc keeps freed pages, which is worth 16 to 20 % of a forward pass; the counter around it
//! tells the peak of the whole process, beside the per-job meters.

use mimalloc::MiMalloc;
use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The allocator of every program that this library is linked into.
#[global_allocator]
pub static PROCESS: Counting<MiMalloc> = Counting::new(MiMalloc);

/// An allocator that counts what another one hands out.
pub struct Counting<A> {
    inner: A,
    used: AtomicUsize,
    peak: AtomicUsize,
}

impl<A> Counting<A> {
    pub const fn new(inner: A) -> Counting<A> {
        Counting { inner, used: AtomicUsize::new(0), peak: AtomicUsize::new(0) }
    }

    /// The bytes handed out now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed) as u64
    }

    /// The most bytes handed out at once since the start or the last [`Counting::reset_peak`].
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed) as u64
    }

    /// Start a new measurement.
    pub fn reset_peak(&self) {
        self.peak.store(self.used.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn grow(&self, bytes: usize) {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if used > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(used, Ordering::Relaxed);
        }
    }

    fn shrink(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to `inner` unchanged and its answer is returned unchanged, so `inner`'s
// keeping of the contract is ours; counting touches only atomics and never allocates.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counting<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps `alloc`'s contract.
        let pointer = unsafe { self.inner.alloc(layout) };
        if !pointer.is_null() {
            self.grow(layout.size());
        }
        pointer
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps `alloc_zeroed`'s contract.
        let pointer = unsafe { self.inner.alloc_zeroed(layout) };
        if !pointer.is_null() {
            self.grow(layout.size());
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.shrink(layout.size());
        // SAFETY: the caller keeps `dealloc`'s contract.
        unsafe { self.inner.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller keeps `realloc`'s contract.
        let moved = unsafe { self.inner.realloc(pointer, layout, size) };
        if !moved.is_null() {
            self.shrink(layout.size());
            self.grow(size);
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::alloc::System;

    #[test]
    fn the_peak_is_the_most_held_at_once() {
        let counting = Counting::new(System);
        let layout = Layout::array::<u8>(1000).unwrap();
        // SAFETY: sizes are not zero, and each pointer is given back once with its own layout.
        unsafe {
            let first = counting.alloc(layout);
            let first = counting.realloc(first, layout, 3000);
            let second = counting.alloc_zeroed(layout);
            counting.dealloc(first, Layout::array::<u8>(3000).unwrap());
            assert_eq!((counting.used(), counting.peak()), (1000, 4000));
            counting.reset_peak();
            counting.dealloc(second, layout);
        }
        assert_eq!((counting.used(), counting.peak()), (0, 1000));
    }
}
