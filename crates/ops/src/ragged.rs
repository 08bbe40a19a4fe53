//! Where the sequences of a batch begin and end.

use crate::{Error, Result};
use std::ops::Range;

/// The rows of each sequence. `starts` has to rise from 0 to `rows`.
pub(crate) fn sequences(
    starts: &[u32],
    rows: usize,
) -> Result<impl ExactSizeIterator<Item = Range<usize>> + Clone + '_> {
    let rising = starts.windows(2).all(|pair| pair[0] < pair[1]);
    if starts.first() != Some(&0) || starts.last().map(|&end| end as usize) != Some(rows) || !rising {
        return Err(Error::Starts { rows });
    }
    Ok(starts.windows(2).map(|pair| pair[0] as usize..pair[1] as usize))
}

#[cfg(test)]
mod tests {
    use super::sequences;

    #[test]
    fn starts_have_to_cover_the_rows() {
        let ranges: Vec<_> = sequences(&[0, 1, 4], 4).unwrap().collect();
        assert_eq!(ranges, [0..1, 1..4]);
        for bad in [&[][..], &[0], &[1, 4], &[0, 3], &[0, 2, 2, 4], &[0, 3, 1, 4]] {
            assert!(sequences(bad, 4).is_err(), "{bad:?}");
        }
        assert_eq!(sequences(&[0], 0).unwrap().len(), 0);
    }
}
