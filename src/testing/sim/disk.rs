//! A node's directory: the real log and the real image files, on a disk in memory that can lose
//! power, fail, fill up and rot. Beside it stands a model of the log: the records that a start must
//! find.
//!
//! A sync takes time, so a crash may come in the middle of it. The simulator then does the
//! unfinished work after all, on a disk that stops after a random number of changes, and chance
//! decides which of the unsynced changes survive the power cut. So the power may fail at every
//! moment of a write, a sync, a rename and a removal.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;

use crate::replica::{HardState, Recovered, WalRecord};
use crate::rng::Rng;
use crate::store::{Image, ImageError};
use crate::testing::sim::log_model::LogModel;
use crate::testing::{LogJob, MemoryDisk};
use crate::types::SnapshotMeta;
use crate::wal::{
    self, Disk as _, ImageWriter, Images, OutgoingImage, SpareJob, Wal, WalError, WalOptions,
};

/// A crash interrupts the unfinished work within this many changes of the disk.
const CRASH_WITHIN: u64 = 14;

/// The reason why a node cannot start from its directory.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The log.
    #[error("{0}")]
    Log(#[from] WalError),
    /// The image that the log relies on.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// The log holds neither the synced records nor these and the ones that were being written.
    #[error("{0}")]
    Forgotten(String),
}

/// The way in which a process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// With its machine: unsynced changes may be lost.
    PowerCut,
    /// Alone, as by kill -9: the system still writes all changes that it was given.
    Killed,
}

/// A node's directory, with the work that is under way in it.
pub struct SimDisk {
    pub files: Arc<MemoryDisk>,
    images: Images<MemoryDisk>,
    /// Open while a process runs.
    log: Option<Wal<MemoryDisk>>,
    /// The sum of all synced jobs.
    pub synced: LogModel,
    /// The same with the jobs that were being written when the process died. A start finds one or
    /// the other.
    doubtful: Option<LogModel>,
    /// Jobs being synced.
    writing: Vec<LogJob>,
    /// The jobs in `writing` are appended. (A full disk may make them wait for their sync.)
    appended: bool,
    /// Jobs that wait.
    queue: VecDeque<LogJob>,
}

impl Default for SimDisk {
    fn default() -> SimDisk {
        let files = Arc::new(MemoryDisk::new());
        SimDisk {
            images: Images::new(Arc::clone(&files)),
            files,
            log: None,
            synced: LogModel::default(),
            doubtful: None,
            writing: Vec::new(),
            appended: false,
            queue: VecDeque::new(),
        }
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("synced", &self.synced.hard).finish_non_exhaustive()
    }
}

impl SimDisk {
    /// A process starts: reads the log, and the image that it relies on.
    pub fn open(
        &mut self,
        log_id: u64,
        segment_bytes: u64,
    ) -> Result<(Recovered, Option<Image>), Unreadable> {
        let options = WalOptions { segment_bytes, ..WalOptions::new(log_id) };
        let (log, recovered) = Wal::open(Arc::clone(&self.files), options)?;
        let snapshot = recovered.snapshot;
        let image = if snapshot.index > 0 { Some(self.load(snapshot)?) } else { None };
        let found = LogModel::new(&recovered);
        // A crash may lose the jobs that were being written, and may keep them. Nothing else is
        // right.
        if found != self.synced && Some(&found) != self.doubtful.as_ref() {
            let (synced, doubtful) = (&self.synced, &self.doubtful);
            let how = format!("found {found}, synced {synced}, perhaps {doubtful:?}");
            return Err(Unreadable::Forgotten(how));
        }
        self.synced = found;
        self.doubtful = None;
        self.log = Some(log);
        self.images.remove_unfinished().map_err(WalError::from)?;
        Ok((recovered, image))
    }

    /// True if the open log never had a record.
    pub fn is_new(&self) -> bool {
        self.log.as_ref().is_some_and(Wal::is_new)
    }

    /// The first record of a new log.
    pub fn begin_log(&mut self) -> Result<(), WalError> {
        let Some(log) = &mut self.log else { return Ok(()) };
        log.append(&[WalRecord::Hard(HardState::default())]);
        log.commit()
    }

    /// Queues a job behind all others.
    pub fn push(&mut self, job: LogJob) {
        self.queue.push_back(job);
    }

    /// Takes all jobs that wait and begins to sync them. False if there are none, or a sync is
    /// under way.
    pub fn begin_sync(&mut self) -> bool {
        let idle = self.writing.is_empty() && !self.queue.is_empty();
        if idle {
            self.writing.extend(self.queue.drain(..));
            self.appended = false;
        }
        idle
    }

    /// Writes and syncs. Returns the jobs that are durable now.
    ///
    /// # Errors
    /// After [`WalError::Full`] the jobs wait for the next attempt. Any other error is final.
    pub fn end_sync(&mut self) -> Result<Vec<LogJob>, WalError> {
        let Some(log) = &mut self.log else { return Ok(Vec::new()) };
        // After a full disk the log has the records already: only its commit is repeated.
        if !self.appended {
            self.writing.iter().for_each(|job| log.append(&job.records));
            self.appended = true;
        }
        log.commit()?;
        self.synced = self.with_written();
        Ok(std::mem::take(&mut self.writing))
    }

    /// The synced jobs and those being written. No record fails here: `World::check_records` has
    /// applied each one when the replica decided it.
    fn with_written(&self) -> LogModel {
        let mut view = self.synced.clone();
        for record in self.writing.iter().flat_map(|job| &job.records) {
            let _ = view.apply(record);
        }
        view
    }

    /// A job for a spare segment, if the log wants one.
    pub fn spare_wanted(&self) -> Option<SpareJob<MemoryDisk>> {
        self.log.as_ref().and_then(Wal::spare_wanted)
    }

    /// True if the log has a spare segment.
    pub fn has_spare(&self) -> bool {
        self.log.as_ref().is_some_and(Wal::has_spare)
    }

    /// Writes and syncs everything and closes the log, as a clean stop does.
    pub fn close(&mut self) -> Result<(), WalError> {
        // First the jobs that are being written, then those that wait.
        let written = self.end_sync().and_then(|_| {
            self.begin_sync();
            self.end_sync()
        });
        self.note_doubt();
        self.queue.clear();
        self.writing.clear();
        let closed = self.log.take().map_or(Ok(()), Wal::close);
        self.files.kill();
        written.and(closed)
    }

    /// The next start may find the jobs that are being written, or not.
    fn note_doubt(&mut self) {
        if !self.writing.is_empty() {
            self.doubtful = Some(self.with_written());
        }
    }

    /// The process dies in the middle of its threads' work: that of the log, and `unfinished`.
    /// `rest` is the remainder of the process, whose destructors must not touch the disk any more.
    pub fn die<T>(&mut self, death: Death, rng: &mut Rng, unfinished: Unfinished, rest: T) {
        self.queue.clear();
        self.note_doubt();
        self.files.stop_after(self.files.changes() + rng.below(CRASH_WITHIN));
        let Unfinished { image, part, spare } = unfinished;
        // The threads of the log and of images work side by side: either may be the first to come
        // to the change at which the disk stops.
        let mut log_is_next = rng.chance(1, 2);
        for _ in 0..2 {
            if log_is_next && self.log.is_some() {
                let _ = self.end_sync();
            } else {
                let _ = image.as_ref().map(|image| self.write(image.clone()));
            }
            log_is_next = !log_is_next;
        }
        if let Some((part, meta)) = part {
            let _ = self.images.finish(part, meta);
        }
        let _ = spare.map(SpareJob::run);
        // A process that dies runs no destructors: those that run here find a dead disk.
        self.files.stop_after(self.files.changes());
        self.log = None;
        self.writing.clear();
        drop(rest);
        match death {
            Death::PowerCut => self.files.power_cut(rng),
            Death::Killed => self.files.kill(),
        }
    }

    /// Makes an image durable. Returns its length in bytes.
    pub fn write(&self, image: Image) -> io::Result<u64> {
        let (mut part, meta) = (self.images.begin()?, image.meta());
        let bytes = image.write(&mut part)?;
        self.images.finish(part, meta)?;
        Ok(bytes)
    }

    /// The image of this snapshot.
    pub fn load(&self, meta: SnapshotMeta) -> Result<Image, ImageError> {
        Image::read(&mut self.images.open(meta)?)
    }

    /// Opens an image to be sent.
    pub fn open_to_send(
        &self,
        meta: SnapshotMeta,
        bytes: u64,
    ) -> io::Result<OutgoingImage<MemoryDisk>> {
        self.images.open_to_send(meta, bytes)
    }

    /// The image files.
    pub fn images(&self) -> &Images<MemoryDisk> {
        &self.images
    }

    /// Verifies a received image, and makes it durable.
    pub fn verify(
        &self,
        part: ImageWriter<MemoryDisk>,
        meta: SnapshotMeta,
    ) -> Result<Image, ImageError> {
        let image = Image::read(&mut part.read()?)?;
        // The checksums are right, but the peer has sent another image than it has announced.
        if image.meta() != meta {
            return Err(ImageError::Corrupt { offset: 0, what: "it is another snapshot" });
        }
        self.images.finish(part, meta)?;
        Ok(image)
    }

    /// Removes the images that are older than the one that the log relies on.
    pub fn remove_older_images(&self) {
        let _ = self.images.remove_older(self.synced.snapshot);
    }

    /// True if there is a file of this name.
    pub fn has(&self, name: &str) -> bool {
        self.files.open(name).is_ok()
    }

    /// Flips a bit of a sealed segment or an image. Returns the name of the file; `None` if there
    /// is no such file.
    pub fn rot(&self, rng: &mut Rng) -> Option<String> {
        let mut names = self.files.list().ok()?;
        // Only sealed files: damage at the end of the last segment looks like a torn write.
        let last = names.iter().map(|(name, _)| name).filter(|name| is_segment(name)).max();
        let last = last.cloned();
        names.retain(|(name, len)| {
            let sealed = is_segment(name) && Some(name) != last.as_ref();
            *len > 0 && (sealed || name.ends_with(".image"))
        });
        let (name, len) = names.get(rng.below(names.len() as u64) as usize)?;
        self.files.flip_bit(name, rng.below(len * 8) as usize);
        Some(name.clone())
    }
}

fn is_segment(name: &str) -> bool {
    name.starts_with("wal-")
}

/// Work on the disk that a process leaves unfinished when it dies.
#[derive(Debug, Default)]
pub struct Unfinished {
    /// Being written.
    pub image: Option<Image>,
    /// Being verified.
    pub part: Option<(ImageWriter<MemoryDisk>, SnapshotMeta)>,
    /// Being made.
    pub spare: Option<SpareJob<MemoryDisk>>,
}

/// An image on its way to a node.
pub type IncomingImage = wal::IncomingImage<MemoryDisk>;
