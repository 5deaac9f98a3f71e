//! The stream of frames from a peer. For any bytes, in pieces of any length:
//!
//! - the reader finds the same frames, and then the same error or none;
//! - an error is final;
//! - a frame that is found is the same after another encoding and decoding, and encodes to the same
//!   bytes;
//! - every frame that is found lies in the stream with a correct checksum;
//! - the space that the reader offers does not grow with an announced length.

use bytes::Bytes;
use nodesync::replica::{
    Append, AppendAck, Chunk, Envelope, Heartbeat, Message, VoteReply, VoteRequest,
};
use nodesync::rng::Rng;
use nodesync::types::{NodeId, Proposal, Rejected, RequestId, SnapshotMeta, Version};
use nodesync::wire::{Frame, FrameError, FrameReader, encode, encode_chunk};

use super::entries::{entries, write};
use super::{Case, Seeds};

/// Length of a frame's head: its length field and its checksum.
const HEAD_LEN: usize = 8;

/// Limit of a frame, far above the length of these inputs, so that absurd lengths pass it.
const FRAME_BYTES_MAX: usize = 1 << 30;

/// Length of a reader's own buffer, and of its first request for a long frame.
const SPACE_MAX: usize = 256 << 10;

pub fn run(case: &Case<'_>) -> bool {
    let bytes = case.bytes;
    let mut rng = Rng::new(crc32fast::hash(bytes).into());
    let whole = read(bytes, bytes.len(), || usize::MAX);
    let longest = 1 + rng.below(60);
    let rest = rng.below(bytes.len() as u64 + 1) as usize;
    let pieces = read(bytes, rest, || 1 + rng.below(longest) as usize);
    assert_eq!(pieces, whole, "in pieces");
    if bytes.len() <= 1500 {
        assert_eq!(read(bytes, 0, || 1), whole, "byte by byte");
    }
    let (frames, error) = whole;
    let sound = sound_frames(bytes);
    assert!(frames.len() <= sound.len(), "{} frames of {}", frames.len(), sound.len());
    for (frame, sound) in frames.iter().zip(sound) {
        let bytes = written(frame);
        assert!(bytes == sound, "written otherwise: {frame:?}");
        let again = read(&bytes, bytes.len(), || usize::MAX);
        assert_eq!((&again.0[..], again.1), (std::slice::from_ref(frame), None));
    }
    error.is_none() && !frames.is_empty()
}

/// Reads the frames of a stream, and the error that ended it. The first `rest` bytes came with the
/// handshake.
fn read(
    bytes: &[u8],
    rest: usize,
    mut piece: impl FnMut() -> usize,
) -> (Vec<Frame>, Option<FrameError>) {
    let mut reader = FrameReader::new(FRAME_BYTES_MAX, &bytes[..rest]);
    let mut fed = rest;
    let mut frames = Vec::new();
    loop {
        loop {
            match reader.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(reader.next(), Err(error), "an error is final");
                    return (frames, Some(error));
                }
            }
        }
        if fed == bytes.len() {
            return (frames, None);
        }
        let space = reader.space();
        let len = space.len();
        assert!(0 < len && len <= SPACE_MAX.max(fed), "{len} bytes of space after {fed}");
        let len = piece().min(len).min(bytes.len() - fed);
        space[..len].copy_from_slice(&bytes[fed..fed + len]);
        reader.filled(len);
        fed += len;
    }
}

/// Leading frames whose checksums are correct.
fn sound_frames(bytes: &[u8]) -> Vec<&[u8]> {
    let sound = |body: &[u8], crc: &[u8]| crc32fast::hash(body).to_le_bytes() == *crc;
    let mut frames = Vec::new();
    let mut rest = bytes;
    while let Some((head, behind)) = rest.split_at_checked(HEAD_LEN)
        && let Some((body, behind)) = behind.split_at_checked(len_of(head))
        && sound(body, &head[4..])
    {
        frames.push(&rest[..HEAD_LEN + body.len()]);
        rest = behind;
    }
    frames
}

fn len_of(head: &[u8]) -> usize {
    u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize
}

/// Corrects the checksums of the whole frames at the front.
pub fn repair(bytes: &mut [u8]) {
    let mut rest = bytes;
    while rest.len() >= HEAD_LEN {
        let (head, behind) = rest.split_at_mut(HEAD_LEN);
        let Some((body, behind)) = behind.split_at_mut_checked(len_of(head)) else { return };
        head[4..].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
        rest = behind;
    }
}

fn written(frame: &Frame) -> Vec<u8> {
    let mut out = Vec::new();
    match frame.clone() {
        Frame::Message(term, message) => {
            encode(&Envelope { from: NodeId(1), to: NodeId(2), term, message }, &mut out);
        }
        Frame::Chunk(chunk) => encode_chunk(&chunk, &mut out),
    }
    out
}

fn heartbeat() -> Heartbeat {
    Heartbeat {
        leader: Some(NodeId(5002)),
        commit: 7,
        last: 9,
        incarnation: 0x1234_5678_9abc_def0,
        admitted: true,
        voter: true,
        fit: true,
        founder: Some(3),
        clock: 1_700_000_000_000_000,
        drained: Version(5 << 8),
        checkpoint: Some((6, 0xabcd)),
        ..Heartbeat::default()
    }
}

fn messages() -> Vec<(&'static str, Vec<Message>)> {
    let id = |seq| RequestId { node: NodeId(5000), boot: 1, seq };
    let proposal = |seq| Proposal { id: id(seq), floor: 1, commands: Bytes::from_static(b"\x16") };
    let append =
        |entries| Message::Append(Append { prev_index: 6, prev_term: 2, commit: 5, entries });
    let missing = AppendAck::Missing { prev_index: 9, hint_index: 4, hint_term: 1 };
    let vote = VoteRequest { pre: true, transfer: false, last_index: 9, last_term: 2 };
    let writes = [write(5 << 8, b'a', Some(b"1")), write(6 << 8, b'b', None)];
    let stamp = Message::Stamp {
        sent: 1_700_000_000_000_000,
        seen: Version(4 << 8),
        floor: 2,
        requests: vec![(id(2), writes.clone().into()), (id(3), [].into())],
    };
    let stamped = vec![(id(2), Ok(Version(7 << 8))), (id(3), Err(Rejected::ClockSkew))];
    let refuse = Message::Refuse { ids: vec![id(1), id(2)], reason: Rejected::Busy };
    vec![
        (
            "heartbeat",
            vec![Message::Heartbeat(heartbeat()), Message::Heartbeat(Heartbeat::default())],
        ),
        ("append", vec![append(Vec::new()), append(entries(7))]),
        (
            "append-acks",
            vec![Message::AppendAck(AppendAck::Matched(9)), Message::AppendAck(missing)],
        ),
        (
            "votes",
            vec![
                Message::Vote(vote),
                Message::VoteReply(VoteReply { pre: true, granted: true }),
                Message::Campaign,
            ],
        ),
        ("forward", vec![Message::Forward(vec![proposal(1), proposal(2)]), refuse]),
        (
            "reads",
            vec![
                Message::ReadIndex { position: 3 },
                Message::ReadIndexReply { position: 3, index: 8 },
            ],
        ),
        ("stamp", vec![stamp, Message::Stamped(stamped)]),
        ("spread", vec![Message::Spread(writes.into()), Message::Spread([].into())]),
    ]
}

pub fn seeds() -> Seeds {
    let stream = |messages: Vec<Message>| {
        let frames = messages.into_iter().map(|message| Frame::Message(3, message));
        frames.flat_map(|frame| written(&frame)).collect::<Vec<u8>>()
    };
    let mut seeds: Seeds = messages()
        .into_iter()
        .map(|(name, messages)| (name.to_owned(), stream(messages)))
        .collect();
    let chunk = |offset, data| {
        let meta = SnapshotMeta { index: 12, term: 3 };
        Frame::Chunk(Chunk { term: 3, meta, offset, total: 600, data })
    };
    let first = written(&chunk(0, vec![7; 500].into()));
    seeds.push(("chunks".into(), [first, written(&chunk(500, vec![9; 100].into()))].concat()));
    // Head of a long frame, and a little of its body.
    let mut long = written(&Frame::Message(3, Message::Campaign));
    long.extend([0, 0, 0, 0x20, 1, 2, 3, 4]);
    long.extend([0; 64]);
    seeds.push(("announced".into(), long));
    seeds
}
