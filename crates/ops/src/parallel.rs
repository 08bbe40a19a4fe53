//! Sharing out one operation among threads.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs `task(worker, index)` for every index below `tasks` on at most `threads` threads of the
/// pool; `worker` counts the threads. With one thread nothing leaves the caller's.
///
/// Which worker gets which task is left to chance, so a task may depend on its index alone.
pub(crate) fn share_out(threads: usize, tasks: usize, task: impl Fn(usize, usize) + Sync) {
    let workers = threads.min(tasks);
    if workers <= 1 {
        (0..tasks).for_each(|index| task(0, index));
        return;
    }
    let next = AtomicUsize::new(0);
    let work = |worker| {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= tasks {
                return;
            }
            task(worker, index);
        }
    };
    rayon::scope(|scope| {
        for worker in 1..workers {
            let work = &work;
            scope.spawn(move |_| work(worker));
        }
        work(0);
    });
}

/// Block `index` of `len` things in blocks of `size`.
pub(crate) fn block(len: usize, size: usize, index: usize) -> Range<usize> {
    index * size..((index + 1) * size).min(len)
}

/// A slice of which each task writes its own part.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    start: *mut f32,
    len: usize,
    _of: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a mutable slice; `Parts::part` demands that no two threads take the same elements.
unsafe impl Send for Parts<'_> {}
// SAFETY: as above.
unsafe impl Sync for Parts<'_> {}

impl<'a> Parts<'a> {
    pub(crate) fn new(of: &'a mut [f32]) -> Parts<'a> {
        Parts { start: of.as_mut_ptr(), len: of.len(), _of: PhantomData }
    }

    /// # Safety
    /// No part alive at the same time shares an element with this one.
    #[allow(clippy::mut_from_ref, reason = "parts are disjoint, which the caller vouches for")]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len, "a part outside of its slice");
        // SAFETY: inside of the slice, and the caller vouches that nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// The address of element `index`, for parts that are not contiguous (a stripe of columns).
    pub(crate) fn at(&self, index: usize) -> *mut f32 {
        assert!(index <= self.len, "a part outside of its slice");
        self.start.wrapping_add(index)
    }
}
