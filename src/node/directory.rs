//! What a node finds in its data directory: under which incarnation it takes part, and how it is
//! told when the directory cannot be used.

use super::Log;
use super::stop::Fatal;
use crate::config::Config;
use crate::replica::{HardState, Record};
use crate::wal::{Home, HomeError, WalError};

/// The directory's incarnation, or a new one if the directory is old but its log is gone: whoever
/// knew the old one must not take this node for the one that it knew (see
/// [`crate::replica::joining`]). A new directory's log gets its first record here, before anybody
/// has heard of the incarnation, so that the two can be told apart.
pub fn incarnation(home: &Home, log: &mut Log) -> Result<u64, WalError> {
    if !log.is_new() {
        return Ok(home.incarnation());
    }
    if !home.has_begun() {
        log.append(&[Record::Hard(HardState::default())]);
        log.commit()?;
        return Ok(home.incarnation());
    }
    log::warn!(target: "NodeSync", "This directory has lost its log: joining as if it were empty");
    Ok(getrandom::u64().map_err(std::io::Error::other)?)
}

/// A directory that cannot be used ends the node.
pub fn home_error(error: &HomeError) -> Fatal {
    match error {
        HomeError::Io { .. } => Fatal::Io(error.to_string()),
        HomeError::Corrupt { .. } | HomeError::NewerFormat { .. } => Fatal::Data(error.to_string()),
        _ => Fatal::Config(error.to_string()),
    }
}

/// A log that cannot be used ends the node.
pub fn wal_error(config: &Config, error: &WalError) -> Fatal {
    let text = format!("{}: {error}", config.dir.display());
    match error {
        WalError::Corrupt { .. } | WalError::NewerFormat { .. } => Fatal::Data(text),
        WalError::Full | WalError::Io(_) => Fatal::Io(text),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::types::NodeId;
    use crate::wal::{FileDisk, Identity, Options, Wal};

    #[test]
    fn a_first_start_that_failed_does_not_pass_for_a_lost_log() {
        let scratch = tempfile::tempdir().unwrap();
        let identity = Identity { cluster: "c".into(), members: vec![NodeId(1)], node: NodeId(1) };
        let open = || {
            let home = Home::open(scratch.path(), &identity, 1).unwrap();
            home.claim().unwrap();
            let disk = Arc::new(FileDisk::new(scratch.path()));
            let (log, _) = Wal::open(disk, Options::new(home.incarnation())).unwrap();
            (home, log)
        };
        // The directory got its name, and then there was no room for the log.
        let (home, _) = open();
        let first = home.incarnation();
        drop(home);
        let (mut home, mut log) = open();
        assert_eq!(incarnation(&home, &mut log).unwrap(), first);
        home.begin().unwrap();
        drop((home, log));
        for file in fs::read_dir(scratch.path()).unwrap() {
            let path = file.unwrap().path();
            if path.to_string_lossy().contains("wal-") {
                fs::remove_file(path).unwrap();
            }
        }
        let (home, mut log) = open();
        assert_ne!(incarnation(&home, &mut log).unwrap(), first, "what is lost is lost");
    }
}
