//! The house rules that no compiler checks: who may use whom, what only some files may name, and
//! how long lines and files may get. Plain text scanning, no parser: comments and literals are
//! blanked, then paths are read as far as they are spelt out. Each failure names file and line.
//!
//! Test code (`#[cfg(test)]` modules, files named `tests.rs` or in a folder `tests`) may use what
//! it likes; lines, lengths and leftovers count there too. Exceptions stand in one table,
//! [`EXCEPTIONS`], with their reasons, and one that is no longer needed is a failure itself.
//!
//! Left out: macros that build paths, and renamed roots (`use std as s`).

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

const COLUMNS_MAX: usize = 100;
const LINES_MAX: usize = 600;

/// Each part of the crate, and the parts that it may use.
const LAYERS: &[(&str, &[&str])] = &[
    ("codec", &[]),
    ("clock", &[]),
    ("rng", &[]),
    ("types", &["codec", "clock", "rng"]),
    ("config", &["types"]),
    ("replica", &["types", "codec", "clock", "rng"]),
    ("store", &["types", "codec", "clock", "rng", "replica"]),
    ("wal", &["types", "codec", "clock", "rng", "replica"]),
    ("wire", &["types", "codec", "clock", "rng", "replica"]),
    ("protocol", &["types", "codec"]),
    ("linearizability", &["types"]),
    ("client", &[]),
    (
        "sim",
        &[
            "types",
            "codec",
            "clock",
            "rng",
            "replica",
            "store",
            "wal",
            "wire",
            "protocol",
            "linearizability",
        ],
    ),
    ("cli", &["types", "clock", "rng", "config", "sim", "linearizability", "client"]),
    (
        "node",
        &[
            "types", "codec", "clock", "rng", "replica", "store", "wal", "wire", "protocol",
            "config",
        ],
    ),
    ("main", &["config", "node", "cli"]),
    ("lib", &[]),
];

/// What may be named in some places only. A place is a file, or a folder with a slash behind it.
struct Reserved {
    rule: &'static str,
    paths: &'static [&'static str],
    places: &'static [&'static str],
}

const RESERVED: &[Reserved] = &[
    Reserved {
        rule: "threads and channels",
        paths: &["std::thread", "std::sync::mpsc", "crossbeam_channel"],
        places: &["src/node/", "src/tools/", "src/main.rs"],
    },
    Reserved {
        rule: "sockets",
        paths: &["std::net", "std::os::unix::net", "socket2"],
        places: &["src/node/", "src/tools/", "src/client.rs", "src/main.rs"],
    },
    Reserved {
        rule: "files",
        paths: &["std::fs"],
        places: &["src/wal/disk.rs", "src/wal/home.rs", "src/tools/"],
    },
    Reserved {
        rule: "the real clock",
        paths: &["std::time::Instant", "std::time::SystemTime"],
        places: &["src/clock.rs", "src/node/", "src/tools/", "src/client.rs", "src/main.rs"],
    },
];

/// What the pure parts may not name, because it would make a run depend on more than its inputs.
const IMPURE: &[&str] = &[
    "std::collections::HashMap",
    "std::collections::HashSet",
    "std::sync",
    "std::env",
    "std::process",
    "foldhash",
    "getrandom",
    "parking_lot",
];
const PURE: &[&str] = &["src/replica/"];

/// An exception: the rule, the file, what it may name, and why.
struct Exception {
    rule: &'static str,
    file: &'static str,
    path: &'static str,
    reason: &'static str,
}

const EXCEPTIONS: &[Exception] = &[
    Exception {
        rule: "only inputs count",
        file: "src/replica/eventual/outbox.rs",
        path: "std::collections::HashMap",
        reason: "seeded by the replica's own generator, which is an input",
    },
    Exception {
        rule: "only inputs count",
        file: "src/replica/eventual/outbox.rs",
        path: "foldhash::fast::FixedState",
        reason: "the hash function of that table",
    },
    Exception {
        rule: "sockets",
        file: "src/config.rs",
        path: "std::net::IpAddr",
        reason: "an address is a value, not a socket",
    },
    Exception {
        rule: "sockets",
        file: "src/config.rs",
        path: "std::net::Ipv4Addr",
        reason: "an address is a value, not a socket",
    },
    Exception {
        rule: "files",
        file: "src/config.rs",
        path: "std::fs::read_to_string",
        reason: "--requirepass-file is read before there is a node",
    },
    Exception {
        rule: "files",
        file: "src/node/info.rs",
        path: "std::fs::read_to_string",
        reason: "INFO tells the process's memory from /proc",
    },
];

/// Signs of unfinished work; in pieces, so that this file passes.
const LEFTOVERS: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("X", "XX"),
    concat!("dbg", "!"),
    concat!("todo", "!"),
    concat!("unimplemented", "!"),
];

/// A source file.
struct Source {
    /// From the crate's root, such as `src/wal/mod.rs`.
    name: String,
    text: String,
    /// The text with comments, literals and test modules blanked; lines and columns stay.
    code: String,
}

impl Source {
    fn new(name: &str, text: &str) -> Source {
        let code = without_test_modules(&without_comments_and_literals(text));
        Source { name: name.into(), text: text.into(), code }
    }

    /// True if it is part of the program, not of its tests.
    fn is_program(&self) -> bool {
        let mut parts = self.name.split('/');
        parts.next() == Some("src") && !parts.any(|part| part == "tests" || part == "tests.rs")
    }

    /// The names of the modules around its code: `["wal", "frame"]`.
    fn module(&self) -> Vec<&str> {
        let name = self.name.trim_start_matches("src/").trim_end_matches(".rs");
        name.split('/').filter(|part| *part != "mod").collect()
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| match place.strip_suffix('/') {
            Some(_) => self.name.starts_with(place),
            None => self.name == *place,
        })
    }
}

/// All `.rs` files of the project.
fn sources() -> Vec<Source> {
    fn collect(root: &Path, dir: &Path, sources: &mut Vec<Source>) {
        let Ok(entries) = fs::read_dir(dir) else { return };
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            if path.is_dir() {
                collect(root, &path, sources);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
                sources.push(Source::new(&name, &fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for dir in ["src", "tests", "benches"] {
        collect(root, &root.join(dir), &mut sources);
    }
    assert!(sources.len() > 50, "only {} files found", sources.len());
    sources
}

/// Blanks comments, strings and characters; line breaks stay.
fn without_comments_and_literals(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let starts =
        |at: usize, with: &str| with.chars().eq(chars[at..].iter().copied().take(with.len()));
    let (mut code, mut at) = (String::with_capacity(text.len()), 0);
    while at < chars.len() {
        let behind_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
        let hashes = chars[at..].iter().skip(1).take_while(|c| **c == '#').count();
        let len = if starts(at, "//") {
            chars[at..].iter().take_while(|c| **c != '\n').count()
        } else if starts(at, "/*") {
            block_comment_len(&chars[at..])
        } else if chars[at] == 'r' && starts(at + 1 + hashes, "\"") && raw_may_start(&chars, at) {
            let end = format!("\"{}", "#".repeat(hashes));
            let mut close = at + hashes + 2;
            while close < chars.len() && !starts(close, &end) {
                close += 1;
            }
            close + end.len() - at
        } else if chars[at] == '"' {
            quoted_len(&chars[at..], '"')
        } else if chars[at] == '\'' && !behind_word && is_character(&chars[at..]) {
            quoted_len(&chars[at..], '\'')
        } else {
            code.push(chars[at]);
            at += 1;
            continue;
        };
        let end = (at + len).min(chars.len());
        code.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    code
}

/// True if an `r` at `at` can begin a raw string: it is no name's last letter, but `br` is fine.
fn raw_may_start(chars: &[char], at: usize) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    match at.checked_sub(1).map(|before| chars[before]) {
        Some('b' | 'c') => at < 2 || !is_word(chars[at - 2]),
        Some(before) => !is_word(before),
        None => true,
    }
}

/// `'a'` or `'\n'`, and not the lifetime `'a`.
fn is_character(chars: &[char]) -> bool {
    matches!(chars, ['\'', '\\', ..] | ['\'', _, '\'', ..])
}

fn quoted_len(chars: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

fn block_comment_len(chars: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < chars.len() {
        match chars[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Blanks what stands behind `#[cfg(test)]`, up to its closing brace or its semicolon.
fn without_test_modules(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let (mut out, mut rest) = (String::with_capacity(code.len()), code);
    while let Some(start) = rest.find(MARK) {
        let mut depth = 0;
        let body = &rest[start + MARK.len()..];
        let end = body.char_indices().find(|(_, c)| {
            depth += i32::from(*c == '{') - i32::from(*c == '}');
            depth == 0 && matches!(c, '}' | ';')
        });
        let end = end.map_or(rest.len(), |(at, _)| start + MARK.len() + at + 1);
        out.push_str(&rest[..start]);
        out.extend(rest[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[end..];
    }
    out + rest
}

/// All paths of `code` that have more than one segment or open a group, each with its line:
/// `use a::{b, c::d}` gives `a::b` and `a::c::d`.
fn paths(code: &str) -> Vec<(usize, String)> {
    let bytes = code.as_bytes();
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        if is_word(bytes[at]) {
            at = read_path(bytes, at, "", &mut found);
        } else {
            at += 1;
        }
    }
    let line = |at: usize| 1 + bytes[..at].iter().filter(|byte| **byte == b'\n').count();
    found.into_iter().map(|(at, path)| (line(at), path)).collect()
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Reads the path or group at `at` and returns where it ends.
fn read_path(bytes: &[u8], mut at: usize, prefix: &str, found: &mut Vec<(usize, String)>) -> usize {
    let start = at;
    let mut path = String::from(prefix);
    loop {
        let len = bytes[at..].iter().take_while(|byte| is_word(**byte)).count();
        path.push_str(&String::from_utf8_lossy(&bytes[at..at + len]));
        at += len;
        if !bytes[at..].starts_with(b"::") {
            break;
        }
        at += 2;
        path.push_str("::");
        match bytes.get(at) {
            Some(b'{') => return read_group(bytes, at + 1, &path, found),
            Some(byte) if is_word(*byte) => {}
            Some(b'*') => {
                path.push('*');
                at += 1;
                break;
            }
            _ => break, // a turbofish
        }
    }
    if path.contains("::") {
        found.push((start, path));
    }
    at.max(start + 1)
}

/// Reads a group from behind its opening brace to behind its closing one.
fn read_group(
    bytes: &[u8],
    mut at: usize,
    prefix: &str,
    found: &mut Vec<(usize, String)>,
) -> usize {
    while at < bytes.len() && bytes[at] != b'}' {
        if is_word(bytes[at]) {
            at = read_path(bytes, at, prefix, found);
            // The new name in `old as new` is no path.
            let skipped = bytes[at..].iter().take_while(|byte| !matches!(byte, b',' | b'}'));
            at += skipped.count();
        } else {
            at += 1;
        }
    }
    at + 1
}

/// True if `path` is `what` or lies in it.
fn is_within(path: &str, what: &str) -> bool {
    path.strip_prefix(what).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// The part of the crate that a path of `source` leads to, if it leads to one by name.
fn part_of<'a>(source: &Source, path: &'a str) -> Option<&'a str> {
    let mut segments = path.split("::").peekable();
    let mut ups = 0;
    while segments.next_if_eq(&"super").is_some() {
        ups += 1;
    }
    let at_root = match segments.peek() {
        Some(&"crate" | &"nodesync") if ups == 0 => segments.next().is_some(),
        _ => ups > 0 && ups >= source.module().len(),
    };
    let part = segments.next().filter(|_| at_root)?;
    LAYERS.iter().any(|(name, _)| *name == part).then_some(part)
}

/// Uses that the layers do not allow.
fn wrong_uses(source: &Source) -> Vec<String> {
    let module = source.module();
    let Some((own, allowed)) = LAYERS.iter().find(|(name, _)| *name == module[0]) else {
        return vec![format!("{}: {} has no place in LAYERS", source.name, module[0])];
    };
    let wrong = |path: &str| {
        part_of(source, path).filter(|part| part != own && !allowed.contains(part)).is_some()
    };
    let uses = paths(&source.code).into_iter().filter(|(_, path)| wrong(path));
    uses.map(|(line, path)| format!("{}:{line}: {own} may not use {path}", source.name)).collect()
}

/// Names that belong to other files; exceptions that were needed go into `used`.
fn wrong_names(source: &Source, used: &mut BTreeSet<usize>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (line, path) in paths(&source.code) {
        let reserved = RESERVED.iter().filter(|reserved| !source.is_in(reserved.places));
        let mut rules: Vec<(&str, &[&str])> =
            reserved.map(|reserved| (reserved.rule, reserved.paths)).collect();
        if source.is_in(PURE) {
            rules.push(("only inputs count", IMPURE));
        }
        for (rule, names) in rules {
            if !names.iter().any(|name| is_within(&path, name) || is_all_of(&path, name)) {
                continue;
            }
            let exception = EXCEPTIONS.iter().position(|exception| {
                (exception.rule, exception.file) == (rule, source.name.as_str())
                    && is_within(&path, exception.path)
            });
            match exception {
                Some(index) => _ = used.insert(index),
                None => wrong.push(format!("{}:{line}: {path} ({rule})", source.name)),
            }
        }
    }
    wrong
}

/// True if `path` is a glob that brings `name` in.
fn is_all_of(path: &str, name: &str) -> bool {
    path.strip_suffix("::*").is_some_and(|parent| is_within(name, parent))
}

#[track_caller]
fn assert_none(what: &str, wrong: Vec<String>) {
    let mut list = String::new();
    wrong.iter().for_each(|line| writeln!(list, "{line}").unwrap());
    assert!(wrong.is_empty(), "{what}: {} times\n{list}", wrong.len());
}

#[test]
fn every_part_uses_only_the_parts_below_it() {
    let sources = sources();
    let wrong = sources.iter().filter(|source| source.is_program()).flat_map(wrong_uses).collect();
    assert_none("a part uses what it may not", wrong);
}

#[test]
fn threads_sockets_files_and_clocks_stay_where_they_belong() {
    let sources = sources();
    let mut used = BTreeSet::new();
    let program = sources.iter().filter(|source| source.is_program());
    let mut wrong: Vec<String> =
        program.flat_map(|source| wrong_names(source, &mut used)).collect();
    for (index, Exception { rule, file, path, reason }) in EXCEPTIONS.iter().enumerate() {
        if !used.contains(&index) {
            wrong.push(format!("{file}: {path} ({rule}) is an exception for nothing: {reason}"));
        }
    }
    assert_none("something is named in the wrong place", wrong);
}

/// Lines that are too long, by characters, as rustfmt counts them.
fn long_lines(source: &Source) -> Vec<String> {
    let lines = source.text.lines().enumerate().map(|(index, line)| (index, line.chars().count()));
    let long = lines.filter(|(_, columns)| *columns > COLUMNS_MAX);
    long.map(|(index, columns)| format!("{}:{}: {columns} columns", source.name, index + 1))
        .collect()
}

#[test]
fn lines_are_short_enough_to_read() {
    let sources = sources();
    assert_none("a line is too long", sources.iter().flat_map(long_lines).collect());
}

/// A file that is too long or does not begin with what it is.
fn shapeless(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    let lines = source.text.lines().count();
    if lines > LINES_MAX {
        wrong.push(format!("{}:{lines}: more than {LINES_MAX} lines", source.name));
    }
    if !source.text.starts_with("//!") {
        wrong.push(format!("{}:1: does not begin with what it is (//!)", source.name));
    }
    wrong
}

#[test]
fn files_are_of_bearable_length_and_begin_with_what_they_are() {
    let sources = sources();
    assert_none("a file is out of shape", sources.iter().flat_map(shapeless).collect());
}

/// Signs that something is unfinished.
fn leftovers(source: &Source) -> Vec<String> {
    let lines = source.text.lines().enumerate();
    let found = lines.flat_map(|(index, line)| {
        let signs = LEFTOVERS.iter().filter(move |sign| line.contains(*sign));
        signs.map(move |sign| format!("{}:{}: {sign}", source.name, index + 1))
    });
    found.collect()
}

#[test]
fn nothing_is_left_unfinished() {
    let sources = sources();
    assert_none("something is unfinished", sources.iter().flat_map(leftovers).collect());
}

#[test]
fn the_scanner_sees_paths_and_no_comments_literals_or_tests() {
    let text = "use std::{fs::File, net::{IpAddr, TcpStream as S}};\n\
                // std::thread\n/* std::fs /* nested */ std::fs */\n\
                let x = \"std::a \\\" std::b\"; let c = '\"'; let r = r#\"std::c \" \"#;\n\
                fn f<'a>(x: &'a str) -> std::io::Result<()> { Vec::<u8>::new() }\n\
                #[cfg(test)]\nmod tests { fn f() { std::thread::spawn(); } }\n\
                use crate::wal::*;\n";
    let source = Source::new("src/store/mod.rs", text);
    let found = paths(&source.code);
    let found: Vec<(usize, &str)> = found.iter().map(|(line, path)| (*line, &**path)).collect();
    let expected = [
        (1, "std::fs::File"),
        (1, "std::net::IpAddr"),
        (1, "std::net::TcpStream"),
        (5, "std::io::Result"),
        (5, "Vec::"),
        (8, "crate::wal::*"),
    ];
    assert_eq!(found, expected);
    assert_eq!(wrong_uses(&source), ["src/store/mod.rs:8: store may not use crate::wal::*"]);
    let names = wrong_names(&source, &mut BTreeSet::new());
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(names[0], "src/store/mod.rs:1: std::fs::File (files)");
}

#[test]
fn the_rules_find_what_breaks_them() {
    let uses = |name: &str, text: &str| !wrong_uses(&Source::new(name, text)).is_empty();
    assert!(uses("src/wal/frame.rs", "use crate::{types::Term, wire::Frame};"));
    assert!(uses("src/wal/frame.rs", "use super::super::store::Store;"));
    assert!(!uses("src/wal/frame.rs", "use super::store::Store; use crate::wal::Home;"));
    assert!(uses("src/wal/mod.rs", "use super::store;"));
    assert!(uses("src/protocol/run.rs", "fn f(x: crate::replica::Replica) {}"));
    assert!(uses("src/sim/mod.rs", "use crate::node;"));
    assert!(uses("src/node/core.rs", "use crate::testing::sim::Cluster;"));
    assert!(uses("src/main.rs", "use nodesync::store::Store;"));
    assert!(uses("src/newcomer.rs", ""));
    let names = |name: &str, text: &str| {
        !wrong_names(&Source::new(name, text), &mut BTreeSet::new()).is_empty()
    };
    assert!(names("src/store/mod.rs", "use std::time::{Duration, Instant};"));
    assert!(!names("src/store/mod.rs", "use std::time::Duration; use crate::clock::Instant;"));
    assert!(names("src/store/mod.rs", "use std::time::*;"));
    assert!(names("src/config.rs", "use std::net::{IpAddr, TcpStream};"));
    assert!(!names("src/config.rs", "use std::net::IpAddr;"));
    assert!(names("src/wal/mod.rs", "fn f() { crossbeam_channel::unbounded::<u8>(); }"));
    assert!(names("src/replica/mod.rs", "use std::collections::HashMap;"));
    assert!(!names("src/node/core.rs", "use std::thread;"));
    assert!(names("src/nodes.rs", "use std::thread;"));
    let at = |columns| Source::new("src/x.rs", &format!("//!\n{}\n", "ä".repeat(columns)));
    assert!(long_lines(&at(COLUMNS_MAX)).is_empty());
    assert_eq!(long_lines(&at(COLUMNS_MAX + 1)), ["src/x.rs:2: 101 columns"]);
    assert_eq!(shapeless(&Source::new("src/x.rs", &"\n".repeat(LINES_MAX + 1))).len(), 2);
    for sign in LEFTOVERS {
        let found = leftovers(&Source::new("src/x.rs", &format!("//!\n    {sign}(x) // later")));
        assert_eq!(found, [format!("src/x.rs:2: {sign}")]);
    }
}
