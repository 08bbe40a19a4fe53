//! The operations of a transformer, each with an explicit forward, backward and tangent.
//!
//! There is no tape: a caller keeps what a backward needs and drops the rest, so peak memory is a
//! number one can compute beforehand. Conventions that hold everywhere:
//!
//! * One job has one [`Workspace`]. It owns the job's memory, thread count and instruction set.
//! * An activation is a [`Mat`]: f32, row-major, `rows x width`, one row a token.
//! * A batch is ragged: the rows of all sequences stand one after another without padding, and
//!   `starts` (length B + 1, first 0, last `rows`) says where each begins, as FlashAttention's
//!   `cu_seqlens` does. Operations on rows never see sequences; [`attention`], [`rope`] and
//!   [`pool`] do.
//! * A frozen weight is a [`Linear`], packed once and read by forward and backward alike; no
//!   gradient of it is ever computed. A trainable weight is a plain slice ([`dense`], [`lora`]).
//! * Gradients of parameters are accumulated into the slice given, gradients of activations are
//!   returned.
//! * The tangent of an operation takes and gives a [`Dual`]: an activation with its derivatives along K
//!   directions. It is exact, forward only, and row for row the same whatever K is.
//! * Results are bit for bit the same on any number of threads: threads share out outputs, never a
//!   sum.

pub mod act;
mod aligned;
pub mod attention;
pub mod dense;
pub mod dual;
pub mod embed;
mod error;
mod gemm;
mod linear;
pub mod lora;
pub mod loss;
mod mat;
pub mod norm;
mod panels;
mod parallel;
pub mod pool;
mod ragged;
pub mod rope;
mod simd;
pub mod slice;
mod workspace;

pub use dual::Dual;
pub use error::{Error, Result};
pub use gemm::SCRATCH as PRODUCT_SCRATCH;
pub use linear::Linear;
pub use mat::Mat;
pub use simd::Level;
pub use workspace::Workspace;
