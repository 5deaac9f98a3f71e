//! Commands that need the store: from arguments to a [`Command`]. The table has checked the number
//! of arguments, and the session the lengths of keys.

use crate::protocol::args::Args;
use crate::protocol::command::errors::{not_an_integer, syntax_error, wrong_count};
use crate::protocol::command::spec::{Parsed, ParsedCommand};
use crate::protocol::number::parse_u64;
use crate::protocol::reply::{Reply, ReplyShape};
use crate::types::{Command, When, parse_integer};

fn parsed(command: Command<'_>, shape: ReplyShape) -> Parsed<'_> {
    Ok(ParsedCommand { command, shape })
}

/// `GET key`
pub fn get(args: Args<'_>) -> Parsed<'_> {
    parsed(Command::Get { key: args.at(1) }, ReplyShape::Lookup)
}

/// `MGET key …`
pub fn mget(args: Args<'_>) -> Parsed<'_> {
    parsed(Command::GetMany { keys: args.rest(1).collect() }, ReplyShape::Plain)
}

/// `STRLEN key`
pub fn strlen(args: Args<'_>) -> Parsed<'_> {
    parsed(Command::Length { key: args.at(1) }, ReplyShape::Plain)
}

/// `EXISTS key …`
pub fn exists(args: Args<'_>) -> Parsed<'_> {
    parsed(Command::Exists { keys: args.rest(1).collect() }, ReplyShape::Plain)
}

/// `TYPE key`; every key that exists holds a string.
pub fn kind(args: Args<'_>) -> Parsed<'_> {
    parsed(Command::Exists { keys: vec![args.at(1)] }, ReplyShape::Kind)
}

/// `SET key value [NX|XX] [GET]`, the options in any order, each once.
pub fn set(args: Args<'_>) -> Parsed<'_> {
    let mut when = When::Always;
    let mut get = false;
    for index in 3..args.count() {
        let is = |word| args.is(index, word);
        if is("nx") && when == When::Always {
            when = When::Absent;
        } else if is("xx") && when == When::Always {
            when = When::Present;
        } else if is("get") && !get {
            get = true;
        } else if ["ex", "px", "exat", "pxat", "keepttl"].into_iter().any(is) {
            // A key that its client expects to expire must not stay for ever: refuse, never ignore.
            return Err(Reply::error(
                "ERR expiry is not supported: SET without EX, PX, EXAT, PXAT and KEEPTTL",
            ));
        } else {
            return Err(syntax_error());
        }
    }
    parsed(Command::Set { key: args.at(1), value: args.at(2), when, get }, ReplyShape::Stored)
}

/// `SETNX key value`
pub fn setnx(args: Args<'_>) -> Parsed<'_> {
    let (key, value) = (args.at(1), args.at(2));
    parsed(Command::Set { key, value, when: When::Absent, get: false }, ReplyShape::Created)
}

/// `GETSET key value`
pub fn getset(args: Args<'_>) -> Parsed<'_> {
    let (key, value) = (args.at(1), args.at(2));
    parsed(Command::Set { key, value, when: When::Always, get: true }, ReplyShape::Plain)
}

/// `MSET key value …`
pub fn mset(args: Args<'_>) -> Parsed<'_> {
    if args.count().is_multiple_of(2) {
        return Err(wrong_count("mset"));
    }
    let pairs = (1..args.count()).step_by(2).map(|index| (args.at(index), args.at(index + 1)));
    parsed(Command::SetMany { pairs: pairs.collect() }, ReplyShape::Plain)
}

/// `APPEND key value`
pub fn append(args: Args<'_>) -> Parsed<'_> {
    parsed(Command::Append { key: args.at(1), value: args.at(2) }, ReplyShape::Plain)
}

/// `INCR key`
pub fn incr(args: Args<'_>) -> Parsed<'_> {
    parsed(Command::Increment { key: args.at(1), by: 1 }, ReplyShape::Plain)
}

/// `DECR key`
pub fn decr(args: Args<'_>) -> Parsed<'_> {
    parsed(Command::Increment { key: args.at(1), by: -1 }, ReplyShape::Plain)
}

/// `INCRBY key increment`
pub fn incrby(args: Args<'_>) -> Parsed<'_> {
    let by = parse_integer(args.at(2)).ok_or_else(not_an_integer)?;
    parsed(Command::Increment { key: args.at(1), by }, ReplyShape::Plain)
}

/// `DECRBY key decrement`
pub fn decrby(args: Args<'_>) -> Parsed<'_> {
    let decrement = parse_integer(args.at(2)).ok_or_else(not_an_integer)?;
    // i64::MIN has no negation.
    let by = decrement.checked_neg().ok_or_else(|| Reply::error("ERR decrement would overflow"))?;
    parsed(Command::Increment { key: args.at(1), by }, ReplyShape::Plain)
}

/// `GETDEL key`
pub fn getdel(args: Args<'_>) -> Parsed<'_> {
    parsed(Command::Take { key: args.at(1) }, ReplyShape::Lookup)
}

/// `DEL key …` and `UNLINK key …`
pub fn del(args: Args<'_>) -> Parsed<'_> {
    parsed(Command::Delete { keys: args.rest(1).collect() }, ReplyShape::Deleted)
}

/// `DBSIZE`
pub fn dbsize(_: Args<'_>) -> Parsed<'_> {
    parsed(Command::Count, ReplyShape::Plain)
}

/// `KEYS pattern`
pub fn keys(args: Args<'_>) -> Parsed<'_> {
    parsed(Command::Keys { pattern: args.at(1) }, ReplyShape::Plain)
}

/// `SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]`
pub fn scan(args: Args<'_>) -> Parsed<'_> {
    const COUNT: u64 = 10; // Redis's default
    let invalid = || Reply::error("ERR invalid cursor");
    let cursor = parse_u64(args.at(1)).ok_or_else(invalid)?;
    let (mut pattern, mut count, mut other_type) = (None, COUNT, false);
    for index in (2..args.count()).step_by(2) {
        if index + 1 == args.count() {
            return Err(syntax_error());
        }
        let value = args.at(index + 1);
        if args.is(index, "match") {
            pattern = Some(value);
        } else if args.is(index, "count") {
            let number = parse_integer(value).ok_or_else(not_an_integer)?;
            count = u64::try_from(number).ok().filter(|&n| n > 0).ok_or_else(syntax_error)?;
        } else if args.is(index, "type") {
            other_type = !value.eq_ignore_ascii_case(b"string");
        } else {
            return Err(syntax_error());
        }
    }
    if other_type {
        // All values are strings, so an iteration over another type is over at once.
        return Err(Reply::Array(vec![Reply::text("0"), Reply::Array(Vec::new())]));
    }
    parsed(Command::Scan { cursor, pattern, count }, ReplyShape::Plain)
}

/// `FLUSHALL [ASYNC|SYNC]`; with either option all replicas clear at the same index of the log.
pub fn flushall(args: Args<'_>) -> Parsed<'_> {
    match args.count() {
        1 => {}
        2 if args.is(1, "async") || args.is(1, "sync") => {}
        _ => return Err(syntax_error()),
    }
    parsed(Command::Clear, ReplyShape::Plain)
}
