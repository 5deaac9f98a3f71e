//! Nodes of a temporary cluster: processes of this program, each with a reserved port, a directory
//! and a log.
//!
//! A process does not outlive its [`NodeProcess`]: dropping the value kills it, also in a panic.
//! Each process has a group of its own, so that Ctrl-C in a terminal reaches the tool alone. (After
//! `kill -9` of the tool itself its nodes stay.)

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::tools::Port;

/// Number of the last lines of a log that a report shows.
const LOG_LINES_SHOWN: usize = 15;
/// Time between two checks of a stopping node.
const POLL: Duration = Duration::from_millis(10);

/// A member of a temporary cluster: its files, and its process while it runs.
#[derive(Debug)]
pub struct NodeProcess {
    /// Its port, which is also its id.
    pub port: u16,
    /// Its data directory.
    pub dir: PathBuf,
    log: PathBuf,
    peers: Vec<String>,
    flags: Vec<String>,
    password: Option<String>,
    child: Option<Child>,
    _hold: Port,
}

impl NodeProcess {
    /// A node that is not started yet, with its data directory and its log in `dir`.
    pub fn new(
        port: Port,
        dir: &Path,
        peers: Vec<String>,
        flags: &[String],
        password: Option<&str>,
    ) -> NodeProcess {
        NodeProcess {
            port: port.number,
            dir: dir.join(port.number.to_string()),
            log: dir.join(format!("{}.log", port.number)),
            peers,
            flags: flags.to_vec(),
            password: password.map(Into::into),
            child: None,
            _hold: port,
        }
    }

    /// Starts the process, without waiting until it serves.
    pub fn start(&mut self) -> io::Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(self.port.to_string()).args(&self.peers);
        command.arg("--dir").arg(&self.dir).args(&self.flags);
        // Settings in the environment are for the tool, not for its nodes.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("NODESYNC_") {
                command.env_remove(name);
            }
        }
        if let Some(password) = &self.password {
            command.env("NODESYNC_REQUIREPASS", password);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        self.child = Some(command.spawn()?);
        Ok(())
    }

    /// Kills the process (SIGKILL) and waits for its end.
    pub fn kill(&mut self) -> io::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Sends a signal to the process, if it runs.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        if let Some(child) = &self.child {
            kill_process(Pid::from_child(child), signal)?;
        }
        Ok(())
    }

    /// The exit status of a process that ended by itself. Returned once.
    pub fn take_exit_status(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// True if the process was started and has not ended.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// The last lines of its log, which all its processes share.
    pub fn last_lines(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        shown.iter().map(|line| format!("    {line}\n")).collect()
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Stops nodes with SIGTERM. Returns a complaint for each that ends late or with an error.
pub fn stop(nodes: &mut [NodeProcess], limit: Duration) -> io::Result<Vec<String>> {
    let mut complaints = Vec::new();
    let started = Instant::now();
    nodes.iter().try_for_each(|node| node.signal(Signal::TERM))?;
    for node in nodes {
        let port = node.port;
        let status = loop {
            match node.take_exit_status()? {
                Some(status) => break Some(status),
                None if !node.is_running() || started.elapsed() > limit => break None,
                None => std::thread::sleep(POLL),
            }
        };
        if !status.is_some_and(|status| status.success()) {
            let how = status.map_or("not in time".into(), |status| status.to_string());
            let log = node.last_lines();
            complaints.push(format!("node {port} did not stop as asked: {how}; log:\n{log}"));
        }
    }
    Ok(complaints)
}
