//! Snapshots. For any bytes:
//!
//! - they are refused; or the image, written and read again, is equal, keeps its requests byte for
//!   byte, and is written the same a second time;
//! - the sizes of the pieces in which the source delivers make no difference;
//! - unless a checksum was repaired, an accepted image is the one that was written;
//! - a store that is restored from it has its state, and applies further entries;
//! - no read asks for more than twice the bytes that have come before, except into a first buffer
//!   of fixed size.

use std::io::{self, Read};

use bytes::Bytes;
use nodesync::rng::Rng;
use nodesync::store::{Image, ImageError, Writer};
use nodesync::types::{Command, Entry, NodeId, Payload, Proposal, RequestId, Version, When};

use super::entries::{entries, write};
use super::{Case, Seeds};

const HEAD_LEN: usize = 33;
const SECTION_HEAD_LEN: usize = 13;

/// Largest read before any bytes have come.
const FIRST_READ_MAX: usize = 2 << 20;

/// Source that delivers pieces of random lengths, and checks the size of each read.
struct Pieces<'a> {
    rest: &'a [u8],
    given: usize,
    rng: Option<Rng>,
}

impl Read for Pieces<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let most = FIRST_READ_MAX.max(2 * self.given);
        assert!(out.len() <= most, "{} bytes requested after {}", out.len(), self.given);
        let longest = self.rng.as_mut().map_or(u64::MAX, |rng| 1 + rng.below(50));
        let len = out.len().min(usize::try_from(longest).unwrap_or(usize::MAX));
        let len = self.rest.read(&mut out[..len])?;
        self.given += len;
        Ok(len)
    }
}

fn read(bytes: &[u8], rng: Option<Rng>) -> Result<Image, String> {
    Image::read(&mut Pieces { rest: bytes, given: 0, rng }).map_err(|error| match error {
        ImageError::Io(error) => panic!("the source has not failed: {error}"),
        other => other.to_string(),
    })
}

fn bytes_of(image: &Image) -> Vec<u8> {
    let mut bytes = Vec::new();
    let len = image.clone().write(&mut bytes).expect("memory takes everything");
    assert_eq!(len, bytes.len() as u64);
    bytes
}

pub fn run(case: &Case<'_>) -> bool {
    let digest = crc32fast::hash(case.bytes);
    let whole = read(case.bytes, None);
    let pieces = read(case.bytes, Some(Rng::new(digest.into())));
    let image = match (whole, pieces) {
        (Ok(image), Ok(_)) => image,
        (Err(whole), Err(pieces)) => {
            assert_eq!(whole, pieces);
            return false;
        }
        (whole, pieces) => panic!("{whole:?}, but in pieces {pieces:?}"),
    };
    if let Some(origin) = case.origin {
        assert!(origin == case.bytes, "a damaged image was accepted");
    }
    let written = bytes_of(&image);
    let requests = HEAD_LEN..HEAD_LEN + SECTION_HEAD_LEN + len_of(&case.bytes[HEAD_LEN..]);
    assert!(written[requests.clone()] == case.bytes[requests], "requests have one byte form");
    let again = read(&written, None).expect("what was written can be read");
    assert_eq!(again.meta(), image.meta());
    assert_eq!(again.stats(), image.stats());
    assert_eq!(again.requests(), image.requests());
    assert!(bytes_of(&again) == written, "written again it is the same");
    if digest.is_multiple_of(8) {
        check_restore(image, &written);
    }
    true
}

/// Checks that a store restored from the image has its state and applies further entries.
fn check_restore(image: Image, written: &[u8]) {
    let (meta, stats) = (image.meta(), image.stats());
    let mut writer = Writer::new();
    writer.restore(image);
    assert_eq!((writer.applied(), writer.store().stats()), (meta, stats));
    assert!(bytes_of(&writer.image()) == written, "the state is the image's");
    // Near the largest index there is no room for more entries.
    if meta.index < u64::MAX >> 1 {
        for entry in entries(meta.index + 1) {
            writer.apply(&entry, true).expect("sound entries can be applied");
        }
    }
    bytes_of(&writer.image());
}

/// Corrects the checksums of the head and of all sections.
pub fn repair(bytes: &mut [u8]) {
    let Some((head, mut rest)) = bytes.split_at_mut_checked(HEAD_LEN) else { return };
    let crc = crc32fast::hash(&head[..HEAD_LEN - 4]);
    head[HEAD_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    while let Some((head, behind)) = rest.split_at_mut_checked(SECTION_HEAD_LEN) {
        let len = len_of(head);
        // An overlong length stays: the reader must refuse it.
        let (content, behind) = behind.split_at_mut(len.min(behind.len()));
        head[5..9].copy_from_slice(&crc32fast::hash(content).to_le_bytes());
        let crc = crc32fast::hash(&head[..9]);
        head[9..].copy_from_slice(&crc.to_le_bytes());
        rest = behind;
    }
}

/// Length of the content of the section that begins here.
fn len_of(section: &[u8]) -> usize {
    u32::from_le_bytes([section[1], section[2], section[3], section[4]]) as usize
}

/// Store with values, a tombstone, and requests of two nodes with gaps.
fn busy() -> Writer {
    let mut writer = Writer::new();
    let mut index = 0;
    let mut apply = |payload| {
        index += 1;
        writer.apply(&Entry { index, term: 2, payload }, false).expect("the entry can be applied");
    };
    for (node, seq) in [(5000, 1), (5000, 2), (5000, 4), (5001, 7), (5001, 8)] {
        let key = [b'k', seq as u8];
        let set = Command::Set { key: &key, value: b"some value", when: When::Always, get: false };
        let mut commands = Vec::new();
        set.encode(&mut commands);
        let id = RequestId { node: NodeId(node), boot: 3, seq };
        let proposal = Proposal { id, floor: 1, commands: Bytes::from(commands) };
        apply(Payload::Batch { stamp: Version(seq << 8 | 255), proposal });
    }
    let (gone, there) = (write(900 << 8, b'g', None), write(901 << 8 | 1, b't', Some(b"")));
    apply(Payload::Merge([gone, there].into()));
    apply(Payload::Checkpoint { floor: Version(3 << 8) });
    writer
}

pub fn seeds() -> Seeds {
    let of_format = |format: u8| {
        let mut bytes = bytes_of(&Writer::new().image());
        bytes[8] = format;
        repair(&mut bytes);
        bytes
    };
    [
        ("empty", bytes_of(&Writer::new().image())),
        ("busy", bytes_of(&busy().image())),
        ("refused-older-format", of_format(1)),
        ("refused-later-format", of_format(3)),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .to_vec()
}
