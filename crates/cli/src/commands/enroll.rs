use super::print;
use crate::errors::{Exit, Failure, Outcome};
use crate::site::{Site, files};
use base::Node;
use clap::Args;
use net::protocol::Role;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Enroll {
    /// The folder of a served run, as given to `serve --state`
    state: PathBuf,
    /// The device's number [default: the first that is free]
    #[arg(long, value_name = "N", conflicts_with = "operator")]
    node: Option<u32>,
    /// A token for somebody who looks on (`undertone status https://...`) and takes no part
    #[arg(long)]
    operator: bool,
    /// Hours until the token expires
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    hours: u32,
}

impl Enroll {
    pub fn run(self) -> Outcome {
        let (site, scenario) = Site::existing(&self.state)?;
        let (registry, authority) = (site.registry()?, site.authority()?);
        let devices = scenario.fleet.devices;
        let (node, role) = match (self.operator, self.node) {
            (true, _) => (0, Role::Operator),
            (false, Some(node)) => (node, Role::Device),
            (false, None) => {
                let taken = registry.taken().map_err(files)?;
                let free = (1..=devices).find(|node| !taken.contains(&Node(*node)));
                let full = || Failure::new(Exit::Usage, format!("all {devices} devices have a token"));
                (free.ok_or_else(full)?, Role::Device)
            }
        };
        if role == Role::Device && (node == 0 || node > devices) {
            let what = format!("the scenario has devices 1 to {devices}, and no device {node}");
            return Err(Failure::new(Exit::Usage, what));
        }
        let lifetime_s = u64::from(self.hours) * 3600;
        let token = registry.issue(Node(node), role, lifetime_s, authority.certificate()).map_err(files)?;
        print(format_args!("{token}\n"));
        Ok(Exit::Completed)
    }
}
