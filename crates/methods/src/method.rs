//! What a method gives to be listed, and the one place where its types are erased.

use crate::side::cache::Cache;
use crate::{Lab, Workload};
use base::{Blob, CodecError, Cost, Node, Packet, SERVER, Seed};
use federation::coordinator::side_of;
use federation::{Coordinator, Federation, Machine, Member, Plan, Side, Worker};
use model::{LoadError, Lower, Task};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::sync::Arc;

/// Both halves of a method. The bounds make them speak one vocabulary, checked by the compiler.
pub trait Method: Sized + Send + Sync + 'static {
    const NAME: &'static str;
    /// The paper or tradition it comes from.
    const SOURCE: &'static str;
    /// What a device does, in a few words.
    const DEVICE: &'static str;
    /// What the server does, in a few words.
    const SERVER: &'static str;
    /// Whether it trains a model on data; a method without tensors needs neither.
    const TRAINS: bool = true;
    /// Whether devices take part at all.
    const FEDERATED: bool = true;
    /// Whether devices may have different models.
    const MIXES_BACKBONES: bool = false;
    /// Whether it can learn a number.
    const REGRESSES: bool = false;

    /// The keys of `[method]` beside `name`. Unknown ones are refused by serde.
    type Options: Serialize + DeserializeOwned + Default;
    type Device: Side;
    type Server: Side<In = <Self::Device as Side>::Out, Out = <Self::Device as Side>::In>;

    fn new(options: Self::Options, setup: &Setup) -> Result<Self, SetupError>;
    /// A fresh device half and what its jobs may touch.
    fn device(&self, node: Node) -> (Self::Device, Arc<<Self::Device as Side>::Bench>);
    /// A fresh server half and what its jobs may touch.
    fn server(&self) -> (Self::Server, Arc<<Self::Server as Side>::Bench>);
    /// What one round asks of a device, by arithmetic alone.
    fn quote(&self, node: Node) -> Quote;
    /// On which terms a device begins, in a few words, for a method that has some to agree on.
    fn terms(&self, _node: Node) -> Option<String> {
        None
    }
    /// What a reader of the run's reports must know of it, such as what its messages disclose.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
    /// What the server holds between jobs, for a method whose point that is.
    fn server_quote(&self) -> Option<ServerQuote> {
        None
    }
    /// The trained parameters, little-endian f32.
    fn trained(server: Self::Server) -> Blob;
    /// How they are written into a run's directory, where they are no adapter of the model.
    fn saver(&self) -> Option<Saver> {
        None
    }
}

/// Everything a federation is made of, resolved from a scenario.
pub struct Setup {
    pub server: Member,
    /// In node order, from node 1.
    pub devices: Vec<Member>,
    pub plan: Plan,
    pub seed: Seed,
    /// `[method]` without its `name`.
    pub options: toml::Table,
    /// Present where [`Method::TRAINS`].
    pub work: Option<Workload>,
    pub keep: Keep,
}

/// What a method keeps between jobs, in memory until a directory is given, and to itself.
#[derive(Clone, Default)]
pub struct Keep {
    /// Activations that devices sent.
    pub cache: Arc<Cache>,
    /// Everything that devices sent, as the server saw it; for audits.
    pub traffic: Option<Arc<Cache>>,
    pub draws: Draws,
}

/// Where the draws come from that hide something of a device: who knows that can undo them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Draws {
    /// The run's seed: a simulation can be repeated, and hides nothing from who runs it.
    #[default]
    Run,
    /// What only this device knows.
    Own(Seed),
    /// What only the devices know; this is their server.
    Theirs,
}

impl Keep {
    /// With a record of the traffic.
    pub fn recording() -> Keep {
        Keep { traffic: Some(Arc::default()), ..Keep::default() }
    }

    /// Forget everything that a device sent.
    pub fn erase(&self, node: Node) -> std::io::Result<()> {
        self.traffic.iter().try_for_each(|traffic| traffic.erase(node))?;
        self.cache.erase(node)
    }

    /// Keep it under a run's directory from now on. What an earlier process kept there is there.
    pub fn settle(&self, run: &Path) {
        self.cache.settle(&run.join("cache"));
        if let Some(traffic) = &self.traffic {
            traffic.settle(&run.join("traffic"));
        }
    }
}

/// What one round asks of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quote {
    /// Operations of the round and the peak of its largest job.
    pub cost: Cost,
    /// Bytes the device holds between jobs: the model and what the method keeps.
    pub resident_bytes: u64,
    pub up_bytes: u64,
    pub down_bytes: u64,
    /// What its process needs of the model, where that is not all of it.
    pub lower: Option<Lower>,
}

/// What the server holds between jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerQuote {
    /// Models, or upper parts of one.
    pub models: u32,
    pub model_bytes: u64,
    /// Adapters with their optimisers, of all devices together.
    pub adapter_bytes: u64,
}

/// Writes trained parameters into a directory, with the class names.
pub type Saver = Box<dyn Fn(&Path, &Blob, &[String]) -> Result<(), LoadError> + Send + Sync>;

/// A federation ready for a driver, and how to read its result.
pub struct Assembly {
    pub federation: Federation,
    /// The trained parameters in the server's final snapshot.
    pub trained: fn(&Packet) -> Result<Blob, CodecError>,
    /// One a device, in node order.
    pub quotes: Vec<Quote>,
    /// One a device, in node order: [`Method::terms`].
    pub terms: Vec<Option<String>>,
    pub server_quote: Option<ServerQuote>,
    /// [`Method::notes`].
    pub notes: Vec<String>,
    /// Present where the result is no adapter of the model.
    pub saver: Option<Saver>,
}

/// The scenario asks for something this method cannot do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SetupError(pub String);

impl Setup {
    /// What jobs of a training method may touch.
    pub fn lab(&self) -> Result<Arc<Lab>, SetupError> {
        let work = self.work.clone();
        let work = work.ok_or_else(|| {
            SetupError("this method trains a model: [model] and [data] are missing".into())
        })?;
        Ok(Arc::new(Lab { work, seed: self.seed, rounds: self.plan.rounds }))
    }
}

/// A method as a row of [`METHODS`](crate::METHODS).
pub struct Entry {
    pub name: &'static str,
    pub source: &'static str,
    pub device: &'static str,
    pub server: &'static str,
    pub trains: bool,
    pub federated: bool,
    /// Read `[method]` alone, so that a typing error is found before any data is.
    pub check: fn(&toml::Table) -> Result<(), toml::de::Error>,
    pub assemble: fn(Setup) -> Result<Assembly, SetupError>,
}

impl Entry {
    /// The row of a method.
    pub const fn of<M: Method>() -> Entry {
        Entry {
            name: M::NAME,
            source: M::SOURCE,
            device: M::DEVICE,
            server: M::SERVER,
            trains: M::TRAINS,
            federated: M::FEDERATED,
            check: |options| options.clone().try_into::<M::Options>().map(drop),
            assemble: assemble::<M>,
        }
    }
}

/// Refuse what only some methods can do.
fn refuse_other_work<M: Method>(work: &Workload) -> Result<(), SetupError> {
    if !M::MIXES_BACKBONES && !work.others.is_empty() {
        let reason = "all its devices train one model: model.by_class is for side-tuning";
        return Err(SetupError(reason.into()));
    }
    if !M::REGRESSES && matches!(work.model.task, Task::Regression { .. }) {
        let reason = "it learns classes or next tokens: model.task = \"regression\" is for side-tuning";
        return Err(SetupError(reason.into()));
    }
    Ok(())
}

fn assemble<M: Method>(mut setup: Setup) -> Result<Assembly, SetupError> {
    if !M::FEDERATED {
        setup.devices.clear();
        setup.plan.devices_expected = 0;
    }
    let options: M::Options = setup
        .options
        .clone()
        .try_into()
        .map_err(|error: toml::de::Error| SetupError(error.message().into()))?;
    setup.work.as_ref().map_or(Ok(()), refuse_other_work::<M>)?;
    let method = M::new(options, &setup)?;
    let saver = method.saver();
    let quotes = setup.devices.iter().map(|member| method.quote(member.node)).collect();
    let terms = setup.devices.iter().map(|member| method.terms(member.node)).collect();
    let (server_quote, notes) = (method.server_quote(), method.notes());
    let Setup { server, devices, plan, seed, .. } = setup;
    let members = devices.clone();
    let build = move |node: Node| -> Box<dyn Machine> {
        if node == SERVER {
            let (side, bench) = method.server();
            return Box::new(
                Coordinator::new(side, bench, plan.clone(), seed.child("coordinator", 0)).speaking(M::NAME),
            );
        }
        let (side, bench) = method.device(node);
        Box::new(Worker::new(members[node.0 as usize - 1].clone(), side, bench).speaking(M::NAME))
    };
    Ok(Assembly {
        federation: Federation { server, devices, build: Box::new(build) },
        trained: |snapshot| side_of::<M::Server>(snapshot).map(M::trained),
        quotes,
        terms,
        server_quote,
        notes,
        saver,
    })
}
