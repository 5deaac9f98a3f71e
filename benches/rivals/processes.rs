//! Servers that were started here: each with a log and an end.
//!
//! None outlives its value, also if the bench panics or is asked to stop. They are process groups
//! of their own, so that Ctrl-C in a terminal reaches the bench alone. (If the bench itself is
//! killed by `kill -9`, they stay.)

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long servers may take until they serve.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks.
const RETRY: Duration = Duration::from_millis(20);
/// The last lines of a log that a complaint shows.
const LOG_LINES_SHOWN: usize = 10;

static STOP: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT and SIGTERM only ask to stop.
pub fn handle_signals() -> Result<(), String> {
    ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed)).map_err(|error| error.to_string())
}

/// True once a signal has come.
pub fn asked_to_stop() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// A server's process.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts it, with its log in `dir`, and does not wait until it is of any use.
    pub fn start(name: &str, mut command: Command, dir: &Path) -> Result<Process, String> {
        let log = dir.join(format!("{name}.log"));
        let trouble = |error: io::Error| format!("cannot start {name}: {error}");
        let output = File::create(&log).map_err(trouble)?;
        let errors = output.try_clone().map_err(trouble)?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
        own_settings_only(&mut command);
        let child = command.spawn().map_err(trouble)?;
        Ok(Process { name: name.into(), log, child })
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// A complaint if it has ended by itself.
    pub fn check(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(format!("{} has ended: {status}{}", self.name, self.tail())),
            Err(error) => Err(format!("{}: {error}", self.name)),
        }
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        shown.iter().map(|line| format!("\n    {line}")).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is set for the caller's own nodes is not meant for those that are started here.
pub fn own_settings_only(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("NODESYNC_") || text.starts_with("ETCD_") {
            command.env_remove(name);
        }
    }
}

/// Asks until the answer is good. Gives up if a process ends, a signal comes, or time is up.
pub fn until<T>(
    processes: &mut [Process],
    mut attempt: impl FnMut() -> Result<T, String>,
) -> Result<T, String> {
    let started = Instant::now();
    loop {
        let error = match attempt() {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        processes.iter_mut().try_for_each(Process::check)?;
        if asked_to_stop() {
            return Err("asked to stop".into());
        }
        if started.elapsed() > READY_LIMIT {
            let logs: String = processes.iter().map(Process::tail).collect();
            return Err(format!("not ready: {error}{logs}"));
        }
        thread::sleep(RETRY);
    }
}
