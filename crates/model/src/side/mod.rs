//! The side network of additive side-tuning: trained beside a frozen backbone, from its states alone.
//!
//! The backbone's hidden states come in through *taps*, one a tapped layer; nothing goes back into the
//! backbone, so no gradient ever does either. What comes out is added to the backbone's own output.
//!
//! Both [`Form`]s are position-wise: a row of the output depends on the same row of the taps and on no
//! other. So training on the pivot rows alone equals training on every row and reading the loss at the
//! pivot, exactly, and one row a sample is all that has to leave a device.
//!
//! Each tap is brought to mean 0 and variance 1 first, row by row: layers differ in scale, and the
//! adapters' GELU is bent near 1 only. (The papers do not say; without it a cascade learned next to
//! nothing beside a trained head.)
//!
//! As elsewhere, parameters are one flat `theta`, laid out by [`SideNetwork::sites`].
//!
//! Source: PAE MobiLLM (arXiv 2507.01216), Eq. 1 and 2; the width projections are Fed MobiLLM's
//! (arXiv 2508.06765).

mod cascade;
mod file;
mod joint;
mod mlp;
mod peak;
mod readout;
mod squared;
mod tap;

pub use file::{AddedTo, CONFIG_FILE, Reads, SideCard, WEIGHTS_FILE, load, save};
pub use joint::{Beside, joint};
pub use squared::{squared_loss, squared_loss_backward};
pub use tap::{Pivot, Tapped, even_layers, tap, vocabulary_logits};

use crate::Error;
use base::Seed;
use ops::{Mat, Workspace, dense, norm};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Of the norm of the taps.
const EPS: f32 = 1e-5;

/// The largest size a configuration may name: products of two stay far from overflow.
const MOST: usize = 1 << 20;

/// How a side network is built.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SideConfig {
    pub form: Form,
    /// Tapped layers.
    pub taps: usize,
    /// The width that its adapters work at.
    pub width: usize,
    /// Classes, or the vocabulary.
    pub outputs: usize,
    /// The backbones that feed it, in the order of their numbers.
    pub backbones: Vec<Width>,
}

/// What stands between the taps and the head.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "kebab-case")]
pub enum Form {
    /// One bottleneck adapter of rank `r` a tap, cascaded, with a learned gate between tap and state.
    Cascade { r: usize },
    /// One hidden layer over all taps together.
    Mlp { hidden: usize },
}

/// How a backbone's states reach the side network's width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Width {
    /// As they are.
    Own,
    /// Through a trained projection from this width.
    Projected(usize),
}

/// A parameter: a row-major `rows` x `cols` matrix at `offset` of `theta`.
#[derive(Clone, Debug, PartialEq)]
pub struct SideSite {
    /// Its name in the file.
    pub name: String,
    pub rows: usize,
    pub cols: usize,
    pub offset: usize,
    start: Start,
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Start {
    Zero,
    One,
    /// Normal with variance `1 / cols`.
    Normal,
}

impl SideSite {
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.rows * self.cols
    }
}

/// A side network's shape. Its parameters are the `theta` that every computation takes.
#[derive(Clone, Debug)]
pub struct SideNetwork {
    config: SideConfig,
    sites: Vec<SideSite>,
    projections: Vec<Option<Range<usize>>>,
    body: Body,
    readout: readout::Readout,
    /// The weight and bias of the norm of the taps.
    ones: Vec<f32>,
    zeros: Vec<f32>,
}

#[derive(Clone, Debug)]
enum Body {
    Cascade(cascade::Cascade),
    Mlp(mlp::Mlp),
}

/// What [`SideNetwork::backward`] reads of a forward pass.
#[derive(Debug)]
pub struct Trail {
    /// The taps at the side network's width, where a projection brought them there.
    projected: Option<Vec<Mat>>,
    /// The taps as the body reads them.
    normed: Vec<Mat>,
    body: BodyTrail,
    state: Mat,
}

#[derive(Debug)]
enum BodyTrail {
    Cascade(cascade::Trail),
    Mlp(mlp::Trail),
}

/// Collects sites while a network is laid out.
#[derive(Default)]
struct Sites(Vec<SideSite>);

impl Sites {
    fn add(&mut self, name: impl Into<String>, (rows, cols): (usize, usize), start: Start) -> Range<usize> {
        let offset = self.0.last().map_or(0, |site| site.range().end);
        self.0.push(SideSite { name: name.into(), rows, cols, offset, start });
        offset..offset + rows * cols
    }
}

impl SideConfig {
    /// Refuse what is no network.
    pub fn check(&self) -> Result<(), String> {
        let size = match self.form {
            Form::Cascade { r } => ("the rank r", r),
            Form::Mlp { hidden } => ("the hidden width", hidden),
        };
        let sizes = [size, ("taps", self.taps), ("width", self.width), ("outputs", self.outputs)];
        let backbones = ("the number of backbones", self.backbones.len());
        let projected = self.backbones.iter().filter_map(|width| match width {
            Width::Own => None,
            Width::Projected(width) => Some(("a backbone's width", *width)),
        });
        let mut all = sizes.into_iter().chain([backbones]).chain(projected);
        match all.find(|(_, size)| !(1..=MOST).contains(size)) {
            Some((name, size)) => {
                Err(format!("{name} of a side network is {size}; it must be in 1..={MOST}"))
            }
            None => Ok(()),
        }
    }

    /// The width of the taps of a backbone.
    pub fn tap_width(&self, backbone: usize) -> Option<usize> {
        self.backbones.get(backbone).map(|width| match *width {
            Width::Own => self.width,
            Width::Projected(width) => width,
        })
    }
}

impl SideNetwork {
    /// # Errors
    /// A sentence, when a size is 0.
    pub fn new(config: SideConfig) -> Result<SideNetwork, String> {
        config.check()?;
        let mut sites = Sites::default();
        let mut project = |(backbone, width): (usize, &Width)| match *width {
            Width::Own => None,
            Width::Projected(from) => {
                let name = format!("backbones.{backbone}.projection.weight");
                Some(sites.add(name, (config.width, from), Start::Normal))
            }
        };
        let projections = config.backbones.iter().enumerate().map(&mut project).collect();
        let body = match config.form {
            Form::Cascade { r } => Body::Cascade(cascade::Cascade::new(&config, r, &mut sites)),
            Form::Mlp { hidden } => Body::Mlp(mlp::Mlp::new(&config, hidden, &mut sites)),
        };
        let state_width = match config.form {
            Form::Cascade { .. } => config.width,
            Form::Mlp { hidden } => hidden,
        };
        let readout = readout::Readout::new(state_width, config.outputs, &mut sites);
        let (ones, zeros) = (vec![1.0; config.width], vec![0.0; config.width]);
        Ok(SideNetwork { config, sites: sites.0, projections, body, readout, ones, zeros })
    }

    pub fn config(&self) -> &SideConfig {
        &self.config
    }

    /// In the order of `theta`.
    pub fn sites(&self) -> &[SideSite] {
        &self.sites
    }

    /// The length of `theta`.
    pub fn total(&self) -> usize {
        self.sites.last().map_or(0, |site| site.range().end)
    }

    /// The parameters training starts from. The head is zero, so that the first output is: added to
    /// the backbone's it changes nothing.
    pub fn initial(&self, seed: Seed) -> Vec<f32> {
        let mut theta = vec![0.0; self.total()];
        for site in &self.sites {
            let values = &mut theta[site.range()];
            match site.start {
                Start::Zero => {}
                Start::One => values.fill(1.0),
                Start::Normal => {
                    let mut stream = seed.child(&site.name, 0).stream();
                    let deviation = 1.0 / (site.cols as f64).sqrt();
                    values.fill_with(|| (deviation * stream.normal()) as f32);
                }
            }
        }
        theta
    }

    /// rows x outputs, from one rows x width matrix a tap.
    pub fn forward(
        &self,
        ws: &Workspace,
        theta: &[f32],
        backbone: usize,
        taps: &[Mat],
    ) -> Result<Mat, Error> {
        Ok(self.forward_for_backward(ws, theta, backbone, taps)?.0)
    }

    /// [`SideNetwork::forward`], with what [`SideNetwork::backward`] reads.
    pub fn forward_for_backward(
        &self,
        ws: &Workspace,
        theta: &[f32],
        backbone: usize,
        taps: &[Mat],
    ) -> Result<(Mat, Trail), Error> {
        self.check(theta, backbone, taps)?;
        let projected = self.project(ws, theta, backbone, taps)?;
        let norm = |tap: &Mat| norm::layer(ws, tap, &self.ones, &self.zeros, EPS);
        let inputs = projected.as_deref().unwrap_or(taps);
        let normed = inputs.iter().map(norm).collect::<ops::Result<Vec<Mat>>>()?;
        let (state, body) = match &self.body {
            Body::Cascade(cascade) => {
                let (state, trail) = cascade.forward(ws, theta, &normed)?;
                (state, BodyTrail::Cascade(trail))
            }
            Body::Mlp(mlp) => {
                let (state, trail) = mlp.forward(ws, theta, &normed)?;
                (state, BodyTrail::Mlp(trail))
            }
        };
        let output = self.readout.forward(ws, theta, &state)?;
        Ok((output, Trail { projected, normed, body, state }))
    }

    /// Accumulates into `grad` the gradient of every parameter, from that of the output.
    pub fn backward(
        &self,
        ws: &Workspace,
        theta: &[f32],
        backbone: usize,
        taps: &[Mat],
        (trail, dy): (Trail, &Mat),
        grad: &mut [f32],
    ) -> Result<(), Error> {
        self.check(theta, backbone, taps)?;
        self.check_length(grad)?;
        let Trail { projected, normed, body, state } = trail;
        let dstate = self.readout.backward(ws, theta, &state, dy, grad)?;
        let wanted = projected.is_some();
        let dnormed = match (&self.body, body) {
            (Body::Cascade(cascade), BodyTrail::Cascade(trail)) => {
                cascade.backward(ws, theta, &normed, (trail, dstate), wanted, grad)?
            }
            (Body::Mlp(mlp), BodyTrail::Mlp(trail)) => {
                mlp.backward(ws, theta, &normed, (trail, dstate), wanted, grad)?
            }
            _ => return Err(Error::Batch("the trail is another side network's".into())),
        };
        if let (Some(range), Some(projected)) = (&self.projections[backbone], &projected) {
            for ((tap, input), dnormed) in taps.iter().zip(projected).zip(&dnormed) {
                let dinput = norm::layer_backward(ws, input, dnormed, &self.ones, EPS, None)?;
                dense::backward_weight(ws, tap, &dinput, &mut grad[range.clone()])?;
            }
        }
        Ok(())
    }

    fn project(
        &self,
        ws: &Workspace,
        theta: &[f32],
        backbone: usize,
        taps: &[Mat],
    ) -> Result<Option<Vec<Mat>>, Error> {
        let Some(range) = &self.projections[backbone] else { return Ok(None) };
        let weight = &theta[range.clone()];
        let project = |tap: &Mat| dense::forward(ws, tap, weight, None, self.config.width);
        Ok(Some(taps.iter().map(project).collect::<ops::Result<_>>()?))
    }

    fn check(&self, theta: &[f32], backbone: usize, taps: &[Mat]) -> Result<(), Error> {
        self.check_length(theta)?;
        let Some(width) = self.config.tap_width(backbone) else {
            let known = self.config.backbones.len();
            return Err(Error::Batch(format!("backbone {backbone} of a side network for {known}")));
        };
        let rows = taps.first().map_or(0, Mat::rows);
        let fits = |tap: &Mat| tap.width() == width && tap.rows() == rows;
        if taps.len() == self.config.taps && taps.iter().all(fits) {
            return Ok(());
        }
        let found: Vec<(usize, usize)> = taps.iter().map(|tap| (tap.rows(), tap.width())).collect();
        let taps = self.config.taps;
        Err(Error::Batch(format!("the side network reads {taps} taps of width {width}, not {found:?}")))
    }

    fn check_length(&self, theta: &[f32]) -> Result<(), Error> {
        let (found, expected) = (theta.len(), self.total());
        if found == expected { Ok(()) } else { Err(Error::Theta { found, expected }) }
    }
}
