//! A temporary cluster on this machine: processes of this program, a proxy in every link between
//! them, and damage to their directories.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::rng::Rng;
use crate::tools::Port;
use crate::tools::process::{self, NodeProcess};
use crate::tools::verify::proxy::{LinkMode, ProxiedLink};

/// Small logs, so that there are sealed segments and images to damage; a short time-out, because
/// clients that wait observe nothing.
const FLAGS: [&str; 6] =
    ["--segment-size", "64kb", "--snapshot-log", "256kb", "--request-timeout", "3000"];

impl NodeProcess {
    /// Removes its directory.
    pub fn wipe(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.dir)
    }

    /// Moves its directory away, as the node's own message advises after damage.
    pub fn set_aside(&self, number: usize) -> io::Result<()> {
        fs::rename(&self.dir, self.dir.with_extension(format!("damaged-{number}")))
    }

    /// Flips a bit of a sealed segment or of an image. Returns the place, or `None` if there is no
    /// such file yet. Avoids zero bytes, most of which carry no information.
    pub fn corrupt(&self, rng: &mut Rng) -> io::Result<Option<String>> {
        const TRIES: usize = 64;
        let files = sealed(&self.dir)?;
        let Some(path) = files.get(rng.below(files.len() as u64) as usize) else {
            return Ok(None);
        };
        let file = File::options().read(true).write(true).open(path)?;
        let len = file.metadata()?.len();
        let (mut at, mut byte) = (0, [0]);
        for _ in 0..TRIES {
            at = rng.below(len);
            file.read_exact_at(&mut byte, at)?;
            if byte != [0] {
                break;
            }
        }
        byte[0] ^= 1 << rng.below(8);
        file.write_all_at(&byte, at)?;
        let name = path.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
        Ok(Some(format!("{name}, byte {at}")))
    }
}

/// All images, and all segments of the log except the last.
fn sealed(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        paths.push(entry?.path());
    }
    paths.sort();
    let named = |path: &PathBuf, prefix: &str, suffix: &str| {
        let name = path.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
        name.starts_with(prefix) && name.ends_with(suffix)
    };
    let mut files: Vec<_> =
        paths.iter().filter(|path| named(path, "wal-", ".log")).cloned().collect();
    files.pop();
    files.extend(paths.into_iter().filter(|path| named(path, "snapshot-", ".image")));
    Ok(files)
}

/// The members and the links between them.
#[derive(Debug)]
pub struct Cluster {
    /// The members, ascending by rank.
    pub nodes: Vec<NodeProcess>,
    /// A link from each member to each other one.
    links: Vec<(usize, usize, ProxiedLink)>,
    /// The directory of all data and logs.
    pub dir: PathBuf,
}

impl Cluster {
    /// A cluster that is not started yet, in a new directory.
    pub fn new(size: usize, dir: PathBuf, password: Option<&str>) -> io::Result<Cluster> {
        fs::create_dir_all(&dir)?;
        let ports = Port::reserve(size)?;
        let numbers: Vec<u16> = ports.iter().map(|port| port.number).collect();
        let mut cluster = Cluster { nodes: Vec::new(), links: Vec::new(), dir };
        for from in 0..size {
            for to in (0..size).filter(|to| *to != from) {
                cluster.links.push((from, to, ProxiedLink::new(numbers[to])?));
            }
        }
        let flags = FLAGS.map(String::from);
        for (at, port) in ports.into_iter().enumerate() {
            let links = cluster.links.iter().filter(|(from, _, _)| *from == at);
            let peer =
                |to: usize, link: &ProxiedLink| format!("{}=127.0.0.1:{}", numbers[to], link.port);
            let peers = links.map(|(_, to, link)| peer(*to, link)).collect();
            cluster.nodes.push(NodeProcess::new(port, &cluster.dir, peers, &flags, password));
        }
        Ok(cluster)
    }

    /// Starts all members that are not running.
    pub fn start_all(&mut self) -> io::Result<()> {
        self.nodes.iter_mut().filter(|node| !node.is_running()).try_for_each(NodeProcess::start)
    }

    /// Sets the mode of the link on which `from` dials `to`.
    pub fn set_link(&self, from: usize, to: usize, mode: LinkMode) {
        let found = self.links.iter().find(|(a, b, _)| (*a, *b) == (from, to));
        if let Some((_, _, link)) = found {
            link.set(mode);
        }
    }

    /// Opens all links, continues stopped nodes and restarts killed ones.
    pub fn heal(&mut self) -> io::Result<()> {
        self.links.iter().for_each(|(_, _, link)| link.set(LinkMode::Pass));
        for node in &self.nodes {
            node.signal(Signal::CONT)?;
        }
        self.start_all()
    }

    /// Stops all members in an orderly way. Returns complaints about their ends.
    pub fn stop(&mut self, limit: Duration) -> io::Result<Vec<String>> {
        process::stop(&mut self.nodes, limit)
    }

    /// Kills the members and removes everything that they have written.
    pub fn remove(self) -> io::Result<()> {
        let dir = self.dir.clone();
        drop(self);
        fs::remove_dir_all(dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sealed_segments_and_images_are_damaged() {
        let scratch = tempfile::tempdir().unwrap();
        for name in ["wal-1.log", "wal-2.log", "spare-3.log", "identity", "snapshot-1-1.image"] {
            fs::write(scratch.path().join(name), b"x").unwrap();
        }
        let names = |paths: Vec<PathBuf>| -> Vec<_> {
            paths.iter().map(|path| path.file_name().unwrap().to_owned()).collect()
        };
        assert_eq!(names(sealed(scratch.path()).unwrap()), ["wal-1.log", "snapshot-1-1.image"]);
        assert!(sealed(&scratch.path().join("nowhere")).is_err());
    }
}
