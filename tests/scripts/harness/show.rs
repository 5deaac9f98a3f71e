//! One short line for everything that a transcript shows.

use nodesync::replica::{
    Append, AppendAck, Beat, Envelope, Event, HardState, Message, Record, Standing,
};
use nodesync::types::{Entry, Payload, Proposal, RequestId, SnapshotMeta};

/// `n3→n1 t1 Append prev=1@1 commit=1 [2@1 n1#1 x=1]`
pub fn envelope(envelope: &Envelope) -> String {
    let Envelope { from, to, term, message } = envelope;
    format!("n{from}→n{to} t{term} {}", self::message(message))
}

pub fn message(message: &Message) -> String {
    match message {
        Message::Beat(beat) => self::beat(beat),
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
        Message::ReadAsk { position } => format!("ReadAsk {position}"),
        Message::ReadAnswer { position, index } => format!("ReadAnswer {position} index={index}"),
        Message::Campaign => "Campaign".to_owned(),
    }
}

fn beat(beat: &Beat) -> String {
    let leader = beat.leader.map_or("none".to_owned(), |leader| format!("n{leader}"));
    let mut text = format!("Beat leader={leader} last={}", beat.last);
    let mut add = |shown: bool, name: &str, value: String| {
        if shown {
            text += &format!(" {name}={value}");
        }
    };
    add(beat.commit > 0, "commit", beat.commit.to_string());
    add(beat.matched > 0, "matched", beat.matched.to_string());
    add(beat.asked > 0, "asked", beat.asked.to_string());
    add(beat.heard > 0, "heard", beat.heard.to_string());
    add(!beat.voter, "incarnation", beat.incarnation.to_string());
    add(!beat.admitted, "admitted", "no".to_owned());
    add(!beat.fit, "fit", "no".to_owned());
    add(beat.founder.is_some(), "founder", beat.founder.unwrap_or(0).to_string());
    add(beat.answers.is_some(), "answers", beat.answers.unwrap_or(0).to_string());
    text
}

pub fn record(record: &Record) -> String {
    match record {
        Record::Hard(HardState { term, vote, standing }) => {
            let vote = vote.map_or("none".to_owned(), |vote| format!("n{vote}"));
            let standing = match standing {
                Standing::Blank => " blank",
                Standing::CatchingUp => " catching-up",
                Standing::Voter { .. } => "",
            };
            format!("term={term} vote={vote}{standing}")
        }
        Record::Entry(entry) => self::entry(entry),
        Record::Snapshot(snapshot) => format!("snapshot {}", meta(snapshot)),
    }
}

pub fn entry(entry: &Entry) -> String {
    let payload = match &entry.payload {
        Payload::Noop => "noop".to_owned(),
        Payload::Batch(proposal) => self::proposal(proposal),
    };
    format!("{}@{} {payload}", entry.index, entry.term)
}

pub fn proposal(proposal: &Proposal) -> String {
    format!("{} {}", request(&proposal.id), String::from_utf8_lossy(&proposal.commands))
}

/// `n1#2`: the second request of node 1; after a restart of that node `n1.2#2`.
pub fn request(id: &RequestId) -> String {
    let boot = if id.boot == 1 { String::new() } else { format!(".{}", id.boot) };
    format!("n{}{boot}#{}", id.node, id.seq)
}

pub fn meta(meta: &SnapshotMeta) -> String {
    format!("{}@{}", meta.index, meta.term)
}

pub fn event(event: &Event) -> String {
    match event {
        Event::Campaign { term, cause } => format!("stands for term {term}: {}", cause.as_str()),
        Event::Leader { leader, term } => format!("has leader n{leader} in term {term}"),
        Event::SteppedDown(cause) => format!("steps down: {}", cause.as_str()),
        Event::Transfer { to } => format!("hands over to n{to}"),
        Event::TransferFailed { to } => format!("gives up handing over to n{to}"),
        Event::Founded => "is a founder".to_owned(),
        Event::CatchingUp => "must catch up".to_owned(),
        Event::CaughtUp => "has caught up".to_owned(),
    }
}

pub fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}
