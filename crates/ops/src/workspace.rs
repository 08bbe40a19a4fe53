//! The memory and threads of one job.

use crate::aligned::{Aligned, PAD};
use crate::error::same;
use crate::mat::Mat;
use crate::parallel::{Parts, block, share_out};
use crate::{Error, Level, Result};
use base::{Charge, Meter};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

/// Where the kernels of one job take memory and threads from.
///
/// Every [`Mat`] is charged to the job's meter while it lives; the meter refuses what the job did
/// not declare. Freed buffers are kept and handed out again, so that a training loop touches no
/// fresh pages after its first step. Kept buffers are not charged, yet they cannot inflate the
/// process: live and kept together never exceed the most that was ever live at once. (A recycled
/// buffer may be up to an eighth larger than what it is charged for.)
#[derive(Debug)]
pub struct Workspace {
    meter: Meter,
    threads: usize,
    level: Level,
    pool: Arc<Pool>,
}

impl Workspace {
    /// `threads` is how many threads of the pool one operation may use; at 1 everything runs inline.
    pub fn new(meter: &Meter, threads: usize) -> Workspace {
        Workspace::with_level(meter, threads, Level::best())
    }

    /// With these vector instructions, to hold one instruction set against another.
    pub fn with_level(meter: &Meter, threads: usize, level: Level) -> Workspace {
        Workspace { meter: meter.clone(), threads: threads.max(1), level, pool: Arc::default() }
    }

    pub fn level(&self) -> Level {
        self.level
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// `rows x width` of unspecified numbers (what a recycled buffer last held), for a caller that
    /// writes them all.
    pub fn scratch(&self, rows: usize, width: usize) -> Result<Mat> {
        Ok(Mat::new(rows, width, self.buffer(rows * width)?))
    }

    /// `rows x width` of zeros.
    pub fn zeros(&self, rows: usize, width: usize) -> Result<Mat> {
        let mut mat = self.scratch(rows, width)?;
        mat.fill(0.0);
        Ok(mat)
    }

    /// A copy of `values`, row-major.
    pub fn from_slice(&self, rows: usize, width: usize, values: &[f32]) -> Result<Mat> {
        same("the number of values", rows * width, values.len())?;
        let mut mat = self.scratch(rows, width)?;
        mat.copy_from_slice(values);
        Ok(mat)
    }

    pub fn copy(&self, mat: &Mat) -> Result<Mat> {
        self.from_slice(mat.rows(), mat.width(), mat)
    }

    /// A copy of some rows.
    pub fn copy_rows(&self, mat: &Mat, rows: Range<usize>) -> Result<Mat> {
        if rows.start > rows.end || rows.end > mat.rows() {
            return Err(Error::Index { what: "row", index: rows.end, len: mat.rows() + 1 });
        }
        let width = mat.width();
        self.from_slice(rows.len(), width, &mat[rows.start * width..rows.end * width])
    }

    /// `len` floats of unspecified numbers.
    pub(crate) fn buffer(&self, len: usize) -> Result<Buffer> {
        self.buffers(1, len)
    }

    /// Scratch of `len` floats for each of some workers, one after another. The job is charged for
    /// one worker: how many there are is the machine's choice, on which no price may depend.
    pub(crate) fn buffers(&self, workers: usize, len: usize) -> Result<Buffer> {
        let charge = self.meter.charge(4 * len as u64)?;
        let floats = Aligned::within(self.pool.lock().take(workers * len), workers * len);
        Ok(Buffer { floats, pool: self.pool.clone(), _charge: charge })
    }

    /// Runs `task(rows, part)` over blocks of the rows of `mat`, where `part` are these rows of it.
    pub(crate) fn by_rows(&self, mat: &mut Mat, task: impl Fn(Range<usize>, &mut [f32]) + Sync) {
        let (rows, width) = (mat.rows(), mat.width());
        let parts = Parts::new(mat);
        self.share_rows(rows, width, |rows| {
            // SAFETY: blocks of rows are disjoint.
            let part = unsafe { parts.part(rows.start * width..rows.end * width) };
            task(rows, part);
        });
    }

    /// Runs `task(index, scratch)` for every index below `tasks`, each thread with `size` floats of its own
    /// that hold what its last task left there.
    pub(crate) fn share_scratch(
        &self,
        tasks: usize,
        size: usize,
        task: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<()> {
        let mut scratch = self.buffers(self.threads.min(tasks), size)?;
        let scratch = Parts::new(&mut scratch);
        share_out(self.threads, tasks, |worker, index| {
            // SAFETY: each worker has its own part.
            task(index, unsafe { scratch.part(worker * size..(worker + 1) * size) });
        });
        Ok(())
    }

    /// Runs `task` over blocks of `rows` rows of this width.
    pub(crate) fn share_rows(&self, rows: usize, width: usize, task: impl Fn(Range<usize>) + Sync) {
        let size = (BLOCK / width.max(1)).max(1);
        share_out(self.threads, rows.div_ceil(size), |_, index| task(block(rows, size, index)));
    }
}

/// Elements of one task of an operation on rows: its operands stay in the second cache.
const BLOCK: usize = 1 << 15;

/// Memory of a workspace: always initialised, handed back on drop.
#[derive(Debug)]
pub(crate) struct Buffer {
    floats: Aligned,
    pool: Arc<Pool>,
    _charge: Charge,
}

impl std::ops::Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.floats
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.floats
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.lock().give(std::mem::take(&mut self.floats).into_storage());
    }
}

#[derive(Debug, Default)]
struct Pool(Mutex<Kept>);

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Freed buffers, oldest first, and the counts (in floats) that bound them.
#[derive(Debug, Default)]
struct Kept {
    free: Vec<Vec<f32>>,
    free_len: usize,
    live: usize,
    peak: usize,
}

impl Kept {
    /// A buffer of at least `len` aligned floats: the smallest kept one that wastes at most an
    /// eighth, else a fresh one.
    fn take(&mut self, len: usize) -> Vec<f32> {
        let need = len + PAD;
        let fits = |data: &&Vec<f32>| (need..=need + need / 8).contains(&data.len());
        let best = self.free.iter().filter(fits).map(Vec::len).min();
        let data = match best.and_then(|size| self.free.iter().rposition(|data| data.len() == size)) {
            Some(index) => {
                let data = self.free.remove(index);
                self.free_len -= data.len();
                data
            }
            None => {
                self.make_room(need);
                vec![0.0; need]
            }
        };
        self.live += data.len();
        self.peak = self.peak.max(self.live);
        data
    }

    /// Free old buffers before a fresh one is made, so that what is held stays within the peak.
    fn make_room(&mut self, need: usize) {
        let held = self.peak.max(self.live + need);
        while self.live + need + self.free_len > held {
            let oldest = self.free.remove(0);
            self.free_len -= oldest.len();
        }
    }

    fn give(&mut self, data: Vec<f32>) {
        self.live -= data.len();
        self.free_len += data.len();
        self.free.push(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_buffers_are_recycled_and_never_held_beyond_the_peak() {
        let meter = Meter::unlimited();
        let ws = Workspace::new(&meter, 1);
        let first = ws.scratch(10, 100).unwrap();
        let address = first.as_ptr();
        assert_eq!(address as usize % 64, 0);
        drop(first);
        let again = ws.zeros(10, 99).unwrap();
        assert_eq!(again.as_ptr(), address);
        let second = ws.scratch(5, 100).unwrap();
        drop((again, second));
        let large = ws.scratch(15, 100).unwrap();
        let kept = ws.pool.lock();
        assert!(kept.live + kept.free_len <= kept.peak);
        drop(kept);
        assert_eq!((meter.used(), meter.peak()), (6000, 6000));
        drop(large);
        assert_eq!(meter.used(), 0);
    }

    #[test]
    fn a_job_cannot_hold_more_than_it_declared() {
        let ws = Workspace::new(&Meter::new(1000), 1);
        let _held = ws.scratch(5, 40).unwrap();
        assert!(matches!(ws.scratch(5, 11), Err(Error::OverBudget(_))));
        assert!(ws.scratch(5, 10).is_ok());
    }
}
