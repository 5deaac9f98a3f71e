//! Pipelines in which modes change, against a model: the route of each command, and every reply in
//! its place and equal to the reply in a session that never leaves `strong`.

use std::iter::zip;

use nodesync::protocol::{Limits, Protocol};
use nodesync::types::Consistency;
use proptest::prelude::*;

use super::driven::{Driven, replies, request, show_write};

/// Commands that set or return a session's mode.
pub const SWITCHES: [&str; 6] =
    ["consistency eventual", "CONSISTENCY Strong", "consistency", "readonly", "readwrite", "reset"];

/// The effect of a command on its keys.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Read,
    Blind,
    Update,
}

/// Commands on few keys, so that each shows in the replies of others. A value of two words has a
/// `+` between them and comes last, as a line requires.
const COMMANDS: [(Kind, &str); 25] = [
    (Kind::Read, "get a"),
    (Kind::Read, "get b"),
    (Kind::Read, "mget a b c"),
    (Kind::Read, "strlen a"),
    (Kind::Read, "exists a a b"),
    (Kind::Read, "type b"),
    (Kind::Read, "dbsize"),
    (Kind::Read, "keys *"),
    (Kind::Read, "scan 0 count 2"),
    (Kind::Blind, "set a 1"),
    (Kind::Blind, "SET a two+words"),
    (Kind::Blind, "set b 20"),
    (Kind::Blind, "mset a 3 b 4"),
    (Kind::Blind, "MSET c 5 c 6 c 7"),
    (Kind::Blind, "del a"),
    (Kind::Blind, "Del a b a c"),
    (Kind::Blind, "unlink b c"),
    (Kind::Update, "setnx a 8"),
    (Kind::Update, "getset b 9"),
    (Kind::Update, "getdel a"),
    (Kind::Update, "append a x+y"),
    (Kind::Update, "incr b"),
    (Kind::Update, "decrby a 2"),
    (Kind::Update, "INCRBY b 3"),
    (Kind::Update, "flushall"),
];

/// One request.
#[derive(Clone, Debug)]
enum Step {
    Switch(&'static str),
    Store { with: Option<Consistency>, kind: Kind, text: &'static str },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    use Consistency::{Eventual, Strong};
    let with = prop::sample::select(vec![None, None, None, Some(Strong), Some(Eventual)]);
    let store = (with, prop::sample::select(&COMMANDS[..]))
        .prop_map(|(with, (kind, text))| Step::Store { with, kind, text });
    let switch = prop::sample::select(&SWITCHES[..]).prop_map(Step::Switch);
    prop::collection::vec(prop_oneof![4 => store, 1 => switch], 0..30)
}

/// What a session has chosen.
struct Model {
    start: Consistency,
    chosen: Consistency,
    readonly: bool,
}

impl Model {
    /// Does what a switch says; the reply to it.
    fn switch(&mut self, text: &str, protocol: Protocol) -> String {
        let on_line = protocol == Protocol::Line;
        let mut choose = |mode, name| {
            self.chosen = mode;
            if on_line { format!("OK: consistency set to {name}") } else { "+OK".into() }
        };
        match text {
            "consistency eventual" => return choose(Consistency::Eventual, "eventual"),
            "CONSISTENCY Strong" => return choose(Consistency::Strong, "strong"),
            "consistency" => {
                let name = if self.chosen == Consistency::Strong { "strong" } else { "eventual" };
                return if on_line {
                    format!("VALUE: {name}")
                } else {
                    format!("${} {name}", name.len())
                };
            }
            "reset" => (self.chosen, self.readonly) = (self.start, false),
            _ => self.readonly = text == "readonly",
        }
        let word = if text == "reset" { "RESET" } else { "OK" };
        if on_line { word.into() } else { format!("+{word}") }
    }

    /// What the node must be asked for, if a strong session asks for `plain`.
    fn served(
        &self,
        with: Option<Consistency>,
        kind: Kind,
        text: &str,
        plain: &str,
    ) -> Vec<String> {
        let eventual = match (with, kind) {
            (Some(mode), _) => mode == Consistency::Eventual,
            (None, Kind::Read) => self.readonly || self.chosen == Consistency::Eventual,
            (None, _) => self.chosen == Consistency::Eventual,
        };
        match kind {
            _ if !eventual => vec![plain.to_owned()],
            Kind::Read => vec![format!("local {plain}")],
            Kind::Update => vec![format!("update {plain}")],
            Kind::Blind => {
                let words = words(text);
                let (name, args) = words.split_first().expect("there is a name");
                let deletes =
                    !name.eq_ignore_ascii_case(b"set") && !name.eq_ignore_ascii_case(b"mset");
                let (step, value) = if deletes { (1, None) } else { (2, Some(1)) };
                let write = |part: &[Vec<u8>]| show_write(&part[0], value.map(|at| &part[at][..]));
                args.chunks(step).map(|part| format!("stamp {}", write(part))).collect()
            }
        }
    }
}

fn words(text: &str) -> Vec<Vec<u8>> {
    text.split(' ').map(|word| word.replace('+', " ").into_bytes()).collect()
}

fn bytes(words: &[Vec<u8>], on_line: bool) -> Vec<u8> {
    if on_line {
        [&words.join(&b' ')[..], b"\n"].concat()
    } else {
        request(&words.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }
}

/// A session that has served all of these bytes: its replies and what the node was asked for.
fn run(
    limits: &Limits,
    start: Consistency,
    bytes: &[u8],
    protocol: Protocol,
) -> (Vec<String>, Driven) {
    let mut driven = Driven::with(limits.clone(), None, start);
    driven.receive(bytes);
    driven.serve();
    (replies(&driven.output, protocol), driven)
}

proptest! {
    #[test]
    fn modes_change_who_serves_a_command_and_not_what_comes_of_it(
        steps in steps(),
        on_line in any::<bool>(),
        eventual in any::<bool>(),
        batch_commands_max in 1_usize..6,
        output_bytes_max in 1_usize..200,
    ) {
        let start = if eventual { Consistency::Eventual } else { Consistency::Strong };
        let protocol = if on_line { Protocol::Line } else { Protocol::Resp2 };
        let limits = Limits { batch_commands_max, output_bytes_max, ..Limits::default() };
        let (mut mixed, mut plain) = (Vec::new(), Vec::new());
        for step in &steps {
            match *step {
                Step::Switch(text) => {
                    mixed.extend(bytes(&words(text), on_line));
                    plain.extend(bytes(&words("ping"), on_line));
                }
                Step::Store { with, text, .. } => {
                    let prefix = match with {
                        None => vec![],
                        Some(Consistency::Strong) => words("with strong"),
                        Some(Consistency::Eventual) => words("WITH Eventual"),
                    };
                    mixed.extend(bytes(&[prefix, words(text)].concat(), on_line));
                    plain.extend(bytes(&words(text), on_line));
                }
            }
        }
        let (replies, driven) = run(&limits, start, &mixed, protocol);
        let (mut expected, reference) = run(&limits, Consistency::Strong, &plain, protocol);
        prop_assert_eq!(expected.len(), steps.len());

        let mut model = Model { start, chosen: start, readonly: false };
        let ran = reference.take_commands();
        let (mut served, mut commands) = (Vec::new(), ran.iter());
        for (step, reply) in zip(&steps, &mut expected) {
            match *step {
                Step::Switch(text) => *reply = model.switch(text, protocol),
                Step::Store { with, kind, text } => {
                    let command = commands.next().expect("each reaches the node");
                    served.extend(model.served(with, kind, text, command));
                }
            }
        }
        prop_assert_eq!(replies, expected);
        prop_assert_eq!(&driven.take_commands(), &served);
        prop_assert_eq!(driven.node.store.into_inner().0, reference.node.store.into_inner().0);
    }
}
