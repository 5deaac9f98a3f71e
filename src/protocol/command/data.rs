//! Commands that need the store: from arguments to a [`Command`]. The table has checked how many
//! arguments there are, and the session how long the keys are.

use super::{ParsedCommand, not_an_integer, syntax_error, wrong_count};
use crate::protocol::args::Args;
use crate::protocol::number::parse_u64;
use crate::protocol::reply::{Reply, ReplyShape};
use crate::types::parse_integer;
use crate::types::{Command, When};

type Ordered<'a> = Result<ParsedCommand<'a>, Reply>;

fn order(command: Command<'_>, shape: ReplyShape) -> Ordered<'_> {
    Ok(ParsedCommand { command, shape })
}

/// `GET key`
pub(super) fn get(args: Args<'_>) -> Ordered<'_> {
    order(Command::Get { key: args.at(1) }, ReplyShape::Lookup)
}

/// `MGET key …`
pub(super) fn mget(args: Args<'_>) -> Ordered<'_> {
    order(Command::GetMany { keys: args.rest(1).collect() }, ReplyShape::Plain)
}

/// `STRLEN key`
pub(super) fn strlen(args: Args<'_>) -> Ordered<'_> {
    order(Command::Length { key: args.at(1) }, ReplyShape::Plain)
}

/// `EXISTS key …`
pub(super) fn exists(args: Args<'_>) -> Ordered<'_> {
    order(Command::Exists { keys: args.rest(1).collect() }, ReplyShape::Plain)
}

/// `TYPE key`: all that exists is a string.
pub(super) fn kind(args: Args<'_>) -> Ordered<'_> {
    order(Command::Exists { keys: vec![args.at(1)] }, ReplyShape::Kind)
}

/// `SET key value [NX|XX] [GET]`, the options in any order, each once. Redis's expiry options are
/// refused in words: a key that its client believes to expire must not stay for ever.
pub(super) fn set(args: Args<'_>) -> Ordered<'_> {
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
            return Err(Reply::error(
                "ERR expiry is not supported: SET without EX, PX, EXAT, PXAT and KEEPTTL",
            ));
        } else {
            return Err(syntax_error());
        }
    }
    order(Command::Set { key: args.at(1), value: args.at(2), when, get }, ReplyShape::Stored)
}

/// `SETNX key value`
pub(super) fn setnx(args: Args<'_>) -> Ordered<'_> {
    let (key, value) = (args.at(1), args.at(2));
    order(Command::Set { key, value, when: When::Absent, get: false }, ReplyShape::Created)
}

/// `GETSET key value`
pub(super) fn getset(args: Args<'_>) -> Ordered<'_> {
    let (key, value) = (args.at(1), args.at(2));
    order(Command::Set { key, value, when: When::Always, get: true }, ReplyShape::Plain)
}

/// `MSET key value …`
pub(super) fn mset(args: Args<'_>) -> Ordered<'_> {
    if args.count().is_multiple_of(2) {
        return Err(wrong_count("mset"));
    }
    let pairs = (1..args.count()).step_by(2).map(|index| (args.at(index), args.at(index + 1)));
    order(Command::SetMany { pairs: pairs.collect() }, ReplyShape::Plain)
}

/// `APPEND key value`
pub(super) fn append(args: Args<'_>) -> Ordered<'_> {
    order(Command::Append { key: args.at(1), value: args.at(2) }, ReplyShape::Plain)
}

/// `INCR key`
pub(super) fn incr(args: Args<'_>) -> Ordered<'_> {
    order(Command::Increment { key: args.at(1), by: 1 }, ReplyShape::Plain)
}

/// `DECR key`
pub(super) fn decr(args: Args<'_>) -> Ordered<'_> {
    order(Command::Increment { key: args.at(1), by: -1 }, ReplyShape::Plain)
}

/// `INCRBY key increment`
pub(super) fn incrby(args: Args<'_>) -> Ordered<'_> {
    let by = parse_integer(args.at(2)).ok_or_else(not_an_integer)?;
    order(Command::Increment { key: args.at(1), by }, ReplyShape::Plain)
}

/// `DECRBY key decrement`
pub(super) fn decrby(args: Args<'_>) -> Ordered<'_> {
    let decrement = parse_integer(args.at(2)).ok_or_else(not_an_integer)?;
    // The least number has no opposite.
    let by = decrement.checked_neg().ok_or_else(|| Reply::error("ERR decrement would overflow"))?;
    order(Command::Increment { key: args.at(1), by }, ReplyShape::Plain)
}

/// `GETDEL key`
pub(super) fn getdel(args: Args<'_>) -> Ordered<'_> {
    order(Command::Take { key: args.at(1) }, ReplyShape::Lookup)
}

/// `DEL key …` and `UNLINK key …`
pub(super) fn del(args: Args<'_>) -> Ordered<'_> {
    order(Command::Delete { keys: args.rest(1).collect() }, ReplyShape::Deleted)
}

/// `DBSIZE`
pub(super) fn dbsize(_: Args<'_>) -> Ordered<'_> {
    order(Command::Count, ReplyShape::Plain)
}

/// `KEYS pattern`
pub(super) fn keys(args: Args<'_>) -> Ordered<'_> {
    order(Command::Keys { pattern: args.at(1) }, ReplyShape::Plain)
}

/// `SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]`
pub(super) fn scan(args: Args<'_>) -> Ordered<'_> {
    const COUNT: u64 = 10; // Redis's
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
        // Nothing has another type, so the iteration is over before it begins.
        return Err(Reply::Array(vec![Reply::text("0"), Reply::Array(Vec::new())]));
    }
    order(Command::Scan { cursor, pattern, count }, ReplyShape::Plain)
}

/// `FLUSHALL [ASYNC|SYNC]`; either way all replicas clear at the same place of the log.
pub(super) fn flushall(args: Args<'_>) -> Ordered<'_> {
    match args.count() {
        1 => {}
        2 if args.is(1, "async") || args.is(1, "sync") => {}
        _ => return Err(syntax_error()),
    }
    order(Command::Clear, ReplyShape::Plain)
}
