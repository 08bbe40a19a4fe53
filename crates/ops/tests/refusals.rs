//! What does not fit, is not finite or was not declared becomes an error, never a panic.

use base::Meter;
use undertone_ops::attention::{self, Heads, Mask};
use undertone_ops::{Error, Level, Linear, Workspace, dense, loss, norm};

#[test]
fn operands_that_do_not_fit() {
    let ws = Workspace::new(&Meter::unlimited(), 1);
    let (x, wide) = (ws.zeros(3, 8).unwrap(), ws.zeros(3, 9).unwrap());
    let linear = Linear::pack(4, 8, &[0.0; 32], None).unwrap();
    assert!(matches!(linear.forward(&ws, &wide), Err(Error::Shape { expected: 8, found: 9, .. })));
    assert!(linear.forward_with_bias(&ws, &x, &[0.0; 3]).is_err());
    assert!(linear.backward(&ws, &x).is_err());
    assert!(linear.row(4, &mut [0.0; 8]).is_err());
    assert!(Linear::pack(4, 8, &[0.0; 31], None).is_err());
    assert!(dense::forward(&ws, &x, &[0.0; 31], None, 4).is_err());
    assert!(norm::rms(&ws, &x, &[0.0; 9], 1e-5).is_err());
    let heads = Heads { heads: 2, kv_heads: 2, head_dim: 4 };
    let attend = |heads, starts: &[u32]| attention::forward(&ws, &x, &x, &x, heads, starts, Mask::Full);
    assert!(attend(heads, &[0, 3]).is_ok());
    assert!(matches!(attend(heads, &[0, 2]), Err(Error::Starts { rows: 3 })));
    assert!(attend(Heads { head_dim: 3, ..heads }, &[0, 3]).is_err());
    assert!(attend(Heads { kv_heads: 0, ..heads }, &[0, 3]).is_err());
}

#[test]
fn numbers_that_are_not() {
    for level in Level::available() {
        let ws = Workspace::with_level(&Meter::unlimited(), 1, level);
        for (classes, column) in [(3, 0), (3, 2), (40, 17), (40, 39)] {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut logits = ws.zeros(2, classes).unwrap();
                logits.row_mut(1)[column] = bad;
                let result = loss::cross_entropy(&ws, &logits, &[0, 1]);
                assert!(matches!(result, Err(Error::NonFinite { .. })), "{bad} at {column} of {classes}");
            }
        }
    }
}

#[test]
fn a_class_that_does_not_exist() {
    let ws = Workspace::new(&Meter::unlimited(), 1);
    let logits = ws.zeros(1, 3).unwrap();
    assert!(matches!(loss::cross_entropy(&ws, &logits, &[3]), Err(Error::Index { index: 3, len: 3, .. })));
}

#[test]
fn memory_that_was_not_declared() {
    let meter = Meter::new(4 * 1024 * 64 * 2);
    let ws = Workspace::new(&meter, 1);
    let linear = Linear::pack(65, 64, &[0.5; 65 * 64], None).unwrap();
    let x = ws.zeros(1024, 64).unwrap();
    assert!(matches!(linear.forward(&ws, &x), Err(Error::OverBudget(_))));
    assert_eq!(meter.used(), 4 * 1024 * 64);
    // The same buffers again, and nothing from the system.
    assert!(norm::rms(&ws, &x, &[1.0; 64], 1e-5).is_ok());
    assert_eq!(meter.peak(), meter.limit());
}
