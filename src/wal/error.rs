//! The errors of the log.

use std::io;

use thiserror::Error;

/// Why the log cannot go on.
#[derive(Debug, Error)]
pub enum WalError {
    /// The disk has lost or changed synced bytes. Nothing on it has been altered.
    #[error(
        "{file}: damaged at offset {offset}: {what}. Acknowledged data may be lost here: move this \
         node's data directory away and start with an empty one, so that it learns from its peers"
    )]
    Corrupt {
        /// The segment's file name.
        file: String,
        /// The offset of the damage in the file, in bytes.
        offset: u64,
        /// The damage in words.
        what: String,
    },
    /// A later version of the program wrote the log. Nothing on disk has been altered.
    #[error(
        "{file}: format {version}, but this program knows formats up to {supported}: upgrade it"
    )]
    NewerFormat {
        /// The segment's file name.
        file: String,
        /// Its format.
        version: u8,
        /// The latest format known here.
        supported: u8,
    },
    /// A program older than the first release wrote the log. Nothing on disk has been altered.
    #[error(
        "{file}: format {version}, which no release has written (this program reads format \
         {supported}): move this node's data directory away and start with an empty one, so that \
         it learns from its peers"
    )]
    OlderFormat {
        /// The segment's file name.
        file: String,
        /// Its format.
        version: u8,
        /// The format known here.
        supported: u8,
    },
    /// The disk has no room for another segment. Nothing is lost: the batch waits in memory, and
    /// `commit` may be called again when there is room.
    #[error("no room on the disk for another log segment")]
    Full,
    /// The disk failed. Only a restart can tell which bytes are on it.
    #[error("write-ahead log: {0}")]
    Io(#[from] io::Error),
}
