//! Replies, independent of the protocol that writes them, and the step from outcome to reply.

use std::borrow::Cow;

use crate::types::{Consistency, NodeId, Outcome, Rejected, Unknown, Unserved, Value};

/// A reply, which the session writes as RESP2, RESP3 or one line of the line protocol.
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
    /// True or false.
    Boolean(bool),
    /// A bulk string of any bytes.
    Bulk(Value),
    /// A bulk string that is text.
    Text(Cow<'static, str>),
    /// The null reply: no such key, no leader, no name.
    Null,
    /// A list.
    Array(Vec<Reply>),
    /// A list without a meaningful order.
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

    /// The reply to LEADER: the leader's id, or null.
    pub fn leader(leader: Option<NodeId>) -> Reply {
        leader.map_or(Reply::Null, |node| Reply::Integer(i64::from(node.0)))
    }

    /// The reply to TIME from a wall-clock time (Redis: seconds and microseconds, as strings).
    pub fn time(since_epoch: std::time::Duration) -> Reply {
        let part = |number: String| Reply::text(number);
        Reply::Array(vec![
            part(since_epoch.as_secs().to_string()),
            part(since_epoch.subsec_micros().to_string()),
        ])
    }

    /// The first word of the RESP error for an unserved request, which is a contract.
    /// `CLUSTERDOWN`, `TRYAGAIN`, `MISCONF` and `LOADING` mean that the request is certainly not
    /// done, so the client may repeat it; `UNKNOWN` means that it may or may not be done.
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

    /// The end of the RESP error for an unserved request: whether it may have been done.
    pub(super) fn consequence(unserved: &Unserved) -> &'static str {
        match unserved {
            Unserved::Rejected(_) => "the command was not done",
            Unserved::Unknown(_) => "the command may or may not have been done",
        }
    }
}

/// The way from an outcome to the reply of one command. Most commands share `Plain`; the other
/// variants are exceptions, some of them in the line protocol only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyShape {
    /// The reply that the outcome's type implies.
    Plain,
    /// GET, GETDEL: a single value; on a line an absent key is `ERROR: Key not found`.
    Lookup,
    /// SET; on a line it names the key and the leader.
    Stored,
    /// SETNX: 1 if the key was set, 0 if it existed.
    Created,
    /// TYPE: `string` for a key that exists, else `none`.
    Kind,
    /// DEL; on a line `OK: 2 deleted`.
    Deleted,
    /// LEADER; on a line `LEADER 5002`.
    Leader,
    /// NODES; on a line `NODES …`.
    Nodes,
    /// CONSISTENCY with a mode; on a line the reply repeats the mode.
    Chosen(Consistency),
}

impl ReplyShape {
    /// The reply for `outcome`, or an error if its values and names exceed `bytes_max`.
    pub(super) fn reply(self, outcome: Outcome, bytes_max: usize) -> Reply {
        // MGET can name one large value a million times, so the reply has a limit of its own.
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

/// The total bytes of values and names in `outcome`.
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
