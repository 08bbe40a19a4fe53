use super::print;
use crate::errors::{Exit, Outcome};
use crate::site::{Site, files};
use base::Node;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Revoke {
    /// The folder of a served run, as given to `serve --state`
    state: PathBuf,
    /// The device's number
    node: u32,
}

impl Revoke {
    /// The server sees it within a second, refuses the device from then on, and no round waits for it.
    pub fn run(self) -> Outcome {
        let (site, _) = Site::existing(&self.state)?;
        let count = site.registry()?.revoke(Node(self.node)).map_err(files)?;
        print(format_args!("{}: {count} certificates and tokens revoked\n", Node(self.node)));
        Ok(Exit::Completed)
    }
}
