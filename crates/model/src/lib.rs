//! Backbones cut at block boundaries, weights and adapters.
//!
//! A [`Model`] holds frozen weights. Whatever is trained lives outside of it, in one flat vector
//! `theta` with a [`Layout`] of sites, so that a model is shared by any number of devices, and
//! averaging, stepping, clipping and sending are slice operations.
//!
//! ```text
//! Source --Model::load--> (Model, theta) --loss_and_gradient--> gradient --Optimizer::step--> theta
//! ```
//!
//! The parts, from the inside out: an [adapted linear](adapted) is a frozen linear with whatever is
//! trained at it; [attention], [mlp] and [norm] are made of those, a [block] of these; [backbone]
//! runs ranges of blocks forward and backward, [tangent] forward with derivatives; [train] adds embeddings, head and loss. A family
//! ([families]) is a row of names.

mod adapted;
mod attention;
pub mod backbone;
mod block;
mod bottleneck;
mod directions;
mod embedding;
mod error;
mod families;
mod generate;
mod head;
mod layout;
mod load;
mod lora_xs;
mod mlp;
mod model;
mod norm;
pub mod optim;
mod pass;
pub mod peft;
mod peft_config;
pub mod price;
pub mod side;
mod source;
mod spec;
mod stored;
pub mod tangent;
mod tokens;
mod train;

pub use backbone::forward;
pub use directions::{Directions, Draw, Given, Seeded};
pub use error::{Error, LoadError};
pub use families::Family;
pub use generate::{Sampling, generate, generate_beside};
pub use layout::{Layout, Site, SiteKind};
pub use model::Model;
pub use pass::Below;
pub use peft_config::{PeftConfig, PeftKind, Shorthand, TargetModules};
pub use source::{Source, Tensor, Weights};
pub use spec::{Activation, Module, Place, Pooling, Role, Shape, Spec, Task};
pub use stored::Lower;
pub use tokens::{Activations, Targets, Tokens};
pub use train::{
    Loss, argmax, condense, features, head_loss, head_loss_and_gradient, hidden, logits, loss,
    loss_and_gradient,
};
