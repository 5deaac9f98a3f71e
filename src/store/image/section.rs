//! The frame of an image: its head, and sections under their checksums.

use std::io::{self, Read, Write};

use bytes::BufMut;

use super::{FORMAT, ImageError, MAGIC};
use crate::codec::{Malformed, Reader};
use crate::types::{GroupId, SnapshotMeta};

const HEAD_LEN: usize = 8 + 1 + 4 + 8 + 8 + 4;
const SECTION_HEAD_LEN: usize = 1 + 4 + 4 + 4;

/// The memory of a buffer that is kept from one section to the next, in bytes.
const BUFFER_LEN_KEPT: usize = 1 << 20;

/// Decodes a value that fills `content` to its end.
pub(super) fn decode_whole<'a, T>(
    content: &'a [u8],
    decode: impl FnOnce(&mut Reader<'a>) -> Result<T, Malformed>,
) -> Result<T, Malformed> {
    let mut reader = Reader::new(content);
    let value = decode(&mut reader)?;
    reader.finish("length of a section")?;
    Ok(value)
}

/// Writes the head and the sections of an image.
pub(super) struct SectionWriter<'a> {
    pub out: &'a mut dyn Write,
    /// The number of bytes written.
    pub offset: u64,
}

impl SectionWriter<'_> {
    pub fn head(&mut self, meta: SnapshotMeta) -> io::Result<()> {
        let mut head = Vec::with_capacity(HEAD_LEN);
        head.put_slice(&MAGIC);
        head.put_u8(FORMAT);
        head.put_u32_le(GroupId::default().0);
        head.put_u64_le(meta.index);
        head.put_u64_le(meta.term);
        head.put_u32_le(crc32fast::hash(&head));
        self.put(&head)
    }

    /// Writes a section and empties `content` for the next one.
    pub fn section(&mut self, kind: u8, content: &mut Vec<u8>) -> io::Result<()> {
        let len = u32::try_from(content.len()).map_err(|_| {
            io::Error::other("a record of 4 GiB or more has no place in a snapshot")
        })?;
        let mut head = Vec::with_capacity(SECTION_HEAD_LEN);
        head.put_u8(kind);
        head.put_u32_le(len);
        head.put_u32_le(crc32fast::hash(content));
        head.put_u32_le(crc32fast::hash(&head));
        self.put(&head)?;
        self.put(content)?;
        content.clear();
        content.shrink_to(BUFFER_LEN_KEPT);
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.offset += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

/// Reads the head and the sections of an image.
pub(super) struct SectionReader<'a> {
    pub input: &'a mut dyn Read,
    /// The offset of the current section, or of the head.
    pub start: u64,
    /// The number of bytes read.
    pub end: u64,
    /// The current section's content, proved by its checksum.
    pub content: Vec<u8>,
}

impl SectionReader<'_> {
    pub fn head(&mut self) -> Result<SnapshotMeta, ImageError> {
        let head: [u8; HEAD_LEN] = self.array()?;
        if !head.starts_with(&MAGIC) {
            return Err(self.corrupt("this is no snapshot"));
        }
        let (format, group, meta, crc) =
            self.sound(decode_whole(&head[MAGIC.len()..], |reader| {
                let (format, group) = (reader.u8("version")?, GroupId(reader.u32("group")?));
                let meta = SnapshotMeta { index: reader.u64("index")?, term: reader.u64("term")? };
                Ok((format, group, meta, reader.u32("checksum of the head")?))
            }))?;
        // A newer format may have its checksum elsewhere, so its number counts before the checksum.
        if format > FORMAT {
            return Err(ImageError::NewerFormat(format));
        }
        if crc != crc32fast::hash(&head[..HEAD_LEN - 4]) {
            return Err(self.corrupt("checksum of the head"));
        }
        if format < FORMAT {
            return Err(ImageError::OlderFormat(format));
        }
        if group != GroupId::default() {
            return Err(self.corrupt("group"));
        }
        Ok(meta)
    }

    /// Reads the next section into `content`; returns its kind.
    pub fn section(&mut self) -> Result<u8, ImageError> {
        self.start = self.end;
        let head: [u8; SECTION_HEAD_LEN] = self.array()?;
        let (kind, len, content_crc, head_crc) = self.sound(decode_whole(&head, |reader| {
            let (kind, len) = (reader.u8("kind")?, reader.u32("length")?);
            Ok((kind, len, reader.u32("checksum")?, reader.u32("checksum")?))
        }))?;
        // The length is proved before a buffer grows by it.
        if head_crc != crc32fast::hash(&head[..SECTION_HEAD_LEN - 4]) {
            return Err(self.corrupt("checksum of a section's head"));
        }
        self.content.clear();
        self.content.shrink_to(BUFFER_LEN_KEPT);
        // At most this much in advance: a long buffer grows as its bytes arrive.
        self.content.reserve((len as usize).min(BUFFER_LEN_KEPT));
        let read = (&mut *self.input).take(u64::from(len)).read_to_end(&mut self.content)?;
        self.end += read as u64;
        if read < len as usize {
            return Err(self.corrupt("cut off inside a section"));
        }
        if content_crc != crc32fast::hash(&self.content) {
            return Err(self.corrupt("checksum of a section"));
        }
        Ok(kind)
    }

    /// Checks that the input ends here.
    pub fn finish(&mut self) -> Result<(), ImageError> {
        self.start = self.end;
        let mut more = Vec::new();
        match (&mut *self.input).take(1).read_to_end(&mut more)? {
            0 => Ok(()),
            _ => Err(self.corrupt("bytes after the end")),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ImageError> {
        let mut array = [0; N];
        self.input.read_exact(&mut array).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.corrupt("cut off"),
            _ => ImageError::Io(error),
        })?;
        self.end += N as u64;
        Ok(array)
    }

    pub fn corrupt(&self, what: &'static str) -> ImageError {
        ImageError::Corrupt { offset: self.start, what }
    }

    pub fn sound<T>(&self, decoded: Result<T, Malformed>) -> Result<T, ImageError> {
        decoded.map_err(|Malformed(what)| self.corrupt(what))
    }
}
