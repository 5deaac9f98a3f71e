//! What the table itself and the configuration can tell: COMMAND, the HELP of families, CONFIG GET.

use super::{CommandSpec, Response, TABLE, find, syntax_error};
use crate::protocol::args::Args;
use crate::protocol::conn_state::ConnState;
use crate::protocol::reply::{Reply, ReplyShape};

type Answered = Result<Response, Reply>;

fn now(reply: Reply) -> Answered {
    Ok(Response::Now(reply, ReplyShape::Plain))
}

fn name_and(name: &'static str, value: Reply) -> (Reply, Reply) {
    (Reply::text(name), value)
}

/// `COMMAND`: all commands as `COMMAND INFO` describes them.
pub(super) fn command(_: Args<'_>, _: &mut ConnState) -> Answered {
    now(Reply::Array(TABLE.iter().map(description).collect()))
}

/// `COMMAND COUNT`
pub(super) fn command_count(_: Args<'_>, _: &mut ConnState) -> Answered {
    now(Reply::Integer(TABLE.len() as i64))
}

/// Refuses a request that names more commands than could be meant: a name of three bytes may cost a
/// thousand times as much to describe.
fn check_names(args: Args<'_>) -> Result<(), Reply> {
    const WORDS_MAX: usize = 256;
    if args.count() > WORDS_MAX { Err(Reply::error("ERR too many commands named")) } else { Ok(()) }
}

/// `COMMAND INFO [name …]`: nothing in the place of a name that is unknown.
pub(super) fn command_info(args: Args<'_>, conn: &mut ConnState) -> Answered {
    check_names(args)?;
    if args.count() == 2 {
        return command(args, conn);
    }
    let entry = |name| find(name).map_or(Reply::Null, description);
    now(Reply::Array(args.rest(2).map(entry).collect()))
}

/// `COMMAND DOCS [name …]`: without the names that are unknown.
pub(super) fn command_docs(args: Args<'_>, _: &mut ConnState) -> Answered {
    check_names(args)?;
    let entry = |spec: &'static CommandSpec| (Reply::text(spec.name), docs(spec));
    now(Reply::Map(match args.count() {
        2 => TABLE.iter().map(entry).collect(),
        _ => args.rest(2).filter_map(find).map(entry).collect(),
    }))
}

/// `COMMAND LIST [FILTERBY PATTERN pattern|ACLCAT category|MODULE name]`
pub(super) fn command_list(args: Args<'_>, _: &mut ConnState) -> Answered {
    let names = |wanted: &dyn Fn(&CommandSpec) -> bool| {
        let specs = TABLE.iter().filter(|spec| wanted(spec));
        now(Reply::Array(specs.map(|spec| Reply::text(spec.name)).collect()))
    };
    if args.count() == 2 {
        return names(&|_| true);
    }
    if args.count() != 5 || !args.is(2, "filterby") {
        return Err(syntax_error());
    }
    let filter = args.at(4);
    if args.is(3, "pattern") {
        names(&|spec| matches(filter, spec.name.as_bytes()))
    } else if args.is(3, "aclcat") {
        let is = |category: &str| filter.eq_ignore_ascii_case(&category.as_bytes()[1..]);
        names(&|spec| categories(spec).into_iter().any(is))
    } else if args.is(3, "module") {
        names(&|_| false) // there are no modules
    } else {
        Err(syntax_error())
    }
}

/// `CLIENT HELP`, `COMMAND HELP`, `CONFIG HELP`
pub(super) fn help(args: Args<'_>, _: &mut ConnState) -> Answered {
    let Some(family) = find(args.at(0)) else {
        return Err(syntax_error());
    };
    let name = family.name.to_ascii_uppercase();
    let title = format!("{name} <subcommand> [<arg> ...]. Subcommands are:");
    let mut lines = vec![Reply::text(title)];
    for spec in family.family {
        let member = &spec.name[family.name.len() + "|".len()..];
        lines.push(Reply::text(member.to_ascii_uppercase()));
        lines.push(Reply::text(format!("    {}", spec.summary)));
    }
    now(Reply::Array(lines))
}

/// `CONFIG GET pattern …`: each setting once, however many patterns it matches.
pub(super) fn config_get(args: Args<'_>, conn: &mut ConnState) -> Answered {
    let is_wanted = |name: &str| args.rest(2).any(|pattern| matches(pattern, name.as_bytes()));
    let wanted = conn.server_info.config.iter().filter(|(name, _)| is_wanted(name));
    let settings = wanted.map(|(name, value)| name_and(name, Reply::text(value.clone())));
    now(Reply::Map(settings.collect()))
}

/// A command as `COMMAND INFO` describes it: name, arity, flags, first key, last key, step, access
/// categories, tips, key specifications, subcommands.
fn description(spec: &'static CommandSpec) -> Reply {
    let words = |words: Vec<&'static str>| {
        Reply::Set(words.into_iter().filter(|word| !word.is_empty()).map(Reply::Simple).collect())
    };
    let (first, last, step) = spec.keys;
    Reply::Array(vec![
        Reply::text(spec.name),
        Reply::Integer(spec.arity.into()),
        words(spec.flags.split(' ').collect()),
        Reply::Integer(first.into()),
        Reply::Integer(last.into()),
        Reply::Integer(step.into()),
        words(categories(spec)),
        Reply::Set(Vec::new()),
        Reply::Set(key_specification(spec).into_iter().collect()),
        Reply::Array(spec.family.iter().map(description).collect()),
    ])
}

/// The access categories, in Redis's names, that flags and group imply.
fn categories(spec: &CommandSpec) -> Vec<&'static str> {
    let mut categories = Vec::new();
    categories.extend(spec.has_flag("readonly").then_some("@read"));
    categories.extend(spec.has_flag("write").then_some("@write"));
    categories.extend(match spec.group {
        "string" => Some("@string"),
        "generic" => Some("@keyspace"),
        "connection" => Some("@connection"),
        _ => None,
    });
    categories.push(if spec.has_flag("fast") { "@fast" } else { "@slow" });
    categories
}

/// Where a command's keys are, in the words of Redis 7's key specifications.
fn key_specification(spec: &CommandSpec) -> Option<Reply> {
    let (first, last, step) = spec.keys;
    if first == 0 {
        return None;
    }
    let flags: &[&str] = if spec.has_flag("write") { &["RW", "update"] } else { &["RO", "access"] };
    let kind = |kind: &'static str, details| {
        Reply::Map(vec![name_and("type", Reply::text(kind)), name_and("spec", Reply::Map(details))])
    };
    let integer = |name, number: i8| name_and(name, Reply::Integer(number.into()));
    // Here the last key is counted from the first one, unless it is counted from the end.
    let last = if last < 0 { last } else { last - first };
    let range = vec![integer("lastkey", last), integer("keystep", step), integer("limit", 0)];
    Some(Reply::Map(vec![
        name_and("flags", Reply::Set(flags.iter().map(|flag| Reply::Simple(flag)).collect())),
        name_and("begin_search", kind("index", vec![integer("index", first)])),
        name_and("find_keys", kind("range", range)),
    ]))
}

/// A command as `COMMAND DOCS` describes it. Its arguments are left out.
fn docs(spec: &'static CommandSpec) -> Reply {
    let mut entries = vec![
        name_and("summary", Reply::text(spec.summary)),
        name_and("since", Reply::text("0.1.0")),
        name_and("group", Reply::text(spec.group)),
    ];
    if !spec.family.is_empty() {
        let members = spec.family.iter().map(|spec| (Reply::text(spec.name), docs(spec)));
        entries.push(name_and("subcommands", Reply::Map(members.collect())));
    }
    Reply::Map(entries)
}

/// True if `name` matches `pattern`, in which `*` stands for any bytes and `?` for one; upper and
/// lower case are the same. Names of commands and settings need no more of a glob.
pub(super) fn matches(pattern: &[u8], name: &[u8]) -> bool {
    // Behind the latest star, and how much of the name it and all before it have taken: when what
    // follows does not fit, it is enough to give the latest star one byte more.
    let mut star = None;
    let (mut at, mut read) = (0, 0);
    while read < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                at += 1;
                star = Some((at, read));
            }
            Some(byte) if *byte == b'?' || byte.eq_ignore_ascii_case(&name[read]) => {
                at += 1;
                read += 1;
            }
            _ => {
                let Some((behind, taken)) = star else {
                    return false;
                };
                star = Some((behind, taken + 1));
                (at, read) = (behind, taken + 1);
            }
        }
    }
    pattern[at..].iter().all(|&byte| byte == b'*')
}
