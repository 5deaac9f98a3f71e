//! A node's directory: the real log and the real image files, on a disk in memory that can lose
//! power, fail, fill up and rot. Beside it stands a model: what must be found there again.
//!
//! A sync takes time, so a crash may come in the middle. Then what was under way is done after all,
//! on a disk that stops after a random number of changes, and chance decides what the power cut
//! leaves of them. So every moment of a write, a sync, a rename and a removal is a moment at which
//! the power may fail.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;

use crate::replica::{Envelope, HardState, JobNo, Recovered, WalRecord};
use crate::rng::Rng;
use crate::store::{Image, ImageError};
use crate::testing::MemoryDisk;
use crate::testing::sim::view::View;
use crate::types::SnapshotMeta;
use crate::wal::{
    self, Disk as _, ImageWriter, Images, OutgoingImage, SpareJob, Wal, WalError, WalOptions,
};

/// Changes of a disk within which a crash interrupts what was under way.
const CRASH_WITHIN: u64 = 14;

/// What one step of a replica asked to be made durable.
#[derive(Debug)]
pub struct Batch {
    pub job: JobNo,
    pub records: Vec<WalRecord>,
    pub after: Vec<Envelope>,
}

/// Why a node cannot start from its directory.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The log.
    #[error("{0}")]
    Log(#[from] WalError),
    /// The image that the log relies on.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// What is found is neither what was synced nor that and what was being written.
    #[error("{0}")]
    Forgotten(String),
}

/// How a process ends without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// With its machine: what was not synced may be lost.
    PowerCut,
    /// Alone, as by kill -9: the system still writes what it was given.
    Killed,
}

/// See the module.
pub struct Disk {
    pub files: Arc<MemoryDisk>,
    images: Images<MemoryDisk>,
    /// Open while a process runs.
    log: Option<Wal<MemoryDisk>>,
    /// What all synced batches add up to.
    pub synced: View,
    /// What was being written when the process died, on top of what was synced.
    doubtful: Option<View>,
    /// Handed to the log, being synced.
    writing: Vec<Batch>,
    appended: bool,
    /// Not written yet.
    queue: VecDeque<Batch>,
}

impl Default for Disk {
    fn default() -> Disk {
        let files = Arc::new(MemoryDisk::new());
        Disk {
            images: Images::new(Arc::clone(&files)),
            files,
            log: None,
            synced: View::default(),
            doubtful: None,
            writing: Vec::new(),
            appended: false,
            queue: VecDeque::new(),
        }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("synced", &self.synced.hard).finish_non_exhaustive()
    }
}

impl Disk {
    /// A process begins: reads the log, and the image that it relies on.
    pub fn open(
        &mut self,
        log_id: u64,
        segment_bytes: u64,
    ) -> Result<(Recovered, Option<Image>), Unreadable> {
        let options = WalOptions { segment_bytes, ..WalOptions::new(log_id) };
        let (log, recovered) = Wal::open(Arc::clone(&self.files), options)?;
        let snapshot = recovered.snapshot;
        let image = if snapshot.index > 0 { Some(self.load(snapshot)?) } else { None };
        let found = View::new(&recovered);
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

    /// True if nothing was ever committed to the log that is open.
    pub fn is_new(&self) -> bool {
        self.log.as_ref().is_some_and(Wal::is_new)
    }

    /// The first record of a new log.
    pub fn begin_log(&mut self) -> Result<(), WalError> {
        let Some(log) = &mut self.log else { return Ok(()) };
        log.append(&[WalRecord::Hard(HardState::default())]);
        log.commit()
    }

    /// Takes a batch in, behind all others.
    pub fn push(&mut self, batch: Batch) {
        self.queue.push_back(batch);
    }

    /// Takes all that waits and begins to sync it. False if there is nothing to do, or a sync is
    /// under way.
    pub fn begin_sync(&mut self) -> bool {
        let idle = self.writing.is_empty() && !self.queue.is_empty();
        if idle {
            self.writing.extend(self.queue.drain(..));
            self.appended = false;
        }
        idle
    }

    /// Writes and syncs. The batches that are durable now; on [`WalError::Full`] they wait.
    pub fn end_sync(&mut self) -> Result<Vec<Batch>, WalError> {
        let Some(log) = &mut self.log else { return Ok(Vec::new()) };
        if !self.appended {
            self.writing.iter().for_each(|batch| log.append(&batch.records));
            self.appended = true;
        }
        log.commit()?;
        self.synced = self.with_written();
        Ok(std::mem::take(&mut self.writing))
    }

    /// What is synced and what is being written. (Records make sense: they were checked when the
    /// replica decided them.)
    fn with_written(&self) -> View {
        let mut view = self.synced.clone();
        for record in self.writing.iter().flat_map(|batch| &batch.records) {
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

    /// Everything is written and synced, and the end is marked, as at a clean stop.
    pub fn close(&mut self) -> Result<(), WalError> {
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

    /// What is being written may be there or not.
    fn note_doubt(&mut self) {
        if !self.writing.is_empty() {
            self.doubtful = Some(self.with_written());
        }
    }

    /// The process dies in the middle of what its threads are doing; `unfinished` is that, beside
    /// the log's own work, and `rest` whatever would tidy up if the process went on.
    pub fn die<T>(&mut self, death: Death, rng: &mut Rng, unfinished: Unfinished, rest: T) {
        self.queue.clear();
        self.note_doubt();
        self.files.stop_after(self.files.changes() + rng.below(CRASH_WITHIN));
        let Unfinished { image, part, spare } = unfinished;
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
        // What a value would tidy up when it is dropped, a process that dies does not.
        self.files.stop_after(self.files.changes());
        self.log = None;
        self.writing.clear();
        drop(rest);
        match death {
            Death::PowerCut => self.files.power_cut(rng),
            Death::Killed => self.files.kill(),
        }
    }

    /// Makes the image of a state durable; its length in bytes.
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

    /// Where images that come are kept.
    pub fn images(&self) -> &Images<MemoryDisk> {
        &self.images
    }

    /// Verifies an image that has come, and makes it durable.
    pub fn verify(
        &self,
        part: ImageWriter<MemoryDisk>,
        meta: SnapshotMeta,
    ) -> Result<Image, ImageError> {
        let image = Image::read(&mut part.read()?)?;
        if image.meta() != meta {
            return Err(ImageError::Corrupt { offset: 0, what: "it is another snapshot" });
        }
        self.images.finish(part, meta)?;
        Ok(image)
    }

    /// Removes the images that nothing relies on.
    pub fn remove_older_images(&self) {
        let _ = self.images.remove_older(self.synced.snapshot);
    }

    /// True if there is a file of this name.
    pub fn has(&self, name: &str) -> bool {
        self.files.open(name).is_ok()
    }

    /// Flips a bit of a sealed segment or an image, if there is one; which file it was.
    pub fn rot(&self, rng: &mut Rng) -> Option<String> {
        let mut names = self.files.list().ok()?;
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

/// What a process was doing with its disk when it died.
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
