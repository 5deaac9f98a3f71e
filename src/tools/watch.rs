//! What the one who waits sees, and how he stops it: a progress bar on a terminal or plain lines,
//! and signals.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// The progress, and the signals that have come.
#[derive(Debug)]
pub struct Watch {
    bar: ProgressBar,
    started: Instant,
    signals: Arc<AtomicU32>,
}

impl Watch {
    /// Takes SIGINT and SIGTERM over from the system.
    pub fn new() -> Result<Watch, ctrlc::Error> {
        let signals = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&signals);
        ctrlc::set_handler(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        })?;
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {prefix}  {msg}") {
            bar.set_style(style);
        }
        Ok(Watch { bar, started: Instant::now(), signals })
    }

    /// Begins to count a run of this length.
    pub fn begin(&mut self, time: Duration) {
        self.begin_to_count(time.as_secs(), "s");
    }

    /// Begins to count up to `count` of something.
    pub fn begin_to_count(&mut self, count: u64, what: &'static str) {
        self.started = Instant::now();
        self.bar.set_length(count);
        self.bar.set_prefix(what);
    }

    /// Since it began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// True if the run is to end early.
    pub fn asked_to_stop(&self) -> bool {
        self.signals.load(Ordering::Relaxed) > 0
    }

    /// True if a second signal has come: no time is left for a verdict.
    pub fn in_a_hurry(&self) -> bool {
        self.signals.load(Ordering::Relaxed) > 1
    }

    /// Shows how far it is.
    pub fn show(&self, operations: u64, doing: &str) {
        self.show_at(self.elapsed().as_secs(), format!("{operations} operations  {doing}"));
    }

    /// Shows that it has come to this point.
    pub fn show_at(&self, position: u64, message: String) {
        self.bar.set_position(position);
        self.bar.set_message(message);
    }

    /// A line that stays.
    pub fn say(&self, line: &str) {
        let line = format!("{:7.1} s  {line}", self.elapsed().as_secs_f64());
        self.bar.suspend(|| eprintln!("{line}"));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
