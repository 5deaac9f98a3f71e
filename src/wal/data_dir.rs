//! The data directory as a whole: whose it is, and that only one process uses it.
//!
//! Two files stand beside the log. `lock` is locked by the running node. `identity` says which node
//! of which cluster the directory belongs to, so that a node never goes on with another's memory.
//! It is text, so that a person can read it:
//! ```text
//! format = 1
//! cluster = nodesync
//! members = 5000 5001 5002
//! node = 5000
//! incarnation = 1234567890123456789
//! boot = 1763800000000
//! log = begun
//! crc32 = 89abcdef
//! ```
//! `incarnation` is a random number from the directory's creation; a node that returns with an
//! empty directory has another one, and so cannot pass for the node that voted and acknowledged
//! before. `boot` grows with each start. `log = none` stands there until the log has its first
//! record: only then is a missing log a lost one. (Files without that line are of directories whose
//! log has begun.) The last line checks all lines before it. The file is
//! replaced as a whole: written under another name, synced, renamed, and the directory synced.
//!
//! Nothing is written before everything that can be checked has been checked.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::types::NodeId;

use crate::wal::disk::sync_dir;

const FORMAT: u32 = 1;
const IDENTITY: &str = "identity";
const LOCK: &str = "lock";

/// No identity file is longer, in bytes.
const IDENTITY_LEN_MAX: u64 = 1 << 20;

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
pub enum DataDirError {
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
        "{dir}: belongs to cluster \"{found}\" of nodes {members}; members are fixed when a \
         cluster is founded: start the node with the same peers and --cluster, or give it its own \
         --dir"
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
    #[error(
        "{dir}: directory format {found}, but this program knows formats up to {FORMAT}: upgrade it"
    )]
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
pub struct DataDir {
    dir: PathBuf,
    stored: Stored,
    _lock: File,
}

/// What an identity file says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stored {
    /// With control characters escaped, so that it fits on its line.
    cluster: String,
    /// Ascending, separated by spaces.
    members: String,
    node: NodeId,
    incarnation: u64,
    boot: u64,
    /// The log has had a record.
    begun: bool,
}

impl DataDir {
    /// Takes the directory for the node of `identity`, or makes it if it is not there. `wall_ms` is
    /// the wall clock in milliseconds since 1970: it keeps `boot` growing where a directory was
    /// lost.
    ///
    /// # Errors
    /// See [`DataDirError`].
    pub fn open(dir: &Path, identity: &Identity, wall_ms: u64) -> Result<DataDir, DataDirError> {
        // Looked at twice: before anything is written, and again when nobody else can write.
        inspect(dir, identity)?;
        make_dir(dir).map_err(failed(dir))?;
        let lock = File::create(dir.join(LOCK)).map_err(failed(dir))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => DataDirError::Locked { dir: dir.into() },
            TryLockError::Error(error) => failed(dir)(error),
        })?;
        let stored = inspect(dir, identity)?;
        let (incarnation, boot_min, begun) = match stored {
            Some(stored) => (stored.incarnation, stored.boot + 1, stored.begun),
            None => {
                let random = getrandom::u64().map_err(|e| failed(dir)(io::Error::other(e)))?;
                (random.max(1), 1, false)
            }
        };
        let stored = Stored::new(identity, incarnation, wall_ms.max(boot_min), begun);
        Ok(DataDir { dir: dir.to_owned(), stored, _lock: lock })
    }

    /// Makes this start's boot number durable, and in a new directory whose it is. To be called
    /// before the number is used and before the log is written to, and after everything else in the
    /// directory has been found sound.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub fn claim(&self) -> Result<(), DataDirError> {
        self.write()
    }

    /// Notes that the log has its first record. To be called before anybody is told anything.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub fn begin(&mut self) -> Result<(), DataDirError> {
        self.stored.begun = true;
        self.write()
    }

    fn write(&self) -> Result<(), DataDirError> {
        self.stored.write(&self.dir).map_err(|error| {
            let full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
            let remedy = if full { "; make room and start the node again" } else { "" };
            failed(&self.dir)(io::Error::new(error.kind(), format!("{error}{remedy}")))
        })
    }

    /// The random number that the directory was created with; never 0.
    pub fn incarnation(&self) -> u64 {
        self.stored.incarnation
    }

    /// True if the log has had a record, in this process or an earlier one.
    pub fn has_begun(&self) -> bool {
        self.stored.begun
    }

    /// This process's number, larger than any before it.
    pub fn boot(&self) -> u64 {
        self.stored.boot
    }
}

/// The identity in `dir` if there is one; an error if the directory is not `wanted`'s to use.
fn inspect(dir: &Path, wanted: &Identity) -> Result<Option<Stored>, DataDirError> {
    let Some(stored) = Stored::read(dir)? else {
        check_unclaimed(dir)?;
        return Ok(None);
    };
    let claimed = Stored::new(wanted, stored.incarnation, stored.boot, stored.begun);
    if (&stored.cluster, &stored.members) != (&claimed.cluster, &claimed.members) {
        let Stored { cluster, members, .. } = stored;
        return Err(DataDirError::OtherCluster { dir: dir.into(), found: cluster, members });
    }
    if stored.node != claimed.node {
        let (found, wanted) = (stored.node, claimed.node);
        return Err(DataDirError::OtherNode { dir: dir.into(), found, wanted });
    }
    Ok(Some(stored))
}

/// A directory without an identity must not hold somebody's log.
fn check_unclaimed(dir: &Path) -> Result<(), DataDirError> {
    let items = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        items => items.map_err(failed(dir))?,
    };
    for item in items {
        let name = item.map_err(failed(dir))?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("wal-") || name.starts_with("snapshot-") {
            return Err(DataDirError::Corrupt {
                dir: dir.into(),
                what: "a log without an identity",
            });
        }
    }
    Ok(())
}

/// Makes a directory, and those above it, so that it would survive a power cut.
fn make_dir(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|path| !path.exists()).collect();
    fs::create_dir_all(dir)?;
    for made in missing {
        match made.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent)?,
            Some(_) => sync_dir(Path::new("."))?,
            None => {}
        }
    }
    Ok(())
}

impl Stored {
    fn new(identity: &Identity, incarnation: u64, boot: u64, begun: bool) -> Stored {
        let mut members = identity.members.clone();
        members.sort_unstable();
        let members: Vec<String> = members.iter().map(NodeId::to_string).collect();
        Stored {
            cluster: identity.cluster.escape_debug().to_string(),
            members: members.join(" "),
            node: identity.node,
            incarnation,
            boot,
            begun,
        }
    }

    fn read(dir: &Path) -> Result<Option<Stored>, DataDirError> {
        let corrupt = || DataDirError::Corrupt { dir: dir.into(), what: "its identity is damaged" };
        let mut text = String::new();
        match File::open(dir.join(IDENTITY)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(dir)(error)),
            Ok(file) => match file.take(IDENTITY_LEN_MAX).read_to_string(&mut text) {
                Err(error) if error.kind() == ErrorKind::InvalidData => return Err(corrupt()),
                read => read.map_err(failed(dir))?,
            },
        };
        match field(&text, "format").and_then(|format| format.parse().ok()) {
            Some(FORMAT) => Stored::parse(&text).map(Some).ok_or_else(corrupt),
            Some(found) if found > FORMAT => {
                Err(DataDirError::NewerFormat { dir: dir.into(), found })
            }
            _ => Err(corrupt()),
        }
    }

    fn parse(text: &str) -> Option<Stored> {
        let (body, checksum) = text.split_at(text.rfind("crc32 = ")?);
        if checksum != checksum_line(body) {
            return None;
        }
        let number = |name| field(body, name)?.parse::<u64>().ok();
        let (incarnation, boot) = (number("incarnation")?, number("boot")?);
        // No directory is made with the one, and behind the other there is none for the next start.
        if incarnation == 0 || boot == u64::MAX {
            return None;
        }
        Some(Stored {
            cluster: field(body, "cluster")?.to_owned(),
            members: field(body, "members")?.to_owned(),
            node: NodeId(field(body, "node")?.parse().ok()?),
            incarnation,
            boot,
            begun: field(body, "log") != Some("none"),
        })
    }

    /// Puts the file in place, all at once, so that it would survive a power cut.
    fn write(&self, dir: &Path) -> io::Result<()> {
        let Stored { cluster, members, node, incarnation, boot, begun } = self;
        let log = if *begun { "begun" } else { "none" };
        let mut text = format!(
            "format = {FORMAT}\ncluster = {cluster}\nmembers = {members}\nnode = {node}\n\
             incarnation = {incarnation}\nboot = {boot}\nlog = {log}\n"
        );
        text.push_str(&checksum_line(&text));
        let part = dir.join("identity.part");
        let written = File::create(&part).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&part, dir.join(IDENTITY))
        });
        if written.is_err() {
            let _ = fs::remove_file(&part);
        }
        written.and_then(|()| sync_dir(dir))
    }
}

fn checksum_line(body: &str) -> String {
    format!("crc32 = {:08x}\n", crc32fast::hash(body.as_bytes()))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = text.lines().filter_map(|line| line.split_once(" = "));
    fields.find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn failed(dir: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    move |error| DataDirError::Io { dir: dir.into(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens and claims, as a node that starts.
    fn claimed(dir: &Path, identity: &Identity, wall_ms: u64) -> DataDir {
        let data_dir = DataDir::open(dir, identity, wall_ms).unwrap();
        data_dir.claim().unwrap();
        data_dir
    }

    fn identity() -> Identity {
        let members = [5000, 5001, 5002].map(NodeId).to_vec();
        Identity { cluster: "demo".to_owned(), members, node: NodeId(5001) }
    }

    fn listing(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let items = fs::read_dir(dir).unwrap().map(|item| item.unwrap().path());
        let mut found: Vec<_> = items.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
        found.sort();
        found
    }

    /// Opens, expects an error, and checks that nothing changed.
    fn refused(dir: &Path, identity: &Identity) -> DataDirError {
        let before = listing(dir);
        let error = DataDir::open(dir, identity, 5).expect_err("the directory is not ours");
        assert_eq!(listing(dir), before, "{error}");
        error
    }

    #[test]
    fn a_directory_keeps_its_incarnation_and_each_start_has_a_greater_boot() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("a/b");
        let data_dir = claimed(&dir, &identity(), 1000);
        assert_eq!(data_dir.boot(), 1000);
        let incarnation = data_dir.incarnation();
        drop(data_dir);
        for (wall_ms, boot) in [(1000, 1001), (5, 1002), (2000, 2000)] {
            let data_dir = claimed(&dir, &identity(), wall_ms);
            assert_eq!((data_dir.incarnation(), data_dir.boot()), (incarnation, boot));
        }
        let other = claimed(&scratch.path().join("c"), &identity(), 1);
        assert_ne!(other.incarnation(), incarnation);
    }

    #[test]
    fn a_directory_in_use_is_locked_until_its_home_is_dropped() {
        let scratch = tempfile::tempdir().unwrap();
        let data_dir = claimed(scratch.path(), &identity(), 1);
        assert!(matches!(refused(scratch.path(), &identity()), DataDirError::Locked { .. }));
        drop(data_dir);
        claimed(scratch.path(), &identity(), 1);
    }

    #[test]
    fn another_nodes_or_clusters_directory_is_refused_with_its_owner() {
        let scratch = tempfile::tempdir().unwrap();
        drop(claimed(scratch.path(), &identity(), 1));
        let node = Identity { node: NodeId(5002), ..identity() };
        let error = refused(scratch.path(), &node);
        assert!(error.to_string().contains("belongs to node 5001, not to 5002"), "{error}");
        let cluster = Identity { cluster: "other".to_owned(), ..identity() };
        let error = refused(scratch.path(), &cluster);
        assert!(error.to_string().contains("\"demo\" of nodes 5000 5001 5002"), "{error}");
        let members = Identity { members: vec![NodeId(5001)], ..identity() };
        assert!(matches!(refused(scratch.path(), &members), DataDirError::OtherCluster { .. }));
        let mut reordered = identity();
        reordered.members.reverse();
        claimed(scratch.path(), &reordered, 1);
    }

    #[test]
    fn a_log_without_an_identity_is_refused() {
        for name in ["wal-0000000000000001.log", "snapshot-1"] {
            let scratch = tempfile::tempdir().unwrap();
            fs::write(scratch.path().join(name), b"x").unwrap();
            assert!(matches!(refused(scratch.path(), &identity()), DataDirError::Corrupt { .. }));
        }
    }

    #[test]
    fn every_flipped_bit_of_the_identity_is_noticed() {
        let scratch = tempfile::tempdir().unwrap();
        drop(claimed(scratch.path(), &identity(), 1));
        let path = scratch.path().join(IDENTITY);
        let sound = fs::read(&path).unwrap();
        for bit in 0..sound.len() * 8 {
            let mut damaged = sound.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &damaged).unwrap();
            let error = refused(scratch.path(), &identity());
            let known =
                matches!(error, DataDirError::Corrupt { .. } | DataDirError::NewerFormat { .. });
            assert!(known, "bit {bit}: {error}");
        }
        fs::write(&path, b"").unwrap();
        assert!(matches!(refused(scratch.path(), &identity()), DataDirError::Corrupt { .. }));
    }

    #[test]
    fn a_later_format_is_refused_even_if_nothing_else_is_understood() {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join(IDENTITY), "format = 2\nwhat = this\n").unwrap();
        let error = refused(scratch.path(), &identity());
        assert!(matches!(error, DataDirError::NewerFormat { found: 2, .. }), "{error}");
    }

    #[test]
    fn a_cluster_name_cannot_forge_lines() {
        let scratch = tempfile::tempdir().unwrap();
        let cluster = "x\nnode = 7\ncrc32 = 0".to_owned();
        let forged = Identity { cluster, ..identity() };
        drop(claimed(scratch.path(), &forged, 1));
        drop(claimed(scratch.path(), &forged, 1));
        assert!(matches!(refused(scratch.path(), &identity()), DataDirError::OtherCluster { .. }));
    }
}
