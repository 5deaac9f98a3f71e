//! Messages ⇄ bytes. The bytes of entries and proposals stay slices of the frame that they arrived
//! in: log, write-ahead log, peers and apply share them.

use bytes::{BufMut, Bytes};

use crate::codec::{Malformed, Reader, put_bytes};
use crate::replica::{
    Append, AppendAck, Chunk, Envelope, Heartbeat, Message, VoteReply, VoteRequest,
};
use crate::types::{
    Entry, NodeId, Proposal, Rejected, RequestId, SnapshotMeta, Term, Version, Writes,
    decode_writes, encode_writes,
};

use super::HEAD_LEN;

mod kind {
    pub const HEARTBEAT: u8 = 1;
    pub const APPEND: u8 = 2;
    pub const APPEND_MATCHED: u8 = 3;
    pub const APPEND_MISSING: u8 = 4;
    pub const VOTE: u8 = 5;
    pub const VOTE_REPLY: u8 = 6;
    pub const FORWARD: u8 = 7;
    pub const REFUSE: u8 = 8;
    pub const READ_INDEX: u8 = 9;
    pub const READ_INDEX_REPLY: u8 = 10;
    pub const CAMPAIGN: u8 = 11;
    pub const CHUNK: u8 = 12;
    pub const STAMP: u8 = 13;
    pub const STAMPED: u8 = 14;
    pub const SPREAD: u8 = 15;
}

/// The content of a frame. The ends of the link are known from its handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A message, and the sender's term.
    Message(Term, Message),
    /// A part of a snapshot.
    Chunk(Chunk),
}

/// Appends the frame of a message.
pub fn encode(envelope: &Envelope, out: &mut Vec<u8>) {
    frame(out, |out| {
        let term = envelope.term;
        match &envelope.message {
            Message::Heartbeat(heartbeat) => {
                head(out, kind::HEARTBEAT, term);
                put_heartbeat(out, heartbeat);
            }
            Message::Append(append) => {
                head(out, kind::APPEND, term);
                put_append(out, append);
            }
            Message::AppendAck(AppendAck::Matched(index)) => {
                head(out, kind::APPEND_MATCHED, term);
                out.put_u64_le(*index);
            }
            Message::AppendAck(AppendAck::Missing { prev_index, hint_index, hint_term }) => {
                head(out, kind::APPEND_MISSING, term);
                put_u64s(out, &[*prev_index, *hint_index, *hint_term]);
            }
            Message::Vote(vote) => {
                head(out, kind::VOTE, term);
                out.put_u8(u8::from(vote.pre));
                out.put_u8(u8::from(vote.transfer));
                put_u64s(out, &[vote.last_index, vote.last_term]);
            }
            Message::VoteReply(reply) => {
                head(out, kind::VOTE_REPLY, term);
                out.put_u8(u8::from(reply.pre));
                out.put_u8(u8::from(reply.granted));
            }
            Message::Forward(proposals) => {
                head(out, kind::FORWARD, term);
                out.put_u32_le(proposals.len() as u32);
                proposals.iter().for_each(|proposal| proposal.encode(out));
            }
            Message::Refuse { ids, reason } => {
                head(out, kind::REFUSE, term);
                out.put_u8(reason_code(*reason));
                out.put_u32_le(ids.len() as u32);
                ids.iter().for_each(|id| put_id(out, *id));
            }
            Message::ReadIndex { position } => {
                head(out, kind::READ_INDEX, term);
                out.put_u64_le(*position);
            }
            Message::ReadIndexReply { position, index } => {
                head(out, kind::READ_INDEX_REPLY, term);
                put_u64s(out, &[*position, *index]);
            }
            Message::Stamp { sent, seen, floor, requests } => {
                head(out, kind::STAMP, term);
                put_u64s(out, &[*sent, seen.0, *floor]);
                put_stamp_requests(out, requests);
            }
            Message::Stamped(stamps) => {
                head(out, kind::STAMPED, term);
                put_stamps(out, stamps);
            }
            Message::Spread(writes) => {
                head(out, kind::SPREAD, term);
                encode_writes(writes, out);
            }
            Message::Campaign => head(out, kind::CAMPAIGN, term),
        }
    });
}

fn put_stamp_requests(out: &mut Vec<u8>, requests: &[(RequestId, Writes)]) {
    out.put_u32_le(requests.len() as u32);
    for (id, writes) in requests {
        put_id(out, *id);
        encode_writes(writes, out);
    }
}

fn put_stamps(out: &mut Vec<u8>, stamps: &[(RequestId, Result<Version, Rejected>)]) {
    out.put_u32_le(stamps.len() as u32);
    for (id, stamp) in stamps {
        put_id(out, *id);
        out.put_u8(stamp.err().map_or(0, reason_code));
        out.put_u64_le(stamp.map_or(0, |version| version.0));
    }
}

/// Appends the frame of a part of a snapshot.
pub fn encode_chunk(chunk: &Chunk, out: &mut Vec<u8>) {
    frame(out, |out| {
        head(out, kind::CHUNK, chunk.term);
        put_u64s(out, &[chunk.meta.index, chunk.meta.term, chunk.offset, chunk.total]);
        put_bytes(out, &chunk.data);
    });
}

/// Appends the bytes that `body` appends, behind their length and checksum.
fn frame(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.put_bytes(0, HEAD_LEN);
    body(out);
    let content = &out[start + HEAD_LEN..];
    let len = u32::try_from(content.len()).expect("limits keep every frame below 4 GiB");
    let checksum = crc32fast::hash(content);
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    out[start + 4..start + HEAD_LEN].copy_from_slice(&checksum.to_le_bytes());
}

/// There is one group today.
const GROUP: u32 = 0;

fn head(out: &mut Vec<u8>, kind: u8, term: Term) {
    out.put_u32_le(GROUP);
    out.put_u8(kind);
    out.put_u64_le(term);
}

fn put_u64s(out: &mut Vec<u8>, numbers: &[u64]) {
    numbers.iter().for_each(|number| out.put_u64_le(*number));
}

fn put_id(out: &mut Vec<u8>, id: RequestId) {
    out.put_u32_le(id.node.0);
    put_u64s(out, &[id.boot, id.seq]);
}

fn put_option(out: &mut Vec<u8>, value: Option<u64>) {
    out.put_u8(u8::from(value.is_some()));
    out.put_u64_le(value.unwrap_or(0));
}

fn put_heartbeat(out: &mut Vec<u8>, heartbeat: &Heartbeat) {
    put_option(out, heartbeat.leader.map(|leader| leader.0.into()));
    put_u64s(
        out,
        &[
            heartbeat.commit,
            heartbeat.last,
            heartbeat.matched,
            heartbeat.read_round,
            heartbeat.read_round_seen,
        ],
    );
    out.put_u64_le(heartbeat.incarnation);
    for flag in [heartbeat.admitted, heartbeat.voter, heartbeat.fit] {
        out.put_u8(u8::from(flag));
    }
    put_option(out, heartbeat.founder);
    put_option(out, heartbeat.answers);
    put_u64s(out, &[heartbeat.clock, heartbeat.drained.0]);
    put_option(out, heartbeat.checkpoint.map(|(index, _)| index));
    put_option(out, heartbeat.checkpoint.map(|(_, digest)| digest));
}

fn put_append(out: &mut Vec<u8>, append: &Append) {
    put_u64s(out, &[append.prev_index, append.prev_term, append.commit]);
    out.put_u32_le(append.entries.len() as u32);
    append.entries.iter().for_each(|entry| entry.encode(out));
}

/// Reads the checked part of a frame.
pub(super) fn decode(body: &Bytes) -> Result<Frame, Malformed> {
    let mut reader = Reader::new(body);
    // A frame of a group that this node does not have comes from a later program.
    if reader.u32("group")? != GROUP {
        return Err(Malformed("group"));
    }
    let kind = reader.u8("kind")?;
    let term = reader.u64("term")?;
    let frame = if kind == kind::CHUNK {
        Frame::Chunk(take_chunk(&mut reader, term, body)?)
    } else {
        Frame::Message(term, take_message(&mut reader, kind, body)?)
    };
    reader.finish("frame")?;
    Ok(frame)
}

fn take_message(reader: &mut Reader<'_>, kind: u8, body: &Bytes) -> Result<Message, Malformed> {
    Ok(match kind {
        kind::HEARTBEAT => Message::Heartbeat(take_heartbeat(reader)?),
        kind::APPEND => Message::Append(take_append(reader, body)?),
        kind::APPEND_MATCHED => {
            Message::AppendAck(AppendAck::Matched(reader.u64("matched index")?))
        }
        kind::APPEND_MISSING => Message::AppendAck(AppendAck::Missing {
            prev_index: reader.u64("previous index")?,
            hint_index: reader.u64("hint index")?,
            hint_term: reader.u64("hint term")?,
        }),
        kind::VOTE => Message::Vote(VoteRequest {
            pre: reader.bool("pre-vote")?,
            transfer: reader.bool("transfer")?,
            last_index: reader.u64("last index")?,
            last_term: reader.u64("last term")?,
        }),
        kind::VOTE_REPLY => Message::VoteReply(VoteReply {
            pre: reader.bool("pre-vote")?,
            granted: reader.bool("granted")?,
        }),
        kind::FORWARD => {
            let count = reader.count(Proposal::OVERHEAD, "proposals")?;
            let proposals = (0..count).map(|_| Proposal::decode(reader, body));
            Message::Forward(proposals.collect::<Result<_, _>>()?)
        }
        kind::REFUSE => {
            let reason = reason(reader.u8("reason")?)?;
            let count = reader.count(ID_LEN, "ids")?;
            let ids = (0..count).map(|_| take_id(reader));
            Message::Refuse { ids: ids.collect::<Result<_, _>>()?, reason }
        }
        kind::READ_INDEX => Message::ReadIndex { position: reader.u64("position")? },
        kind::READ_INDEX_REPLY => Message::ReadIndexReply {
            position: reader.u64("position")?,
            index: reader.u64("index")?,
        },
        kind::STAMP => {
            let (sent, seen) = (reader.u64("time of sending")?, reader.u64("version")?);
            let (seen, floor) = (Version(seen), reader.u64("floor")?);
            let count = reader.count(ID_LEN + 4, "requests")?;
            let requests = (0..count).map(|_| Ok((take_id(reader)?, decode_writes(reader)?)));
            let requests = requests.collect::<Result<_, _>>()?;
            Message::Stamp { sent, seen, floor, requests }
        }
        kind::STAMPED => {
            let count = reader.count(ID_LEN + 9, "stamps")?;
            let stamps = (0..count).map(|_| Ok((take_id(reader)?, take_stamp(reader)?)));
            Message::Stamped(stamps.collect::<Result<_, _>>()?)
        }
        kind::SPREAD => Message::Spread(decode_writes(reader)?),
        kind::CAMPAIGN => Message::Campaign,
        _ => return Err(Malformed("kind")),
    })
}

/// The length of a request's id, in bytes.
const ID_LEN: usize = 4 + 8 + 8;

fn take_id(reader: &mut Reader<'_>) -> Result<RequestId, Malformed> {
    let node = NodeId(reader.u32("request node")?);
    Ok(RequestId { node, boot: reader.u64("request boot")?, seq: reader.u64("request number")? })
}

fn take_stamp(reader: &mut Reader<'_>) -> Result<Result<Version, Rejected>, Malformed> {
    Ok(match (reader.u8("reason")?, reader.u64("version")?) {
        (0, version) => Ok(Version(version)),
        (code, 0) => Err(reason(code)?),
        _ => return Err(Malformed("version")),
    })
}

fn take_option(reader: &mut Reader<'_>, field: &'static str) -> Result<Option<u64>, Malformed> {
    let (present, value) = (reader.bool(field)?, reader.u64(field)?);
    match (present, value) {
        (true, value) => Ok(Some(value)),
        // One byte form for each value: an absent number is zero.
        (false, 0) => Ok(None),
        (false, _) => Err(Malformed(field)),
    }
}

fn take_heartbeat(reader: &mut Reader<'_>) -> Result<Heartbeat, Malformed> {
    let leader = take_option(reader, "leader")?;
    let leader = leader.map(u32::try_from).transpose().map_err(|_| Malformed("leader"))?;
    Ok(Heartbeat {
        leader: leader.map(NodeId),
        commit: reader.u64("commit")?,
        last: reader.u64("last index")?,
        matched: reader.u64("matched index")?,
        read_round: reader.u64("read round")?,
        read_round_seen: reader.u64("read round seen")?,
        incarnation: reader.u64("incarnation")?,
        admitted: reader.bool("admitted")?,
        voter: reader.bool("voter")?,
        fit: reader.bool("fit")?,
        founder: take_option(reader, "founder")?,
        answers: take_option(reader, "answers")?,
        clock: reader.u64("clock")?,
        drained: Version(reader.u64("drained version")?),
        checkpoint: match (take_option(reader, "checkpoint")?, take_option(reader, "digest")?) {
            (Some(index), Some(digest)) => Some((index, digest)),
            (None, None) => None,
            _ => return Err(Malformed("checkpoint")),
        },
    })
}

fn take_append(reader: &mut Reader<'_>, body: &Bytes) -> Result<Append, Malformed> {
    let prev_index = reader.u64("previous index")?;
    let prev_term = reader.u64("previous term")?;
    let commit = reader.u64("commit")?;
    let count = reader.count(Entry::ENCODED_LEN_MIN, "entries")?;
    let entries = (0..count).map(|_| Entry::decode(reader, body));
    Ok(Append { prev_index, prev_term, commit, entries: entries.collect::<Result<_, _>>()? })
}

fn take_chunk(reader: &mut Reader<'_>, term: Term, body: &Bytes) -> Result<Chunk, Malformed> {
    let meta =
        SnapshotMeta { index: reader.u64("snapshot index")?, term: reader.u64("snapshot term")? };
    let (offset, total) = (reader.u64("offset")?, reader.u64("total")?);
    let data = body.slice_ref(reader.bytes("chunk")?);
    Ok(Chunk { term, meta, offset, total, data })
}

fn reason_code(reason: Rejected) -> u8 {
    match reason {
        Rejected::NoQuorum => 1,
        Rejected::NoLeader => 2,
        Rejected::Busy => 3,
        Rejected::Stopping => 4,
        Rejected::DiskFull => 5,
        Rejected::Joining => 6,
        Rejected::ClockSkew => 7,
    }
}

fn reason(code: u8) -> Result<Rejected, Malformed> {
    Ok(match code {
        1 => Rejected::NoQuorum,
        2 => Rejected::NoLeader,
        3 => Rejected::Busy,
        4 => Rejected::Stopping,
        5 => Rejected::DiskFull,
        6 => Rejected::Joining,
        7 => Rejected::ClockSkew,
        _ => return Err(Malformed("reason")),
    })
}
