//! The one table of commands, which serves both protocols and answers COMMAND. Adding a command is
//! one row here and one function in [`data`] (what needs the store), [`connection`] (what concerns
//! the session or is asked of the node) or [`catalog`] (what the table and the configuration tell).
//!
//! Names, arities, flags and key positions are Redis 7's, because clients read them with COMMAND.
//! Descriptions and key positions in COMMAND's richer forms are derived from the row.

mod catalog;
mod connection;
mod data;

use super::Question;
use super::args::Args;
use super::conn_state::ConnState;
use super::reply::{Reply, ReplyShape};
use crate::types::Command;

/// What a store command asks for, and how its outcome is shown.
pub(super) struct ParsedCommand<'a> {
    pub(super) command: Command<'a>,
    pub(super) shape: ReplyShape,
}

/// What a session command comes to.
pub(super) enum Response {
    /// This.
    Now(Reply, ReplyShape),
    /// What the node will say.
    Ask(Question, ReplyShape),
}

/// Reads a store command's arguments; an error is the reply.
type Parse = for<'a> fn(Args<'a>) -> Result<ParsedCommand<'a>, Reply>;

/// Does what a session command says; an error is the reply.
type Act = fn(Args<'_>, &mut ConnState) -> Result<Response, Reply>;

/// Who does it.
pub(super) enum Handler {
    /// The store: what it costs and when it is done is the driver's affair.
    Store(Parse),
    /// The session, at once.
    Session(Act),
    /// The store command behind WITH and its mode.
    With,
}

/// The words of a request in front of the command that WITH introduces.
pub(super) const WITH_WORDS: usize = 2;

/// One command, or one subcommand such as `client|id`.
pub(super) struct CommandSpec {
    /// Lower case.
    pub(super) name: &'static str,
    /// Words with the name: exactly so many, or at least so many if negative.
    pub(super) arity: i8,
    /// Redis's, separated by blanks.
    pub(super) flags: &'static str,
    /// First key, last key (negative: counted from the end) and the step between keys; zeros if
    /// there are none.
    pub(super) keys: (i8, i8, i8),
    pub(super) handler: Handler,
    /// Redis's group: `string`, `generic`, `connection`, `server` or `cluster`.
    pub(super) group: &'static str,
    pub(super) summary: &'static str,
    /// On a line of the line protocol, from which word on the rest of the line is one argument;
    /// 0: never.
    pub(super) rest_at: usize,
    /// The subcommands, if any.
    pub(super) family: &'static [CommandSpec],
}

const fn spec(
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
    const fn rest_at(mut self, word: usize) -> CommandSpec {
        self.rest_at = word;
        self
    }

    const fn family(mut self, specs: &'static [CommandSpec]) -> CommandSpec {
        self.family = specs;
        self
    }

    /// True if `count` words, the name counted, are as many as the command takes.
    pub(super) fn takes(&self, count: usize) -> bool {
        let arity = usize::from(self.arity.unsigned_abs());
        if self.arity < 0 { count >= arity } else { count == arity }
    }

    /// True if it is served before AUTH.
    pub(super) fn is_for_strangers(&self) -> bool {
        self.has_flag("no_auth")
    }

    fn has_flag(&self, flag: &str) -> bool {
        self.flags.split(' ').any(|own| own == flag)
    }

    /// The words of a request with `count` words that are keys.
    pub(super) fn key_words(&self, count: usize) -> impl Iterator<Item = usize> + use<> {
        let (first, last, step) = self.keys;
        let place = |at: i8| match usize::try_from(at) {
            Ok(at) => at,
            Err(_) => count - usize::from(at.unsigned_abs()),
        };
        let words = if first == 0 { 1..1 } else { place(first)..place(last) + 1 };
        words.step_by(usize::from(step.unsigned_abs()).max(1))
    }

    /// This command, or the subcommand that `args` name, if it takes as many words; an error is
    /// the reply.
    pub(super) fn resolve(&'static self, args: Args<'_>) -> Result<&'static CommandSpec, Reply> {
        let spec = if self.family.is_empty() || args.count() == 1 {
            self
        } else {
            self.member(args.at(1)).ok_or_else(|| unknown_member(self, args.at(1)))?
        };
        if spec.takes(args.count()) { Ok(spec) } else { Err(wrong_count(spec.name)) }
    }

    fn member(&self, name: &[u8]) -> Option<&'static CommandSpec> {
        let own = self.name.len() + "|".len();
        self.family.iter().find(|spec| name.eq_ignore_ascii_case(&spec.name.as_bytes()[own..]))
    }
}

/// The command `name`, in upper or lower case. The first letter leaves a few rows to compare; with
/// a binary search over all of them a GET took 136 ns instead of 75 from bytes to bytes.
pub(super) fn find(name: &[u8]) -> Option<&'static CommandSpec> {
    let letter = name.first()?.to_ascii_lowercase().checked_sub(b'a')?;
    let (first, end) = *BY_LETTER.get(usize::from(letter))?;
    TABLE[first..end].iter().find(|spec| spec.name.as_bytes().eq_ignore_ascii_case(name))
}

/// For each letter, where in the table the names with that first letter begin and end.
static BY_LETTER: [(usize, usize); 26] = {
    let mut ranges = [(0, 0); 26];
    let mut index = 0;
    while index < TABLE.len() {
        let range = &mut ranges[(TABLE[index].name.as_bytes()[0] - b'a') as usize];
        if range.1 == 0 {
            range.0 = index;
        }
        index += 1;
        range.1 = index;
    }
    ranges
};

/// The arity error of command `name`.
fn wrong_count(name: &str) -> Reply {
    Reply::error(format!("ERR wrong number of arguments for '{name}' command"))
}

fn syntax_error() -> Reply {
    Reply::error("ERR syntax error")
}

fn not_an_integer() -> Reply {
    Reply::error("ERR value is not an integer or out of range")
}

/// A client's words that an error repeats: as many as fit into Redis's 128 bytes.
fn excerpt(word: &[u8], bytes_max: usize) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(&word[..word.len().min(bytes_max)])
}

/// The error for a command that is not in the table.
pub(super) fn unknown(args: Args<'_>) -> Reply {
    const QUOTED_BYTES_MAX: usize = 128;
    let mut quoted = String::new();
    for arg in args.rest(1) {
        if quoted.len() >= QUOTED_BYTES_MAX {
            break;
        }
        let arg = excerpt(arg, QUOTED_BYTES_MAX - quoted.len());
        quoted.extend(["'", &arg, "' "]);
    }
    let name = excerpt(args.at(0), QUOTED_BYTES_MAX);
    Reply::error(format!("ERR unknown command '{name}', with args beginning with: {quoted}"))
}

fn unknown_member(spec: &CommandSpec, member: &[u8]) -> Reply {
    let (member, family) = (excerpt(member, 128), spec.name.to_ascii_uppercase());
    Reply::error(format!("ERR unknown subcommand '{member}'. Try {family} HELP."))
}

const NO_KEY: (i8, i8, i8) = (0, 0, 0);
const ONE_KEY: (i8, i8, i8) = (1, 1, 1);
const ALL_KEYS: (i8, i8, i8) = (1, -1, 1);
const PAIRS: (i8, i8, i8) = (1, -1, 2);

const READ: &str = "readonly fast";
const WRITE: &str = "write denyoom fast";
const LOCAL: &str = "loading stale fast";
const STRANGER: &str = "noscript loading stale fast no_auth allow_busy";

use Handler::{Session, Store};
use {catalog as cat, connection as con};

/// Sorted by name.
#[rustfmt::skip]
static TABLE: &[CommandSpec] = &[
    spec("append", 3, WRITE, ONE_KEY, Store(data::append), "string",
        "Appends to a value, which is empty if the key does not exist.").rest_at(2),
    spec("auth", -2, STRANGER, NO_KEY, Session(con::auth), "connection",
        "Authenticates the connection with the node's password."),
    spec("client", -2, "", NO_KEY, Session(cat::help), "connection",
        "Tells about client connections.").family(CLIENT),
    spec("command", -1, "loading stale", NO_KEY, Session(cat::command), "server",
        "Tells about all commands.").family(COMMAND),
    spec("config", -2, "", NO_KEY, Session(cat::help), "server",
        "Tells the node's configuration.").family(CONFIG),
    spec("consistency", -1, LOCAL, NO_KEY, Session(con::consistency), "connection",
        "Chooses strong or eventual for the connection, or tells which it is."),
    spec("dbsize", 1, READ, NO_KEY, Store(data::dbsize), "server",
        "Counts the keys."),
    spec("decr", 2, WRITE, ONE_KEY, Store(data::decr), "string",
        "Takes one from a number, which is 0 if the key does not exist."),
    spec("decrby", 3, WRITE, ONE_KEY, Store(data::decrby), "string",
        "Subtracts from a number, which is 0 if the key does not exist."),
    spec("del", -2, "write", ALL_KEYS, Store(data::del), "generic",
        "Deletes keys and tells how many there were."),
    spec("echo", 2, LOCAL, NO_KEY, Session(con::echo), "connection",
        "Answers its argument.").rest_at(1),
    spec("exists", -2, READ, ALL_KEYS, Store(data::exists), "generic",
        "Counts how many of the keys exist."),
    spec("flushall", -1, "write", NO_KEY, Store(data::flushall), "server",
        "Deletes all keys."),
    spec("get", 2, READ, ONE_KEY, Store(data::get), "string",
        "Answers a key's value."),
    spec("getdel", 2, "write fast", ONE_KEY, Store(data::getdel), "string",
        "Answers a key's value and deletes the key."),
    spec("getset", 3, WRITE, ONE_KEY, Store(data::getset), "string",
        "Sets a key and answers its old value.").rest_at(2),
    spec("hello", -1, STRANGER, NO_KEY, Session(con::hello), "connection",
        "Introduces client and node and chooses the protocol's version."),
    spec("incr", 2, WRITE, ONE_KEY, Store(data::incr), "string",
        "Adds one to a number, which is 0 if the key does not exist."),
    spec("incrby", 3, WRITE, ONE_KEY, Store(data::incrby), "string",
        "Adds to a number, which is 0 if the key does not exist."),
    spec("info", -1, "loading stale", NO_KEY, Session(con::info), "server",
        "Tells the node's state and statistics."),
    spec("keys", 2, "readonly", NO_KEY, Store(data::keys), "generic",
        "Lists all keys that match a pattern."),
    spec("leader", 1, LOCAL, NO_KEY, Session(con::leader), "cluster",
        "Answers the id of the node that leads, or nothing."),
    spec("mget", -2, READ, ALL_KEYS, Store(data::mget), "string",
        "Answers the values of several keys."),
    spec("mset", -3, "write denyoom", PAIRS, Store(data::mset), "string",
        "Sets several keys at once."),
    spec("nodes", 1, LOCAL, NO_KEY, Session(con::nodes), "cluster",
        "Lists the cluster's nodes and their state."),
    spec("ping", -1, "fast", NO_KEY, Session(con::ping), "connection",
        "Answers PONG, or its argument.").rest_at(1),
    spec("quit", -1, STRANGER, NO_KEY, Session(con::quit), "connection",
        "Closes the connection."),
    spec("readonly", 1, LOCAL, NO_KEY, Session(con::readonly), "cluster",
        "Makes the connection's reads eventual, whatever its writes are."),
    spec("readwrite", 1, LOCAL, NO_KEY, Session(con::readwrite), "cluster",
        "Ends READONLY: reads are what CONSISTENCY says again."),
    spec("reset", 1, STRANGER, NO_KEY, Session(con::reset), "connection",
        "Puts the connection back to its first state."),
    spec("role", 1, "noscript loading stale fast", NO_KEY, Session(con::role), "server",
        "Tells the node's part in replication."),
    spec("scan", -2, "readonly", NO_KEY, Store(data::scan), "generic",
        "Lists some of the keys, and a cursor to go on from."),
    spec("select", 2, LOCAL, NO_KEY, Session(con::select), "connection",
        "Chooses the database, of which there is one: 0."),
    spec("set", -3, "write denyoom", ONE_KEY, Store(data::set), "string",
        "Sets a key, if wanted only when it exists or does not.").rest_at(2),
    spec("setnx", 3, WRITE, ONE_KEY, Store(data::setnx), "string",
        "Sets a key that does not exist.").rest_at(2),
    spec("strlen", 2, READ, ONE_KEY, Store(data::strlen), "string",
        "Answers the length of a value."),
    spec("time", 1, LOCAL, NO_KEY, Session(con::time), "server",
        "Answers the node's wall-clock time."),
    spec("type", 2, READ, ONE_KEY, Store(data::kind), "generic",
        "Answers the type of a value: string, or none."),
    spec("unlink", -2, "write fast", ALL_KEYS, Store(data::del), "generic",
        "Deletes keys and tells how many there were."),
    spec("wait", 3, "noscript", NO_KEY, Session(con::wait), "generic",
        "Counts the nodes that hold this connection's writes."),
    spec("with", -3, "movablekeys", NO_KEY, Handler::With, "generic",
        "Executes one command that reads or writes keys, strong or eventual."),
];

#[rustfmt::skip]
static CLIENT: &[CommandSpec] = &[
    spec("client|getname", 2, LOCAL, NO_KEY, Session(con::client_getname), "connection",
        "Answers the connection's name."),
    spec("client|help", 2, LOCAL, NO_KEY, Session(cat::help), "connection",
        "Lists the subcommands."),
    spec("client|id", 2, LOCAL, NO_KEY, Session(con::client_id), "connection",
        "Answers the connection's number on this node."),
    spec("client|info", 2, LOCAL, NO_KEY, Session(con::client_info), "connection",
        "Describes this connection."),
    spec("client|list", -2, LOCAL, NO_KEY, Session(con::client_list), "connection",
        "Describes this node's connections."),
    spec("client|no-evict", 3, LOCAL, NO_KEY, Session(con::client_switch), "connection",
        "Changes nothing: no connection is evicted."),
    spec("client|no-touch", 3, LOCAL, NO_KEY, Session(con::client_switch), "connection",
        "Changes nothing: reads leave no trace."),
    spec("client|setinfo", 4, LOCAL, NO_KEY, Session(con::client_setinfo), "connection",
        "Tells the client library's name or version."),
    spec("client|setname", 3, LOCAL, NO_KEY, Session(con::client_setname), "connection",
        "Names the connection."),
];

#[rustfmt::skip]
static COMMAND: &[CommandSpec] = &[
    spec("command|count", 2, LOCAL, NO_KEY, Session(cat::command_count), "server",
        "Counts the commands."),
    spec("command|docs", -2, LOCAL, NO_KEY, Session(cat::command_docs), "server",
        "Describes commands for people."),
    spec("command|help", 2, LOCAL, NO_KEY, Session(cat::help), "server",
        "Lists the subcommands."),
    spec("command|info", -2, LOCAL, NO_KEY, Session(cat::command_info), "server",
        "Describes commands for programs."),
    spec("command|list", -2, LOCAL, NO_KEY, Session(cat::command_list), "server",
        "Lists the names of commands."),
];

#[rustfmt::skip]
static CONFIG: &[CommandSpec] = &[
    spec("config|get", -3, "loading stale", NO_KEY, Session(cat::config_get), "server",
        "Answers the values of settings that match patterns."),
    spec("config|help", 2, LOCAL, NO_KEY, Session(cat::help), "server",
        "Lists the subcommands."),
];

#[cfg(test)]
mod tests;
