//! Deliberate bugs, to prove that the simulator catches them. They are made around the replica, by
//! the simulated processes that drive it.

use clap::ValueEnum;

use crate::replica::{Recovered, Standing};
use crate::store::Image;
use crate::testing::sim::cluster::World;
use crate::types::{Entry, Payload};

/// A promise that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mutant {
    /// Votes and acknowledgements leave before they are durable.
    AckBeforeSync,
    /// The replica is told that a job is durable when it has just been asked for.
    PersistedTooEarly,
    /// A start does not find the vote again.
    ForgottenVote,
    /// The disk says that it has synced, and has not.
    LyingDisk,
    /// Names of files are not synced.
    UnsyncedDirectory,
    /// The table of applied requests is not consulted.
    ExecutedTwice,
    /// The table of applied requests is lost with a snapshot.
    ForgottenRequests,
    /// The entry that a snapshot ends with is applied again at a start.
    AppliedAgain,
    /// Reads are served at once.
    ReadWithoutQuorum,
    /// The eventual writes on the disk are forgotten at a start.
    ForgottenWrites,
    /// Of two eventual writes to a key the one that comes later in the log wins.
    MergeByArrival,
    /// A node with an empty directory votes as if nothing had been.
    VoterWithoutMemory,
}

impl World {
    /// Makes a node's disk as bad as the mutant wants it.
    pub fn spoil_disk(&mut self, node: usize) {
        let files = &self.nodes[node].disk.files;
        match self.mutant {
            Some(Mutant::LyingDisk) => files.forget_to_sync(),
            Some(Mutant::UnsyncedDirectory) => files.forget_to_sync_names(),
            _ => {}
        }
    }

    /// Removes the facts that the mutant forgets from those that a start recovers.
    pub fn spoil_recovered(&self, node: usize, recovered: &mut Recovered) {
        let lost = !self.nodes[node].ghosts.is_empty();
        match self.mutant {
            Some(Mutant::ForgottenVote) => recovered.hard.vote = None,
            Some(Mutant::ForgottenWrites) => recovered.held.clear(),
            Some(Mutant::VoterWithoutMemory) if lost => {
                let founders = std::collections::BTreeMap::new();
                recovered.hard.standing = Standing::Voter { founders };
            }
            _ => {}
        }
    }

    /// Removes the requests that the mutant forgets from an image.
    pub fn spoil_image(&self, image: Image) -> Image {
        if self.mutant != Some(Mutant::ForgottenRequests) {
            return image;
        }
        let mut bytes = Vec::new();
        let written = image.clone().write(&mut bytes);
        let spoilt =
            written.ok().and_then(|_| Image::read(&mut &without_requests(&bytes)[..]).ok());
        spoilt.unwrap_or(image)
    }

    /// The wrong entry that the mutant applies instead of this one, if it does so.
    pub fn spoil_entry(&mut self, node: usize, entry: &Entry) -> Option<Entry> {
        let mutant = self.mutant?;
        let process = self.nodes[node].process.as_mut()?;
        let mut spoilt = entry.clone();
        match (&mut spoilt.payload, mutant) {
            // Every copy of a request gets a name of its own, so the table knows none of them.
            (Payload::Batch { proposal, .. }, Mutant::ExecutedTwice) => {
                proposal.id.node.0 += 10_000 + entry.index as u32;
                proposal.floor = 0;
            }
            // A write at a later index gets a newer version.
            (Payload::Merge(writes), Mutant::MergeByArrival) => {
                let mut later = writes.to_vec();
                later.iter_mut().for_each(|write| write.version.0 += entry.index << 40);
                *writes = later.into();
            }
            (Payload::Batch { proposal, .. }, Mutant::AppliedAgain)
                if entry.index <= process.found.1 =>
            {
                process.found.1 = 0;
                proposal.commands = [&proposal.commands[..], &proposal.commands].concat().into();
            }
            _ => return None,
        }
        Some(spoilt)
    }
}

/// The image with an empty table of requests, as a faulty snapshot format might write it.
fn without_requests(image: &[u8]) -> Vec<u8> {
    const HEAD: usize = 33;
    const SECTION_HEAD: usize = 13;
    let mut length = [0; 4];
    length.copy_from_slice(&image[HEAD + 1..HEAD + 5]);
    let rest = HEAD + SECTION_HEAD + u32::from_le_bytes(length) as usize;
    let content = 0_u32.to_le_bytes();
    let mut head = vec![image[HEAD]];
    head.extend(4_u32.to_le_bytes());
    head.extend(crc32fast::hash(&content).to_le_bytes());
    head.extend(crc32fast::hash(&head).to_le_bytes());
    [&image[..HEAD], &head, &content, &image[rest..]].concat()
}
