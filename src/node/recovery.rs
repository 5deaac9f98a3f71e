//! Recovery: opens the data directory, the log and the snapshot, and decides the incarnation in
//! which the node takes part. Nothing is written before everything has been found sound.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::files::{FileImages, FileWal};
use super::stop::Fatal;
use crate::clock::wall_micros;
use crate::config::Config;
use crate::replica::{HardState, Recovered, WalRecord};
use crate::store::{Image, ImageError, Writer};
use crate::types::{Index, SnapshotMeta};
use crate::wal::{DataDir, DataDirError, FileDisk, Identity, WalError, WalOptions};

/// A node's durable state, opened.
pub struct Recovery {
    /// Holds the directory's lock.
    pub data_dir: DataDir,
    /// The log, ready for records.
    pub log: FileWal,
    /// The snapshots' files.
    pub images: FileImages,
    /// The store as of the snapshot, with the undrained eventual writes in its overlay.
    pub writer: Writer,
    /// The replica's durable state.
    pub recovered: Recovered,
    /// The incarnation in which the node takes part.
    pub incarnation: u64,
    /// The last index of the log.
    pub last: Index,
    /// The time that recovery took.
    pub took: Duration,
}

impl Recovery {
    /// Opens the directory of `config`.
    ///
    /// # Errors
    /// [`Fatal`], and nothing has been written, if the directory belongs to another node or
    /// cluster, is in use, or holds data that cannot be trusted.
    pub fn open(config: &Config) -> Result<Recovery, Fatal> {
        let started = Instant::now();
        let identity = Identity {
            cluster: config.cluster.clone(),
            members: config.members(),
            node: config.id,
        };
        let opened = DataDir::open(&config.dir, &identity, wall_micros() / 1000);
        let mut data_dir = opened.map_err(|e| data_dir_error(&e))?;
        let options = WalOptions {
            segment_bytes: config.segment_bytes as u64,
            ..WalOptions::new(data_dir.incarnation())
        };
        let disk = Arc::new(FileDisk::new(&config.dir));
        let opened = FileWal::open(Arc::clone(&disk), options);
        let (mut log, mut recovered) = opened.map_err(|e| wal_error(config, &e))?;
        let images = FileImages::new(disk);
        let mut writer = Writer::new();
        if recovered.snapshot.index > 0 {
            writer.restore(load(&images, config, recovered.snapshot)?);
        }
        writer.store().put_overlay(&recovered.held);
        // No version of this node may be below one that it has given or seen before (hybrid clock).
        recovered.clock = recovered.clock.max(writer.latest());
        // Everything is sound: from here on the directory is written to.
        data_dir.claim().map_err(|e| data_dir_error(&e))?;
        images.remove_unfinished().map_err(|e| Fatal::Io(e.to_string()))?;
        let incarnation = incarnation(&data_dir, &mut log).map_err(|e| wal_error(config, &e))?;
        if !data_dir.has_begun() {
            data_dir.begin().map_err(|e| data_dir_error(&e))?;
        }
        // A log without entries after its snapshot ends with the snapshot.
        let last = recovered.entries.last().map_or(recovered.snapshot.index, |entry| entry.index);
        let took = started.elapsed();
        Ok(Recovery { data_dir, log, images, writer, recovered, incarnation, last, took })
    }
}

/// The directory's incarnation; a new one if the directory is old but its log is gone. A node that
/// has lost its log has lost its votes, so the others must not take it for the member that they
/// knew ([`crate::replica::joining`]). A new directory's log gets its first record here, before any
/// other node hears of the incarnation. So later an empty log means a lost log.
fn incarnation(data_dir: &DataDir, log: &mut FileWal) -> Result<u64, WalError> {
    if !log.is_new() {
        return Ok(data_dir.incarnation());
    }
    // The first start. One that failed before `DataDir::begin` counts as the first one still.
    if !data_dir.has_begun() {
        log.append(&[WalRecord::Hard(HardState::default())]);
        log.commit()?;
        return Ok(data_dir.incarnation());
    }
    log::warn!(target: "NodeSync", "This directory has lost its log: joining as if it were empty");
    Ok(getrandom::u64().map_err(std::io::Error::other)?)
}

/// The error that ends a node whose directory cannot be used.
fn data_dir_error(error: &DataDirError) -> Fatal {
    match error {
        DataDirError::Io { .. } => Fatal::Io(error.to_string()),
        DataDirError::Corrupt { .. } | DataDirError::NewerFormat { .. } => {
            Fatal::Data(error.to_string())
        }
        _ => Fatal::Config(error.to_string()),
    }
}

/// The error that ends a node whose log cannot be used.
fn wal_error(config: &Config, error: &WalError) -> Fatal {
    let text = format!("{}: {error}", config.dir.display());
    match error {
        WalError::Corrupt { .. } | WalError::NewerFormat { .. } | WalError::OlderFormat { .. } => {
            Fatal::Data(text)
        }
        WalError::Full | WalError::Io(_) => Fatal::Io(text),
    }
}

/// Loads the image that the log relies on. Without it the node cannot start: the log holds no
/// entries from before the snapshot.
pub fn load(images: &FileImages, config: &Config, meta: SnapshotMeta) -> Result<Image, Fatal> {
    let path = config.dir.join(FileImages::name(meta));
    let path = path.display();
    let remedy = "Move this node's data directory away and start it with an empty one, so that it \
                  learns from its peers";
    let mut file = images.open(meta).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            Fatal::Data(format!("{path}: missing, but the log relies on it. {remedy}"))
        }
        _ => Fatal::Io(error.to_string()),
    })?;
    match Image::read(&mut file) {
        Ok(image) if image.meta() == meta => Ok(image),
        Ok(_) => Err(Fatal::Data(format!("{path}: holds another snapshot. {remedy}"))),
        Err(ImageError::Io(error)) => Err(Fatal::Io(format!("{path}: {error}"))),
        Err(error @ ImageError::NewerFormat(_)) => {
            Err(Fatal::Data(format!("{path}: {error}: upgrade this program")))
        }
        Err(error) => Err(Fatal::Data(format!("{path}: {error}. {remedy}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::types::NodeId;
    use crate::wal::{FileDisk, Identity, Wal, WalOptions};

    #[test]
    fn a_failed_first_start_is_not_taken_for_a_lost_log() {
        let scratch = tempfile::tempdir().unwrap();
        let identity = Identity { cluster: "c".into(), members: vec![NodeId(1)], node: NodeId(1) };
        let open = || {
            let data_dir = DataDir::open(scratch.path(), &identity, 1).unwrap();
            data_dir.claim().unwrap();
            let disk = Arc::new(FileDisk::new(scratch.path()));
            let (log, _) = Wal::open(disk, WalOptions::new(data_dir.incarnation())).unwrap();
            (data_dir, log)
        };
        // The first start claims the directory, and then finds no room for the log.
        let (data_dir, _) = open();
        let first = data_dir.incarnation();
        drop(data_dir);
        let (mut data_dir, mut log) = open();
        assert_eq!(incarnation(&data_dir, &mut log).unwrap(), first);
        data_dir.begin().unwrap();
        drop((data_dir, log));
        for file in fs::read_dir(scratch.path()).unwrap() {
            let path = file.unwrap().path();
            if path.to_string_lossy().contains("wal-") {
                fs::remove_file(path).unwrap();
            }
        }
        let (data_dir, mut log) = open();
        assert_ne!(incarnation(&data_dir, &mut log).unwrap(), first, "a lost log was not noticed");
    }
}
