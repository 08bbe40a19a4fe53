use super::print;
use crate::errors::{Exit, Failure, Outcome};
use crate::site::{self, files};
use base::{Node, units};
use clap::Args;
use net::board::{Board, Standing};
use net::device::channel::Url;
use net::device::{self, Patience};
use net::identity::Wallet;
use net::protocol::Token;
use report::Table;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct Show {
    /// The folder of a served run, a run, or the server as https://host:port
    run: String,
    /// Of a server: the one-time token from `undertone enroll --operator`; needed once
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// Of a server: where the operator's key is kept
    #[arg(long, value_name = "DIR", default_value = "undertone-operator")]
    state: PathBuf,
}

impl Show {
    pub fn run(self) -> Outcome {
        let (board, seen) = match Url::parse(&self.run) {
            Some(url) => self.ask(&url)?,
            None => (site::board(Path::new(&self.run))?, BTreeMap::new()),
        };
        print(format_args!("{}\n", board.headline()));
        print(table(&board, &seen));
        Ok(Exit::Completed)
    }

    fn ask(&self, url: &Url) -> Result<(Board, BTreeMap<Node, f64>), Failure> {
        let wallet = Wallet::open(&self.state).map_err(files)?;
        let failed = |error: &dyn std::fmt::Display| Failure::new(Exit::Failed, error);
        if let Some(token) = &self.token {
            let token = Token::parse(token).map_err(|error| Failure::new(Exit::Usage, error))?;
            device::enroll(&wallet, url, &token, Patience::default()).map_err(|error| failed(&error))?;
        }
        let Some(card) = wallet.card().map_err(files)? else {
            return Err(Failure::new(Exit::Usage, "this operator has not enrolled yet")
                .help("on the server: undertone enroll <state> --operator; here: --token ..."));
        };
        let identity = wallet.identity(card).map_err(files)?;
        let report = device::status(&identity, url, Patience::default()).map_err(|error| failed(&error))?;
        Ok((report.board, report.seen))
    }
}

/// One row a device.
fn table(board: &Board, seen: &BTreeMap<Node, f64>) -> String {
    let head = ["device", "class", "this round", "last trouble", "counted", "left out", "heard"];
    let mut table = Table::new(4, head);
    for (node, seat) in &board.seats {
        let standing = match &seat.standing {
            Standing::NotDrawn => "not drawn".to_owned(),
            Standing::Awaited => "awaited".to_owned(),
            Standing::Counted => "counted".to_owned(),
            Standing::LeftOut(reason) => format!("left out: {reason}"),
        };
        let heard = seen.get(node).map_or("-".to_owned(), |ago| format!("{} ago", units::seconds(*ago)));
        let trouble = seat.trouble.as_ref().map_or("-", |trouble| &trouble.what);
        let (counted, lost) = (seat.counted.to_string(), seat.lost.to_string());
        let words = [node.to_string(), seat.class.clone(), standing, trouble.to_owned()];
        table.row([words.as_slice(), &[counted, lost, heard]].concat());
    }
    table.to_string()
}
