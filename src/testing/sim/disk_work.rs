//! The threads of a node that use its disk: one writes the log, another one writes and verifies
//! images and makes spare segments.

use std::time::Duration;

use crate::clock::Now;
use crate::replica::{Input, Standing};
use crate::store::ImageError;
use crate::testing::LogJob;
use crate::testing::sim::cluster::World;
use crate::testing::sim::disk::IncomingImage;
use crate::testing::sim::events::SimEvent;
use crate::testing::sim::link::ChunkPacket;
use crate::testing::sim::mutant::Mutant;
use crate::testing::sim::storage::Storage;
use crate::types::SnapshotMeta;
use crate::wal::{WalError, is_full};

/// The interval at which the log tries a full disk again.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// The interval at which a spare segment tries a full disk again.
const SPARE_RETRY: Duration = Duration::from_secs(1);

/// The length of a chunk. It is short, so that an image takes several.
const CHUNK_BYTES: u64 = 700;

impl World {
    fn storage(&mut self, node: usize) -> Option<&mut Storage> {
        self.nodes[node].process.as_mut().map(|process| &mut process.storage)
    }

    /// The log's thread gets a job.
    pub fn persist(&mut self, node: usize, mut job: LogJob) {
        let number = job.number;
        if self.mutant == Some(Mutant::AckBeforeSync) {
            for envelope in std::mem::take(&mut job.after) {
                self.post(node, envelope);
            }
        }
        self.nodes[node].disk.push(job);
        self.begin_sync(node);
        if self.mutant == Some(Mutant::PersistedTooEarly) {
            self.step(node, vec![Input::Persisted(number)]);
        }
    }

    /// Begins to write all jobs that wait, unless a sync is under way.
    fn begin_sync(&mut self, node: usize) {
        let Some(life) = self.life(node) else { return };
        if !self.nodes[node].disk.begin_sync() {
            return;
        }
        // The faults of a disk: slow, or stalled until a later time.
        let slow = self.now < self.nodes[node].disk_slow_until;
        let factor = if slow { 50 } else { 1 };
        let micros = self.plan.sync_micros / 2 + self.rng.below(self.plan.sync_micros);
        let from = self.now.max(self.nodes[node].disk_stalled_until);
        self.schedule(
            from + Duration::from_micros(micros * factor),
            SimEvent::Synced { node, life },
        );
    }

    /// A sync ends. The messages that waited for it leave, then the replica learns of it.
    pub fn synced(&mut self, node: usize) {
        let jobs = match self.nodes[node].disk.end_sync() {
            Ok(jobs) => jobs,
            Err(WalError::Full) => return self.log_is_full(node),
            // A failed sync is final: the system may have dropped the unsynced pages.
            Err(error) => return self.exit(node, &error.to_string()),
        };
        self.note_durable(node);
        let last = jobs.last().map_or(0, |job| job.number);
        // A durable voter has caught up: its lost directories count no longer.
        if let Standing::Voter { .. } = self.nodes[node].disk.synced.hard.standing {
            self.nodes[node].founded = true;
            self.nodes[node].ghosts.clear();
        }
        self.note(node, [5, last, 0], || format!("synced job {last}"));
        // Votes and acknowledgements leave only now (§5.2, §5.3): their records are durable.
        for envelope in jobs.into_iter().flat_map(|job| job.after) {
            self.post(node, envelope);
        }
        let mut inputs = vec![Input::Persisted(last)];
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

    /// The log has found no room. It tries again, and tells the replica once.
    fn log_is_full(&mut self, node: usize) {
        let Some(life) = self.life(node) else { return };
        self.schedule(self.now + FULL_RETRY, SimEvent::SyncAgain { node, life });
        let Some(storage) = self.storage(node) else { return };
        if !std::mem::replace(&mut storage.log_full, true) {
            self.step(node, vec![Input::DiskFull(true)]);
        }
    }

    /// Orders a spare segment, if the log wants one.
    pub fn want_spare(&mut self, node: usize) {
        let Some(life) = self.life(node) else { return };
        let Some(job) = self.nodes[node].disk.spare_wanted() else { return };
        let Some(storage) = self.storage(node) else { return };
        storage.spare = Some(job);
        let at = self.now + Duration::from_micros(self.rng.below(self.plan.image_micros));
        self.schedule(at, SimEvent::MakeSpare { node, life });
    }

    /// A spare segment is made. After there was no room, another attempt begins.
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
                self.schedule(self.now + SPARE_RETRY, SimEvent::MakeSpare { node, life });
                if !failed_before {
                    self.step(node, vec![Input::DiskFull(true)]);
                }
            }
            Err(error) => self.exit(node, &error.to_string()),
        }
    }

    /// There was no room for a spare segment. Since then the log may have gained one: a segment
    /// that it needs no longer.
    fn look_for_spare(&mut self, node: usize) {
        let has_spare = self.nodes[node].disk.has_spare();
        let Some(storage) = self.storage(node) else { return };
        // The log has room again.
        if has_spare && std::mem::take(&mut storage.spare_failed) {
            self.step(node, vec![Input::DiskFull(false)]);
        }
        self.want_spare(node);
    }

    /// The apply thread takes an image of its state.
    pub fn take_image(&mut self, node: usize, meta: SnapshotMeta) {
        let Some(process) = &self.nodes[node].process else { return };
        let (life, applied) = (process.life, process.writer.applied());
        let image = process.writer.image();
        let mut bytes = Vec::new();
        let written = image.clone().write(&mut bytes);
        // The image belongs between two entries, exactly behind the one that the replica has named.
        if applied != meta || written.is_err() {
            return self.fail("an image is of its index", format!("{meta:?} at {applied:?}"));
        }
        self.check_image(meta, &bytes);
        let Some(storage) = self.storage(node) else { return };
        storage.images.push_back(image);
        let at = self.in_image_time();
        self.schedule(at, SimEvent::ImageWritten { node, life });
    }

    /// The time at which work on an image that begins now ends.
    fn in_image_time(&mut self) -> Now {
        self.now + Duration::from_micros(500 + self.rng.below(self.plan.image_micros))
    }

    /// An image of the node's own state has been written, or could not be.
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

    /// There is a new image: the older ones may go with the next sync.
    fn tidy_images(&mut self, node: usize) {
        if let Some(storage) = self.storage(node) {
            storage.tidy = true;
        }
    }

    /// A chunk of an image comes to its node. The last one makes the image ready to be verified.
    pub fn chunk_arrives(&mut self, packet: &ChunkPacket) {
        let ChunkPacket { from, to: node, generation, ref chunk, .. } = *packet;
        let peer = self.nodes[from].id;
        let life = self.life(node);
        let machine = &mut self.nodes[node];
        let (Some(process), Some(life)) = (&mut machine.process, life) else { return };
        let (current, incoming) = process.storage.incoming.entry(from).or_default();
        if generation < *current {
            return; // It comes from a connection that has been replaced.
        }
        // A new connection begins its image anew.
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
            self.schedule(at, SimEvent::ImageVerified { node, life });
        }
    }

    /// An image from a peer has been verified and is durable, or it is damaged.
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
            // Damaged, or no room: the leader will send it again.
            Err(_) => {}
        }
    }

    /// Begins to send an image.
    pub fn send_image(&mut self, from: usize, to: usize, generation: u64, meta: SnapshotMeta) {
        let (Some(life), peer) = (self.life(from), self.nodes[to].id) else { return };
        let Ok(image) = self.nodes[from].disk.open_to_send(meta, CHUNK_BYTES) else {
            // A newer image has taken its place. The replica will ask for that one.
            return self.step(from, vec![Input::SnapshotSent { to: peer, sent: false }]);
        };
        self.note(from, [14, to as u64, meta.index], || format!("sends image {meta:?} to {peer}"));
        if let Some(process) = &mut self.nodes[from].process {
            let term = process.shell.replica().status().term;
            process.storage.outgoing.insert(to, (term, image));
            self.schedule(self.now, SimEvent::SendChunk { from, to, life, generation });
        }
    }

    /// The thread of a link sends the next chunk of an image, or has sent the last one.
    pub fn send_chunk(&mut self, from: usize, to: usize, generation: u64) {
        let (Some(life), peer) = (self.life(from), self.nodes[to].id) else { return };
        let fails = !self.calm && self.rng.chance(self.plan.images_failed, 5_000);
        // The connection breaks in the middle of the image.
        if fails {
            self.break_link(from, to);
        }
        let is_connected = self.is_connected(from, to, generation);
        let Some(storage) = self.storage(from) else { return };
        let Some((term, image)) = storage.outgoing.get_mut(&to) else { return };
        let sent = match (is_connected, image.next(*term)) {
            (true, Ok(Some(chunk))) => {
                self.dispatch_chunk(from, to, generation, chunk);
                let at = self.in_image_time();
                return self.schedule(at, SimEvent::SendChunk { from, to, life, generation });
            }
            (true, Ok(None)) => true,
            _ => false,
        };
        storage.outgoing.remove(&to);
        self.note(from, [15, to as u64, u64::from(sent)], || format!("image to {peer}: {sent}"));
        self.step(from, vec![Input::SnapshotSent { to: peer, sent }]);
    }
}
