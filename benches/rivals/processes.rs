//! Processes of servers, each with a log of its own.
//!
//! No process outlives its value, also if the bench panics or is asked to stop. Each is a process
//! group of its own, so that Ctrl-C in a terminal reaches the bench alone. (They stay if `kill -9`
//! ends the bench.)

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Time within which servers must be ready.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two attempts.
const RETRY: Duration = Duration::from_millis(20);
/// Number of log lines that an error message shows.
const LOG_LINES_SHOWN: usize = 10;

static STOP: AtomicBool = AtomicBool::new(false);

/// Makes SIGINT and SIGTERM request a stop, instead of ending the process.
pub fn handle_signals() -> Result<(), String> {
    ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed)).map_err(|error| error.to_string())
}

/// True once a signal has arrived.
pub fn asked_to_stop() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Process of a server.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts the server, with its log in `dir`, without waiting until it serves.
    pub fn start(name: &str, mut command: Command, dir: &Path) -> Result<Process, String> {
        let log = dir.join(format!("{name}.log"));
        let trouble = |error: io::Error| format!("cannot start {name}: {error}");
        let output = File::create(&log).map_err(trouble)?;
        let errors = output.try_clone().map_err(trouble)?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
        remove_settings(&mut command);
        let child = command.spawn().map_err(trouble)?;
        Ok(Process { name: name.into(), log, child })
    }

    /// Log so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Fails if the process has ended by itself.
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

/// Removes the variables that configure the caller's own nodes from a command's environment.
pub fn remove_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("NODESYNC_") || text.starts_with("ETCD_") {
            command.env_remove(name);
        }
    }
}

/// Repeats `attempt` until it succeeds. Fails if a process ends, a signal arrives, or the time is
/// up.
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
