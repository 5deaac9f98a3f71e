//! Files that hold images of the state, beside the log: their names, and the steps that make them
//! durable. Their content is the business of the store, which writes and reads it.
//!
//! ```text
//! snapshot-0000000000000a17-0000000000000003.image   as of index 0xa17, whose entry is of term 3
//! writing.part, from-5001-0.part                     unfinished; removed at the next start
//! ```
//! An image is written under another name, synced, renamed, and the directory synced: a file with
//! an image's name is whole. It is synced piece by piece, so that the log's small syncs never queue
//! behind hundreds of megabytes. Synced pieces leave the page cache at once: recycled pages cost
//! the system less than fresh ones, and as a rule the file is not read before a restart. An image
//! that is being sent stays readable after its removal.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::disk::Disk;
use crate::replica::Chunk;
use crate::types::{NodeId, SnapshotMeta, Term};

const SUFFIX: &str = ".image";
const UNFINISHED: &str = ".part";

/// Bytes of an image between two syncs while it is written: the most that a sync of the log may
/// have to wait for at the disk, a millisecond or so.
const SYNC_BYTES: u64 = 512 << 10;

/// The images in a node's directory.
#[derive(Debug)]
pub struct Images<D> {
    disk: Arc<D>,
    /// Numbers the files that come from peers.
    next_part: AtomicU64,
}

impl<D: Disk> Images<D> {
    /// The images on `disk`.
    pub fn new(disk: Arc<D>) -> Images<D> {
        Images { disk, next_part: AtomicU64::new(0) }
    }

    /// Removes the files that an earlier process left unfinished.
    ///
    /// # Errors
    /// The disk's.
    pub fn remove_unfinished(&self) -> io::Result<()> {
        for (name, _) in self.disk.list()? {
            if name.ends_with(UNFINISHED) {
                self.disk.remove(&name)?;
            }
        }
        Ok(())
    }

    /// The name of the file that holds this image.
    pub fn name(meta: SnapshotMeta) -> String {
        let SnapshotMeta { index, term } = meta;
        format!("snapshot-{index:016x}-{term:016x}{SUFFIX}")
    }

    /// Opens an image to be read from its beginning.
    ///
    /// # Errors
    /// The disk's; `NotFound` if there is none of that snapshot.
    pub fn open(&self, meta: SnapshotMeta) -> io::Result<ImageReader<D>> {
        let file = self.disk.open(&Images::<D>::name(meta))?;
        Ok(ImageReader { disk: Arc::clone(&self.disk), file, offset: 0 })
    }

    /// Opens an image to be sent, in chunks of `chunk_bytes`.
    ///
    /// # Errors
    /// See [`Images::open`].
    pub fn open_to_send(
        &self,
        meta: SnapshotMeta,
        chunk_bytes: u64,
    ) -> io::Result<OutgoingImage<D>> {
        let image = self.open(meta)?;
        let total = self.disk.len(&image.file)?;
        Ok(OutgoingImage { image, meta, total, chunk_bytes })
    }

    /// Begins the file for an image of this node's own state. There is one at a time.
    ///
    /// # Errors
    /// The disk's.
    pub fn begin(&self) -> io::Result<ImageWriter<D>> {
        self.create("writing".into(), false)
    }

    /// Begins the file for an image from a peer.
    fn begin_from(&self, peer: NodeId) -> io::Result<ImageWriter<D>> {
        // A name of its own, because an earlier image of this peer may still be under verification.
        // Relaxed: only the numbers' difference matters, and no other memory depends on them.
        let number = self.next_part.fetch_add(1, Ordering::Relaxed);
        self.create(format!("from-{peer}-{number}"), true)
    }

    fn create(&self, name: String, is_read_back: bool) -> io::Result<ImageWriter<D>> {
        let name = name + UNFINISHED;
        let file = self.disk.begin(&name)?;
        let disk = Arc::clone(&self.disk);
        Ok(ImageWriter { disk, file, name: Some(name), offset: 0, synced: 0, is_read_back })
    }

    /// Makes a whole file the image of this snapshot, durably.
    ///
    /// # Errors
    /// The disk's; then the file is removed.
    pub fn finish(&self, mut image: ImageWriter<D>, meta: SnapshotMeta) -> io::Result<()> {
        // The content becomes durable before the name: a file with an image's name is whole.
        self.disk.sync(&image.file)?;
        if let Some(name) = &image.name {
            self.disk.rename(name, &Images::<D>::name(meta))?;
        }
        image.name = None;
        Ok(())
    }

    /// Removes all images older than `meta`. Only for after the log's snapshot record of `meta` is
    /// durable: until then recovery needs the older image.
    ///
    /// # Errors
    /// The disk's.
    pub fn remove_older(&self, meta: SnapshotMeta) -> io::Result<()> {
        let kept = Images::<D>::name(meta);
        for (name, _) in self.disk.list()? {
            // Fixed-width hexadecimal numbers sort by name as by index and term.
            if name.ends_with(SUFFIX) && name < kept {
                self.disk.remove(&name)?;
            }
        }
        Ok(())
    }
}

/// An image as a stream of bytes.
#[derive(Debug)]
pub struct ImageReader<D: Disk> {
    disk: Arc<D>,
    file: D::File,
    offset: u64,
}

impl<D: Disk> Read for ImageReader<D> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let len = self.disk.read_at(&self.file, self.offset, bytes)?;
        self.offset += len as u64;
        Ok(len)
    }
}

/// An image that is being written. Dropping it removes its file unless [`Images::finish`] took it.
#[derive(Debug)]
pub struct ImageWriter<D: Disk> {
    disk: Arc<D>,
    file: D::File,
    /// `None` once the image is finished.
    name: Option<String>,
    offset: u64,
    synced: u64,
    /// True if the image is read as soon as it is whole.
    is_read_back: bool,
}

impl<D: Disk> ImageWriter<D> {
    /// Reads the bytes written so far, from the beginning.
    ///
    /// # Errors
    /// The disk's.
    pub fn read(&self) -> io::Result<ImageReader<D>> {
        let name = self.name.as_deref().unwrap_or_default();
        let file = self.disk.open(name)?;
        Ok(ImageReader { disk: Arc::clone(&self.disk), file, offset: 0 })
    }
}

impl<D: Disk> Write for ImageWriter<D> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.write_at(&self.file, self.offset, bytes)?;
        self.offset += bytes.len() as u64;
        if self.offset - self.synced >= SYNC_BYTES {
            self.disk.sync(&self.file)?;
            // An image from a peer is verified next: it should still be in the page cache then.
            if !self.is_read_back {
                // The piece just synced is left out: its pages are not on the system's lists yet,
                // and to fetch them there the system would interrupt every processor.
                self.disk.forget(&self.file, 0, self.synced);
            }
            self.synced = self.offset;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<D: Disk> Drop for ImageWriter<D> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // A file that cannot be removed now is removed at the next start.
            let _ = self.disk.remove(name);
        }
    }
}

/// An image on its way to a peer.
#[derive(Debug)]
pub struct OutgoingImage<D: Disk> {
    image: ImageReader<D>,
    meta: SnapshotMeta,
    total: u64,
    chunk_bytes: u64,
}

impl<D: Disk> OutgoingImage<D> {
    /// The usual length of a chunk, in bytes: small enough that heartbeats between two chunks are
    /// never late.
    pub const CHUNK_BYTES: u64 = 256 << 10;

    /// The next chunk; `None` after the last.
    ///
    /// # Errors
    /// The disk's.
    pub fn next(&mut self, term: Term) -> io::Result<Option<Chunk>> {
        let OutgoingImage { meta, total, chunk_bytes, .. } = *self;
        let offset = self.image.offset;
        if offset == total {
            return Ok(None);
        }
        let mut data = vec![0; (total - offset).min(chunk_bytes) as usize];
        self.image.read_exact(&mut data)?;
        Ok(Some(Chunk { term, meta, offset, total, data: data.into() }))
    }
}

/// An image on its way from a peer, written as its chunks come. Owned by the link's reader.
#[derive(Debug)]
pub struct IncomingImage<D: Disk> {
    image: ImageWriter<D>,
    meta: SnapshotMeta,
    total: u64,
}

impl<D: Disk> IncomingImage<D> {
    /// Takes a chunk in; returns the file when it is complete. A chunk that does not continue the
    /// image begins a new one if it is a first chunk, and is dropped if not.
    ///
    /// # Errors
    /// The disk's.
    pub fn take(
        incoming: &mut Option<IncomingImage<D>>,
        images: &Images<D>,
        from: NodeId,
        chunk: &Chunk,
    ) -> io::Result<Option<ImageWriter<D>>> {
        // The peer restarts from offset 0 after a lost link, or with a newer snapshot (§7, figure
        // 13: a chunk at offset 0 creates a new file). Assignment removes the old file.
        if chunk.offset == 0 {
            let image = images.begin_from(from)?;
            *incoming = Some(IncomingImage { image, meta: chunk.meta, total: chunk.total });
        }
        let Some(open) = incoming else { return Ok(None) };
        // Chunks are written in order and never beyond the announced length. A chunk of another
        // snapshot is left over from an earlier sending.
        let offset = open.image.offset;
        let fits = offset + chunk.data.len() as u64 <= open.total;
        if (open.meta, offset, open.total) != (chunk.meta, chunk.offset, chunk.total) || !fits {
            return Ok(None);
        }
        open.image.write_all(&chunk.data)?;
        let is_complete = open.image.offset == open.total;
        Ok(if is_complete { incoming.take().map(|complete| complete.image) } else { None })
    }
}

/// True if the error means that there was no room on the disk.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemoryDisk;
    use crate::wal::FileDisk;

    const META: SnapshotMeta = SnapshotMeta { index: 7, term: 2 };

    fn names<D: Disk>(disk: &D) -> Vec<String> {
        let mut names: Vec<_> = disk.list().unwrap().into_iter().map(|(name, _)| name).collect();
        names.sort();
        names
    }

    fn write<D: Disk>(images: &Images<D>, meta: SnapshotMeta, bytes: &[u8]) {
        let mut image = images.begin().unwrap();
        image.write_all(bytes).unwrap();
        images.finish(image, meta).unwrap();
    }

    fn read<D: Disk>(images: &Images<D>, meta: SnapshotMeta) -> Vec<u8> {
        let mut bytes = Vec::new();
        images.open(meta).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn an_image_has_its_name_only_when_it_is_whole<D: Disk>(disk: Arc<D>) {
        let images = Images::new(Arc::clone(&disk));
        let mut image = images.begin().unwrap();
        image.write_all(b"half").unwrap();
        assert_eq!(names(&*disk), ["writing.part"]);
        drop(image);
        assert!(names(&*disk).is_empty());
        write(&images, META, b"whole");
        assert_eq!(names(&*disk), [Images::<D>::name(META)]);
        assert_eq!(read(&images, META), b"whole");
        let later = SnapshotMeta { index: 8, term: 2 };
        write(&images, later, b"later");
        let mut sending = images.open_to_send(META, 3).unwrap();
        images.remove_older(later).unwrap();
        assert_eq!(names(&*disk), [Images::<D>::name(later)]);
        let first = sending.next(5).unwrap().unwrap();
        assert_eq!((first.offset, first.total, &first.data[..]), (0, 5, &b"who"[..]));
    }

    #[test]
    fn a_file_with_an_images_name_is_whole_and_stays_readable_while_it_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        an_image_has_its_name_only_when_it_is_whole(Arc::new(FileDisk::new(dir.path())));
        an_image_has_its_name_only_when_it_is_whole(Arc::new(MemoryDisk::new()));
    }

    #[test]
    fn chunks_make_the_same_image_and_misplaced_ones_are_dropped() {
        let disk = Arc::new(MemoryDisk::new());
        let images = Images::new(Arc::clone(&disk));
        write(&images, META, b"0123456789");
        let chunks = |bytes: u64| {
            let mut outgoing = images.open_to_send(META, bytes).unwrap();
            std::iter::from_fn(|| outgoing.next(3).unwrap()).collect::<Vec<_>>()
        };
        let mut incoming = None;
        let mut take =
            |chunk: &Chunk| IncomingImage::take(&mut incoming, &images, NodeId(9), chunk);
        let chunks = chunks(4);
        assert_eq!(chunks.len(), 3);
        assert!(take(&chunks[1]).unwrap().is_none(), "nothing has begun");
        assert!(take(&chunks[0]).unwrap().is_none());
        assert!(take(&chunks[2]).unwrap().is_none(), "one is missing");
        assert!(take(&chunks[0]).unwrap().is_none(), "a first chunk begins a new image");
        assert!(take(&chunks[1]).unwrap().is_none());
        let image = take(&chunks[2]).unwrap().expect("complete");
        let mut bytes = Vec::new();
        image.read().unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"0123456789");
        images.remove_unfinished().unwrap();
        drop(image);
        assert_eq!(names(&*disk), [Images::<MemoryDisk>::name(META)]);
    }
}
