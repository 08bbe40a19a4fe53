//! What is still to happen, in virtual order.

use crate::pool::Ticket;
use base::{Cost, Node, Time};
use federation::{Input, JobId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Events by time, and at the same time by the order in which they were scheduled. That order is a
/// function of the run alone, because events are scheduled while earlier ones are handled, one at a
/// time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Agenda {
    events: BTreeMap<Ticket, Event>,
    next: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    pub node: Node,
    pub what: What,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum What {
    /// The node is told something.
    Input(Input),
    /// A job that began then is over. Its cost is the one agreed on when it began: after a rest, the
    /// bench is empty and the same job would be priced differently.
    Ends { job: JobId, begin: Time, cost: Cost },
    /// The node's process is killed, and stays dead this long.
    Kill { down_s: f64 },
    /// The node's process is started again.
    Restart,
}

impl Agenda {
    pub fn schedule(&mut self, at: Time, node: Node, what: What) -> Ticket {
        let ticket = (at, self.next);
        self.next += 1;
        self.events.insert(ticket, Event { node, what });
        ticket
    }

    /// Take the next event.
    pub fn pop(&mut self) -> Option<(Ticket, Event)> {
        self.events.pop_first()
    }

    /// It has not happened after all: keep it for later, in its place.
    pub fn put_back(&mut self, ticket: Ticket, event: Event) {
        self.events.insert(ticket, event);
    }

    /// It will not happen.
    pub fn cancel(&mut self, ticket: Ticket) {
        self.events.remove(&ticket);
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Ticket, &Event)> {
        self.events.iter()
    }
}
