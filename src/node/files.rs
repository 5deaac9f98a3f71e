//! The log and the snapshots of a node, on the file system.

use crate::wal::{self, FileDisk, ImageWriter, Images, Wal};

/// The log.
pub type FileWal = Wal<FileDisk>;

/// The directory's images.
pub type FileImages = Images<FileDisk>;

/// An image on its way to a peer.
pub type OutgoingImage = wal::OutgoingImage<FileDisk>;

/// An image on its way from a peer.
pub type IncomingImage = wal::IncomingImage<FileDisk>;

/// The file of an image that is being written, or that has arrived and is not verified yet.
pub type ImagePart = ImageWriter<FileDisk>;
