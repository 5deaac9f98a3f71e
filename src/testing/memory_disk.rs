//! A disk in memory that can fail like a real one: for the log's own tests and for simulators.
//!
//! Bytes that were written and not synced have two states: the one that the process sees, and the
//! one that a power cut leaves. After a power cut each sector of 512 bytes holds, independently of
//! the others, its old content or that of any write since; a file that grows may end anywhere
//! between its synced and its present length. After a failed sync the process still sees the
//! written bytes, but no later sync makes them durable, as on Linux, where the pages count as
//! clean; only writing them again does. A file whose name is gone stays readable where it is open,
//! until the process ends.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};

use parking_lot::Mutex;

use crate::rng::Rng;
use crate::wal::Disk;

/// The length of a sector, which a disk writes whole or not at all, in bytes.
const SECTOR_BYTES: usize = 512;

/// A disk in memory that can fail like a real one. Share it in an `Arc`, and keep it across the
/// restarts of a node.
#[derive(Debug, Default)]
pub struct MemoryDisk(Mutex<DiskState>);

#[derive(Clone, Debug, Default)]
struct DiskState {
    names: BTreeMap<String, u64>,
    files: BTreeMap<u64, FileContent>,
    next_file: u64,
    capacity_bytes: Option<u64>,
    sync_fails: bool,
    sync_lies: bool,
    write_fails: bool,
    /// Set once the disk has been told to forget directory syncs: the durable names, and the
    /// changes of names since, in order.
    unsynced_names: Option<(BTreeMap<String, u64>, Vec<NameChange>)>,
    /// Changes made so far: writes, syncs, creations, renames, removals.
    changes: u64,
    /// The disk stops before the change with this number, counted from 0.
    stop_after: Option<u64>,
    /// The change of names that was under way when the disk stopped.
    in_doubt: Option<InDoubt>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Add(String, u64),
    Rename(String, String),
    Remove(String),
}

#[derive(Clone, Debug)]
enum InDoubt {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

#[derive(Clone, Debug, Default)]
struct FileContent {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// The sectors that differ, by number.
    unsynced: BTreeMap<usize, Sector>,
    /// True if a write at its end makes it longer.
    grows: bool,
}

#[derive(Clone, Debug, Default)]
struct Sector {
    /// The sector's content after each write since the last sync.
    versions: Vec<Vec<u8>>,
    /// True if a sync of it has failed and no write has followed.
    forgotten: bool,
}

impl MemoryDisk {
    /// An empty disk without limit.
    pub fn new() -> MemoryDisk {
        MemoryDisk::default()
    }

    /// An independent copy, as it is now.
    pub fn fork(&self) -> MemoryDisk {
        MemoryDisk(Mutex::new(self.0.lock().clone()))
    }

    /// Limits the sum of all file lengths, in bytes.
    pub fn set_capacity(&self, capacity_bytes: Option<u64>) {
        self.0.lock().capacity_bytes = capacity_bytes;
    }

    /// Makes the next sync fail.
    pub fn fail_next_sync(&self) {
        self.0.lock().sync_fails = true;
    }

    /// Makes the next write fail.
    pub fn fail_next_write(&self) {
        self.0.lock().write_fails = true;
    }

    /// Takes back the failures that were ordered, and the limit.
    pub fn heal(&self) {
        let state = &mut *self.0.lock();
        (state.sync_fails, state.write_fails, state.capacity_bytes) = (false, false, None);
    }

    /// From now on a sync does nothing and reports success: a disk that breaks its contract, to
    /// test code that relies on it.
    pub fn forget_to_sync(&self) {
        self.0.lock().sync_lies = true;
    }

    /// From now on creations, renames and removals return before they are durable: another broken
    /// contract.
    pub fn forget_to_sync_names(&self) {
        let state = &mut *self.0.lock();
        state.unsynced_names.get_or_insert((state.names.clone(), Vec::new()));
    }

    /// The sum of all file lengths, in bytes.
    pub fn used_bytes(&self) -> u64 {
        self.0.lock().used_bytes()
    }

    /// The changes made so far: writes, syncs, creations, renames and removals.
    pub fn changes(&self) -> u64 {
        self.0.lock().changes
    }

    /// Makes the disk stop before it completes the change number `changes`, counted from 0: that
    /// one and all later ones fail until [`MemoryDisk::power_cut`] or [`MemoryDisk::kill`].
    pub fn stop_after(&self, changes: u64) {
        self.0.lock().stop_after = Some(changes);
    }

    /// The process ends and starts again: everything that it wrote is still there.
    pub fn kill(&self) {
        let mut state = self.0.lock();
        state.stop_after = None;
        state.in_doubt = None;
        state.close_all();
    }

    /// The power fails and returns: chance decides how much of the unsynced bytes is left, and
    /// whether the change of names that was under way happened.
    pub fn power_cut(&self, rng: &mut Rng) {
        let state = &mut *self.0.lock();
        state.stop_after = None;
        for content in state.files.values_mut() {
            for (number, sector) in std::mem::take(&mut content.unsynced) {
                // One past the last version stands for the old content.
                let kept = rng.below(sector.versions.len() as u64 + 1) as usize;
                if let Some(bytes) = sector.versions.get(kept) {
                    let (start, end) = (number * SECTOR_BYTES, number * SECTOR_BYTES + bytes.len());
                    content.durable.resize(content.durable.len().max(end), 0);
                    content.durable[start..end].copy_from_slice(bytes);
                }
            }
            content.seen.clone_from(&content.durable);
        }
        state.lose_names(rng);
        let happened = rng.chance(1, 2);
        match state.in_doubt.take() {
            Some(InDoubt::Create(name, len)) if happened => {
                state.add(&name, rng.below(len as u64 + 1) as usize);
            }
            Some(InDoubt::Rename(from, to)) if happened => state.rename(&from, &to),
            Some(InDoubt::Remove(name)) if happened => state.remove(&name),
            _ => (),
        }
        state.close_all();
    }

    /// Flips one bit of a file, synced or not; does nothing beyond its end.
    pub fn flip_bit(&self, name: &str, bit: usize) {
        let state = &mut *self.0.lock();
        let file = state.names.get(name);
        if let Some(content) = file.and_then(|file| state.files.get_mut(file)) {
            for bytes in [&mut content.seen, &mut content.durable] {
                if let Some(byte) = bytes.get_mut(bit / 8) {
                    *byte ^= 1 << (bit % 8);
                }
            }
        }
    }
}

impl DiskState {
    /// Counts a change; fails if the disk has stopped, and remembers the change if it stops now.
    fn change(&mut self, in_doubt: Option<InDoubt>) -> io::Result<()> {
        if let Some(limit) = self.stop_after
            && self.changes >= limit
        {
            if self.changes == limit {
                self.in_doubt = in_doubt;
                self.changes += 1;
            }
            return Err(io::Error::other("the disk has stopped"));
        }
        self.changes += 1;
        Ok(())
    }

    fn used_bytes(&self) -> u64 {
        let named = self.names.values().filter_map(|id| self.files.get(id));
        named.map(|content| content.seen.len() as u64).sum()
    }

    fn has_room(&self, len: u64) -> io::Result<()> {
        if len > 0 && self.capacity_bytes.is_some_and(|limit| self.used_bytes() + len > limit) {
            return Err(io::Error::new(ErrorKind::StorageFull, "the disk is full"));
        }
        Ok(())
    }

    /// Closes all files: those without a name are gone.
    fn close_all(&mut self) {
        let names: BTreeSet<u64> = self.names.values().copied().collect();
        self.files.retain(|id, _| names.contains(id));
    }

    /// Keeps the first few of the unsynced changes of names: a directory's changes become durable
    /// in order.
    fn lose_names(&mut self, rng: &mut Rng) {
        let Some((before, changes)) = self.unsynced_names.take() else { return };
        self.names = before;
        let kept = rng.below(changes.len() as u64 + 1) as usize;
        for change in changes.into_iter().take(kept) {
            match change {
                NameChange::Add(name, id) => {
                    self.names.insert(name, id);
                }
                NameChange::Rename(from, to) => self.rename(&from, &to),
                NameChange::Remove(name) => self.remove(&name),
            }
        }
        self.unsynced_names = Some((self.names.clone(), Vec::new()));
    }

    fn note_change(&mut self, change: NameChange) {
        if let Some((_, changes)) = &mut self.unsynced_names {
            changes.push(change);
        }
    }

    fn id(&self, name: &str) -> io::Result<u64> {
        let missing = || io::Error::new(ErrorKind::NotFound, format!("{name}: no such file"));
        self.names.get(name).copied().ok_or_else(missing)
    }

    fn add(&mut self, name: &str, len: usize) -> u64 {
        let id = self.next_file;
        self.next_file += 1;
        self.names.insert(name.to_owned(), id);
        let (seen, durable) = (vec![0; len], vec![0; len]);
        self.files.insert(id, FileContent { seen, durable, ..FileContent::default() });
        self.note_change(NameChange::Add(name.to_owned(), id));
        id
    }

    fn rename(&mut self, from: &str, to: &str) {
        if let Some(id) = self.names.remove(from) {
            self.names.insert(to.to_owned(), id);
            self.note_change(NameChange::Rename(from.to_owned(), to.to_owned()));
        }
    }

    fn remove(&mut self, name: &str) {
        if self.names.remove(name).is_some() {
            self.note_change(NameChange::Remove(name.to_owned()));
        }
    }
}

impl FileContent {
    fn write(&mut self, start: usize, bytes: &[u8]) {
        let end = start + bytes.len();
        self.seen.resize(self.seen.len().max(end), 0);
        self.seen[start..end].copy_from_slice(bytes);
        for number in start / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
            let from = number * SECTOR_BYTES;
            let to = self.seen.len().min(from + SECTOR_BYTES);
            let sector = self.unsynced.entry(number).or_default();
            sector.versions.push(self.seen[from..to].to_vec());
            sector.forgotten = false;
        }
    }

    fn sync(&mut self) {
        let FileContent { seen, durable, unsynced, .. } = self;
        durable.resize(seen.len(), 0);
        unsynced.retain(|number, sector| {
            if !sector.forgotten {
                let from = number * SECTOR_BYTES;
                let to = seen.len().min(from + SECTOR_BYTES);
                durable[from..to].copy_from_slice(&seen[from..to]);
            }
            sector.forgotten
        });
    }
}

impl Disk for MemoryDisk {
    /// The number of the file.
    type File = u64;

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let state = self.0.lock();
        let len = |id| state.files.get(id).map_or(0, |content| content.seen.len() as u64);
        Ok(state.names.iter().map(|(name, id)| (name.clone(), len(id))).collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.0.lock();
        let id = state.id(name)?;
        Ok(state.files.get(&id).map(|content| content.seen.clone()).unwrap_or_default())
    }

    fn create(&self, name: &str, len: u64) -> io::Result<()> {
        let mut state = self.0.lock();
        state.has_room(len)?;
        state.change(Some(InDoubt::Create(name.to_owned(), len as usize)))?;
        state.add(name, len as usize);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        state.id(from)?;
        state.change(Some(InDoubt::Rename(from.to_owned(), to.to_owned())))?;
        state.rename(from, to);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        state.id(name)?;
        state.change(Some(InDoubt::Remove(name.to_owned())))?;
        state.remove(name);
        Ok(())
    }

    fn begin(&self, name: &str) -> io::Result<u64> {
        let mut state = self.0.lock();
        state.change(None)?;
        let id = state.add(name, 0);
        if let Some(content) = state.files.get_mut(&id) {
            content.grows = true;
        }
        Ok(id)
    }

    fn open(&self, name: &str) -> io::Result<u64> {
        self.0.lock().id(name)
    }

    fn len(&self, file: &u64) -> io::Result<u64> {
        let state = self.0.lock();
        let content = state.files.get(file).ok_or(ErrorKind::NotFound)?;
        Ok(content.seen.len() as u64)
    }

    fn read_at(&self, file: &u64, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let state = self.0.lock();
        let content = state.files.get(file).ok_or(ErrorKind::NotFound)?;
        let rest = content.seen.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(bytes.len());
        bytes[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, file: &u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let state = &mut *self.0.lock();
        let interrupted = state.stop_after == Some(state.changes);
        let done = state.change(None);
        if std::mem::take(&mut state.write_fails) {
            return Err(io::Error::other("write failed"));
        }
        let content = state.files.get(file).ok_or(ErrorKind::NotFound)?;
        let (len, end) = (content.seen.len() as u64, offset + bytes.len() as u64);
        if end > len && (!content.grows || offset > len) {
            return Err(io::Error::other("a write beyond the end of a preallocated file"));
        }
        state.has_room(end.saturating_sub(len))?;
        // A write that the stop interrupts may reach the disk: `power_cut` decides.
        if (done.is_ok() || interrupted)
            && let Some(content) = state.files.get_mut(file)
        {
            content.write(offset as usize, bytes);
        }
        done
    }

    fn sync(&self, file: &u64) -> io::Result<()> {
        let state = &mut *self.0.lock();
        state.change(None)?;
        let Some(content) = state.files.get_mut(file) else {
            return Err(ErrorKind::NotFound.into());
        };
        if std::mem::take(&mut state.sync_fails) {
            content.unsynced.values_mut().for_each(|sector| sector.forgotten = true);
            return Err(io::Error::other("sync failed"));
        }
        if !state.sync_lies {
            content.sync();
        }
        Ok(())
    }
}
