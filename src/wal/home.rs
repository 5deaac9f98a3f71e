//! The data directory: who it belongs to, and the lock that keeps a second process out.
//!
//! The file `identity` is text, so that a person can read it:
//!
//! ```text
//! format = 1
//! cluster = nodesync
//! members = 5000 5001 5002
//! node = 5000
//! incarnation = 1234567890123456789
//! boot = 1763800000000
//! crc32 = 89abcdef
//! ```
//! `incarnation` is a random number from the directory's creation: a wiped directory has another one.
//! `boot` grows with each start. The last line checks all lines before it. The file is replaced as a
//! whole: written under another name, synced, renamed, and the directory synced.
//!
//! Nothing is written before everything that can be checked has been checked.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::types::NodeId;

const FORMAT: u32 = 1;
const IDENTITY: &str = "identity";
const LOCK: &str = "lock";

/// Whose directory it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's name: one line of text.
    pub cluster: String,
    /// All members, ascending.
    pub members: Vec<NodeId>,
    /// This node.
    pub node: NodeId,
}

/// Why a directory cannot be used. On each of them nothing has been written into it.
#[derive(Debug, Error)]
pub enum HomeError {
    /// A running process has it.
    #[error("{dir}: in use by a running node; stop that one first, or give this one its own --dir")]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// It is another node's.
    #[error("{dir}: belongs to node {found}, not to {wanted}; give this node its own --dir")]
    OtherNode {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who asked.
        wanted: NodeId,
    },
    /// It is of another cluster, or of one with other members.
    #[error(
        "{dir}: belongs to cluster \"{found}\" of nodes {members}; members are fixed when a cluster \
         is founded: start the node with the same peers and --cluster, or give it its own --dir"
    )]
    OtherCluster {
        /// The directory.
        dir: PathBuf,
        /// The cluster's name there.
        found: String,
        /// The members there.
        members: String,
    },
    /// A later version of the program made it.
    #[error("{dir}: directory format {found}, but this program knows formats up to {FORMAT}: upgrade it")]
    NewerFormat {
        /// The directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Its identity cannot be read, or there is a log but no identity.
    #[error(
        "{dir}: {what}; move the directory away and start the node with an empty one, so that it \
         learns from its peers"
    )]
    Corrupt {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// The system fails.
    #[error("{dir}: {error}")]
    Io {
        /// The directory.
        dir: PathBuf,
        /// How.
        error: io::Error,
    },
}

/// A directory that is this process's alone as long as this value lives.
#[derive(Debug)]
pub struct Home {
    incarnation: u64,
    boot: u64,
    _lock: File,
}

struct Found {
    identity: Identity,
    incarnation: u64,
    boot: u64,
}

impl Home {
    /// Takes the directory for the node of `identity`, or makes it if it is not there. `wall_ms` is the
    /// wall clock in milliseconds since 1970: it keeps `boot` growing where a directory was lost.
    ///
    /// # Errors
    /// See [`HomeError`].
    pub fn open(dir: &Path, identity: &Identity, wall_ms: u64) -> Result<Home, HomeError> {
        let failed = |error| HomeError::Io { dir: dir.into(), error };
        let found = read(dir, identity)?;
        if found.is_none() {
            check_unclaimed(dir)?;
            fs::create_dir_all(dir).map_err(failed)?;
        }
        let lock = File::create(dir.join(LOCK)).map_err(failed)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => HomeError::Locked { dir: dir.into() },
            TryLockError::Error(error) => failed(error),
        })?;
        // Again under the lock: another process may have come between.
        let found = read(dir, identity)?;
        let (incarnation, boot) = match found {
            Some(found) => (found.incarnation, wall_ms.max(found.boot.saturating_add(1))),
            None => {
                let random = getrandom::u64().map_err(|e| failed(io::Error::other(e)))?;
                (random.max(1), wall_ms.max(1))
            }
        };
        write(dir, &Found { identity: identity.clone(), incarnation, boot }).map_err(failed)?;
        Ok(Home { incarnation, boot, _lock: lock })
    }

    /// The random number that the directory was created with; never 0.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// This process's number, larger than any before it.
    pub fn boot(&self) -> u64 {
        self.boot
    }
}

/// A directory without an identity must not hold somebody's log.
fn check_unclaimed(dir: &Path) -> Result<(), HomeError> {
    let failed = |error| HomeError::Io { dir: dir.into(), error };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("wal-") || name.starts_with("snapshot-") {
            return Err(HomeError::Corrupt { dir: dir.into(), what: "a log without an identity" });
        }
    }
    Ok(())
}

fn read(dir: &Path, wanted: &Identity) -> Result<Option<Found>, HomeError> {
    let text = match fs::read(dir.join(IDENTITY)) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(HomeError::Io { dir: dir.into(), error }),
    };
    let corrupt = || HomeError::Corrupt { dir: dir.into(), what: "its identity is damaged" };
    let text = String::from_utf8(text).map_err(|_| corrupt())?;
    let format = field(&text, "format").and_then(|value| value.parse().ok());
    match format {
        Some(FORMAT) => {}
        Some(found) if found > FORMAT => {
            return Err(HomeError::NewerFormat { dir: dir.into(), found });
        }
        _ => return Err(corrupt()),
    }
    let found = parse(&text).ok_or_else(corrupt)?;
    let Identity { cluster, members, node } = &found.identity;
    if *cluster != wanted.cluster || *members != wanted.members {
        let members: Vec<String> = members.iter().map(NodeId::to_string).collect();
        return Err(HomeError::OtherCluster {
            dir: dir.into(),
            found: cluster.clone(),
            members: members.join(", "),
        });
    }
    if *node != wanted.node {
        return Err(HomeError::OtherNode { dir: dir.into(), found: *node, wanted: wanted.node });
    }
    Ok(Some(found))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().filter_map(|line| line.split_once(" = ")).find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn parse(text: &str) -> Option<Found> {
    let (body, _) = text.split_at(text.find("crc32 = ")?);
    let checksum = u32::from_str_radix(field(text, "crc32")?, 16).ok()?;
    if crc32fast::hash(body.as_bytes()) != checksum {
        return None;
    }
    let number = |name| field(body, name)?.parse().ok();
    let members = field(body, "members")?.split(' ').map(|id| id.parse().map(NodeId));
    let identity = Identity {
        cluster: field(body, "cluster")?.to_string(),
        members: members.collect::<Result<_, _>>().ok()?,
        node: NodeId(field(body, "node")?.parse().ok()?),
    };
    Some(Found { identity, incarnation: number("incarnation")?, boot: number("boot")? })
}

fn write(dir: &Path, found: &Found) -> io::Result<()> {
    let Found { identity: Identity { cluster, members, node }, incarnation, boot } = found;
    let members: Vec<String> = members.iter().map(NodeId::to_string).collect();
    let members = members.join(" ");
    let mut text = format!(
        "format = {FORMAT}\ncluster = {cluster}\nmembers = {members}\nnode = {node}\n\
         incarnation = {incarnation}\nboot = {boot}\n"
    );
    text.push_str(&format!("crc32 = {:08x}\n", crc32fast::hash(text.as_bytes())));
    let part = dir.join("identity.part");
    let mut file = File::create(&part)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&part, dir.join(IDENTITY))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(node: u32) -> Identity {
        Identity {
            cluster: "c".into(),
            members: vec![NodeId(1), NodeId(2)],
            node: NodeId(node),
        }
    }

    #[test]
    fn a_directory_keeps_its_incarnation_and_each_start_has_a_greater_boot() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("a/b");
        let first = Home::open(&dir, &identity(1), 100).unwrap();
        let (incarnation, boot) = (first.incarnation(), first.boot());
        assert!(matches!(Home::open(&dir, &identity(1), 0), Err(HomeError::Locked { .. })));
        drop(first);
        let second = Home::open(&dir, &identity(1), 50).unwrap();
        assert_eq!((second.incarnation(), second.boot()), (incarnation, boot + 1));
        drop(second);
        assert_eq!(Home::open(&dir, &identity(1), 999).unwrap().boot(), 999);
    }

    #[test]
    fn what_is_not_ours_is_refused_and_left_as_it_is() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path();
        drop(Home::open(dir, &identity(1), 1).unwrap());
        let path = dir.join(IDENTITY);
        let before = fs::read_to_string(&path).unwrap();
        let other = Identity { cluster: "d".into(), ..identity(1) };
        assert!(matches!(Home::open(dir, &other, 1), Err(HomeError::OtherCluster { .. })));
        assert!(matches!(Home::open(dir, &identity(2), 1), Err(HomeError::OtherNode { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
        fs::write(&path, before.replace("boot = ", "boot = 1")).unwrap();
        assert!(matches!(Home::open(dir, &identity(1), 1), Err(HomeError::Corrupt { .. })));
        fs::write(&path, before.replace("format = 1", "format = 2")).unwrap();
        let newer = Home::open(dir, &identity(1), 1);
        assert!(matches!(newer, Err(HomeError::NewerFormat { found: 2, .. })));
        fs::remove_file(&path).unwrap();
        fs::write(dir.join("wal-0000000000000001.log"), "x").unwrap();
        assert!(matches!(Home::open(dir, &identity(1), 1), Err(HomeError::Corrupt { .. })));
        assert!(!path.exists());
    }
}
