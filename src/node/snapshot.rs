//! Image files, and the snapshot thread: writes images, verifies those that come from peers, and
//! makes spare log segments, so that neither the log nor the store ever waits for bulk I/O.
//!
//! An image is written under another name, synced, renamed, and the directory synced: a file with
//! an image's name is whole. It is synced piece by piece, so that the log's small syncs never queue
//! behind hundreds of megabytes.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::Shared;
use super::stop::{Fatal, Stop};
use crate::replica::{Chunk, Input};
use crate::store::{Image, ImageError};
use crate::types::{NodeId, SnapshotMeta};
use crate::wal::{FileDisk, SpareJob};

/// Bytes of an image between two syncs while it is written.
const SYNC_BYTES: usize = 4 << 20;

/// How often a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// Work for the snapshot thread.
pub enum SnapshotWork {
    /// Write this image.
    Write(Box<Image>),
    /// All chunks of an image have come.
    Arrived {
        /// From this peer.
        from: NodeId,
        /// The image it says it is.
        meta: SnapshotMeta,
        /// The file that they are in.
        path: PathBuf,
    },
    /// Free the memory of a state that has been replaced.
    Discard(Box<Image>),
    /// Make a spare log segment.
    Spare(SpareJob<FileDisk>),
    /// The log has a spare segment, however it came by it.
    SpareThere,
    /// End.
    Stop,
}

/// The directory that holds images.
#[derive(Debug)]
pub struct Images {
    dir: PathBuf,
    /// Numbers the files that come from peers.
    next_part: AtomicU64,
}

impl Images {
    const SUFFIX: &'static str = ".image";
    const UNFINISHED: &'static str = ".part";

    /// The images in `dir`, which exists.
    pub fn new(dir: &Path) -> Images {
        Images { dir: dir.to_path_buf(), next_part: AtomicU64::new(0) }
    }

    /// Removes what an earlier process left unfinished.
    pub fn remove_unfinished(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.to_string_lossy().ends_with(Images::UNFINISHED) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn path(&self, meta: SnapshotMeta) -> PathBuf {
        let SnapshotMeta { index, term } = meta;
        self.dir.join(format!("snapshot-{index:016x}-{term:016x}{}", Images::SUFFIX))
    }

    fn part(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}{}", Images::UNFINISHED))
    }

    /// Loads the image that the log refers to.
    pub fn load(&self, meta: SnapshotMeta) -> Result<Image, Fatal> {
        let path = self.path(meta);
        let remedy = "Move this node's data directory away and start it with an empty one, so that \
                      it learns from its peers";
        let mut file = File::open(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Fatal::Data(format!(
                "{}: missing, but the log relies on it. {remedy}",
                path.display()
            )),
            _ => Fatal::Io(format!("{}: {error}", path.display())),
        })?;
        match Image::read(&mut file) {
            Ok(image) if image.meta() == meta => Ok(image),
            Ok(_) => {
                Err(Fatal::Data(format!("{}: holds another snapshot. {remedy}", path.display())))
            }
            Err(ImageError::Io(error)) => Err(Fatal::Io(format!("{}: {error}", path.display()))),
            Err(error @ ImageError::NewerFormat(_)) => {
                Err(Fatal::Data(format!("{}: {error}: upgrade this program", path.display())))
            }
            Err(error) => Err(Fatal::Data(format!("{}: {error}. {remedy}", path.display()))),
        }
    }

    /// Opens an image to be sent.
    pub fn open_to_send(&self, meta: SnapshotMeta) -> io::Result<Outgoing> {
        let file = File::open(self.path(meta))?;
        let total = file.metadata()?.len();
        Ok(Outgoing { file, meta, offset: 0, total })
    }

    fn write(&self, image: &Image, stop: &Stop) -> io::Result<()> {
        let part = self.part("writing");
        let written = (|| {
            let mut out = SyncedFile { file: File::create(&part)?, unsynced: 0, stop };
            image.write(&mut out)?;
            out.file.sync_all()?;
            self.finish(&part, image.meta())
        })();
        if written.is_err() {
            let _ = fs::remove_file(&part);
        }
        written
    }

    /// Gives a synced file its name.
    fn finish(&self, part: &Path, meta: SnapshotMeta) -> io::Result<()> {
        fs::rename(part, self.path(meta))?;
        File::open(&self.dir)?.sync_all()
    }

    /// Verifies an image that has arrived, and makes it durable.
    fn verify(&self, path: &Path, meta: SnapshotMeta) -> Result<Image, ImageError> {
        let mut file = File::open(path)?;
        let image = Image::read(&mut file)?;
        if image.meta() != meta {
            return Err(ImageError::Corrupt { offset: 0, what: "it is another snapshot" });
        }
        file.sync_all()?;
        self.finish(path, meta)?;
        Ok(image)
    }

    /// Removes all images older than `meta`.
    pub fn remove_older(&self, meta: SnapshotMeta) -> io::Result<()> {
        let kept = self.path(meta);
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.to_string_lossy().ends_with(Images::SUFFIX) && path < kept {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// A file that is synced while it is written, and given up when the node stops.
struct SyncedFile<'a> {
    file: File,
    unsynced: usize,
    stop: &'a Stop,
}

impl Write for SyncedFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stop.is_set() {
            return Err(io::Error::other("the node is stopping"));
        }
        let len = self.file.write(bytes)?;
        self.unsynced += len;
        if self.unsynced >= SYNC_BYTES {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// An image on its way to a peer.
pub struct Outgoing {
    file: File,
    meta: SnapshotMeta,
    offset: u64,
    total: u64,
}

impl Outgoing {
    /// Bytes of a chunk: small enough that beats in between are never late.
    const CHUNK_BYTES: u64 = 256 << 10;

    /// The next chunk; `None` after the last.
    pub fn next(&mut self, term: u64) -> io::Result<Option<Chunk>> {
        if self.offset == self.total {
            return Ok(None);
        }
        let mut data = vec![0; (self.total - self.offset).min(Outgoing::CHUNK_BYTES) as usize];
        self.file.read_exact_at(&mut data, self.offset)?;
        let Outgoing { meta, offset, total, .. } = *self;
        self.offset += data.len() as u64;
        Ok(Some(Chunk { term, meta, offset, total, data: data.into() }))
    }
}

/// An image on its way from a peer, written as its chunks come. Owned by the link's reader.
pub struct Incoming {
    /// Removed with this value, unless it was handed on.
    path: Option<PathBuf>,
    file: File,
    meta: SnapshotMeta,
    offset: u64,
    total: u64,
}

impl Incoming {
    /// Takes a chunk in. Returns the file when it is complete. A chunk that does not continue what
    /// is there begins anew if it is a first one, and is dropped if not.
    pub fn take(
        incoming: &mut Option<Incoming>,
        images: &Images,
        from: NodeId,
        chunk: &Chunk,
    ) -> io::Result<Option<PathBuf>> {
        if chunk.offset == 0 {
            // A name of its own: an earlier image of this peer may be being verified.
            let number = images.next_part.fetch_add(1, Ordering::Relaxed);
            let path = images.part(&format!("from-{from}-{number}"));
            let file = File::create_new(&path)?;
            let (path, meta, total) = (Some(path), chunk.meta, chunk.total);
            *incoming = Some(Incoming { path, file, meta, offset: 0, total });
        }
        let Some(open) = incoming else { return Ok(None) };
        let fits = open.offset + chunk.data.len() as u64 <= open.total;
        if (open.meta, open.offset, open.total) != (chunk.meta, chunk.offset, chunk.total) || !fits
        {
            return Ok(None);
        }
        open.file.write_all(&chunk.data)?;
        open.offset += chunk.data.len() as u64;
        if open.offset / SYNC_BYTES as u64 != chunk.offset / SYNC_BYTES as u64 {
            open.file.sync_data()?;
        }
        let complete = open.offset == open.total;
        Ok(if complete { incoming.take().and_then(|mut done| done.path.take()) } else { None })
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// Works until the node ends.
pub fn run(shared: &Shared, work: &Receiver<SnapshotWork>) {
    let mut spare_failed = false;
    loop {
        let next = if spare_failed {
            work.recv_timeout(FULL_RETRY)
        } else {
            work.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        match next {
            Ok(SnapshotWork::Write(image)) => write_own(shared, &image),
            Ok(SnapshotWork::Arrived { from, meta, path }) => arrived(shared, from, meta, &path),
            Ok(SnapshotWork::Discard(old)) => drop(old),
            Ok(SnapshotWork::Spare(job)) => spare_failed = !make_spare(shared, job, spare_failed),
            Ok(SnapshotWork::SpareThere) => {
                if std::mem::take(&mut spare_failed) {
                    room_again(shared);
                }
            }
            Ok(SnapshotWork::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => shared.core.look_for_spare(),
        }
    }
}

fn write_own(shared: &Shared, image: &Image) {
    let (meta, started) = (image.meta(), shared.clock.now());
    match shared.images.write(image, &shared.stop) {
        Ok(()) => {
            shared.core.step([Input::SnapshotTaken(meta)]);
            let (keys, took) = (image.stats().keys, shared.clock.now().since(started));
            log::info!(
                target: "NodeSync",
                "Snapshot at index {} with {keys} keys written in {} ms",
                meta.index,
                took.as_millis()
            );
            remove_older(shared);
        }
        Err(error) if is_full(&error) => {
            log::error!(target: "FAILURE", "Disk full: no room for a snapshot");
            shared.core.step([Input::SnapshotFailed]);
        }
        Err(_) if shared.stop.is_set() => {}
        Err(error) => shared.stop.fail(Fatal::Io(format!("writing a snapshot: {error}"))),
    }
}

fn arrived(shared: &Shared, from: NodeId, meta: SnapshotMeta, path: &Path) {
    match shared.images.verify(path, meta) {
        Ok(image) => {
            log::info!(
                target: "NodeSync",
                "Snapshot at index {} with {} keys received from {from}",
                meta.index,
                image.stats().keys
            );
            shared.core.snapshot_arrived(from, Box::new(image));
            remove_older(shared);
        }
        Err(ImageError::Io(error)) if !is_full(&error) => {
            shared.stop.fail(Fatal::Io(format!("receiving a snapshot: {error}")));
        }
        Err(error) => {
            log::warn!(target: "NodeSync", "Snapshot from {from} refused: {error}");
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes images older than the one that the log relies on. That need not be the latest: one that
/// came from a peer too late was not taken.
fn remove_older(shared: &Shared) {
    if let Some(relied_on) = shared.core.durable_snapshot()
        && let Err(error) = shared.images.remove_older(relied_on)
    {
        log::warn!(target: "NodeSync", "Cannot remove an old snapshot: {error}");
    }
}

/// True if the spare was made.
fn make_spare(shared: &Shared, job: SpareJob<FileDisk>, failed_before: bool) -> bool {
    match job.run() {
        Ok(()) => {
            if failed_before {
                room_again(shared);
            }
            true
        }
        Err(error) if is_full(&error) => {
            if !failed_before {
                log::error!(target: "FAILURE", "Disk full: writes are refused until there is room");
                shared.core.step([Input::DiskFull(true)]);
            }
            false
        }
        Err(error) => {
            shared.stop.fail(Fatal::Io(format!("making a log segment: {error}")));
            true
        }
    }
}

fn room_again(shared: &Shared) {
    log::info!(target: "RECOVERED", "The disk has room again");
    shared.core.step([Input::DiskFull(false)]);
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::time::Instant;

    use super::super::Node;
    use super::super::waiters::Waiter;
    use super::*;
    use crate::config::{Args, Config};
    use crate::store::Writer;
    use crate::types::{Command, Entry, Payload, When};
    use clap::Parser;

    fn start(dir: &Path) -> Node {
        let dir = dir.to_str().unwrap();
        let args = ["nodesync", "1", "--dir", dir, "--snapshot-log", "8kb"];
        let config = Config::new(Args::try_parse_from(args).unwrap()).unwrap();
        Node::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), config, Arc::default()).unwrap()
    }

    fn write(shared: &Shared) {
        let mut commands = Vec::new();
        let (value, when) = (&[7; 200][..], When::Always);
        Command::Set { key: b"k", value, when, get: false }.encode(&mut commands);
        let deadline = Instant::now() + Duration::from_secs(20);
        let waiter = Arc::<Waiter>::default();
        loop {
            let result = shared.core.propose(commands.clone().into(), &waiter, deadline);
            match result {
                Ok(_) => return,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    }

    #[test]
    fn an_image_that_comes_too_late_removes_nothing_that_the_log_relies_on() {
        let scratch = tempfile::tempdir().unwrap();
        let node = start(scratch.path());
        let shared = &node.shared;
        // Enough for one snapshot, and too little for a second one.
        (0..36).for_each(|_| write(shared));
        while shared.core.status().snapshot == 0 {
            std::thread::yield_now();
        }
        let relied_on = shared.core.durable_snapshot().unwrap();
        (0..3).for_each(|_| write(shared));
        let mut late = Writer::new();
        for index in 1..=relied_on.index + 1 {
            late.apply(&Entry { index, term: 1, payload: Payload::Noop }, false).unwrap();
        }
        let image = late.image();
        let path = shared.images.part("from-2-0");
        image.write(&mut File::create(&path).unwrap()).unwrap();
        assert!(relied_on < image.meta() && image.meta().index < shared.core.status().commit);
        arrived(shared, NodeId(2), image.meta(), &path);
        assert!(shared.images.load(relied_on).is_ok());
        node.stop().unwrap();
        start(scratch.path()).stop().unwrap();
    }
}
