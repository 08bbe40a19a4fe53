//! A model: frozen weights, and which parameters of it are trained.

use crate::block::Block;
use crate::embedding::Embedding;
use crate::error::Error;
use crate::head::Head;
use crate::layout::Layout;
use crate::pass::Pass;
use crate::peft_config::PeftConfig;
use crate::spec::{Spec, Task};
use crate::tokens::Tokens;
use ops::Workspace;
use std::ops::Range;
use std::sync::Arc;

/// A backbone cut at block boundaries, its task's head, and the layout of what is trained.
///
/// The model holds the frozen weights only, and can be shared by any number of devices: whatever is
/// trained is in the `theta` that every computation takes.
#[derive(Debug)]
pub struct Model {
    pub spec: Spec,
    pub task: Task,
    pub peft: PeftConfig,
    pub layout: Arc<Layout>,
    /// The blocks that are loaded.
    pub(crate) layers: Range<usize>,
    pub(crate) embedding: Option<Embedding>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) head: Option<Head>,
    pub(crate) hash: String,
}

impl Model {
    /// BLAKE3 of the weights this model was loaded from, in hexadecimal.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The blocks that are loaded: all of them, or those of a part.
    pub fn layers(&self) -> Range<usize> {
        self.layers.clone()
    }

    /// The memory the frozen weights hold.
    pub fn bytes(&self) -> u64 {
        let embedding = self.embedding.as_ref().map_or(0, Embedding::bytes);
        let blocks: u64 = self.blocks.iter().map(Block::bytes).sum();
        let rope = self.blocks.first().and_then(|block| block.attention.rope.as_ref());
        embedding
            + blocks
            + rope.map_or(0, |table| table.bytes())
            + self.head.as_ref().map_or(0, Head::bytes)
    }

    /// A copy of the blocks from `cut` on and of the head, sharing no memory with this model but the
    /// table of positions. It computes with the whole model's `theta`.
    pub fn upper_copy(&self, cut: usize) -> Result<Model, Error> {
        let layers = cut..self.layers.end;
        Ok(Model {
            spec: self.spec.clone(),
            task: self.task.clone(),
            peft: self.peft.clone(),
            layout: self.layout.clone(),
            blocks: self.blocks(&layers)?.to_vec(),
            layers,
            embedding: None,
            head: self.head.clone(),
            hash: self.hash.clone(),
        })
    }

    pub(crate) fn pass<'a>(
        &self,
        ws: &'a Workspace,
        theta: &'a [f32],
        starts: &'a [u32],
    ) -> Result<Pass<'a>, Error> {
        self.check_theta(theta)?;
        Ok(Pass { ws, theta, starts })
    }

    pub(crate) fn check_theta(&self, theta: &[f32]) -> Result<(), Error> {
        let (found, expected) = (theta.len(), self.layout.total());
        if found == expected { Ok(()) } else { Err(Error::Theta { found, expected }) }
    }

    pub(crate) fn check_tokens(&self, tokens: &Tokens) -> Result<(), Error> {
        tokens.check(self.spec.vocab, self.spec.max_positions)
    }

    pub(crate) fn embedding(&self) -> Result<&Embedding, Error> {
        self.embedding.as_ref().ok_or_else(|| self.not_loaded("the embeddings".into()))
    }

    pub(crate) fn head(&self) -> Result<&Head, Error> {
        self.head.as_ref().ok_or_else(|| self.not_loaded("the head".into()))
    }

    pub(crate) fn blocks(&self, layers: &Range<usize>) -> Result<&[Block], Error> {
        let first = self.layers.start;
        let inside = layers.start >= first && layers.end <= self.layers.end && layers.start <= layers.end;
        if !inside {
            return Err(self.not_loaded(format!("the blocks {layers:?}")));
        }
        Ok(&self.blocks[layers.start - first..layers.end - first])
    }

    pub(crate) fn block(&self, layer: usize) -> Result<&Block, Error> {
        let index = layer.checked_sub(self.layers.start);
        let block = index.and_then(|index| self.blocks.get(index));
        block.ok_or_else(|| self.not_loaded(format!("block {layer}")))
    }

    fn not_loaded(&self, asked: String) -> Error {
        Error::NotLoaded { held: self.layers.clone(), asked }
    }
}
