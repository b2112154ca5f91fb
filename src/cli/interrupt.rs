//! Ctrl-C: the first asks the run to finish what is in hand, the second ends the program.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::graph::Cancel;

/// Exit code of a batch that was interrupted.
const INTERRUPTED: i32 = 130;

/// A cancel flag that SIGINT, SIGTERM and SIGHUP set.
pub fn cancel_on_signal() -> Result<Cancel> {
    let cancel = Cancel::default();
    let flag = cancel.clone();
    let asked = AtomicBool::new(false);
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::AcqRel) {
            std::process::exit(INTERRUPTED);
        }
        super::note("\nStopping: what is finished is kept. Once more to stop at once.");
        flag.cancel();
    })
    .map_err(|cause| Error::internal("cannot listen for Ctrl-C").caused_by(cause))?;
    Ok(cancel)
}
