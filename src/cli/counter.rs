//! A bar for work that is counted: how far, how fast, how long still. On standard error, and only
//! where that is a terminal.

use std::cell::Cell;

use indicatif::{ProgressBar, ProgressStyle};

#[derive(Debug)]
pub struct Counter {
    bar: ProgressBar,
    what: Cell<&'static str>,
}

impl Counter {
    pub fn new() -> Self {
        let style = ProgressStyle::with_template(
            "{msg:10} {bar:30} {percent:>3}% {pos} of {len}, {per_sec}, {eta} left",
        )
        .unwrap_or_else(|_| ProgressStyle::default_bar());
        Counter { bar: ProgressBar::new(0).with_style(style), what: Cell::new("") }
    }

    /// `done` of `of` things of this kind; another kind begins a new count.
    pub fn show(&self, what: &'static str, done: usize, of: usize) {
        if self.what.replace(what) != what {
            self.bar.reset();
            self.bar.set_message(what);
        }
        self.bar.set_length(of as u64);
        self.bar.set_position(done as u64);
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
