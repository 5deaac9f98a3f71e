//! What peers send each other: a handshake ([`handshake`]), then frames, one way per connection.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | length of what follows the checksum, u32 |
//! | 4 | 4 | CRC-32 of what follows it, u32 |
//! | 8 | 4 | group, u32 |
//! | 12 | 1 | kind of message |
//! | 13 | 8 | the sender's term, u64 |
//! | 21 | … | the message, see [`codec`] |
//!
//! Numbers are little-endian. The format's version is agreed in the handshake, and so are the two ends:
//! frames do not repeat who sends to whom. Reading never trusts a length or a tag; a frame that is not
//! sound closes the link. This module is pure: bytes in, values out.

pub mod codec;
pub mod handshake;

pub use codec::{Frame, encode, encode_chunk};

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

use crate::codec::Malformed;

/// Bytes before the checked part of a frame.
const HEAD_LEN: usize = 8;

/// Why a link is closed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// The frame says that it is longer than is allowed.
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    /// The checksum is wrong.
    #[error("a frame's checksum is wrong")]
    Checksum,
    /// The content is not what the format says.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Takes bytes from a stream, gives frames. Memory grows with the bytes that have come, not with the
/// lengths that they announce.
#[derive(Debug)]
pub struct FrameReader {
    buffer: BytesMut,
    filled: usize,
    frame_bytes_max: usize,
}

impl FrameReader {
    const SPACE_MIN: usize = 64 << 10;

    /// A reader that takes frames of up to `frame_bytes_max` bytes, beginning with bytes that came
    /// behind the handshake.
    pub fn new(frame_bytes_max: usize, rest: &[u8]) -> FrameReader {
        FrameReader { buffer: BytesMut::from(rest), filled: rest.len(), frame_bytes_max }
    }

    /// Where to read into; at least 64 KiB.
    pub fn space(&mut self) -> &mut [u8] {
        // Doubling what is there keeps a long frame from being copied again and again.
        let len = self.filled + self.filled.max(FrameReader::SPACE_MIN);
        self.buffer.resize(len, 0);
        &mut self.buffer[self.filled..]
    }

    /// `len` bytes were read into the space.
    pub fn filled(&mut self, len: usize) {
        self.filled += len;
    }

    /// The next frame, if all of it is there.
    ///
    /// # Errors
    /// The stream cannot be trusted any more: close it.
    pub fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(head) = self.buffer[..self.filled].first_chunk::<HEAD_LEN>() else {
            return Ok(None);
        };
        let mut head = &head[..];
        let (len, checksum) = (head.get_u32_le() as usize, head.get_u32_le());
        if len > self.frame_bytes_max {
            return Err(FrameError::TooLong(len));
        }
        if self.filled < HEAD_LEN + len {
            return Ok(None);
        }
        self.buffer.advance(HEAD_LEN);
        let body: Bytes = self.buffer.split_to(len).freeze();
        self.filled -= HEAD_LEN + len;
        if crc32fast::hash(&body) != checksum {
            return Err(FrameError::Checksum);
        }
        Ok(Some(codec::decode(&body)?))
    }
}
