//! The thread that a node's jobs run on, one after another.

use crate::clock::Clock;
use crate::host::Mail;
use base::{Cost, Time};
use federation::{JobId, Outcome, Task};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::thread;

/// A job that has run.
pub struct Ran {
    pub job: JobId,
    pub label: &'static str,
    pub cost: Cost,
    pub begin: Time,
    pub outcome: Outcome,
}

/// Waits until this machine may work. It may take as long as it likes.
pub type Leave = Box<dyn FnMut() + Send>;

/// The way to the thread. It ends when this is dropped, after the job it is at.
pub struct Bench {
    tasks: Sender<Task>,
}

impl Bench {
    /// Start the thread; what it has done goes to `done`.
    pub fn start(clock: Clock, mut leave: Leave, done: Sender<Mail>) -> io::Result<Bench> {
        let (tasks, work) = channel::<Task>();
        let life = move || {
            for Task { id: job, label, cost, work } in work {
                leave();
                let begin = clock.now();
                let mail = match catch_unwind(AssertUnwindSafe(work)) {
                    Ok(outcome) => Mail::Ran(Ran { job, label, cost, begin, outcome }),
                    Err(panic) => Mail::Panicked(format!("the job {label:?} panicked: {}", text(&*panic))),
                };
                if done.send(mail).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("jobs".to_owned()).spawn(life)?;
        Ok(Bench { tasks })
    }

    /// Have a task run after those before it.
    pub fn take(&self, task: Task) {
        // The thread ends only when this end of the channel does.
        let _ = self.tasks.send(task);
    }
}

fn text(panic: &(dyn std::any::Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
