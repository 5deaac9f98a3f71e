//! What a node's threads do with its disk: the log's thread, and the one that writes and verifies
//! images and makes spare segments.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::replica::{Chunk, Input, Standing};
use crate::store::{Image, ImageError};
use crate::testing::MemoryDisk;
use crate::testing::sim::Mutant;
use crate::testing::sim::cluster::World;
use crate::testing::sim::disk::{Batch, IncomingImage, Unfinished};
use crate::testing::sim::events::Event;
use crate::types::SnapshotMeta;
use crate::wal::{ImageWriter, OutgoingImage, SpareJob, WalError, is_full};

/// How often a full disk is tried again, for the log.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// How often it is tried again, for a spare segment.
const SPARE_RETRY: Duration = Duration::from_secs(1);

/// Chunks are short here, so that an image takes several.
const CHUNK_BYTES: u64 = 700;

/// A process's files on their way, and what is known of room.
#[derive(Debug, Default)]
pub struct Storage {
    /// Images of the own state that wait to be written, or are being written.
    images: VecDeque<Image>,
    /// Images from peers that wait to be verified, or are being verified.
    parts: VecDeque<(usize, SnapshotMeta, ImageWriter<MemoryDisk>)>,
    /// Being received, by peer, with the connection that they come on.
    pub incoming: BTreeMap<usize, (u64, Option<IncomingImage>)>,
    /// Being sent, by peer, in the term in which that began.
    pub outgoing: BTreeMap<usize, (u64, OutgoingImage<MemoryDisk>)>,
    spare: Option<SpareJob<MemoryDisk>>,
    spare_failed: bool,
    log_full: bool,
    /// An image has come: older ones may go when the log relies on it.
    tidy: bool,
}

impl Storage {
    /// What a crash interrupts.
    pub fn unfinished(&mut self) -> Unfinished {
        let part = self.parts.pop_front().map(|(_, meta, part)| (part, meta));
        Unfinished { image: self.images.pop_front(), part, spare: self.spare.take() }
    }
}

impl World {
    fn storage(&mut self, node: usize) -> Option<&mut Storage> {
        self.nodes[node].process.as_mut().map(|process| &mut process.storage)
    }

    /// The log's thread gets a job.
    pub fn persist(&mut self, node: usize, mut batch: Batch) {
        let job = batch.job;
        if self.mutant == Some(Mutant::AckBeforeSync) {
            for envelope in std::mem::take(&mut batch.after) {
                self.post(node, envelope);
            }
        }
        self.nodes[node].disk.push(batch);
        self.begin_sync(node);
        if self.mutant == Some(Mutant::PersistedTooEarly) {
            self.step(node, vec![Input::Persisted(job)]);
        }
    }

    fn begin_sync(&mut self, node: usize) {
        let Some(life) = self.life(node) else { return };
        if !self.nodes[node].disk.begin_sync() {
            return;
        }
        let slow = self.now < self.nodes[node].disk_slow_until;
        let factor = if slow { 50 } else { 1 };
        let micros = self.plan.sync_micros / 2 + self.rng.below(self.plan.sync_micros);
        let from = self.now.max(self.nodes[node].disk_stalled_until);
        self.schedule(from + Duration::from_micros(micros * factor), Event::Synced { node, life });
    }

    /// The disk has answered: what waited for it leaves, then the replica learns of it.
    pub fn synced(&mut self, node: usize) {
        let batches = match self.nodes[node].disk.end_sync() {
            Ok(batches) => batches,
            Err(WalError::Full) => return self.log_is_full(node),
            Err(error) => return self.exit(node, &error.to_string()),
        };
        self.note_durable(node);
        let job = batches.last().map_or(0, |batch| batch.job);
        if let Standing::Voter { .. } = self.nodes[node].disk.synced.hard.standing {
            self.nodes[node].founded = true;
            self.nodes[node].ghosts.clear();
        }
        self.note(node, [5, job, 0], || format!("synced job {job}"));
        for envelope in batches.into_iter().flat_map(|batch| batch.after) {
            self.post(node, envelope);
        }
        let mut inputs = vec![Input::Persisted(job)];
        let Some(storage) = self.storage(node) else { return };
        if std::mem::take(&mut storage.log_full) {
            inputs.push(Input::DiskFull(false));
        }
        if std::mem::take(&mut storage.tidy) {
            self.nodes[node].disk.remove_older_images();
        }
        self.want_spare(node);
        self.begin_sync(node);
        self.step(node, inputs);
    }

    fn log_is_full(&mut self, node: usize) {
        let Some(life) = self.life(node) else { return };
        self.schedule(self.now + FULL_RETRY, Event::SyncAgain { node, life });
        let Some(storage) = self.storage(node) else { return };
        if !std::mem::replace(&mut storage.log_full, true) {
            self.step(node, vec![Input::DiskFull(true)]);
        }
    }

    /// Has a spare segment made, if the log wants one.
    pub fn want_spare(&mut self, node: usize) {
        let Some(life) = self.life(node) else { return };
        let Some(job) = self.nodes[node].disk.spare_wanted() else { return };
        let Some(storage) = self.storage(node) else { return };
        storage.spare = Some(job);
        let at = self.now + Duration::from_micros(self.rng.below(self.plan.image_micros));
        self.schedule(at, Event::Spare { node, life });
    }

    /// A spare segment is made; or looked for again, after there was no room.
    pub fn make_spare(&mut self, node: usize) {
        let Some(life) = self.life(node) else { return };
        let Some(storage) = self.storage(node) else { return };
        let failed_before = storage.spare_failed;
        let made = match storage.spare.take() {
            Some(job) => job.run(),
            None => return self.look_for_spare(node),
        };
        let Some(storage) = self.storage(node) else { return };
        match made {
            Ok(()) => {
                storage.spare_failed = false;
                if failed_before {
                    self.step(node, vec![Input::DiskFull(false)]);
                }
            }
            Err(error) if is_full(&error) => {
                storage.spare_failed = true;
                self.schedule(self.now + SPARE_RETRY, Event::Spare { node, life });
                if !failed_before {
                    self.step(node, vec![Input::DiskFull(true)]);
                }
            }
            Err(error) => self.exit(node, &error.to_string()),
        }
    }

    /// There was no room for a spare segment: perhaps the log has come by one since.
    fn look_for_spare(&mut self, node: usize) {
        let has_spare = self.nodes[node].disk.has_spare();
        let Some(storage) = self.storage(node) else { return };
        if has_spare && std::mem::take(&mut storage.spare_failed) {
            self.step(node, vec![Input::DiskFull(false)]);
        }
        self.want_spare(node);
    }

    /// The state as of now shall become an image.
    pub fn take_image(&mut self, node: usize, meta: SnapshotMeta) {
        let Some(process) = &self.nodes[node].process else { return };
        let (life, applied) = (process.life, process.writer.applied());
        let image = process.writer.image();
        let mut bytes = Vec::new();
        let written = image.clone().write(&mut bytes);
        if applied != meta || written.is_err() {
            return self.fail("an image is of its index", format!("{meta:?} at {applied:?}"));
        }
        self.check_image(meta, &bytes);
        let Some(storage) = self.storage(node) else { return };
        storage.images.push_back(image);
        let at = self.in_image_time();
        self.schedule(at, Event::ImageWritten { node, life });
    }

    fn in_image_time(&mut self) -> crate::clock::Now {
        self.now + Duration::from_micros(500 + self.rng.below(self.plan.image_micros))
    }

    /// An image of this node's own state has been written, or could not be.
    pub fn image_written(&mut self, node: usize) {
        let Some(image) = self.storage(node).and_then(|storage| storage.images.pop_front()) else {
            return;
        };
        let meta = image.meta();
        if !self.calm && self.rng.chance(self.plan.images_failed, 1000) {
            return self.step(node, vec![Input::SnapshotFailed]);
        }
        match self.nodes[node].disk.write(image) {
            Ok(bytes) => {
                self.note(node, [7, meta.index, 0], || format!("has image {meta:?}"));
                self.tidy_images(node);
                self.step(node, vec![Input::SnapshotTaken { meta, bytes }]);
            }
            Err(error) if is_full(&error) => self.step(node, vec![Input::SnapshotFailed]),
            Err(error) => self.exit(node, &error.to_string()),
        }
    }

    fn tidy_images(&mut self, node: usize) {
        if let Some(storage) = self.storage(node) {
            storage.tidy = true;
        }
    }

    /// A part of an image has come.
    pub fn chunk_arrives(&mut self, from: usize, node: usize, generation: u64, chunk: &Chunk) {
        let peer = self.nodes[from].id;
        let life = self.life(node);
        let machine = &mut self.nodes[node];
        let (Some(process), Some(life)) = (&mut machine.process, life) else { return };
        let (current, incoming) = process.storage.incoming.entry(from).or_default();
        if generation < *current {
            return; // Of a connection that has been replaced.
        }
        if generation > *current {
            (*current, *incoming) = (generation, None);
        }
        let taken = IncomingImage::take(incoming, machine.disk.images(), peer, chunk);
        let complete = taken.unwrap_or_else(|_| {
            *incoming = None;
            None
        });
        if let Some(part) = complete {
            process.storage.parts.push_back((from, chunk.meta, part));
            let at = self.in_image_time();
            self.schedule(at, Event::ImageVerified { node, life });
        }
    }

    /// An image from a peer has been verified and is durable, or is no good.
    pub fn image_verified(&mut self, node: usize) {
        let Some((from, meta, part)) = self.storage(node).and_then(|s| s.parts.pop_front()) else {
            return;
        };
        let from = self.nodes[from].id;
        let verified = self.nodes[node].disk.verify(part, meta);
        let text = || format!("image {meta:?} from {from}: {:?}", verified.as_ref().err());
        self.note(node, [8, meta.index, u64::from(verified.is_ok())], text);
        match verified {
            Ok(image) => {
                self.tidy_images(node);
                self.turn(node, |process, now| {
                    process.shell.snapshot_arrived(now, from, Box::new(image));
                });
            }
            Err(ImageError::Io(error)) if !is_full(&error) => self.exit(node, &error.to_string()),
            Err(_) => {}
        }
    }

    /// Begins to send an image.
    pub fn send_image(&mut self, from: usize, to: usize, generation: u64, meta: SnapshotMeta) {
        let (Some(life), peer) = (self.life(from), self.nodes[to].id) else { return };
        let Ok(image) = self.nodes[from].disk.open_to_send(meta, CHUNK_BYTES) else {
            // A newer one has taken its place: the next attempt finds that.
            return self.step(from, vec![Input::SnapshotSent { to: peer, sent: false }]);
        };
        self.note(from, [14, to as u64, meta.index], || format!("sends image {meta:?} to {peer}"));
        if let Some(process) = &mut self.nodes[from].process {
            let term = process.shell.replica().status().term;
            process.storage.outgoing.insert(to, (term, image));
            self.schedule(self.now, Event::SendChunk { from, to, life, generation });
        }
    }

    /// The link's thread sends the next chunk of an image, or is done with it.
    pub fn send_chunk(&mut self, from: usize, to: usize, generation: u64) {
        let (Some(life), peer) = (self.life(from), self.nodes[to].id) else { return };
        let fails = !self.calm && self.rng.chance(self.plan.images_failed, 5_000);
        if fails {
            self.break_link(from, to);
        }
        let state = self.link_state(from, to, generation);
        let Some(storage) = self.storage(from) else { return };
        let Some((term, image)) = storage.outgoing.get_mut(&to) else { return };
        let sent = match (state, image.next(*term)) {
            (Some(()), Ok(Some(chunk))) => {
                self.dispatch_chunk(from, to, generation, chunk);
                let at = self.in_image_time();
                return self.schedule(at, Event::SendChunk { from, to, life, generation });
            }
            (Some(()), Ok(None)) => true,
            _ => false,
        };
        storage.outgoing.remove(&to);
        self.note(from, [15, to as u64, u64::from(sent)], || format!("image to {peer}: {sent}"));
        self.step(from, vec![Input::SnapshotSent { to: peer, sent }]);
    }
}
