//! The rules of the house that no compiler checks: which room may use which, where threads,
//! sockets, files and clocks may be named, and how long lines and files may get. Each failure names
//! file and line.
//!
//! A file is read as tokens (`proc_macro2`), so comments and literals are out of the way and paths
//! inside macros are seen. Test code (`#[cfg(test)]` items, files named `tests.rs` or in a folder
//! `tests`) may use every room; lengths and leftovers count there too. Exceptions stand in one
//! table, [`EXCEPTIONS`], with their reasons; an exception that nothing needs any more is a failure
//! itself.
//!
//! Left out: renamed roots (`use std as s`). The length of functions is clippy's (`clippy.toml`).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

const COLUMNS_MAX: usize = 100;
const LINES_MAX: usize = 600;

/// Each room of the crate, and the rooms that it may use.
const LAYERS: &[(&str, &str)] = &[
    ("codec", ""),
    ("clock", ""),
    ("rng", ""),
    ("client", ""),
    ("types", "codec clock rng"),
    ("config", "types"),
    ("protocol", "types codec"),
    ("replica", "types codec clock rng"),
    ("store", "types codec clock rng replica"),
    ("wal", "types codec clock rng replica"),
    ("wire", "types codec clock rng replica"),
    ("service", "types codec clock rng replica store protocol"),
    ("node", "types codec clock rng replica store wal wire protocol service config"),
    ("testing", "types codec clock rng replica store wal wire protocol service"),
    (
        "tools",
        "types codec clock rng replica store wal wire protocol service config testing client",
    ),
    ("main", "config node tools"),
    ("lib", ""),
];

/// Names that belong to some places. A place is a file, or a folder with a slash behind it.
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
        paths: &["std::net", "std::os::unix::net", "socket2", "mio"],
        places: &["src/node/", "src/tools/", "src/client.rs", "src/main.rs"],
    },
    Reserved {
        rule: "files",
        paths: &["std::fs", "rustix::fs"],
        places: &["src/wal/disk.rs", "src/wal/data_dir.rs", "src/tools/"],
    },
    Reserved {
        rule: "the real clock",
        paths: &["std::time::Instant", "std::time::SystemTime"],
        places: &["src/clock.rs", "src/node/", "src/tools/", "src/client.rs", "src/main.rs"],
    },
];

/// Rooms whose results depend on their inputs alone.
const PURE: &[&str] = &["src/replica/", "src/service/"];

/// Names that would let something else into a pure room.
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

const LAYERING: &str = "which room may use which";
const PURITY: &str = "pure rooms depend on their inputs alone";

/// An exception: the rule, the place, the name that is allowed there, and the reason.
struct Exception {
    rule: &'static str,
    place: &'static str,
    path: &'static str,
    reason: &'static str,
}

const fn except(
    rule: &'static str,
    place: &'static str,
    path: &'static str,
    reason: &'static str,
) -> Exception {
    Exception { rule, place, path, reason }
}

const EXCEPTIONS: &[Exception] = &[
    except(
        PURITY,
        "src/replica/eventual/outbox.rs",
        "std::collections::HashMap",
        "seeded by the replica's own generator, which is an input",
    ),
    except(
        PURITY,
        "src/replica/eventual/outbox.rs",
        "foldhash::fast::FixedState",
        "the hash function of that table",
    ),
    except(PURITY, "src/service/", "std::sync::Arc", "shared values, no shared state"),
    except("sockets", "src/config.rs", "std::net::IpAddr", "an address is a value, not a socket"),
    except("sockets", "src/config.rs", "std::net::Ipv4Addr", "an address is a value"),
    except(
        "files",
        "src/config.rs",
        "std::fs::read_to_string",
        "--requirepass-file is read before there is a node",
    ),
    except(
        "files",
        "src/node/info.rs",
        "std::fs::read_to_string",
        "INFO reads the process's memory from /proc",
    ),
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
    /// From the project's root, such as `src/wal/mod.rs`.
    name: String,
    text: String,
    /// The paths outside of test items, each with its line.
    paths: Vec<(usize, String)>,
}

impl Source {
    fn new(name: &str, text: &str) -> Source {
        let tokens: TokenStream =
            text.parse().unwrap_or_else(|error| panic!("{name} is no Rust: {error}"));
        let mut paths = Vec::new();
        collect_paths(tokens, "", &mut paths);
        Source { name: name.into(), text: text.into(), paths }
    }

    /// True if it is part of the program, not of its tests.
    fn is_program(&self) -> bool {
        let mut parts = self.name.split('/');
        parts.next() == Some("src") && !parts.any(|part| part == "tests" || part == "tests.rs")
    }

    /// The room that it belongs to.
    fn room(&self) -> &str {
        let name = self.name.trim_start_matches("src/");
        name.split('/').next().unwrap_or(name).trim_end_matches(".rs")
    }

    /// True if it stands directly under `src`, or is a room's `mod.rs`: `super` is the crate there.
    fn is_top_of_room(&self) -> bool {
        let name = self.name.trim_start_matches("src/");
        !name.contains('/') || name == format!("{}/mod.rs", self.room())
    }

    fn is_in(&self, place: &str) -> bool {
        if place.ends_with('/') { self.name.starts_with(place) } else { self.name == place }
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

/// True for `[cfg(test)]`, the attribute without its `#`.
fn is_test_attribute(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket
        && group.stream().to_string().replace(' ', "") == "cfg(test)")
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

/// Collects the paths of `tokens` that have more than one segment, each behind `prefix`:
/// `use a::{b, c::d}` gives `a::b` and `a::c::d`. A test item is skipped.
fn collect_paths(tokens: TokenStream, prefix: &str, paths: &mut Vec<(usize, String)>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            // The item behind `#[cfg(test)]` ends with its braces, or with a semicolon.
            token if is_test_attribute(token) => {
                let ends = |token: &TokenTree| match token {
                    TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
                    other => is_punct(Some(other), ';'),
                };
                at += tokens[at..].iter().position(ends).unwrap_or(tokens.len() - at) + 1;
            }
            TokenTree::Ident(_) => at = collect_path(&tokens, at, prefix, paths),
            TokenTree::Group(group) => {
                collect_paths(group.stream(), "", paths);
                at += 1;
            }
            _ => at += 1,
        }
    }
}

/// Collects the path that begins at `at`, with the group that it may open; the place behind it.
fn collect_path(
    tokens: &[TokenTree],
    mut at: usize,
    prefix: &str,
    paths: &mut Vec<(usize, String)>,
) -> usize {
    let line = tokens[at].span().start().line;
    let mut path = String::from(prefix);
    loop {
        match tokens.get(at) {
            Some(TokenTree::Ident(name)) => path += &name.to_string(),
            Some(TokenTree::Punct(star)) if star.as_char() == '*' => path += "*",
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                collect_paths(group.stream(), &path, paths);
                return at + 1;
            }
            // A turbofish.
            _ => break,
        }
        at += 1;
        if !(is_punct(tokens.get(at), ':') && is_punct(tokens.get(at + 1), ':')) {
            break;
        }
        path += "::";
        at += 2;
    }
    if path.contains("::") {
        paths.push((line, path));
    }
    // In a group, the new name of `old as new` is no path.
    if !prefix.is_empty() {
        at += tokens[at..].iter().take_while(|token| !is_punct(Some(token), ',')).count();
    }
    at
}

/// True if `path` is `name` or lies in it.
fn is_within(path: &str, name: &str) -> bool {
    path.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// True if `path` is a glob that brings `name` in.
fn is_all_of(path: &str, name: &str) -> bool {
    path.strip_suffix("::*").is_some_and(|parent| is_within(name, parent))
}

/// True if an exception allows it; the exception goes into `used`.
fn is_excepted(rule: &str, source: &Source, path: &str, used: &mut BTreeSet<usize>) -> bool {
    let found = EXCEPTIONS.iter().position(|exception| {
        exception.rule == rule && source.is_in(exception.place) && is_within(path, exception.path)
    });
    found.inspect(|index| _ = used.insert(*index)).is_some()
}

/// The room that a path of `source` leads to by name.
fn room_of<'a>(source: &Source, path: &'a str) -> Option<&'a str> {
    let (root, rest) = path.split_once("::")?;
    let is_rooted = match root {
        "crate" | "nodesync" => true,
        "super" => source.is_top_of_room(),
        _ => false,
    };
    let room = rest.split("::").next().filter(|_| is_rooted)?;
    LAYERS.iter().any(|(name, _)| *name == room).then_some(room)
}

/// Uses that the layers do not allow, and paths that climb more than one module.
fn wrong_uses(source: &Source, used: &mut BTreeSet<usize>) -> Vec<String> {
    let (name, own) = (&source.name, source.room());
    let Some((_, allowed)) = LAYERS.iter().find(|(room, _)| *room == own) else {
        return vec![format!("{name}:1: {own} has no place in LAYERS")];
    };
    let may_use = |room: &str| room == own || allowed.split(' ').any(|other| other == room);
    let mut wrong = Vec::new();
    for (line, path) in &source.paths {
        if path.starts_with("super::super::") {
            wrong.push(format!("{name}:{line}: {path} climbs twice; say crate::"));
        } else if room_of(source, path).is_some_and(|room| !may_use(room))
            && !is_excepted(LAYERING, source, path, used)
        {
            wrong.push(format!("{name}:{line}: {own} may not use {path}"));
        }
    }
    wrong
}

/// Names that belong to other places.
fn wrong_names(source: &Source, used: &mut BTreeSet<usize>) -> Vec<String> {
    let reserved = RESERVED.iter();
    let reserved = reserved.filter(|reserved| !reserved.places.iter().any(|p| source.is_in(p)));
    let mut rules: Vec<(&str, &[&str])> =
        reserved.map(|reserved| (reserved.rule, reserved.paths)).collect();
    if PURE.iter().any(|place| source.is_in(place)) {
        rules.push((PURITY, IMPURE));
    }
    let mut wrong = Vec::new();
    for (line, path) in &source.paths {
        for (rule, names) in &rules {
            let is_named = names.iter().any(|name| is_within(path, name) || is_all_of(path, name));
            if is_named && !is_excepted(rule, source, path, used) {
                wrong.push(format!("{}:{line}: {path} ({rule})", source.name));
            }
        }
    }
    wrong
}

/// Lines that are too long (by characters, as rustfmt counts), signs of unfinished work, a file
/// that is too long or does not begin with what it is.
fn shapeless(source: &Source) -> Vec<String> {
    let (name, mut wrong) = (&source.name, Vec::new());
    if !source.text.starts_with("//!") {
        wrong.push(format!("{name}:1: does not begin with what it is (//!)"));
    }
    for (line, text) in (1..).zip(source.text.lines()) {
        let columns = text.chars().count();
        if columns > COLUMNS_MAX {
            wrong.push(format!("{name}:{line}: {columns} columns"));
        }
        if line == LINES_MAX + 1 {
            wrong.push(format!("{name}:{line}: more than {LINES_MAX} lines"));
        }
        let signs = LEFTOVERS.iter().filter(|sign| text.contains(*sign));
        wrong.extend(signs.map(|sign| format!("{name}:{line}: {sign}")));
    }
    wrong
}

#[track_caller]
fn assert_none(what: &str, wrong: &[String]) {
    assert!(wrong.is_empty(), "{what}, {} times:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn rooms_use_only_what_they_may() {
    let (sources, mut used) = (sources(), BTreeSet::new());
    let program: Vec<_> = sources.iter().filter(|source| source.is_program()).collect();
    let mut wrong = Vec::new();
    for source in program {
        wrong.extend(wrong_uses(source, &mut used));
        wrong.extend(wrong_names(source, &mut used));
    }
    for (index, Exception { rule, place, path, reason }) in EXCEPTIONS.iter().enumerate() {
        if !used.contains(&index) {
            wrong.push(format!("{place}: nothing needs the exception {path} ({rule}: {reason})"));
        }
    }
    assert_none("a room uses something that it may not", &wrong);
}

#[test]
fn files_are_of_bearable_length_and_finished() {
    let wrong: Vec<_> = sources().iter().flat_map(shapeless).collect();
    assert_none("a file is out of shape", &wrong);
}

/// The steps `src/…:function` of a document that name no function: the file is not there, or has
/// none of that name.
fn wrong_steps(document: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let quoted = document.split('`').skip(1).step_by(2);
    let steps =
        quoted.filter_map(|text| text.split_once(".rs:").map(|(file, name)| (text, file, name)));
    let is_wrong = |(_, file, name): &(&str, &str, &str)| {
        let text = fs::read_to_string(root.join(format!("{file}.rs"))).unwrap_or_default();
        let head = format!("fn {name}");
        let mut found = text.match_indices(&head).map(|(at, _)| &text[at + head.len()..]);
        !found.any(|rest| rest.starts_with(['(', '<']))
    };
    steps.filter(is_wrong).map(|(text, ..)| text.to_owned()).collect()
}

#[test]
fn every_step_of_the_walks_through_the_house_exists() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let document = fs::read_to_string(path).unwrap();
    assert_eq!(wrong_steps(&document), [""; 0], "steps in docs/architecture.md");
    assert!(document.matches(".rs:").count() > 60, "the walks have become short");
    let wrong = "`src/node/core.rs:walk` and `src/core.rs:ask`, not `src/node/core.rs:ask`";
    assert_eq!(wrong_steps(wrong), ["src/node/core.rs:walk", "src/core.rs:ask"]);
}

#[test]
fn paths_are_seen_and_comments_literals_and_tests_are_not() {
    let text = "use std::{fs::File, net::{IpAddr, TcpStream as S}};\n\
                // std::thread\n/* std::fs /* nested */ std::fs */\n\
                let x = \"std::a \\\" std::b\"; let c = '\"'; let r = r#\"std::c \" \"#;\n\
                fn f<'a>(x: &'a str) -> std::io::Result<()> { Vec::<u8>::new() }\n\
                #[cfg(test)]\nmod tests { fn f() { std::thread::spawn(); } }\n\
                use crate::wal::*; say!(std::env::args());\n";
    let source = Source::new("src/store/mod.rs", text);
    let found: Vec<_> = source.paths.iter().map(|(line, path)| (*line, &**path)).collect();
    let expected = [
        (1, "std::fs::File"),
        (1, "std::net::IpAddr"),
        (1, "std::net::TcpStream"),
        (5, "std::io::Result"),
        (5, "Vec::"),
        (8, "crate::wal::*"),
        (8, "std::env::args"),
    ];
    assert_eq!(found, expected);
    let uses = wrong_uses(&source, &mut BTreeSet::new());
    assert_eq!(uses, ["src/store/mod.rs:8: store may not use crate::wal::*"]);
    let names = wrong_names(&source, &mut BTreeSet::new());
    assert_eq!(names[0], "src/store/mod.rs:1: std::fs::File (files)");
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn the_rules_find_what_breaks_them() {
    let uses = |name: &str, text: &str| {
        !wrong_uses(&Source::new(name, text), &mut BTreeSet::new()).is_empty()
    };
    assert!(uses("src/wal/frame.rs", "use crate::{types::Term, wire::Frame};"));
    assert!(uses("src/wal/frame.rs", "use super::super::types::Term;"));
    assert!(!uses("src/wal/frame.rs", "use super::store::Store; use crate::wal::DataDir;"));
    assert!(uses("src/wal/mod.rs", "use super::store;"));
    assert!(uses("src/protocol/run.rs", "fn f(x: crate::replica::Replica) {}"));
    assert!(uses("src/protocol/run.rs", "use crate::clock::Now;"));
    assert!(uses("src/testing/sim/mod.rs", "use crate::node;"));
    assert!(uses("src/node/core.rs", "use crate::testing::sim::Cluster;"));
    assert!(uses("src/service/shell.rs", "use crate::wal::Wal;"));
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
    assert!(names("src/service/shell.rs", "use std::sync::{Arc, Mutex};"));
    assert!(!names("src/service/shell.rs", "use std::sync::Arc;"));
    assert!(!names("src/node/core.rs", "use std::thread;"));
    assert!(names("src/nodes.rs", "use std::thread;"));
    let shape = |text: &str| shapeless(&Source::new("src/x.rs", text));
    assert_eq!(shape(&format!("//!\n// {}\n", "ä".repeat(COLUMNS_MAX - 3))), [""; 0]);
    assert_eq!(
        shape(&format!("//!\n// {}\n", "ä".repeat(COLUMNS_MAX - 2))),
        ["src/x.rs:2: 101 columns"]
    );
    assert_eq!(shape(&"\n".repeat(LINES_MAX + 1)).len(), 2);
    for sign in LEFTOVERS {
        assert_eq!(shape(&format!("//!\n// {sign}(x)")), [format!("src/x.rs:2: {sign}")]);
    }
}
