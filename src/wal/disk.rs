//! The disk as the log needs it ([`Disk`]), and the operating system's ([`FileDisk`]).
//!
//! Recovery relies on this contract: `create`, `rename` and `remove` return only when the change
//! would survive a power cut; `write_at` promises nothing until `sync` has returned; a sector of
//! 512 bytes is either written or not.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
#[cfg(not(target_vendor = "apple"))]
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

#[cfg(not(target_vendor = "apple"))]
use rustix::fs::{Advice, fadvise};

/// A directory of files, as the log needs it. The thread that makes spare segments shares it.
pub trait Disk: Send + Sync {
    /// An open file. It stays the same file when it is renamed or removed.
    type File: Send + Debug;

    /// Names and lengths (bytes) of all files.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;

    /// All bytes of a file.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;

    /// Makes a file of `len` zeros whose blocks are allocated, so that writing into it changes no
    /// metadata and a sync has none to write. On an error no file is left; `StorageFull` and
    /// `QuotaExceeded` mean that there was no room.
    fn create(&self, name: &str, len: u64) -> io::Result<()>;

    /// Gives a file another name, and replaces a file that had it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Begins an empty file that grows as it is written, and replaces one that had the name. The
    /// name need not survive a power cut before the file is renamed.
    fn begin(&self, name: &str) -> io::Result<Self::File>;

    /// Opens a file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// The length of a file, in bytes.
    fn len(&self, file: &Self::File) -> io::Result<u64>;

    /// Reads from `offset` (bytes) on, at most the length of `bytes`; returns 0 at the file's end.
    fn read_at(&self, file: &Self::File, offset: u64, bytes: &mut [u8]) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset` (bytes): within the file's length, or at the end of a file
    /// that grows.
    fn write_at(&self, file: &Self::File, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Returns when everything written to the file would survive a power cut (fdatasync).
    fn sync(&self, file: &Self::File) -> io::Result<()>;

    /// Drops these bytes from the page cache: they are synced and will not be read soon.
    fn forget(&self, _file: &Self::File, _offset: u64, _len: u64) {}
}

/// A directory of the operating system.
#[derive(Clone, Debug)]
pub struct FileDisk {
    dir: PathBuf,
}

impl FileDisk {
    /// The files in `dir`, which exists.
    pub fn new(dir: impl Into<PathBuf>) -> FileDisk {
        FileDisk { dir: dir.into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn fill(path: &Path, len: u64) -> io::Result<()> {
        // Zeros are written rather than reserved by fallocate: the first write into a reserved
        // block changes metadata.
        const ZEROS: &[u8] = &[0; 1 << 18];
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        let mut left = len;
        while left > 0 {
            let part = left.min(ZEROS.len() as u64) as usize;
            file.write_all(&ZEROS[..part])?;
            left -= part as u64;
        }
        file.sync_all()
    }

    fn sync_dir(&self) -> io::Result<()> {
        sync_dir(&self.dir)
    }
}

impl Disk for FileDisk {
    type File = File;

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for item in fs::read_dir(&self.dir).map_err(|e| naming(&self.dir, e))? {
            let item = item?;
            // A name that is not UTF-8 is not the log's.
            if let (Ok(name), true) = (item.file_name().into_string(), item.file_type()?.is_file())
            {
                found.push((name, item.metadata()?.len()));
            }
        }
        Ok(found)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let path = self.path(name);
        fs::read(&path).map_err(|e| naming(&path, e))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<()> {
        let path = self.path(name);
        FileDisk::fill(&path, len).map_err(|error| {
            // Report the first error; a file that cannot be removed now goes at the next start.
            let _ = fs::remove_file(&path);
            naming(&path, error)
        })?;
        self.sync_dir()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let path = self.path(from);
        fs::rename(&path, self.path(to)).map_err(|e| naming(&path, e))?;
        self.sync_dir()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path(name);
        fs::remove_file(&path).map_err(|e| naming(&path, e))?;
        self.sync_dir()
    }

    fn begin(&self, name: &str) -> io::Result<File> {
        let path = self.path(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        options.open(&path).map_err(|e| naming(&path, e))
    }

    fn open(&self, name: &str) -> io::Result<File> {
        let path = self.path(name);
        OpenOptions::new().read(true).write(true).open(&path).map_err(|e| naming(&path, e))
    }

    fn len(&self, file: &File) -> io::Result<u64> {
        Ok(file.metadata()?.len())
    }

    fn read_at(&self, file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        FileExt::read_at(file, bytes, offset)
    }

    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    #[cfg(not(target_vendor = "apple"))]
    fn forget(&self, file: &File, offset: u64, len: u64) {
        // A hint: a file system may ignore it.
        let _ = fadvise(file, offset, NonZeroU64::new(len), Advice::DontNeed);
    }
}

/// Returns when the names in `dir` would survive a power cut.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| naming(dir, e))
}

/// The same error, its text beginning with the file's name.
fn naming(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_created_file_has_its_length_and_keeps_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileDisk::new(dir.path());
        disk.create("a", 600_001).unwrap();
        disk.rename("a", "b").unwrap();
        let file = disk.open("b").unwrap();
        disk.write_at(&file, 600_000, b"x").unwrap();
        disk.sync(&file).unwrap();
        disk.forget(&file, 0, 600_001);
        assert_eq!(disk.list().unwrap(), [("b".to_owned(), 600_001)]);
        let bytes = disk.read("b").unwrap();
        assert_eq!((bytes[0], bytes[600_000]), (0, b'x'));
        disk.remove("b").unwrap();
        assert!(disk.list().unwrap().is_empty());
    }

    #[test]
    fn an_error_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = FileDisk::new(dir.path()).open("missing").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("missing"));
    }
}
