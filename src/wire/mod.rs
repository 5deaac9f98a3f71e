//! The bytes between peers: a handshake ([`handshake`]), then frames, one way per connection.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | length of the rest behind the checksum, u32 |
//! | 4 | 4 | CRC-32 of that rest, u32 |
//! | 8 | 4 | group, u32 |
//! | 12 | 1 | kind of message |
//! | 13 | 8 | the sender's term, u64 |
//! | 21 | … | the message, see [`codec`] |
//!
//! Numbers are little-endian. The handshake settles the format's version and the two ends of the
//! link, so frames repeat neither. Reading never trusts a length or a tag; an unsound frame closes
//! the link. This module is pure: bytes in, values out.

pub mod codec;
pub mod handshake;

pub use codec::{Frame, encode, encode_chunk};

#[cfg(test)]
mod tests;

use std::ops::Range;

use bytes::{Buf, Bytes};
use thiserror::Error;

use crate::codec::Malformed;

/// Bytes before the checked part of a frame.
const HEAD_LEN: usize = 8;

/// Why a link is closed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// The frame announces more bytes than are allowed.
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    /// The checksum is wrong.
    #[error("a frame's checksum is wrong")]
    Checksum,
    /// The content does not follow the format.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Cuts a stream of bytes into frames. Memory grows with the bytes that have arrived, not with the
/// lengths that they announce.
///
/// A log keeps the bytes of its entries for as long as it keeps the entries. A frame therefore
/// never shares memory with its neighbours, most of which are heartbeats: a short frame is copied
/// out of the common buffer, a longer one is gathered in memory of its own and not copied.
#[derive(Debug)]
pub struct FrameReader {
    /// Frames as they arrive; its length does not change.
    buffer: Vec<u8>,
    /// The part of the buffer that is not decoded yet.
    unread: Range<usize>,
    /// A frame too long for the buffer.
    long: Option<LongFrame>,
    frame_bytes_max: usize,
    /// The error that ended the stream.
    failed: Option<FrameError>,
}

/// The checked part of a long frame, as far as it has arrived.
#[derive(Debug)]
struct LongFrame {
    len: usize,
    checksum: u32,
    bytes: Vec<u8>,
    filled: usize,
}

impl FrameReader {
    /// The length of the common buffer, in bytes; longer frames get memory of their own.
    const BUFFER_LEN: usize = 64 << 10;

    /// A reader of frames of up to `frame_bytes_max` bytes, beginning with the bytes that came
    /// behind the handshake.
    pub fn new(frame_bytes_max: usize, rest: &[u8]) -> FrameReader {
        let mut buffer = rest.to_vec();
        buffer.resize(rest.len().max(FrameReader::BUFFER_LEN), 0);
        FrameReader { buffer, unread: 0..rest.len(), long: None, frame_bytes_max, failed: None }
    }

    /// The space to read into; never empty after [`FrameReader::next`] has returned `None`.
    pub fn space(&mut self) -> &mut [u8] {
        if let Some(long) = &mut self.long {
            return long.space();
        }
        if self.unread.start > 0 {
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        &mut self.buffer[self.unread.end..]
    }

    /// Notes that `len` bytes were read into the space.
    pub fn filled(&mut self, len: usize) {
        match &mut self.long {
            Some(long) => long.filled += len,
            None => self.unread.end += len,
        }
    }

    /// The next frame, if all of it has arrived.
    ///
    /// # Errors
    /// The stream cannot be trusted any more: close it. Further calls return the same error.
    #[expect(clippy::should_implement_trait, reason = "an iterator would end at `None`")]
    pub fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        // Behind an unsound frame the beginning of the next one is unknown, so an error is final.
        if let Some(error) = self.failed {
            return Err(error);
        }
        let found = self.read_on();
        self.failed = found.as_ref().err().copied();
        found
    }

    fn read_on(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(long) = self.long.take_if(|long| long.filled == long.len) {
            return decode(long.checksum, &Bytes::from(long.bytes)).map(Some);
        }
        if self.long.is_some() {
            return Ok(None);
        }
        let unread = &self.buffer[self.unread.clone()];
        let Some((mut head, rest)) = unread.split_at_checked(HEAD_LEN) else { return Ok(None) };
        let (len, checksum) = (head.get_u32_le() as usize, head.get_u32_le());
        // Not covered by the checksum yet, and refused before any memory is reserved for it.
        if len > self.frame_bytes_max {
            return Err(FrameError::TooLong(len));
        }
        if let Some(body) = rest.get(..len) {
            let body = Bytes::copy_from_slice(body);
            self.unread.start += HEAD_LEN + len;
            return decode(checksum, &body).map(Some);
        }
        if HEAD_LEN + len > self.buffer.len() {
            let (bytes, filled) = (rest.to_vec(), rest.len());
            self.long = Some(LongFrame { len, checksum, bytes, filled });
            self.unread = 0..0;
        }
        Ok(None)
    }
}

impl LongFrame {
    /// The least space that is offered at once, in bytes.
    const SPACE_MIN: usize = 256 << 10;

    /// The space behind the bytes that have arrived. It doubles, so that each byte is copied a few
    /// times at most, and ends where the frame ends.
    fn space(&mut self) -> &mut [u8] {
        if self.filled == self.bytes.len() {
            let more = self.filled.max(LongFrame::SPACE_MIN).min(self.len - self.filled);
            self.bytes.reserve_exact(more);
            self.bytes.resize(self.filled + more, 0);
        }
        &mut self.bytes[self.filled..]
    }
}

fn decode(checksum: u32, body: &Bytes) -> Result<Frame, FrameError> {
    if crc32fast::hash(body) != checksum {
        return Err(FrameError::Checksum);
    }
    Ok(codec::decode(body)?)
}
