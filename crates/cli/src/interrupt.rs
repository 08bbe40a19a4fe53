//! Ctrl-C: the first asks for a checkpoint, the second ends the process at once.

use crate::errors::Exit;
use std::sync::atomic::{AtomicBool, Ordering};

static WANTED: AtomicBool = AtomicBool::new(false);

/// Listen from now on. Drivers read the flag between inputs.
pub fn listen() -> &'static AtomicBool {
    let handler = || {
        if WANTED.swap(true, Ordering::SeqCst) {
            std::process::exit(Exit::Interrupted as i32);
        }
        eprintln!("\ninterrupted: writing a checkpoint (Ctrl-C again to stop without one)");
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        eprintln!("note: Ctrl-C cannot be caught here ({error}); a stopped run will not be resumable");
    }
    &WANTED
}
