//! The text of a transcript: one short line for each message, record and event.

use std::borrow::Cow;

use nodesync::clock::HybridClock;
use nodesync::replica::{
    Append, AppendAck, Envelope, Event, HardState, Heartbeat, Message, Standing, WalRecord,
};
use nodesync::service::RequestHandle;
use nodesync::types::{
    Command, Entry, Payload, Proposal, Record, Rejected, RequestId, SnapshotMeta, Unserved,
    Version, Write,
};

use super::cluster::WALL_START;

/// `n3→n1 t1 Append prev=1@1 commit=1 [2@1 n1#1 x=1]`
pub fn envelope(envelope: &Envelope) -> String {
    let Envelope { from, to, term, message } = envelope;
    format!("n{from}→n{to} t{term} {}", self::message(message))
}

pub fn message(message: &Message) -> String {
    match message {
        Message::Heartbeat(heartbeat) => self::heartbeat(heartbeat),
        Message::Append(Append { prev_index, prev_term, commit, entries }) => {
            let entries = list(entries.iter().map(entry));
            format!("Append prev={prev_index}@{prev_term} commit={commit} {entries}")
        }
        Message::AppendAck(AppendAck::Matched(index)) => format!("Matched {index}"),
        Message::AppendAck(AppendAck::Missing { prev_index, hint_index, hint_term }) => {
            format!("Missing prev={prev_index} hint={hint_index}@{hint_term}")
        }
        Message::Vote(vote) => {
            let name = if vote.pre { "PreVote" } else { "Vote" };
            let transfer = if vote.transfer { " transfer" } else { "" };
            format!("{name} last={}@{}{transfer}", vote.last_index, vote.last_term)
        }
        Message::VoteReply(reply) => {
            let name = if reply.pre { "PreVoteReply" } else { "VoteReply" };
            format!("{name} {}", if reply.granted { "yes" } else { "no" })
        }
        Message::Forward(proposals) => format!("Forward {}", list(proposals.iter().map(proposal))),
        Message::Refuse { ids, reason } => {
            format!("Refuse {}: {reason}", list(ids.iter().map(request)))
        }
        Message::ReadIndex { position } => format!("ReadIndex {position}"),
        Message::ReadIndexReply { position, index } => {
            format!("ReadIndexReply {position} index={index}")
        }
        Message::Stamp { floor, requests, .. } => {
            let requests = requests.iter().map(|(id, writes)| stamp_request(id, writes));
            format!("Stamp floor={floor} {}", list(requests))
        }
        Message::Stamped(decisions) => {
            format!("Stamped {}", list(decisions.iter().map(decision)))
        }
        Message::Spread(writes) => format!("Spread {}", self::writes(writes)),
        Message::Campaign => "Campaign".to_owned(),
    }
}

fn heartbeat(heartbeat: &Heartbeat) -> String {
    let leader = heartbeat.leader.map_or("none".to_owned(), |leader| format!("n{leader}"));
    let mut text = format!("Heartbeat leader={leader} last={}", heartbeat.last);
    let mut add = |shown: bool, name: &str, value: String| {
        if shown {
            text += &format!(" {name}={value}");
        }
    };
    add(heartbeat.commit > 0, "commit", heartbeat.commit.to_string());
    add(heartbeat.matched > 0, "matched", heartbeat.matched.to_string());
    add(heartbeat.read_round > 0, "round", heartbeat.read_round.to_string());
    add(heartbeat.read_round_seen > 0, "round_seen", heartbeat.read_round_seen.to_string());
    add(!heartbeat.voter, "incarnation", heartbeat.incarnation.to_string());
    add(!heartbeat.admitted, "admitted", "no".to_owned());
    add(!heartbeat.fit, "fit", "no".to_owned());
    add(heartbeat.founder.is_some(), "founder", heartbeat.founder.unwrap_or(0).to_string());
    add(
        heartbeat.checkpoint.is_some(),
        "checkpoint",
        heartbeat.checkpoint.unwrap_or_default().0.to_string(),
    );
    add(heartbeat.answers.is_some(), "answers", heartbeat.answers.unwrap_or(0).to_string());
    text
}

pub fn record(record: &WalRecord) -> String {
    match record {
        WalRecord::Hard(HardState { term, vote, standing }) => {
            let vote = vote.map_or("none".to_owned(), |vote| format!("n{vote}"));
            let standing = match standing {
                Standing::Blank => " blank",
                Standing::CatchingUp => " catching-up",
                Standing::Voter { .. } => "",
            };
            format!("term={term} vote={vote}{standing}")
        }
        WalRecord::Entry(entry) => self::entry(entry),
        WalRecord::Snapshot(snapshot) => format!("snapshot {}", meta(snapshot)),
        WalRecord::Stamped(writes) => format!("stamped {}", self::writes(writes)),
        WalRecord::Held(writes) => format!("held {}", self::writes(writes)),
        WalRecord::Clock(up_to) => format!("clock up to {}", version(*up_to)),
    }
}

pub fn entry(entry: &Entry) -> String {
    let payload = match &entry.payload {
        Payload::Noop => "noop".to_owned(),
        Payload::Batch { proposal, .. } => self::proposal(proposal),
        Payload::Merge(writes) => format!("merge {}", self::writes(writes)),
        Payload::Checkpoint { floor } => format!("checkpoint floor={}", version(*floor)),
    };
    format!("{}@{} {payload}", entry.index, entry.term)
}

pub fn proposal(proposal: &Proposal) -> String {
    let commands = Command::decode_all(&proposal.commands).map(|command| match command {
        Ok(Command::Set { key, value, .. }) => format!("{}={}", text(key), text(value)),
        other => panic!("scripts propose SET alone, not {other:?}"),
    });
    format!("{} {}", request(&proposal.id), commands.collect::<Vec<_>>().join(" "))
}

fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// `n1#2`: the second request of node 1; after a restart of that node `n1.2#2`.
pub fn request(id: &RequestId) -> String {
    let boot = if id.boot == 1 { String::new() } else { format!(".{}", id.boot) };
    format!("n{}{boot}#{}", id.node, id.seq)
}

/// `n1~2`: the second request of node 1 for eventual writes.
pub fn stamp_id(id: &RequestId) -> String {
    request(id).replace('#', "~")
}

/// `n1#2`, `n1~2`, or `read of x`; `key` is the key of a read.
pub fn handle(handle: RequestHandle, key: &str) -> String {
    match handle {
        RequestHandle::Write(id) => request(&id),
        RequestHandle::Stamp(id) => stamp_id(&id),
        RequestHandle::Read(_) => format!("read of {key}"),
    }
}

/// `certainly not done (leader unavailable)`: the promise of an error, then the error.
pub fn unserved(unserved: Unserved) -> String {
    match unserved {
        Unserved::Rejected(why) => format!("certainly not done ({why})"),
        Unserved::Unknown(why) => format!("it may still be done ({why})"),
    }
}

fn stamp_request(id: &RequestId, writes: &[Write]) -> String {
    let writes: Vec<String> = writes.iter().map(write).collect();
    format!("{} {}", stamp_id(id), writes.join(" "))
}

fn decision((id, decision): &(RequestId, Result<Version, Rejected>)) -> String {
    let decision = match decision {
        Ok(first) => version(*first),
        Err(reason) => reason.to_string(),
    };
    format!("{} {decision}", stamp_id(id))
}

pub fn writes(writes: &[Write]) -> String {
    list(writes.iter().map(write))
}

/// `x=1 v50.n3`, or `-x v50.n3` if it deletes; without a version if it has none yet.
pub fn write(write: &Write) -> String {
    held(&write.record())
}

pub fn held(record: &Record) -> String {
    let key = text(record.key());
    let shown = record.value().map_or(format!("-{key}"), |value| format!("{key}={}", text(value)));
    match record.version() {
        Version(0) => shown,
        version => format!("{shown} {}", self::version(version)),
    }
}

/// `v50.n3`: stamped by node 3 (`log`: by the log) 50 ms after the cluster's start; `v50+1.n3` is a
/// tick later.
pub fn version(version: Version) -> String {
    const TICKS_PER_MS: i64 = 1000 * HybridClock::TICKS as i64;
    if version == Version(0) {
        return "v0".to_owned();
    }
    let ticks = version.tick() as i64 - (WALL_START * HybridClock::TICKS) as i64;
    let (ms, rest) = (ticks.div_euclid(TICKS_PER_MS), ticks.rem_euclid(TICKS_PER_MS));
    let rest = if rest > 0 { format!("+{rest}") } else { String::new() };
    match version.origin() {
        Version::LOG => format!("v{ms}{rest}.log"),
        place => format!("v{ms}{rest}.n{}", u32::from(place) + 1),
    }
}

pub fn meta(meta: &SnapshotMeta) -> String {
    format!("{}@{}", meta.index, meta.term)
}

pub fn event(event: &Event) -> String {
    match event {
        Event::Campaign { term, cause } => format!("campaigns for term {term}: {}", cause.as_str()),
        Event::Leader { leader, term } => format!("has leader n{leader} in term {term}"),
        Event::SteppedDown(cause) => format!("steps down: {}", cause.as_str()),
        Event::Transfer { to } => format!("hands over to n{to}"),
        Event::TransferFailed { to } => format!("fails to hand over to n{to}"),
        Event::Founded => "is a founder".to_owned(),
        Event::CatchingUp => "must catch up".to_owned(),
        Event::CaughtUp => "has caught up".to_owned(),
        Event::QuorumLost { stamper } => format!("sees no quorum: n{stamper} stamps"),
        Event::QuorumBack => "sees a quorum again".to_owned(),
        Event::ClockJumped { by } => format!("does not believe its clock: {:+} ms", by / 1000),
        Event::FutureWrites { from, ahead } => {
            format!("does not take the writes of n{from}: {} ms ahead", ahead / 1000)
        }
        Event::ClockDoubted { members } => {
            format!("doubts its clock: {members} members show another time")
        }
        Event::ClockBehind => "has a clock behind its versions".to_owned(),
    }
}

pub fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}
