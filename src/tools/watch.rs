//! The tool's terminal: a progress bar or plain lines, and the signals that stop a run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// The progress bar of a run, and the signals received so far.
#[derive(Debug)]
pub struct Watch {
    bar: ProgressBar,
    started: Instant,
    signals: Arc<AtomicU32>,
}

impl Watch {
    /// Installs a handler that counts SIGINT and SIGTERM.
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

    /// Starts the bar of a run of this length.
    pub fn begin(&mut self, time: Duration) {
        self.begin_to_count(time.as_secs(), "s");
    }

    /// Starts a bar that counts up to `count` of some unit.
    pub fn begin_to_count(&mut self, count: u64, unit: &'static str) {
        self.started = Instant::now();
        self.bar.set_length(count);
        self.bar.set_prefix(unit);
    }

    /// Time since the bar was started.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// True after the first signal: the run must end early.
    pub fn must_stop(&self) -> bool {
        self.signals.load(Ordering::Relaxed) > 0
    }

    /// True after the second signal: the tool must end at once, without a verdict.
    pub fn must_abort(&self) -> bool {
        self.signals.load(Ordering::Relaxed) > 1
    }

    /// Updates the bar to the elapsed time.
    pub fn show(&self, operations: u64, activity: &str) {
        self.show_at(self.elapsed().as_secs(), format!("{operations} operations  {activity}"));
    }

    /// Updates the bar to this position.
    pub fn show_at(&self, position: u64, message: String) {
        self.bar.set_position(position);
        self.bar.set_message(message);
    }

    /// Prints a line above the bar.
    pub fn print(&self, line: &str) {
        let line = format!("{:7.1} s  {line}", self.elapsed().as_secs_f64());
        self.bar.suspend(|| eprintln!("{line}"));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
