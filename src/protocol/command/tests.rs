//! The table of commands against what Redis says of its own.

use std::sync::Arc;

use super::*;
use crate::protocol::args::Span;
use crate::protocol::{Facts, Limits};
use crate::types::{Consistency, NodeId};

fn rows() -> impl Iterator<Item = &'static Row> {
    TABLE.iter().flat_map(|row| [row].into_iter().chain(row.family))
}

/// A request of `count` words, all alike.
fn words(word: &str, count: usize) -> (Vec<u8>, Vec<Span>) {
    let spans = (0..count).map(|index| Span::new(index * word.len(), (index + 1) * word.len()));
    (word.repeat(count).into_bytes(), spans.collect())
}

fn caller() -> Caller {
    let facts = Facts {
        node: NodeId(1),
        version: "0.1.0",
        password: None,
        limits: Limits::default(),
        consistency: Consistency::Strong,
        config: Vec::new(),
    };
    Caller::new(1, Arc::new(facts))
}

#[test]
fn the_table_is_sorted_and_every_name_is_found_in_any_case() {
    assert!(TABLE.is_sorted_by_key(|row| row.name));
    for row in TABLE {
        for name in [row.name.to_ascii_uppercase(), row.name.to_owned()] {
            assert_eq!(find(name.as_bytes()).expect("it is in the table").name, row.name);
        }
        for member in row.family {
            let suffix = member.name.strip_prefix(row.name).and_then(|rest| rest.strip_prefix('|'));
            let suffix = suffix.expect("a member is named after its family").to_ascii_uppercase();
            let found = row.member(suffix.as_bytes()).expect("it is in the family");
            assert_eq!(found.name, member.name);
        }
    }
    for name in ["", "ge", "gett", "client|id", "averylongnameindeed", "g\u{ff}t"] {
        assert!(find(name.as_bytes()).is_none(), "{name:?}");
    }
}

#[test]
fn no_command_looks_for_words_that_its_arity_does_not_promise() {
    for row in rows() {
        let least = usize::from(row.arity.unsigned_abs());
        for word in ["0", "id", "nx", "type", "filterby", "auth", "match", "ex"] {
            for count in least..=if row.arity < 0 { least + 4 } else { least } {
                let (request, spans) = words(word, count);
                let args = Args::new(&request, &spans);
                assert!(row.takes(count));
                for index in row.key_words(count) {
                    args.at(index);
                }
                match row.does {
                    Does::Store(parse) => drop(parse(args)),
                    Does::Session(act) => drop(act(args, &mut caller())),
                    Does::With => drop(caller().admit(args)),
                }
            }
        }
        assert!(!row.takes(least - 1), "{}", row.name);
    }
}

#[test]
fn a_command_is_flagged_as_what_it_does() {
    for row in rows() {
        let (request, spans) = words("0", usize::from(row.arity.unsigned_abs()));
        let args = Args::new(&request, &spans);
        let does = match row.does {
            Does::Store(parse) => parse(args).ok().map(|order| order.command.is_write()),
            Does::Session(_) | Does::With => None,
        };
        assert_eq!(row.has_flag("write"), does == Some(true), "{}", row.name);
        assert_eq!(row.has_flag("readonly"), does == Some(false), "{}", row.name);
    }
}

#[test]
fn key_positions_count_from_the_start_or_from_the_end() {
    let keys = |name: &str, count| {
        let row = find(name.as_bytes()).expect("it is in the table");
        row.key_words(count).collect::<Vec<_>>()
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
        let row = find(b"command").and_then(|row| row.member(member.as_bytes()));
        let Does::Session(act) = row.expect("it is in the family").does else {
            panic!("COMMAND needs no store");
        };
        let (request, spans) = words("get", 1000);
        assert!(act(Args::new(&request, &spans), &mut caller()).is_err());
        let (request, spans) = words("get", 100);
        assert!(act(Args::new(&request, &spans), &mut caller()).is_ok());
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
