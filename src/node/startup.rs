//! What a node finds in its data directory: under which incarnation it takes part, and how it is
//! told when the directory cannot be used.

use crate::config::Config;
use crate::node::Log;
use crate::node::stop::Fatal;
use crate::replica::{HardState, WalRecord};
use crate::wal::{DataDir, DataDirError, WalError};

/// The directory's incarnation, or a new one if the directory is old but its log is gone: whoever
/// knew the old one must not take this node for the one that it knew (see
/// [`crate::replica::joining`]). A new directory's log gets its first record here, before anybody
/// has heard of the incarnation, so that the two can be told apart.
pub fn incarnation(data_dir: &DataDir, log: &mut Log) -> Result<u64, WalError> {
    if !log.is_new() {
        return Ok(data_dir.incarnation());
    }
    if !data_dir.has_begun() {
        log.append(&[WalRecord::Hard(HardState::default())]);
        log.commit()?;
        return Ok(data_dir.incarnation());
    }
    log::warn!(target: "NodeSync", "This directory has lost its log: joining as if it were empty");
    Ok(getrandom::u64().map_err(std::io::Error::other)?)
}

/// A directory that cannot be used ends the node.
pub fn data_dir_error(error: &DataDirError) -> Fatal {
    match error {
        DataDirError::Io { .. } => Fatal::Io(error.to_string()),
        DataDirError::Corrupt { .. } | DataDirError::NewerFormat { .. } => {
            Fatal::Data(error.to_string())
        }
        _ => Fatal::Config(error.to_string()),
    }
}

/// A log that cannot be used ends the node.
pub fn wal_error(config: &Config, error: &WalError) -> Fatal {
    let text = format!("{}: {error}", config.dir.display());
    match error {
        WalError::Corrupt { .. } | WalError::NewerFormat { .. } | WalError::OlderFormat { .. } => {
            Fatal::Data(text)
        }
        WalError::Full | WalError::Io(_) => Fatal::Io(text),
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
    fn a_first_start_that_failed_does_not_pass_for_a_lost_log() {
        let scratch = tempfile::tempdir().unwrap();
        let identity = Identity { cluster: "c".into(), members: vec![NodeId(1)], node: NodeId(1) };
        let open = || {
            let data_dir = DataDir::open(scratch.path(), &identity, 1).unwrap();
            data_dir.claim().unwrap();
            let disk = Arc::new(FileDisk::new(scratch.path()));
            let (log, _) = Wal::open(disk, WalOptions::new(data_dir.incarnation())).unwrap();
            (data_dir, log)
        };
        // The directory got its name, and then there was no room for the log.
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
        assert_ne!(incarnation(&data_dir, &mut log).unwrap(), first, "what is lost is lost");
    }
}
