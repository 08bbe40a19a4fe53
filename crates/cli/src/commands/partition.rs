use super::{ScenarioArgs, print};
use crate::errors::{Exit, Outcome, context};
use crate::prepare::{Holder, rows};
use crate::scenario::Scenario;
use crate::shard;
use crate::site::{Site, files};
use base::{Node, Seed};
use clap::Args;
use data::LabelKind;
use net::files::write_secret;
use net::protocol::Role;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Partition {
    #[command(flatten)]
    scenario: ScenarioArgs,
    /// Write `server/` and `device-1/`, `device-2/`, ... into this directory
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Hours until the tokens expire
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    hours: u32,
}

impl Partition {
    /// Each device's folder gets `data.jsonl`, the rows that `sim` would deal to it, and `token`.
    pub fn run(self) -> Outcome {
        let (scenario, _) = Scenario::read(&self.scenario.scenario, &self.scenario.sets)?;
        let site = Site::open(&self.out.join("server"), &scenario)?;
        let (authority, registry) = (site.authority()?, site.registry()?);
        let devices = scenario.fleet.devices;
        let federated = scenario.entry().federated;
        let data = scenario.data.as_ref().filter(|_| scenario.entry().trains && federated);
        let seed = Seed(scenario.run.seed);
        let kind = scenario.model.as_ref().map_or(LabelKind::Classes, |model| model.task.label_kind());
        let deal = |data| rows(Holder::Simulator, (data, kind), devices as usize, seed);
        let dealt = data.map(deal).transpose()?;
        for node in (1..=devices).take_while(|_| federated) {
            let folder = self.out.join(format!("device-{node}"));
            net::files::create_private(&folder).map_err(files)?;
            if let Some(rows) = &dealt {
                let lines = shard::lines(&rows.train, &rows.dealt[node as usize - 1]);
                std::fs::write(folder.join("data.jsonl"), lines)
                    .map_err(context(Exit::Files, folder.display()))?;
            }
            let token = registry
                .issue(Node(node), Role::Device, u64::from(self.hours) * 3600, authority.certificate())
                .map_err(files)?;
            write_secret(&folder.join("token"), format!("{token}\n").as_bytes()).map_err(files)?;
        }
        print(format_args!(
            "{devices} devices in {}\nserve them: undertone serve {} --state {}\n",
            self.out.display(),
            self.scenario.scenario.display(),
            site.folder.display()
        ));
        Ok(Exit::Completed)
    }
}
