//! The table of commands against what Redis says of its own.

use std::sync::Arc;

use super::*;
use crate::protocol::args::Span;
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
        for member in spec.family {
            let suffix =
                member.name.strip_prefix(spec.name).and_then(|rest| rest.strip_prefix('|'));
            let suffix = suffix.expect("a member is named after its family").to_ascii_uppercase();
            let found = spec.member(suffix.as_bytes()).expect("it is in the family");
            assert_eq!(found.name, member.name);
        }
    }
    for name in ["", "ge", "gett", "client|id", "averylongnameindeed", "g\u{ff}t"] {
        assert!(find(name.as_bytes()).is_none(), "{name:?}");
    }
}

#[test]
fn no_command_looks_for_words_that_its_arity_does_not_promise() {
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
                    Handler::Session(act) => drop(act(args, &mut conn())),
                    Handler::With => drop(conn().admit(args)),
                }
            }
        }
        assert!(!spec.takes(least - 1), "{}", spec.name);
    }
}

#[test]
fn a_command_is_flagged_as_what_it_does() {
    for spec in specs() {
        let (request, spans) = words("0", usize::from(spec.arity.unsigned_abs()));
        let args = Args::new(&request, &spans);
        let does = match spec.handler {
            Handler::Store(parse) => parse(args).ok().map(|order| order.command.is_write()),
            Handler::Session(_) | Handler::With => None,
        };
        assert_eq!(spec.has_flag("write"), does == Some(true), "{}", spec.name);
        assert_eq!(spec.has_flag("readonly"), does == Some(false), "{}", spec.name);
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
fn nobody_gets_a_description_for_each_of_a_million_names() {
    for member in ["info", "docs"] {
        let spec = find(b"command").and_then(|spec| spec.member(member.as_bytes()));
        let Handler::Session(act) = spec.expect("it is in the family").handler else {
            panic!("COMMAND needs no store");
        };
        let (request, spans) = words("get", 1000);
        assert!(act(Args::new(&request, &spans), &mut conn()).is_err());
        let (request, spans) = words("get", 100);
        assert!(act(Args::new(&request, &spans), &mut conn()).is_ok());
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
