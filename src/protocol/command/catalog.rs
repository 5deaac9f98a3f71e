//! Answers about the table of commands: COMMAND and the HELP of families.
//!
//! Every handler gets the table as an argument, so that the table can name its handlers and they
//! need not name the table.

use crate::protocol::args::Args;
use crate::protocol::command::errors::syntax_error;
use crate::protocol::command::spec::CommandSpec;
use crate::protocol::reply::Reply;

type Table = &'static [CommandSpec];

/// The reply; an error is a reply, too.
type Answer = Result<Reply, Reply>;

fn lookup(table: Table, name: &[u8]) -> Option<&'static CommandSpec> {
    table.iter().find(|spec| spec.name.as_bytes().eq_ignore_ascii_case(name))
}

fn name_and(name: &'static str, value: Reply) -> (Reply, Reply) {
    (Reply::text(name), value)
}

/// `COMMAND`: all commands as `COMMAND INFO` describes them.
pub fn command(_: Args<'_>, table: Table) -> Answer {
    Ok(Reply::Array(table.iter().map(description).collect()))
}

/// `COMMAND COUNT`
pub fn command_count(_: Args<'_>, table: Table) -> Answer {
    Ok(Reply::Integer(table.len() as i64))
}

/// Refuses a request with more names than any client means: the description of a command may be a
/// thousand times as long as its name.
fn check_names(args: Args<'_>) -> Result<(), Reply> {
    const WORDS_MAX: usize = 256;
    if args.count() > WORDS_MAX { Err(Reply::error("ERR too many commands named")) } else { Ok(()) }
}

/// `COMMAND INFO [name …]`; an unknown name gets null in its place.
pub fn command_info(args: Args<'_>, table: Table) -> Answer {
    check_names(args)?;
    if args.count() == 2 {
        return command(args, table);
    }
    let entry = |name| lookup(table, name).map_or(Reply::Null, description);
    Ok(Reply::Array(args.rest(2).map(entry).collect()))
}

/// `COMMAND DOCS [name …]`; unknown names are left out.
pub fn command_docs(args: Args<'_>, table: Table) -> Answer {
    check_names(args)?;
    let entry = |spec: &'static CommandSpec| (Reply::text(spec.name), docs(spec));
    Ok(Reply::Map(match args.count() {
        2 => table.iter().map(entry).collect(),
        _ => args.rest(2).filter_map(|name| lookup(table, name)).map(entry).collect(),
    }))
}

/// `COMMAND LIST [FILTERBY PATTERN pattern|ACLCAT category|MODULE name]`
pub fn command_list(args: Args<'_>, table: Table) -> Answer {
    let names = |wanted: &dyn Fn(&CommandSpec) -> bool| {
        let specs = table.iter().filter(|spec| wanted(spec));
        Ok(Reply::Array(specs.map(|spec| Reply::text(spec.name)).collect()))
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
pub fn help(args: Args<'_>, table: Table) -> Answer {
    let Some(family) = lookup(table, args.at(0)) else {
        return Err(syntax_error());
    };
    let name = family.name.to_ascii_uppercase();
    let title = format!("{name} <subcommand> [<arg> ...]. Subcommands are:");
    let mut lines = vec![Reply::text(title)];
    for spec in family.family {
        let subcommand = &spec.name[family.name.len() + "|".len()..];
        lines.push(Reply::text(subcommand.to_ascii_uppercase()));
        lines.push(Reply::text(format!("    {}", spec.summary)));
    }
    Ok(Reply::Array(lines))
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
    // Key specifications count the last key from the first one, unless it counts from the end.
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

/// True if `name` matches `pattern`, in which `*` stands for any bytes and `?` for one; case is
/// ignored. Redis's globs have character classes, too; names of commands and settings need none.
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    // Greedy matching: on a mismatch it is enough to let the latest star take one byte more,
    // because an earlier star could only take bytes that the latest one takes as well. `star` holds
    // the place behind that star in the pattern, and the length of the name taken up to there.
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
