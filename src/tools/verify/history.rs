//! What clients did and saw, in the order of one global counter.
//!
//! A number is drawn before a request is sent, and another one after its reply has come: if one
//! operation's return has a lower number than another's call, it was over before the other began.
//! Clients keep their own records and hand them in at the end; only the counter is shared.
//!
//! What became of a request ([`Fate`]) follows the error contract: `CLUSTERDOWN`, `TRYAGAIN`,
//! `LOADING` and `MISCONF` say that it is certainly not done; `UNKNOWN`, a lost connection and a
//! time-out leave it open for ever. Any other error is not expected and is itself a finding.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::client::{Error, Reply};
use crate::testing::linearizability::{Action, Operation, Seen};
use crate::types::When;

/// The order of all calls and returns.
#[derive(Debug, Default)]
pub struct Tickets(AtomicU64);

impl Tickets {
    /// The next number.
    pub fn draw(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate<T> {
    /// Answered with this.
    Done(T),
    /// Certainly not done.
    Refused,
    /// May or may not be done, now or later.
    Unknown,
    /// Answered with something that no such request may get.
    Unexpected(String),
}

impl<T> Fate<T> {
    /// The fate by the answer; `read` says what a reply that is no error means.
    pub fn of(answer: Result<Reply, Error>, read: impl FnOnce(&Reply) -> Option<T>) -> Fate<T> {
        match answer {
            Ok(Reply::Error(text)) => match text.split(' ').next() {
                Some("CLUSTERDOWN" | "TRYAGAIN" | "LOADING" | "MISCONF") => Fate::Refused,
                Some("UNKNOWN") => Fate::Unknown,
                _ => Fate::Unexpected(text),
            },
            Ok(reply) => match read(&reply) {
                Some(seen) => Fate::Done(seen),
                None => Fate::Unexpected(format!("{reply:?}")),
            },
            Err(Error::NotSent(_)) => Fate::Refused,
            Err(Error::Lost(_)) => Fate::Unknown,
            Err(Error::Refused(text)) => Fate::Unexpected(text),
        }
    }
}

/// A strong operation on one key.
#[derive(Clone, Debug)]
pub struct StrongRecord {
    /// The client.
    pub client: usize,
    /// The node that it asked, by its place in the list of nodes.
    pub node: usize,
    /// The key, without the run's prefix.
    pub key: String,
    /// What it asked for.
    pub action: Action,
    /// When it was called.
    pub invoked: u64,
    /// When its answer came, if one came.
    pub returned: Option<u64>,
    /// What it saw, if it was done for certain.
    pub seen: Option<Seen>,
}

impl StrongRecord {
    /// For the checker.
    pub fn operation(&self) -> Operation {
        Operation {
            invoked: self.invoked,
            returned: self.returned,
            actions: vec![(self.action.clone(), self.seen.clone())],
        }
    }
}

/// What an eventual session did with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// SET to this value, or DEL.
    Write(Option<Vec<u8>>),
    /// GET, which showed this.
    Read(Option<Vec<u8>>),
}

/// A step of an eventual session; refused ones are left out.
#[derive(Clone, Debug)]
pub struct EventualRecord {
    /// The client.
    pub client: usize,
    /// The node that it asked.
    pub node: usize,
    /// The key. A key of a session's own has that session's number in it.
    pub key: String,
    /// True if no other session writes the key.
    pub own: bool,
    /// What it did.
    pub deed: Deed,
    /// False if nobody knows whether it is done.
    pub certain: bool,
}

/// All that the clients have handed in.
#[derive(Debug, Default)]
pub struct History {
    /// Strong operations, refused ones left out.
    pub records: Vec<StrongRecord>,
    /// Eventual sessions; the steps of each in order.
    pub steps: Vec<EventualRecord>,
    /// What came of requests, of both kinds.
    pub tally: FateCounts,
}

/// Requests by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FateCounts {
    /// Done.
    pub ok: u64,
    /// Certainly not done.
    pub failed: u64,
    /// Nobody knows.
    pub unknown: u64,
    /// Writes of strong sessions among the done.
    pub strong_writes: u64,
}

impl FateCounts {
    /// Counts one.
    pub fn count<T>(&mut self, fate: &Fate<T>) {
        match fate {
            Fate::Done(_) => self.ok += 1,
            Fate::Refused => self.failed += 1,
            Fate::Unknown | Fate::Unexpected(_) => self.unknown += 1,
        }
    }
}

impl History {
    /// Takes in what another one holds.
    pub fn add(&mut self, other: History) {
        self.records.extend(other.records);
        self.steps.extend(other.steps);
        self.tally.ok += other.tally.ok;
        self.tally.failed += other.tally.failed;
        self.tally.unknown += other.tally.unknown;
        self.tally.strong_writes += other.tally.strong_writes;
    }
}

/// True if an action can change its key.
pub fn changes(action: &Action) -> bool {
    !matches!(action, Action::Get)
}

/// The words of the request that does `action`.
pub fn words(action: &Action, key: &str) -> Vec<Vec<u8>> {
    let (name, rest): (&str, Vec<&[u8]>) = match action {
        Action::Get => ("GET", vec![]),
        Action::Set { value, when, get } => {
            let mut rest: Vec<&[u8]> = vec![value];
            match when {
                When::Always => {}
                When::Absent => rest.push(b"NX"),
                When::Present => rest.push(b"XX"),
            }
            if *get {
                rest.push(b"GET");
            }
            ("SET", rest)
        }
        Action::Increment(by) => return vec!["INCRBY".into(), key.into(), by.to_string().into()],
        Action::Take => ("GETDEL", vec![]),
        Action::Delete => ("DEL", vec![]),
    };
    [name.as_bytes(), key.as_bytes()].into_iter().chain(rest).map(<[u8]>::to_vec).collect()
}

/// What a reply to `action` shows; `None` if no such reply belongs to it.
pub fn seen(action: &Action, reply: &Reply) -> Option<Seen> {
    Some(match (action, reply) {
        (Action::Get | Action::Take | Action::Set { get: true, .. }, Reply::Bulk(value)) => {
            Seen::Value(value.clone())
        }
        (Action::Get | Action::Take | Action::Set { .. }, Reply::Nil) => Seen::Nil,
        (Action::Set { get: false, .. }, reply) if reply.is_ok() => Seen::Done,
        (Action::Increment(_) | Action::Delete, Reply::Integer(number)) => Seen::Integer(*number),
        _ => return None,
    })
}

/// The operation as one would type it, with what it saw.
pub fn describe(record: &StrongRecord) -> String {
    let words = words(&record.action, &record.key);
    let words: Vec<_> = words.iter().map(|word| String::from_utf8_lossy(word)).collect();
    let result = match (&record.seen, record.returned) {
        (Some(Seen::Done), _) => "OK".into(),
        (Some(Seen::Nil), _) => "nil".into(),
        (Some(Seen::Integer(number)), _) => number.to_string(),
        (Some(Seen::Value(value)), _) => format!("\"{}\"", String::from_utf8_lossy(value)),
        (Some(Seen::Failed), _) => "error".into(),
        (None, _) => "unknown".into(),
    };
    format!("{} -> {result}", words.join(" "))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    fn fate(answer: Result<Reply, Error>) -> Fate<Seen> {
        Fate::of(answer, |reply| seen(&Action::Get, reply))
    }

    #[test]
    fn error_words_say_what_became_of_a_request() {
        for word in ["CLUSTERDOWN", "TRYAGAIN", "LOADING", "MISCONF"] {
            assert_eq!(fate(Ok(Reply::Error(format!("{word} why")))), Fate::Refused);
        }
        assert_eq!(fate(Ok(Reply::Error("UNKNOWN why".into()))), Fate::Unknown);
        assert_eq!(fate(Err(Error::Lost(ErrorKind::TimedOut.into()))), Fate::Unknown);
        assert_eq!(fate(Err(Error::NotSent(ErrorKind::BrokenPipe.into()))), Fate::Refused);
        assert_eq!(fate(Ok(Reply::Nil)), Fate::Done(Seen::Nil));
        for strange in [Reply::Error("ERR no".into()), Reply::Integer(1)] {
            assert!(matches!(fate(Ok(strange)), Fate::Unexpected(_)));
        }
    }

    #[test]
    fn requests_are_spelt_as_the_protocol_wants_them() {
        let set = Action::Set { value: b"v".into(), when: When::Present, get: true };
        let spelt = |action: &Action| words(action, "k").join(&b' ');
        assert_eq!(spelt(&set), b"SET k v XX GET");
        assert_eq!(spelt(&Action::Increment(1)), b"INCRBY k 1");
        assert_eq!(spelt(&Action::Take), b"GETDEL k");
        assert_eq!(seen(&set, &Reply::Simple("OK".into())), None);
    }
}
