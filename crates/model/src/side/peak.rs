//! What a side network's workspace holds at most.
//!
//! The peak is a function of shapes alone, so it is read off one pass over zeros instead of being
//! derived a second time beside the code that takes the memory.

use super::{SideNetwork, squared_loss_backward};
use crate::Error;
use base::Meter;
use ops::{Mat, Workspace};

impl SideNetwork {
    /// Bytes of a batch of taps and its way to the outputs.
    pub fn inference_bytes(&self, backbone: usize, rows: usize) -> Result<u64, Error> {
        let (meter, theta) = (Meter::unlimited(), vec![0.0; self.total()]);
        let ws = Workspace::new(&meter, 1);
        self.forward(&ws, &theta, backbone, &self.zero_taps(&ws, backbone, rows)?)?;
        Ok(meter.peak())
    }

    /// Bytes of a batch of taps and differences, its way to the loss and back. The gradient of the
    /// parameters is its owner's.
    pub fn training_bytes(&self, backbone: usize, rows: usize) -> Result<u64, Error> {
        let (meter, theta) = (Meter::unlimited(), vec![0.0; self.total()]);
        let ws = Workspace::new(&meter, 1);
        let taps = self.zero_taps(&ws, backbone, rows)?;
        let target = ws.zeros(rows, self.config().outputs)?;
        let (y, trail) = self.forward_for_backward(&ws, &theta, backbone, &taps)?;
        let (_, dy) = squared_loss_backward(&ws, &y, &target, 1.0)?;
        self.backward(&ws, &theta, backbone, &taps, (trail, &dy), &mut vec![0.0; theta.len()])?;
        Ok(meter.peak())
    }

    fn zero_taps(&self, ws: &Workspace, backbone: usize, rows: usize) -> Result<Vec<Mat>, Error> {
        let width = self.config().tap_width(backbone).unwrap_or(0);
        Ok((0..self.config().taps).map(|_| ws.zeros(rows, width)).collect::<ops::Result<_>>()?)
    }
}
