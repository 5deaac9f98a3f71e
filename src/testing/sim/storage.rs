//! The files that a process has under way.

use std::collections::{BTreeMap, VecDeque};

use crate::store::Image;
use crate::testing::MemoryDisk;
use crate::testing::sim::disk::{IncomingImage, Unfinished};
use crate::types::SnapshotMeta;
use crate::wal::{ImageWriter, OutgoingImage, SpareJob};

/// The files that a process has under way, and the reports of full disks that it has made.
#[derive(Debug, Default)]
pub struct Storage {
    /// Images of its own state: the first is being written, the others wait.
    pub images: VecDeque<Image>,
    /// Images from peers: the first is being verified, the others wait.
    pub parts: VecDeque<(usize, SnapshotMeta, ImageWriter<MemoryDisk>)>,
    /// Images being received, by peer, with the generation of the connection that brings them.
    pub incoming: BTreeMap<usize, (u64, Option<IncomingImage>)>,
    /// Images being sent, by peer, with the term in which the transfer began.
    pub outgoing: BTreeMap<usize, (u64, OutgoingImage<MemoryDisk>)>,
    /// A spare segment being made.
    pub spare: Option<SpareJob<MemoryDisk>>,
    /// The last spare segment found no room.
    pub spare_failed: bool,
    /// The last write of the log found no room.
    pub log_full: bool,
    /// There is a new image. Older ones may go once the log relies on it.
    pub tidy: bool,
}

impl Storage {
    /// Takes the work that a crash interrupts.
    pub fn unfinished(&mut self) -> Unfinished {
        let part = self.parts.pop_front().map(|(_, meta, part)| (part, meta));
        Unfinished { image: self.images.pop_front(), part, spare: self.spare.take() }
    }
}
