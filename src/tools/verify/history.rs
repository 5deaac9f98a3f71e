//! The history: all operations of the clients with their results, ordered by one global counter.
//!
//! A client draws a number before it sends a request and another one after the reply: if the return
//! of one operation has a lower number than the call of another, the first was over before the
//! second began. Clients keep their own records and hand them in at the end; they share only the
//! counter.
//!
//! The fate of a request ([`Fate`]) follows the error contract: after `CLUSTERDOWN`, `TRYAGAIN`,
//! `LOADING` and `MISCONF` it is certainly not done; after `UNKNOWN`, a lost connection or a
//! time-out it may take effect at any later moment. Any other error is itself a finding.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::client::{Error, Reply};
use crate::testing::linearizability::{Action, Operation, Seen};
use crate::types::When;

/// The global counter that orders all calls and returns.
#[derive(Debug, Default)]
pub struct Tickets(AtomicU64);

impl Tickets {
    /// The next number.
    pub fn draw(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

/// The fate of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate<T> {
    /// Done, with this result.
    Done(T),
    /// Certainly not done.
    Refused,
    /// It may or may not be done, now or later.
    Unknown,
    /// Answered with a reply that such a request must not get.
    Unexpected(String),
}

impl<T> Fate<T> {
    /// The fate that follows from the answer. `read` turns a reply that is no error into a result.
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
    /// The node that served it, by its place in the list of nodes.
    pub node: usize,
    /// The key, without the run's prefix.
    pub key: String,
    /// The command.
    pub action: Action,
    /// The moment of the call.
    pub invoked: u64,
    /// The moment of the reply, if one came.
    pub returned: Option<u64>,
    /// The result, if it was certainly done.
    pub seen: Option<Seen>,
}

impl StrongRecord {
    /// The operation in the checker's form.
    pub fn operation(&self) -> Operation {
        Operation {
            invoked: self.invoked,
            returned: self.returned,
            actions: vec![(self.action.clone(), self.seen.clone())],
        }
    }
}

/// A command of an eventual session on a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventualAction {
    /// SET to this value; DEL without a value.
    Write(Option<Vec<u8>>),
    /// GET, with the value that it returned.
    Read(Option<Vec<u8>>),
}

/// An operation of an eventual session; refused ones are left out.
#[derive(Clone, Debug)]
pub struct EventualRecord {
    /// The client.
    pub client: usize,
    /// The node that served it.
    pub node: usize,
    /// The key. A session's own key has the session's number in it.
    pub key: String,
    /// True if no other session writes the key.
    pub own: bool,
    /// The operation.
    pub action: EventualAction,
    /// False if it may or may not be done.
    pub certain: bool,
}

/// The operations of all clients.
#[derive(Debug, Default)]
pub struct History {
    /// Strong operations, refused ones left out.
    pub records: Vec<StrongRecord>,
    /// Eventual operations; those of each session in order.
    pub eventual: Vec<EventualRecord>,
    /// The fates of all requests, strong and eventual.
    pub fates: FateCounts,
}

/// The number of requests by fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FateCounts {
    /// Done.
    pub ok: u64,
    /// Certainly not done.
    pub failed: u64,
    /// May or may not be done.
    pub unknown: u64,
    /// Writes of strong sessions that are done.
    pub strong_writes: u64,
}

impl FateCounts {
    /// Counts a request.
    pub fn count<T>(&mut self, fate: &Fate<T>) {
        match fate {
            Fate::Done(_) => self.ok += 1,
            Fate::Refused => self.failed += 1,
            Fate::Unknown | Fate::Unexpected(_) => self.unknown += 1,
        }
    }
}

impl History {
    /// Adds the operations of another history.
    pub fn add(&mut self, other: History) {
        self.records.extend(other.records);
        self.eventual.extend(other.eventual);
        self.fates.ok += other.fates.ok;
        self.fates.failed += other.fates.failed;
        self.fates.unknown += other.fates.unknown;
        self.fates.strong_writes += other.fates.strong_writes;
    }
}

/// True if an action can change its key.
pub fn changes(action: &Action) -> bool {
    !matches!(action, Action::Get)
}

/// The words of the request for `action`.
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

/// The result that a reply to `action` carries; `None` if `action` must not get such a reply.
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

/// The operation as a user would type it, with its result.
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
    fn the_first_word_of_an_error_decides_the_fate() {
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
