//! Pipelines that change modes, checked against a model: each command takes its route, and every
//! reply stands in its place and equals the reply in a session that never leaves `strong`.

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
enum CommandKind {
    Read,
    Blind,
    Update,
}

/// Commands on few keys, so that the effects of one show in the replies to others. A value of two
/// words has a `+` between them and comes last, as a line requires.
const COMMANDS: [(CommandKind, &str); 25] = [
    (CommandKind::Read, "get a"),
    (CommandKind::Read, "get b"),
    (CommandKind::Read, "mget a b c"),
    (CommandKind::Read, "strlen a"),
    (CommandKind::Read, "exists a a b"),
    (CommandKind::Read, "type b"),
    (CommandKind::Read, "dbsize"),
    (CommandKind::Read, "keys *"),
    (CommandKind::Read, "scan 0 count 2"),
    (CommandKind::Blind, "set a 1"),
    (CommandKind::Blind, "SET a two+words"),
    (CommandKind::Blind, "set b 20"),
    (CommandKind::Blind, "mset a 3 b 4"),
    (CommandKind::Blind, "MSET c 5 c 6 c 7"),
    (CommandKind::Blind, "del a"),
    (CommandKind::Blind, "Del a b a c"),
    (CommandKind::Blind, "unlink b c"),
    (CommandKind::Update, "setnx a 8"),
    (CommandKind::Update, "getset b 9"),
    (CommandKind::Update, "getdel a"),
    (CommandKind::Update, "append a x+y"),
    (CommandKind::Update, "incr b"),
    (CommandKind::Update, "decrby a 2"),
    (CommandKind::Update, "INCRBY b 3"),
    (CommandKind::Update, "flushall"),
];

/// Request of a pipeline.
#[derive(Clone, Debug)]
enum Step {
    Switch(&'static str),
    Store { with: Option<Consistency>, kind: CommandKind, text: &'static str },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    use Consistency::{Eventual, Strong};
    let with = prop::sample::select(vec![None, None, None, Some(Strong), Some(Eventual)]);
    let store = (with, prop::sample::select(&COMMANDS[..]))
        .prop_map(|(with, (kind, text))| Step::Store { with, kind, text });
    let switch = prop::sample::select(&SWITCHES[..]).prop_map(Step::Switch);
    prop::collection::vec(prop_oneof![4 => store, 1 => switch], 0..30)
}

/// Mode that a session has chosen.
struct Model {
    start: Consistency,
    chosen: Consistency,
    readonly: bool,
}

impl Model {
    /// Applies a mode command, and returns its expected reply.
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

    /// Requests that must reach the node where a strong session requests `plain`.
    fn served(
        &self,
        with: Option<Consistency>,
        kind: CommandKind,
        text: &str,
        plain: &str,
    ) -> Vec<String> {
        let eventual = match (with, kind) {
            (Some(mode), _) => mode == Consistency::Eventual,
            (None, CommandKind::Read) => self.readonly || self.chosen == Consistency::Eventual,
            (None, _) => self.chosen == Consistency::Eventual,
        };
        match kind {
            _ if !eventual => vec![plain.to_owned()],
            CommandKind::Read => vec![format!("local {plain}")],
            CommandKind::Update => vec![format!("update {plain}")],
            CommandKind::Blind => {
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

/// Runs a session over these bytes; returns its replies, and the session with its node's records.
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
    fn modes_change_the_route_of_a_command_and_not_its_reply(
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
