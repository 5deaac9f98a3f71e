//! Processes of this very program, as nodes of a throw-away cluster: each with a port that nobody
//! else gets, a directory and a log.
//!
//! None outlives its value: it is killed when that is dropped, also by a panic. They are process
//! groups of their own, so that Ctrl-C in a terminal reaches the tool alone. (If the tool itself is
//! killed by `kill -9`, its nodes stay.)

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::tools::Port;

/// The last lines of a log that a report shows.
const LOG_LINES_SHOWN: usize = 15;
/// Between two looks at a node that is stopping.
const POLL: Duration = Duration::from_millis(10);

/// A member: its place on the machine, and its process while it runs.
#[derive(Debug)]
pub struct NodeProcess {
    /// Its port, which is its id too.
    pub port: u16,
    /// Where its data lies.
    pub dir: PathBuf,
    log: PathBuf,
    peers: Vec<String>,
    flags: Vec<String>,
    password: Option<String>,
    child: Option<Child>,
    _hold: Port,
}

impl NodeProcess {
    /// One that has not been started, with its data and its log in `dir`.
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

    /// Starts it, and does not wait until it is of any use.
    pub fn start(&mut self) -> io::Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(self.port.to_string()).args(&self.peers);
        command.arg("--dir").arg(&self.dir).args(&self.flags);
        // The tool's own settings are not the nodes'.
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

    /// Ends it without a warning.
    pub fn kill(&mut self) -> io::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Sends a signal, if it runs.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        if let Some(child) = &self.child {
            kill_process(Pid::from_child(child), signal)?;
        }
        Ok(())
    }

    /// How its process has ended, if it has by itself. Told once.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// True if it was started and has not ended.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// The last lines of its log, over all its lives.
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

/// Stops nodes in an orderly way. What is wrong with how they end.
pub fn stop(nodes: &mut [NodeProcess], limit: Duration) -> io::Result<Vec<String>> {
    let mut complaints = Vec::new();
    let started = Instant::now();
    nodes.iter().try_for_each(|node| node.signal(Signal::TERM))?;
    for node in nodes {
        let port = node.port;
        let status = loop {
            match node.ended()? {
                Some(status) => break Some(status),
                None if !node.runs() || started.elapsed() > limit => break None,
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
