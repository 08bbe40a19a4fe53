//! Matrix products over strided operands.

/// `data[i * row + j * column]` is element (i, j).
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub column: usize,
}

impl<'a> View<'a> {
    /// Row-major with this many columns.
    pub fn rows(data: &'a [f32], width: usize) -> View<'a> {
        View { data, row: width, column: 1 }
    }

    pub fn transposed(self) -> View<'a> {
        View { data: self.data, row: self.column, column: self.row }
    }

    fn at(self, i: usize, j: usize) -> f32 {
        self.data[i * self.row + j * self.column]
    }
}

/// `c += scale * a b` with `a` m x k, `b` k x n, `c` m x n row-major.
pub(crate) fn accumulate(n: usize, k: usize, scale: f32, a: View<'_>, b: View<'_>, c: &mut [f32]) {
    if n == 0 {
        return;
    }
    for (i, row) in c.chunks_exact_mut(n).enumerate() {
        for p in 0..k {
            let factor = scale * a.at(i, p);
            for (j, out) in row.iter_mut().enumerate() {
                *out += factor * b.at(p, j);
            }
        }
    }
}
