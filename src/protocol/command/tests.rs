//! The table of commands against Redis's rules for its own.

use std::sync::Arc;

use crate::protocol::admission::admit;
use crate::protocol::args::{Args, Span};
use crate::protocol::command::table::TABLE;
use crate::protocol::command::{CommandSpec, Handler, catalog, find};
use crate::protocol::conn_state::ConnState;
use crate::protocol::{Limits, ServerInfo};
use crate::types::{Consistency, NodeId};

fn specs() -> impl Iterator<Item = &'static CommandSpec> {
    TABLE.iter().flat_map(|spec| [spec].into_iter().chain(spec.family))
}

/// A request of `count` words, all alike.
fn words(word: &str, count: usize) -> (Vec<u8>, Vec<Span>) {
    let spans = (0..count).map(|index| Span::new(index * word.len(), (index + 1) * word.len()));
    (word.repeat(count).into_bytes(), spans.collect())
}

fn conn() -> ConnState {
    let server_info = ServerInfo {
        node: NodeId(1),
        version: "0.1.0",
        password: None,
        limits: Limits::default(),
        consistency: Consistency::Strong,
        config: Vec::new(),
    };
    ConnState::new(1, Arc::new(server_info))
}

#[test]
fn the_table_is_sorted_and_every_name_is_found_in_any_case() {
    assert!(TABLE.is_sorted_by_key(|spec| spec.name));
    for spec in TABLE {
        for name in [spec.name.to_ascii_uppercase(), spec.name.to_owned()] {
            assert_eq!(find(name.as_bytes()).expect("it is in the table").name, spec.name);
        }
        for own in spec.family {
            let suffix = own.name.strip_prefix(spec.name).and_then(|rest| rest.strip_prefix('|'));
            let suffix = suffix.expect("it is named after its family").to_ascii_uppercase();
            let found = spec.subcommand(suffix.as_bytes()).expect("it is in the family");
            assert_eq!(found.name, own.name);
        }
    }
    for name in ["", "ge", "gett", "client|id", "averylongnameindeed", "g\u{ff}t"] {
        assert!(find(name.as_bytes()).is_none(), "{name:?}");
    }
}

#[test]
fn no_command_reads_words_that_its_arity_does_not_promise() {
    for spec in specs() {
        let least = usize::from(spec.arity.unsigned_abs());
        for word in ["0", "id", "nx", "type", "filterby", "auth", "match", "ex"] {
            for count in least..=if spec.arity < 0 { least + 4 } else { least } {
                let (request, spans) = words(word, count);
                let args = Args::new(&request, &spans);
                assert!(spec.takes(count));
                for index in spec.key_words(count) {
                    args.at(index);
                }
                match spec.handler {
                    Handler::Store(parse) => drop(parse(args)),
                    Handler::Session(run) => drop(run(args, &mut conn())),
                    Handler::Catalog(describe) => drop(describe(args, TABLE)),
                    Handler::With => drop(admit(&conn(), args)),
                }
            }
        }
        assert!(!spec.takes(least - 1), "{}", spec.name);
    }
}

#[test]
fn the_flags_write_and_readonly_follow_the_command() {
    for spec in specs() {
        let (request, spans) = words("0", usize::from(spec.arity.unsigned_abs()));
        let args = Args::new(&request, &spans);
        let writes = match spec.handler {
            Handler::Store(parse) => parse(args).ok().map(|parsed| parsed.command.is_write()),
            Handler::Session(_) | Handler::Catalog(_) | Handler::With => None,
        };
        assert_eq!(spec.has_flag("write"), writes == Some(true), "{}", spec.name);
        assert_eq!(spec.has_flag("readonly"), writes == Some(false), "{}", spec.name);
    }
}

#[test]
fn key_positions_count_from_the_start_or_from_the_end() {
    let keys = |name: &str, count| {
        let spec = find(name.as_bytes()).expect("it is in the table");
        spec.key_words(count).collect::<Vec<_>>()
    };
    assert_eq!(keys("get", 2), [1]);
    assert_eq!(keys("set", 5), [1]);
    assert_eq!(keys("del", 4), [1, 2, 3]);
    assert_eq!(keys("mset", 7), [1, 3, 5]);
    assert_eq!(keys("ping", 2), []);
}

#[test]
fn a_request_for_descriptions_names_a_bounded_number_of_commands() {
    for name in ["info", "docs"] {
        let spec = find(b"command").and_then(|spec| spec.subcommand(name.as_bytes()));
        let Handler::Catalog(describe) = spec.expect("it is in the family").handler else {
            panic!("COMMAND needs the table alone");
        };
        let (request, spans) = words("get", 1000);
        assert!(describe(Args::new(&request, &spans), TABLE).is_err());
        let (request, spans) = words("get", 100);
        assert!(describe(Args::new(&request, &spans), TABLE).is_ok());
    }
}

#[test]
fn patterns_for_settings_know_star_and_question_mark_in_any_case() {
    for (pattern, name, expected) in [
        ("*", "", true),
        ("save", "save", true),
        ("SAVE", "save", true),
        ("s?ve", "save", true),
        ("s?", "save", false),
        ("*a*e", "save", true),
        ("*a", "save", false),
        ("sav", "save", false),
        ("savee", "save", false),
        ("", "save", false),
        ("**s**", "save", true),
    ] {
        let found = catalog::matches(pattern.as_bytes(), name.as_bytes());
        assert_eq!(found, expected, "{pattern} on {name}");
    }
}
