//! Replies before any protocol gives them a form, and how outcomes become replies.

use std::borrow::Cow;

use crate::types::{Consistency, NodeId, Outcome, Rejected, Unknown, Unserved, Value};

/// An answer, rendered by the session as RESP2, RESP3 or one line of the line protocol.
///
/// | reply | RESP2 | RESP3 | line |
/// |---|---|---|---|
/// | `Simple` | `+OK` | `+OK` | `OK` |
/// | `Error` | `-ERR text` | `-ERR text` | `ERROR: text` |
/// | `Integer` | `:3` | `:3` | `VALUE: 3` |
/// | `Boolean` | `:1` | `#t` | `VALUE: true` |
/// | `Bulk`, `Text` | `$1` `v` | `$1` `v` | `VALUE: v` |
/// | `Null` | `$-1` | `_` | `VALUE: (nil)` |
/// | `Array` | `*2` … | `*2` … | `VALUES: a b` |
/// | `Set` | `*2` … | `~2` … | `VALUES: a b` |
/// | `Map` | `*4` … | `%2` … | `VALUES: k=v k=v` |
/// | `Verbatim` | `$1` `v` | `=5` `txt:v` | `VALUE: first line \| second line` |
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A word such as `OK`.
    Simple(&'static str),
    /// An error; its first word, in capitals, is a contract (`ERR`, `NOAUTH`, …).
    Error(Cow<'static, str>),
    /// The request was not served; see [`Reply::code`] for the first word.
    Unserved(Unserved),
    /// A number.
    Integer(i64),
    /// Yes or no.
    Boolean(bool),
    /// A value, any bytes.
    Bulk(Value),
    /// A bulk string that is text.
    Text(Cow<'static, str>),
    /// Nothing there.
    Null,
    /// A list.
    Array(Vec<Reply>),
    /// A list whose order says nothing.
    Set(Vec<Reply>),
    /// Names with their values.
    Map(Vec<(Reply, Reply)>),
    /// Text of several lines for people to read, such as INFO's.
    Verbatim(String),
}

impl Reply {
    /// `OK`.
    pub const OK: Reply = Reply::Simple("OK");

    /// An error with this text, whose first word is its code.
    pub fn error(text: impl Into<Cow<'static, str>>) -> Reply {
        Reply::Error(text.into())
    }

    /// A bulk string with this text.
    pub fn text(text: impl Into<Cow<'static, str>>) -> Reply {
        Reply::Text(text.into())
    }

    /// A bulk string with a copy of these bytes.
    pub fn bulk(bytes: &[u8]) -> Reply {
        Reply::Bulk(Value::from(bytes))
    }

    /// The answer to LEADER: the leader's id or nothing.
    pub fn leader(leader: Option<NodeId>) -> Reply {
        leader.map_or(Reply::Null, |node| Reply::Integer(i64::from(node.0)))
    }

    /// The answer to TIME, from the wall clock (Redis: seconds and microseconds, as strings).
    pub fn time(since_epoch: std::time::Duration) -> Reply {
        let part = |number: String| Reply::text(number);
        Reply::Array(vec![
            part(since_epoch.as_secs().to_string()),
            part(since_epoch.subsec_micros().to_string()),
        ])
    }

    /// The first word of the RESP error for a request that was not served: a contract on whether it
    /// was done. `CLUSTERDOWN`, `TRYAGAIN`, `MISCONF` and `LOADING` say that it was not, so trying
    /// again is safe; `UNKNOWN` says that it may or may not have been.
    pub fn code(unserved: &Unserved) -> &'static str {
        match unserved {
            Unserved::Rejected(Rejected::NoQuorum | Rejected::NoLeader) => "CLUSTERDOWN",
            Unserved::Rejected(Rejected::Busy | Rejected::Stopping | Rejected::ClockSkew) => {
                "TRYAGAIN"
            }
            Unserved::Rejected(Rejected::DiskFull) => "MISCONF",
            Unserved::Rejected(Rejected::Joining) => "LOADING",
            Unserved::Unknown(
                Unknown::TimedOut | Unknown::ResultLost | Unknown::Partly | Unknown::Stopped,
            ) => "UNKNOWN",
        }
    }

    /// What the error says about having been done, behind the reason.
    pub(super) fn consequence(unserved: &Unserved) -> &'static str {
        match unserved {
            Unserved::Rejected(_) => "the command was not done",
            Unserved::Unknown(_) => "the command may or may not have been done",
        }
    }
}

/// How a command's outcome or a node's answer is presented. Most of it is the same for all; the
/// variants are the exceptions, some of which only the line protocol makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyShape {
    /// As it is.
    Plain,
    /// A single value; nothing there is `ERROR: Key not found` on a line.
    Lookup,
    /// SET; on a line it names the key and the leader.
    Stored,
    /// SETNX: done is 1, not done is 0.
    Created,
    /// TYPE: there is only one type.
    Kind,
    /// DEL; on a line `OK: 2 deleted`.
    Deleted,
    /// LEADER; on a line `LEADER 5002`.
    Leader,
    /// NODES; on a line `NODES …`.
    Nodes,
    /// CONSISTENCY with a mode; on a line it is repeated.
    Chosen(Consistency),
}

impl ReplyShape {
    /// The reply for `outcome`, which may weigh `bytes_max` at most.
    pub(super) fn reply(self, outcome: Outcome, bytes_max: usize) -> Reply {
        let bytes = weight(&outcome);
        if bytes > bytes_max {
            let text = format!("ERR the reply would take {bytes} bytes of at most {bytes_max}");
            return Reply::error(text);
        }
        match (self, outcome) {
            (ReplyShape::Created, Outcome::Done) => Reply::Integer(1),
            (ReplyShape::Created, Outcome::Nil) => Reply::Integer(0),
            (ReplyShape::Kind, Outcome::Integer(0)) => Reply::Simple("none"),
            (ReplyShape::Kind, Outcome::Integer(_)) => Reply::Simple("string"),
            (_, Outcome::Done) => Reply::OK,
            (_, Outcome::Nil) => Reply::Null,
            (_, Outcome::Integer(number)) => Reply::Integer(number),
            (_, Outcome::Value(value)) => Reply::Bulk(value),
            (_, Outcome::Values(values)) => {
                let item = |value: Option<Value>| value.map_or(Reply::Null, Reply::Bulk);
                Reply::Array(values.into_iter().map(item).collect())
            }
            (_, Outcome::Names(names)) => list(names),
            (_, Outcome::Page(cursor, names)) => {
                Reply::Array(vec![Reply::text(cursor.to_string()), list(names)])
            }
            (_, Outcome::Failed(failure)) => Reply::error(format!("ERR {failure}")),
        }
    }
}

fn list(names: Vec<Value>) -> Reply {
    Reply::Array(names.into_iter().map(Reply::Bulk).collect())
}

/// The bytes of values and names in `outcome`.
fn weight(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Values(values) => values.iter().flatten().map(|value| value.len()).sum(),
        Outcome::Names(names) | Outcome::Page(_, names) => {
            names.iter().map(|name| name.len()).sum()
        }
        Outcome::Value(value) => value.len(),
        Outcome::Done | Outcome::Nil | Outcome::Integer(_) | Outcome::Failed(_) => 0,
    }
}
