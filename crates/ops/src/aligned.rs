//! Memory that begins at a cache line.

/// Bytes of a cache line, and of the widest vector register.
const LINE: usize = 64;
/// Floats by which the storage is longer, so that an aligned start exists in it.
pub(crate) const PAD: usize = LINE / 4 - 1;

/// `len` floats, the first at the beginning of a cache line.
#[derive(Debug, Default)]
pub(crate) struct Aligned {
    storage: Vec<f32>,
    offset: usize,
    len: usize,
}

impl Aligned {
    pub(crate) fn zeros(len: usize) -> Aligned {
        Aligned::within(vec![0.0; len + PAD], len)
    }

    /// Uses `storage`, which has at least `len + PAD` elements, and keeps what it holds.
    pub(crate) fn within(storage: Vec<f32>, len: usize) -> Aligned {
        assert!(storage.len() >= len + PAD, "storage without room for alignment");
        let offset = storage.as_ptr().align_offset(LINE).min(PAD);
        Aligned { storage, offset, len }
    }

    pub(crate) fn into_storage(self) -> Vec<f32> {
        self.storage
    }
}

impl Clone for Aligned {
    fn clone(&self) -> Aligned {
        let mut copy = Aligned::zeros(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl std::ops::Deref for Aligned {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.storage[self.offset..self.offset + self.len]
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.storage[self.offset..self.offset + self.len]
    }
}
