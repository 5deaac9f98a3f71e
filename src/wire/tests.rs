//! Frames and handshakes under arbitrary values, arbitrary bytes, flipped bits and odd splits.

use bytes::Bytes;
use proptest::prelude::*;

use super::handshake::{self, Acceptor, Credentials, Dialer, HandshakeError, cluster_id};
use super::*;
use crate::replica::{
    Append, AppendAck, Chunk, Envelope, Heartbeat, Message, VoteReply, VoteRequest,
};
use crate::types::{
    Entry, NodeId, Payload, Proposal, Rejected, RequestId, SnapshotMeta, Version, Write, Writes,
};

const MAX: usize = 1 << 20;

fn some_bytes() -> impl Strategy<Value = Bytes> {
    // One in 21 is long enough for memory of its own.
    prop_oneof![
        20 => prop::collection::vec(any::<u8>(), 0..200),
        1 => (any::<u8>(), 60_000..200_000usize).prop_map(|(byte, len)| vec![byte; len]),
    ]
    .prop_map(Bytes::from)
}

fn request_id() -> impl Strategy<Value = RequestId> {
    any::<(u32, u64, u64)>().prop_map(|(node, boot, seq)| RequestId {
        node: NodeId(node),
        boot,
        seq,
    })
}

fn proposal() -> impl Strategy<Value = Proposal> {
    (request_id(), any::<u64>(), some_bytes()).prop_map(|(id, floor, commands)| Proposal {
        id,
        floor,
        commands,
    })
}

fn version() -> impl Strategy<Value = Version> {
    any::<u64>().prop_map(Version)
}

fn stamp() -> impl Strategy<Value = Result<Version, Rejected>> {
    prop_oneof![version().prop_map(Ok), rejected().prop_map(Err)]
}

fn writes() -> impl Strategy<Value = Writes> {
    let write = (version(), some_bytes(), prop::option::of(some_bytes()));
    let write = write.prop_map(|(version, key, value)| Write {
        version,
        key: key[..].into(),
        value: value.map(|value| value[..].into()),
    });
    prop::collection::vec(write, 0..4).prop_map(Writes::from)
}

fn entry() -> impl Strategy<Value = Entry> {
    let batch = (version(), proposal());
    let payload = prop_oneof![
        Just(Payload::Noop),
        batch.prop_map(|(stamp, proposal)| Payload::Batch { stamp, proposal }),
        writes().prop_map(Payload::Merge),
        version().prop_map(|floor| Payload::Checkpoint { floor }),
    ];
    (any::<u64>(), any::<u64>(), payload).prop_map(|(index, term, payload)| Entry {
        index,
        term,
        payload,
    })
}

fn heartbeat() -> impl Strategy<Value = Heartbeat> {
    let numbers = any::<[u64; 8]>();
    let options = any::<(Option<u32>, Option<u64>, Option<u64>)>();
    let checkpoint = any::<Option<(u64, u64)>>();
    (numbers, options, any::<[bool; 3]>(), checkpoint).prop_map(
        |(numbers, options, flags, checkpoint)| {
            let [commit, last, matched, read_round, read_round_seen, incarnation, clock, drained] =
                numbers;
            let [admitted, voter, fit] = flags;
            let (leader, founder, answers) = options;
            let leader = leader.map(NodeId);
            Heartbeat {
                leader,
                commit,
                last,
                matched,
                read_round,
                read_round_seen,
                incarnation,
                admitted,
                voter,
                fit,
                founder,
                answers,
                clock,
                drained: Version(drained),
                checkpoint,
            }
        },
    )
}

fn rejected() -> impl Strategy<Value = Rejected> {
    prop::sample::select(vec![
        Rejected::NoQuorum,
        Rejected::NoLeader,
        Rejected::Busy,
        Rejected::Stopping,
        Rejected::DiskFull,
        Rejected::Joining,
        Rejected::ClockSkew,
    ])
}

fn message() -> impl Strategy<Value = Message> {
    let entries = prop::collection::vec(entry(), 0..5);
    let ids = prop::collection::vec(request_id(), 0..5);
    prop_oneof![
        heartbeat().prop_map(Message::Heartbeat),
        (any::<[u64; 3]>(), entries).prop_map(|([prev_index, prev_term, commit], entries)| {
            Message::Append(Append { prev_index, prev_term, commit, entries })
        }),
        any::<u64>().prop_map(|index| Message::AppendAck(AppendAck::Matched(index))),
        any::<[u64; 3]>().prop_map(|[prev_index, hint_index, hint_term]| {
            Message::AppendAck(AppendAck::Missing { prev_index, hint_index, hint_term })
        }),
        any::<(bool, bool, u64, u64)>().prop_map(|(pre, transfer, last_index, last_term)| {
            Message::Vote(VoteRequest { pre, transfer, last_index, last_term })
        }),
        any::<[bool; 2]>()
            .prop_map(|[pre, granted]| Message::VoteReply(VoteReply { pre, granted })),
        prop::collection::vec(proposal(), 0..5).prop_map(Message::Forward),
        (ids, rejected()).prop_map(|(ids, reason)| Message::Refuse { ids, reason }),
        any::<u64>().prop_map(|position| Message::ReadIndex { position }),
        any::<[u64; 2]>().prop_map(|[position, index]| Message::ReadIndexReply { position, index }),
        (any::<[u64; 3]>(), prop::collection::vec((request_id(), writes()), 0..3)).prop_map(
            |([sent, seen, floor], requests)| Message::Stamp {
                sent,
                seen: Version(seen),
                floor,
                requests,
            }
        ),
        prop::collection::vec((request_id(), stamp()), 0..3).prop_map(Message::Stamped),
        writes().prop_map(Message::Spread),
        Just(Message::Campaign),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    let chunk = (any::<[u64; 5]>(), some_bytes()).prop_map(|(numbers, data)| {
        let [term, meta_index, meta_term, offset, total] = numbers;
        let meta = SnapshotMeta { index: meta_index, term: meta_term };
        Frame::Chunk(Chunk { term, meta, offset, total, data })
    });
    let message = (any::<u64>(), message()).prop_map(|(term, m)| Frame::Message(term, m));
    prop_oneof![9 => message, 1 => chunk]
}

fn encoded(frames: &[Frame]) -> Vec<u8> {
    let mut out = Vec::new();
    for frame in frames.iter().cloned() {
        match frame {
            Frame::Message(term, message) => {
                let (from, to) = (NodeId(1), NodeId(2));
                encode(&Envelope { from, to, term, message }, &mut out);
            }
            Frame::Chunk(chunk) => encode_chunk(&chunk, &mut out),
        }
    }
    out
}

/// Feeds the stream in reads of at most `step(n)` bytes, draining the reader after each.
fn read_all(
    reader: &mut FrameReader,
    mut stream: &[u8],
    mut step: impl FnMut() -> usize,
) -> Result<Vec<Frame>, FrameError> {
    let mut found = Vec::new();
    loop {
        while let Some(frame) = reader.next()? {
            found.push(frame);
        }
        if stream.is_empty() {
            return Ok(found);
        }
        let space = reader.space();
        assert!(!space.is_empty());
        let len = step().clamp(1, space.len()).min(stream.len());
        let (now, later) = stream.split_at(len);
        space[..len].copy_from_slice(now);
        reader.filled(len);
        stream = later;
    }
}

proptest! {
    #[test]
    fn frames_read_back_however_the_stream_is_split(
        frames in prop::collection::vec(frame(), 0..8),
        steps in prop::collection::vec(1..100_000usize, 1..10),
        rest in 0..300usize,
    ) {
        let stream = encoded(&frames);
        let (rest, stream) = stream.split_at(rest.min(stream.len()));
        let mut steps = steps.into_iter().cycle();
        let mut reader = FrameReader::new(MAX, rest);
        let found = read_all(&mut reader, stream, || steps.next().unwrap());
        prop_assert_eq!(found, Ok(frames));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..300),
        sound: bool,
    ) {
        if sound && bytes.len() >= 8 {
            // Past the checksum, into the decoder.
            let len = bytes.len() as u32 - 8;
            bytes[..4].copy_from_slice(&len.to_le_bytes());
            let checksum = crc32fast::hash(&bytes[8..]);
            bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
            if bytes.len() > 12 {
                bytes[8..12].fill(0);
                bytes[12] %= 14;
                let checksum = crc32fast::hash(&bytes[8..]);
                bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
            }
        }
        let _ = read_all(&mut FrameReader::new(MAX, &[]), &bytes, || 64);
        let _ = Acceptor::hello(credentials(1, b""), &[], [0; 16], &bytes);
        let (dialer, _) = Dialer::hello(credentials(1, b""), NodeId(2), [0; 16]);
        let _ = dialer.welcome(&bytes);
        let _ = Dialer::finish(&bytes);
    }

    #[test]
    fn a_flipped_bit_never_changes_a_frame(frame in frame(), at: prop::sample::Index) {
        let mut stream = encoded(std::slice::from_ref(&frame));
        let bit = at.index(stream.len() * 8);
        stream[bit / 8] ^= 1 << (bit % 8);
        // A length that grew waits for bytes that never come.
        let found = read_all(&mut FrameReader::new(MAX, &[]), &stream, || 5000);
        prop_assert!(found.as_ref().is_ok_and(Vec::is_empty) || found.is_err(), "{:?}", found);
    }
}

#[test]
fn nothing_is_read_behind_a_frame_that_was_refused() {
    let frame = Frame::Message(7, Message::Campaign);
    let mut stream = encoded(&[frame.clone(), frame.clone(), frame.clone()]);
    let len = stream.len() / 3;
    stream[len + 10] ^= 1;
    let mut reader = FrameReader::new(MAX, &stream);
    assert_eq!(reader.next(), Ok(Some(frame)));
    for _ in 0..3 {
        assert_eq!(reader.next(), Err(FrameError::Checksum));
    }
}

#[test]
fn every_split_of_a_stream_gives_the_same_frames() {
    let proposal = Proposal {
        id: RequestId { node: NodeId(3), boot: 4, seq: 5 },
        floor: 1,
        commands: Bytes::from_static(b"commands"),
    };
    let frames = [
        Frame::Message(7, Message::Forward(vec![proposal])),
        Frame::Message(7, Message::Campaign),
        Frame::Message(8, Message::Heartbeat(Heartbeat::default())),
    ];
    let stream = encoded(&frames);
    for split in 0..=stream.len() {
        let mut reader = FrameReader::new(MAX, &[]);
        let mut steps = [split, stream.len()].into_iter().filter(|len| *len > 0);
        let found = read_all(&mut reader, &stream, || steps.next().unwrap());
        assert_eq!(found.unwrap(), frames, "split {split}");
    }
}

#[test]
fn a_length_is_believed_only_as_its_bytes_arrive() {
    let mut reader = FrameReader::new(MAX << 6, &[]);
    let mut head = (64_u32 << 20).to_le_bytes().to_vec();
    head.extend([0; 4]);
    reader.space()[..8].copy_from_slice(&head);
    reader.filled(8);
    assert_eq!(reader.next(), Ok(None));
    assert!(reader.space().len() <= 1 << 20);

    let mut reader = FrameReader::new(MAX, &[]);
    reader.space()[..8].copy_from_slice(&head);
    reader.filled(8);
    assert_eq!(reader.next(), Err(FrameError::TooLong(64 << 20)));
}

#[test]
fn the_memory_of_a_long_frame_ends_where_the_frame_ends() {
    let commands = Bytes::from(vec![7; 300_000]);
    let id = RequestId { node: NodeId(1), boot: 1, seq: 1 };
    let long = Message::Forward(vec![Proposal { id, floor: 0, commands }]);
    let frames = [Frame::Message(1, long), Frame::Message(1, Message::Campaign)];
    let stream = encoded(&frames);
    let mut reader = FrameReader::new(MAX, &[]);
    let mut fed = 0;
    let found = loop {
        if let Some(frame) = reader.next().unwrap() {
            break frame;
        }
        let space = reader.space();
        let len = space.len().min(stream.len() - fed);
        space[..len].copy_from_slice(&stream[fed..fed + len]);
        reader.filled(len);
        fed += len;
    };
    assert_eq!(found, frames[0]);
    // Nothing behind the frame was read into its memory.
    assert_eq!(fed, encoded(&frames[..1]).len());
}

fn credentials(node: u32, password: &[u8]) -> Credentials {
    let cluster = cluster_id("demo", &[NodeId(1), NodeId(2), NodeId(3)]);
    Credentials {
        cluster,
        node: NodeId(node),
        boot: 100 + u64::from(node),
        password: password.into(),
    }
}

/// A whole handshake: the acceptor's view of the peer, or the error of the end that saw it first.
fn shake(
    dialer: Credentials,
    to: NodeId,
    acceptor: Credentials,
) -> Result<(NodeId, u64), HandshakeError> {
    let members = [1, 2, 3].map(NodeId);
    let (dialer, hello) = Dialer::hello(dialer, to, [1; 16]);
    let (acceptor, welcome) = match Acceptor::hello(acceptor, &members, [2; 16], &hello) {
        Ok(accepted) => accepted,
        Err(error) => {
            // The dialer sees the same reason.
            let refused = dialer.welcome(&handshake::refusal(&error)).map(|_| ());
            assert_eq!(refused, Err(HandshakeError::Refused(error.to_string())));
            return Err(error);
        }
    };
    let (boot, proof) = dialer.welcome(&welcome)?;
    assert_eq!(boot, 102);
    Dialer::finish(&acceptor.proof(&proof)?)?;
    Ok((acceptor.peer(), acceptor.peer_boot()))
}

#[test]
fn two_members_with_one_password_or_none_meet() {
    for password in [&b""[..], b"secret"] {
        let met = shake(credentials(1, password), NodeId(2), credentials(2, password));
        assert_eq!(met, Ok((NodeId(1), 101)));
    }
}

#[test]
fn a_node_that_does_not_belong_is_refused_with_the_reason() {
    let me = || credentials(2, b"secret");
    let refused = |dialer: Credentials, to: u32| {
        shake(dialer, NodeId(to), me()).expect_err("it does not belong").to_string()
    };
    let other_cluster = Credentials { cluster: cluster_id("x", &[]), ..credentials(1, b"secret") };
    assert!(refused(other_cluster, 2).contains("another cluster"));
    assert!(refused(credentials(1, b"secret"), 3).contains("looks for node 3, but this is 2"));
    assert!(refused(credentials(2, b"secret"), 2).contains("this node's own id"));
    assert!(refused(credentials(9, b"secret"), 2).contains("node 9 is no member"));
    for wrong in [&b""[..], b"Secret", b"secret "] {
        assert!(refused(credentials(1, wrong), 2).contains("another password"));
    }
}

#[test]
fn a_later_wire_format_is_refused_with_both_numbers() {
    let (_, mut hello) = Dialer::hello(credentials(1, b""), NodeId(2), [1; 16]);
    hello[4] = 9;
    let error = Acceptor::hello(credentials(2, b""), &[NodeId(1)], [2; 16], &hello).unwrap_err();
    assert_eq!(error.to_string(), "wire format 9, but this node speaks 2");
}

#[test]
fn the_acceptor_refuses_a_dialer_that_skips_or_repeats_a_proof() {
    let members = [1, 2].map(NodeId);
    let (dialer, hello) = Dialer::hello(credentials(1, b"secret"), NodeId(2), [1; 16]);
    let accept = |nonce| {
        Acceptor::hello(credentials(2, b"secret"), &members, nonce, &hello).expect("a good hello")
    };
    let (acceptor, welcome) = accept([2; 16]);
    let (_, proof) = dialer.welcome(&welcome).unwrap();
    assert!(acceptor.proof(&proof).is_ok());
    assert!(acceptor.proof(&hello).is_err(), "not a proof at all");
    // The acceptor's own proof, sent back to it.
    let mut reflected = proof.clone();
    let at = welcome.len() - 32;
    reflected[4..].copy_from_slice(&welcome[at..]);
    assert!(acceptor.proof(&reflected).is_err());
    // The same proof in another handshake.
    assert!(accept([3; 16]).0.proof(&proof).is_err());
}

#[test]
fn no_flipped_bit_of_a_handshake_leads_to_a_link() {
    let members = [1, 2, 3].map(NodeId);
    let (dialer, hello) = Dialer::hello(credentials(1, b"secret"), NodeId(2), [1; 16]);
    let accept =
        |hello: &[u8]| Acceptor::hello(credentials(2, b"secret"), &members, [2; 16], hello);
    let (acceptor, welcome) = accept(&hello).unwrap();
    let (_, proof) = dialer.welcome(&welcome).unwrap();
    let flipped = |message: &[u8], bit: usize| {
        let mut message = message.to_vec();
        message[bit / 8] ^= 1 << (bit % 8);
        message
    };
    for bit in 0..hello.len() * 8 {
        let link = accept(&flipped(&hello, bit)).and_then(|(_, welcome)| dialer.welcome(&welcome));
        assert!(link.is_err(), "hello, bit {bit}");
    }
    for bit in 0..welcome.len() * 8 {
        assert!(dialer.welcome(&flipped(&welcome, bit)).is_err(), "welcome, bit {bit}");
    }
    for bit in 0..proof.len() * 8 {
        assert!(acceptor.proof(&flipped(&proof, bit)).is_err(), "proof, bit {bit}");
    }
}

#[test]
fn a_password_shows_in_no_debug_text() {
    let (dialer, _) = Dialer::hello(credentials(1, b"hunter2"), NodeId(2), [1; 16]);
    let text = format!("{dialer:?}");
    let bytes = format!("{:?}", b"hunter2");
    assert!(!text.contains("hunter2") && !text.contains(bytes.trim_matches(['[', ']'])), "{text}");
}

#[test]
fn a_cluster_id_depends_on_name_and_members_but_not_on_their_order() {
    let ids = |ids: &[u32]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
    let id = cluster_id("a", &ids(&[1, 2]));
    assert_eq!(id, cluster_id("a", &ids(&[2, 1])));
    assert_ne!(id, cluster_id("b", &ids(&[1, 2])));
    assert_ne!(id, cluster_id("a", &ids(&[1, 2, 3])));
}
