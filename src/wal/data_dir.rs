//! The data directory as a whole: it belongs to one node, and one process uses it at a time.
//!
//! Two files stand beside the log. `lock` is locked by the running node. `identity` says which node
//! of which cluster the directory belongs to; `identity.rs` has its text. The identity is replaced
//! as a whole: written under another name, synced, renamed, and the directory synced.
//!
//! Nothing is written before everything that can be checked has been checked.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::types::NodeId;

use super::disk::sync_dir;
use super::identity::{FORMAT, Identity, IdentityFile, Unusable};
use super::images::is_full;

const IDENTITY: &str = "identity";
const LOCK: &str = "lock";

/// No identity file is longer, in bytes.
const IDENTITY_LEN_MAX: u64 = 1 << 20;

/// Why a directory cannot be used. A refused directory is left as it was.
#[derive(Debug, Error)]
pub enum DataDirError {
    /// A running process uses it.
    #[error("{dir}: in use by a running node; stop that one first, or give this one its own --dir")]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// It belongs to another node.
    #[error("{dir}: belongs to node {found}, not to {wanted}; give this node its own --dir")]
    OtherNode {
        /// The directory.
        dir: PathBuf,
        /// The node that it belongs to.
        found: NodeId,
        /// The node that wants to use it.
        wanted: NodeId,
    },
    /// It belongs to another cluster, or to one with other members.
    #[error(
        "{dir}: belongs to cluster \"{found}\" of nodes {members}; members are fixed when a \
         cluster is founded: start the node with the same peers and --cluster, or give it its own \
         --dir"
    )]
    OtherCluster {
        /// The directory.
        dir: PathBuf,
        /// The name of the cluster that it belongs to.
        found: String,
        /// The members of that cluster.
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
        /// The damage in words.
        what: &'static str,
    },
    /// The system has failed.
    #[error("{dir}: {error}")]
    Io {
        /// The directory.
        dir: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

/// A directory that belongs to this process alone as long as this value lives.
#[derive(Debug)]
pub struct DataDir {
    dir: PathBuf,
    file: IdentityFile,
    _lock: File,
}

impl DataDir {
    /// Locks the directory for the node of `identity`, creating it if it is missing. `wall_ms` is
    /// the wall clock in milliseconds since 1970: it keeps `boot` growing when a directory was
    /// lost.
    ///
    /// # Errors
    /// See [`DataDirError`].
    pub fn open(dir: &Path, identity: &Identity, wall_ms: u64) -> Result<DataDir, DataDirError> {
        // Twice: a directory that is not this node's must not be written to, not even a lock; and
        // until the lock is held another process may still change the identity.
        inspect(dir, identity)?;
        make_dir(dir).map_err(failed(dir))?;
        let lock = File::create(dir.join(LOCK)).map_err(failed(dir))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => DataDirError::Locked { dir: dir.into() },
            TryLockError::Error(error) => failed(dir)(error),
        })?;
        let found = inspect(dir, identity)?;
        let (incarnation, boot_min, log_has_begun) = match found {
            Some(file) => (file.incarnation, file.boot + 1, file.log_has_begun),
            None => {
                let random = getrandom::u64().map_err(|e| failed(dir)(io::Error::other(e)))?;
                (random.max(1), 1, false)
            }
        };
        // Peers drop requests of an older boot, so each start needs a larger one: also with a wall
        // clock that was set back, and after the directory and its last boot were lost.
        let boot = wall_ms.max(boot_min);
        let file = IdentityFile::new(identity, incarnation, boot, log_has_begun);
        Ok(DataDir { dir: dir.to_owned(), file, _lock: lock })
    }

    /// Makes this start's boot number durable, and in a new directory its identity. Call it before
    /// the number is used and before the log is written to, and after everything else in the
    /// directory has been found sound.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub fn claim(&self) -> Result<(), DataDirError> {
        self.write()
    }

    /// Notes that the log has its first record. Call it before any message leaves the node.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub fn begin(&mut self) -> Result<(), DataDirError> {
        self.file.log_has_begun = true;
        self.write()
    }

    fn write(&self) -> Result<(), DataDirError> {
        replace_identity(&self.dir, &self.file.text()).map_err(|error| {
            let remedy = if is_full(&error) { "; make room and start the node again" } else { "" };
            failed(&self.dir)(io::Error::new(error.kind(), format!("{error}{remedy}")))
        })
    }

    /// The random number that the directory was created with; never 0.
    pub fn incarnation(&self) -> u64 {
        self.file.incarnation
    }

    /// True if the log has had a record, in this process or an earlier one.
    pub fn has_begun(&self) -> bool {
        self.file.log_has_begun
    }

    /// This process's number, larger than any before it.
    pub fn boot(&self) -> u64 {
        self.file.boot
    }
}

/// The identity in `dir` if there is one; an error if the directory is not `wanted`'s to use.
fn inspect(dir: &Path, wanted: &Identity) -> Result<Option<IdentityFile>, DataDirError> {
    let Some(found) = read_identity(dir)? else {
        check_unclaimed(dir)?;
        return Ok(None);
    };
    let own = IdentityFile::new(wanted, found.incarnation, found.boot, found.log_has_begun);
    // Quorums are counted over the members: a vote or an acknowledgement given in one cluster must
    // not count in another.
    if (&found.cluster, &found.members) != (&own.cluster, &own.members) {
        let IdentityFile { cluster, members, .. } = found;
        return Err(DataDirError::OtherCluster { dir: dir.into(), found: cluster, members });
    }
    // One vote a term (§5.2) is one vote a node: the durable vote stays with its node.
    if found.node != own.node {
        let (found, wanted) = (found.node, own.node);
        return Err(DataDirError::OtherNode { dir: dir.into(), found, wanted });
    }
    Ok(Some(found))
}

/// Refuses a directory that holds a log or an image but no identity: its owner is unknown.
fn check_unclaimed(dir: &Path) -> Result<(), DataDirError> {
    let items = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        items => items.map_err(failed(dir))?,
    };
    for item in items {
        let name = item.map_err(failed(dir))?.file_name();
        let name = name.to_string_lossy();
        // The identity is written before the log and before any image, so it is lost.
        if name.starts_with("wal-") || name.starts_with("snapshot-") {
            return Err(DataDirError::Corrupt {
                dir: dir.into(),
                what: "a log without an identity",
            });
        }
    }
    Ok(())
}

/// Makes a directory, and those above it, so that they would survive a power cut.
fn make_dir(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|path| !path.exists()).collect();
    fs::create_dir_all(dir)?;
    // A new directory is durable once the directory that names it is synced.
    for made in missing {
        match made.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent)?,
            Some(_) => sync_dir(Path::new("."))?,
            None => {}
        }
    }
    Ok(())
}

fn read_identity(dir: &Path) -> Result<Option<IdentityFile>, DataDirError> {
    let corrupt = || DataDirError::Corrupt { dir: dir.into(), what: "its identity is damaged" };
    let mut text = String::new();
    match File::open(dir.join(IDENTITY)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(dir)(error)),
        Ok(file) => match file.take(IDENTITY_LEN_MAX).read_to_string(&mut text) {
            // No UTF-8.
            Err(error) if error.kind() == ErrorKind::InvalidData => return Err(corrupt()),
            read => read.map_err(failed(dir))?,
        },
    };
    match IdentityFile::parse(&text) {
        Ok(file) => Ok(Some(file)),
        Err(Unusable::Newer(found)) => Err(DataDirError::NewerFormat { dir: dir.into(), found }),
        Err(Unusable::Damaged) => Err(corrupt()),
    }
}

/// Puts the file in place, all at once, so that it would survive a power cut.
fn replace_identity(dir: &Path, text: &str) -> io::Result<()> {
    let part = dir.join("identity.part");
    let written = File::create(&part).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        // Content before name: after a power cut `identity` is the old file or the whole new one.
        file.sync_all()?;
        fs::rename(&part, dir.join(IDENTITY))
    });
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written.and_then(|()| sync_dir(dir))
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
    fn a_directory_in_use_is_locked_until_its_value_is_dropped() {
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
