//! The description of one command: its name, arity, flags and keys, and the function that handles
//! it.

use crate::protocol::args::Args;
use crate::protocol::command::errors::{unknown_subcommand, wrong_count};
use crate::protocol::conn_state::ConnState;
use crate::protocol::reply::{Reply, ReplyShape};
use crate::protocol::work::Question;
use crate::types::Command;

/// A store command with its arguments read, and the shape of its reply.
pub struct ParsedCommand<'a> {
    pub command: Command<'a>,
    pub shape: ReplyShape,
}

/// The answer of a session command, or the question that the node has to answer first.
pub enum Response {
    Now(Reply, ReplyShape),
    Ask(Question, ReplyShape),
}

/// A store command read from its arguments; an error is the reply.
pub(super) type Parsed<'a> = Result<ParsedCommand<'a>, Reply>;

/// The response to a session command; an error is the reply.
pub(super) type Handled = Result<Response, Reply>;

/// The function that serves a command.
pub enum Handler {
    /// Reads the arguments of a command that needs the store. The driver runs it.
    Store(for<'a> fn(Args<'a>) -> Parsed<'a>),
    /// Runs at once, on the state of the connection.
    Session(fn(Args<'_>, &mut ConnState) -> Handled),
    /// Answers from the table of commands alone.
    Catalog(fn(Args<'_>, &'static [CommandSpec]) -> Result<Reply, Reply>),
    /// WITH: the mode is in its first argument, the store command in the words behind it.
    With,
}

/// The words of a request in front of the command that WITH introduces.
pub const WITH_WORDS: usize = 2;

/// One row of the table: a command, or a subcommand such as `client|id`.
pub struct CommandSpec {
    /// Lower case.
    pub name: &'static str,
    /// Words of a request, the name counted: exactly this many, or at least `-arity` if negative
    /// (Redis's convention).
    pub(super) arity: i8,
    /// Redis's flags, separated by blanks.
    pub(super) flags: &'static str,
    /// First key, last key (negative: counted from the end) and the step between keys; zeros for a
    /// command without keys.
    pub(super) keys: (i8, i8, i8),
    pub handler: Handler,
    /// Redis's group: `string`, `generic`, `connection`, `server` or `cluster`.
    pub(super) group: &'static str,
    /// The sentence that COMMAND DOCS and HELP print.
    pub(super) summary: &'static str,
    /// Line protocol: from this word on the rest of the line is one argument; 0 for a command that
    /// has no such argument.
    pub rest_at: usize,
    /// The subcommands, if any.
    pub(super) family: &'static [CommandSpec],
}

pub(super) const fn spec(
    name: &'static str,
    arity: i8,
    flags: &'static str,
    keys: (i8, i8, i8),
    handler: Handler,
    group: &'static str,
    summary: &'static str,
) -> CommandSpec {
    CommandSpec { name, arity, flags, keys, handler, group, summary, rest_at: 0, family: &[] }
}

impl CommandSpec {
    pub(super) const fn rest_at(mut self, word: usize) -> CommandSpec {
        self.rest_at = word;
        self
    }

    pub(super) const fn family(mut self, specs: &'static [CommandSpec]) -> CommandSpec {
        self.family = specs;
        self
    }

    /// True if the command's arity allows a request of `count` words, the name counted.
    pub(super) fn takes(&self, count: usize) -> bool {
        let arity = usize::from(self.arity.unsigned_abs());
        if self.arity < 0 { count >= arity } else { count == arity }
    }

    /// True if a client may call it before AUTH.
    pub fn needs_no_auth(&self) -> bool {
        self.has_flag("no_auth")
    }

    pub(super) fn has_flag(&self, flag: &str) -> bool {
        self.flags.split(' ').any(|own| own == flag)
    }

    /// The positions of the keys in a request of `count` words.
    pub fn key_words(&self, count: usize) -> impl Iterator<Item = usize> + use<> {
        let (first, last, step) = self.keys;
        let place = |at: i8| match usize::try_from(at) {
            Ok(at) => at,
            Err(_) => count - usize::from(at.unsigned_abs()),
        };
        let words = if first == 0 { 1..1 } else { place(first)..place(last) + 1 };
        words.step_by(usize::from(step.unsigned_abs()).max(1))
    }

    /// This command, or the subcommand that `args` name. An error is the reply: there is no such
    /// subcommand, or the number of arguments is wrong.
    pub fn resolve(&'static self, args: Args<'_>) -> Result<&'static CommandSpec, Reply> {
        let spec = if self.family.is_empty() || args.count() == 1 {
            self
        } else {
            let name = args.at(1);
            self.subcommand(name).ok_or_else(|| unknown_subcommand(self.name, name))?
        };
        if spec.takes(args.count()) { Ok(spec) } else { Err(wrong_count(spec.name)) }
    }

    pub(super) fn subcommand(&self, name: &[u8]) -> Option<&'static CommandSpec> {
        let own = self.name.len() + "|".len();
        self.family.iter().find(|spec| name.eq_ignore_ascii_case(&spec.name.as_bytes()[own..]))
    }
}
