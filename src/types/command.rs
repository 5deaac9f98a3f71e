//! The operations of the store and their outcomes. A protocol command (`SETNX`, `DECRBY`, …)
//! becomes one of a few operations; the protocol decides the form of replies.
//!
//! The byte form of a write is part of the log's format: tags are never reused.

use bytes::BufMut;

use super::{SharedBytes, Version, Write};
use crate::codec::{Malformed, Reader, put_bytes};

/// A stored value: cheap to share with a snapshot or a reply.
pub type Value = SharedBytes;

/// When a SET takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Unconditionally.
    Always,
    /// If the key does not exist (NX).
    Absent,
    /// If the key exists (XX).
    Present,
}

/// One operation, with its outcome. It borrows keys and values from a client's buffer or from the
/// log.
#[expect(missing_docs, reason = "the fields are what their names say")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// → `Value` or `Nil`
    Get { key: &'a [u8] },
    /// → `Values`
    GetMany { keys: Vec<&'a [u8]> },
    /// → `Integer`, bytes of the value, 0 if absent
    Length { key: &'a [u8] },
    /// → `Integer`, the number of keys that exist, a repeated key counted each time
    Exists { keys: Vec<&'a [u8]> },
    /// → `Integer`, the number of keys in the store
    Count,
    /// → `Names`, keys that match a glob
    Keys { pattern: &'a [u8] },
    /// → `Page`; the cursor is the number of the slot to go on from
    Scan { cursor: u64, pattern: Option<&'a [u8]>, count: u64 },
    /// → `Done`, or `Nil` if `when` did not hold; with `get` the old `Value` or `Nil` in any case
    Set { key: &'a [u8], value: &'a [u8], when: When, get: bool },
    /// → `Done`; all pairs at once
    SetMany { pairs: Vec<(&'a [u8], &'a [u8])> },
    /// → `Integer`, the new length; `Failure::TooLong` beyond the limit
    Append { key: &'a [u8], value: &'a [u8] },
    /// → `Integer`, the new number; `Failure::{NotAnInteger, Overflow}`
    Increment { key: &'a [u8], by: i64 },
    /// → `Value` or `Nil`
    Take { key: &'a [u8] },
    /// → `Integer`, the number of keys that existed
    Delete { keys: Vec<&'a [u8]> },
    /// → `Done`; the whole store
    Clear,
    /// No outcome. A versioned write of the origin's overlay that the log may not hold yet. It
    /// stands in front of an eventual session's commands, which must see it
    Merge { version: Version, key: &'a [u8], value: Option<&'a [u8]> },
}

/// The result of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, without a result.
    Done,
    /// The key is missing, or a condition did not hold.
    Nil,
    /// A number.
    Integer(i64),
    /// A value.
    Value(Value),
    /// One for each key of the command.
    Values(Vec<Option<Value>>),
    /// Key names.
    Names(Vec<Value>),
    /// A part of a SCAN: the cursor to go on with (0: finished) and key names.
    Page(u64, Vec<Value>),
    /// It could not be done; the same on every replica.
    Failed(Failure),
}

/// Why a command has no result; deterministic, so every replica agrees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The value is no 64-bit integer in Redis's notation.
    #[error("value is not an integer or out of range")]
    NotAnInteger,
    /// The sum leaves the range of 64 bits.
    #[error("increment or decrement would overflow")]
    Overflow,
    /// The value would grow beyond 512 MiB.
    #[error("string exceeds maximum allowed size (proto-max-bulk-len)")]
    TooLong,
}

mod tag {
    pub const GET: u8 = 1;
    pub const GET_MANY: u8 = 2;
    pub const LENGTH: u8 = 3;
    pub const EXISTS: u8 = 4;
    pub const SET: u8 = 16;
    pub const SET_MANY: u8 = 17;
    pub const APPEND: u8 = 18;
    pub const INCREMENT: u8 = 19;
    pub const TAKE: u8 = 20;
    pub const DELETE: u8 = 21;
    pub const CLEAR: u8 = 22;
    pub const MERGE: u8 = 23;
    pub const MERGE_DELETION: u8 = 24;
}

impl<'a> Command<'a> {
    /// True if it can change the store.
    pub fn is_write(&self) -> bool {
        use Command::*;
        match self {
            Get { .. }
            | GetMany { .. }
            | Length { .. }
            | Exists { .. }
            | Count
            | Keys { .. }
            | Scan { .. } => false,
            Set { .. }
            | SetMany { .. }
            | Append { .. }
            | Increment { .. }
            | Take { .. }
            | Delete { .. }
            | Clear
            | Merge { .. } => true,
        }
    }

    /// Appends the byte form. Reads of single keys have one too, because a pipeline that mixes
    /// reads and writes travels through the log as a whole; `Count`, `Keys` and `Scan` have none.
    ///
    /// # Panics
    /// On a command without a byte form: see [`Command::is_loggable`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Command::Get { key } => put_keys(out, tag::GET, &[key]),
            Command::GetMany { keys } => put_list(out, tag::GET_MANY, keys),
            Command::Length { key } => put_keys(out, tag::LENGTH, &[key]),
            Command::Exists { keys } => put_list(out, tag::EXISTS, keys),
            Command::Set { key, value, when, get } => {
                out.put_u8(tag::SET);
                let when = match when {
                    When::Always => 0,
                    When::Absent => 1,
                    When::Present => 2,
                };
                out.put_u8(when | u8::from(*get) << 2);
                put_bytes(out, key);
                put_bytes(out, value);
            }
            Command::SetMany { pairs } => {
                out.put_u8(tag::SET_MANY);
                out.put_u32_le(pairs.len() as u32);
                for (key, value) in pairs {
                    put_bytes(out, key);
                    put_bytes(out, value);
                }
            }
            Command::Append { key, value } => put_keys(out, tag::APPEND, &[key, value]),
            Command::Increment { key, by } => {
                put_keys(out, tag::INCREMENT, &[key]);
                out.put_i64_le(*by);
            }
            Command::Take { key } => put_keys(out, tag::TAKE, &[key]),
            Command::Delete { keys } => put_list(out, tag::DELETE, keys),
            Command::Clear => out.put_u8(tag::CLEAR),
            Command::Merge { version, key, value } => {
                let fields: &[&[u8]] = &[key, value.unwrap_or_default()];
                match value {
                    Some(_) => put_keys(out, tag::MERGE, fields),
                    None => put_keys(out, tag::MERGE_DELETION, &fields[..1]),
                }
                out.put_u64_le(version.0);
            }
            Command::Count | Command::Keys { .. } | Command::Scan { .. } => {
                unreachable!("whole-store reads never enter the log")
            }
        }
    }

    /// True if it is a write whose effect does not depend on the stored value: an eventual
    /// session's node may answer it at once.
    pub fn is_blind_write(&self) -> bool {
        matches!(
            self,
            Command::Set { when: When::Always, get: false, .. }
                | Command::SetMany { .. }
                | Command::Delete { .. }
        )
    }

    /// Appends the writes of a blind write, not stamped yet: one for each key that it names.
    pub fn push_writes(&self, writes: &mut Vec<Write>) {
        let mut push = |key: &[u8], value: Option<&[u8]>| {
            writes.push(Write::new(Version::default(), key, value));
        };
        match self {
            Command::Set { key, value, .. } => push(key, Some(value)),
            Command::SetMany { pairs } => {
                pairs.iter().for_each(|(key, value)| push(key, Some(value)));
            }
            Command::Delete { keys } => keys.iter().for_each(|key| push(key, None)),
            other => debug_assert!(false, "no blind write: {other:?}"),
        }
    }

    /// True if the command has a byte form.
    pub fn is_loggable(&self) -> bool {
        !matches!(self, Command::Count | Command::Keys { .. } | Command::Scan { .. })
    }

    /// Reads one command.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Command<'a>, Malformed> {
        Ok(match reader.u8("command tag")? {
            tag::GET => Command::Get { key: reader.bytes("key")? },
            tag::GET_MANY => Command::GetMany { keys: take_list(reader)? },
            tag::LENGTH => Command::Length { key: reader.bytes("key")? },
            tag::EXISTS => Command::Exists { keys: take_list(reader)? },
            tag::SET => {
                let flags = reader.u8("set flags")?;
                let when = match flags & 3 {
                    0 => When::Always,
                    1 => When::Absent,
                    2 => When::Present,
                    _ => return Err(Malformed("set flags")),
                };
                if flags & !7 != 0 {
                    return Err(Malformed("set flags"));
                }
                let (key, value) = (reader.bytes("key")?, reader.bytes("value")?);
                Command::Set { key, value, when, get: flags & 4 != 0 }
            }
            tag::SET_MANY => {
                let count = reader.count(8, "pairs")?;
                let mut pairs = Vec::with_capacity(count);
                for _ in 0..count {
                    pairs.push((reader.bytes("key")?, reader.bytes("value")?));
                }
                Command::SetMany { pairs }
            }
            tag::APPEND => {
                Command::Append { key: reader.bytes("key")?, value: reader.bytes("value")? }
            }
            tag::INCREMENT => Command::Increment {
                key: reader.bytes("key")?,
                by: reader.u64("increment")?.cast_signed(),
            },
            tag::TAKE => Command::Take { key: reader.bytes("key")? },
            tag::DELETE => Command::Delete { keys: take_list(reader)? },
            tag::CLEAR => Command::Clear,
            tag::MERGE => {
                let (key, value) = (reader.bytes("key")?, Some(reader.bytes("value")?));
                Command::Merge { version: Version(reader.u64("version")?), key, value }
            }
            tag::MERGE_DELETION => {
                let key = reader.bytes("key")?;
                Command::Merge { version: Version(reader.u64("version")?), key, value: None }
            }
            _ => return Err(Malformed("command tag")),
        })
    }

    /// Reads all commands of a batch, in order.
    pub fn decode_all(batch: &'a [u8]) -> impl Iterator<Item = Result<Command<'a>, Malformed>> {
        let mut reader = Reader::new(batch);
        let mut failed = false;
        std::iter::from_fn(move || {
            if failed || reader.is_empty() {
                return None;
            }
            let command = Command::decode(&mut reader);
            failed = command.is_err();
            Some(command)
        })
    }
}

fn put_keys(out: &mut Vec<u8>, tag: u8, fields: &[&[u8]]) {
    out.put_u8(tag);
    for field in fields {
        put_bytes(out, field);
    }
}

fn put_list(out: &mut Vec<u8>, tag: u8, keys: &[&[u8]]) {
    out.put_u8(tag);
    out.put_u32_le(keys.len() as u32);
    for key in keys {
        put_bytes(out, key);
    }
}

fn take_list<'a>(reader: &mut Reader<'a>) -> Result<Vec<&'a [u8]>, Malformed> {
    let count = reader.count(4, "keys")?;
    (0..count).map(|_| reader.bytes("key")).collect()
}
