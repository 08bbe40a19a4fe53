use super::print;
use crate::errors::{Exit, Outcome};
use clap::Args;
use methods::METHODS;

#[derive(Debug, Args)]
pub struct Methods {}

impl Methods {
    pub fn run(self) -> Outcome {
        print("| `method.name` | from | device does | server does |\n|---|---|---|---|\n");
        for entry in METHODS {
            let (name, source, device, server) = (entry.name, entry.source, entry.device, entry.server);
            print(format_args!("| `{name}` | {source} | {device} | {server} |\n"));
        }
        Ok(Exit::Completed)
    }
}
