#![allow(unsafe_code, reason = "the environment is changed before there is a second thread")]

use std::process::ExitCode;

fn main() -> ExitCode {
    // SAFETY: nothing has run yet, so no other thread reads the environment.
    unsafe { std::env::set_var(cinelex::model::NO_REPORTS, "1") };
    cinelex::cli::main()
}
