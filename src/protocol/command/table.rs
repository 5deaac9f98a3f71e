//! The table: a row for each command, and the lookup by name.

use crate::protocol::command::spec::{CommandSpec, Handler, spec};
use crate::protocol::command::{catalog as cat, connection as con, data};
use Handler::{Catalog, Session, Store, With};

/// The command `name`, in upper or lower case.
pub fn find(name: &[u8]) -> Option<&'static CommandSpec> {
    // The first letter leaves a few rows to compare. A binary search over all rows took 136 ns for
    // a GET from bytes to bytes; this takes 75.
    let letter = name.first()?.to_ascii_lowercase().checked_sub(b'a')?;
    let (first, end) = *BY_LETTER.get(usize::from(letter))?;
    TABLE[first..end].iter().find(|spec| spec.name.as_bytes().eq_ignore_ascii_case(name))
}

/// For each letter, the range of the table's names that begin with it.
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

const NO_KEY: (i8, i8, i8) = (0, 0, 0);
const ONE_KEY: (i8, i8, i8) = (1, 1, 1);
const ALL_KEYS: (i8, i8, i8) = (1, -1, 1);
const PAIRS: (i8, i8, i8) = (1, -1, 2);

const READ: &str = "readonly fast";
const WRITE: &str = "write denyoom fast";
const LOCAL: &str = "loading stale fast";
const NO_AUTH: &str = "noscript loading stale fast no_auth allow_busy";

/// All commands, sorted by name. Names, arities, flags and key positions are Redis 7's, because
/// clients read them with COMMAND.
#[rustfmt::skip]
pub static TABLE: &[CommandSpec] = &[
    spec("append", 3, WRITE, ONE_KEY, Store(data::append), "string",
        "Appends a string to the value of a key. Creates the key if it doesn't exist.").rest_at(2),
    spec("auth", -2, NO_AUTH, NO_KEY, Session(con::auth), "connection",
        "Authenticates the connection with the node's password."),
    spec("client", -2, "", NO_KEY, Catalog(cat::help), "connection",
        "Groups the commands about client connections.").family(CLIENT),
    spec("command", -1, "loading stale", NO_KEY, Catalog(cat::command), "server",
        "Returns detailed information about all commands.").family(COMMAND),
    spec("config", -2, "", NO_KEY, Catalog(cat::help), "server",
        "Groups the commands about the node's configuration.").family(CONFIG),
    spec("consistency", -1, LOCAL, NO_KEY, Session(con::consistency), "connection",
        "Returns or sets the consistency mode of the connection."),
    spec("dbsize", 1, READ, NO_KEY, Store(data::dbsize), "server",
        "Returns the number of keys in the database."),
    spec("decr", 2, WRITE, ONE_KEY, Store(data::decr), "string",
        "Decrements the integer value of a key by one. Uses 0 if the key doesn't exist."),
    spec("decrby", 3, WRITE, ONE_KEY, Store(data::decrby), "string",
        "Decrements the integer value of a key by a number. Uses 0 if the key doesn't exist."),
    spec("del", -2, "write", ALL_KEYS, Store(data::del), "generic",
        "Deletes one or more keys."),
    spec("echo", 2, LOCAL, NO_KEY, Session(con::echo), "connection",
        "Returns the given string.").rest_at(1),
    spec("exists", -2, READ, ALL_KEYS, Store(data::exists), "generic",
        "Counts how many of the given keys exist."),
    spec("flushall", -1, "write", NO_KEY, Store(data::flushall), "server",
        "Removes all keys."),
    spec("get", 2, READ, ONE_KEY, Store(data::get), "string",
        "Returns the string value of a key."),
    spec("getdel", 2, "write fast", ONE_KEY, Store(data::getdel), "string",
        "Returns the string value of a key after deleting the key."),
    spec("getset", 3, WRITE, ONE_KEY, Store(data::getset), "string",
        "Returns the previous string value of a key after setting it to a new value.").rest_at(2),
    spec("hello", -1, NO_AUTH, NO_KEY, Session(con::hello), "connection",
        "Handshakes with the node and sets the version of the protocol."),
    spec("incr", 2, WRITE, ONE_KEY, Store(data::incr), "string",
        "Increments the integer value of a key by one. Uses 0 if the key doesn't exist."),
    spec("incrby", 3, WRITE, ONE_KEY, Store(data::incrby), "string",
        "Increments the integer value of a key by a number. Uses 0 if the key doesn't exist."),
    spec("info", -1, "loading stale", NO_KEY, Session(con::info), "server",
        "Returns information and statistics about the node."),
    spec("keys", 2, "readonly", NO_KEY, Store(data::keys), "generic",
        "Returns all key names that match a pattern."),
    spec("leader", 1, LOCAL, NO_KEY, Session(con::leader), "cluster",
        "Returns the id of the leader, or null if there is none."),
    spec("mget", -2, READ, ALL_KEYS, Store(data::mget), "string",
        "Returns the string values of one or more keys."),
    spec("mset", -3, "write denyoom", PAIRS, Store(data::mset), "string",
        "Sets the string values of one or more keys."),
    spec("nodes", 1, LOCAL, NO_KEY, Session(con::nodes), "cluster",
        "Returns the members of the cluster and their state."),
    spec("ping", -1, "fast", NO_KEY, Session(con::ping), "connection",
        "Returns PONG, or the given string.").rest_at(1),
    spec("quit", -1, NO_AUTH, NO_KEY, Session(con::quit), "connection",
        "Closes the connection."),
    spec("readonly", 1, LOCAL, NO_KEY, Session(con::readonly), "cluster",
        "Makes the reads of the connection eventual."),
    spec("readwrite", 1, LOCAL, NO_KEY, Session(con::readwrite), "cluster",
        "Ends READONLY: reads follow the connection's consistency mode again."),
    spec("reset", 1, NO_AUTH, NO_KEY, Session(con::reset), "connection",
        "Resets the connection."),
    spec("role", 1, "noscript loading stale fast", NO_KEY, Session(con::role), "server",
        "Returns the replication role."),
    spec("scan", -2, "readonly", NO_KEY, Store(data::scan), "generic",
        "Iterates over the key names in the database."),
    spec("select", 2, LOCAL, NO_KEY, Session(con::select), "connection",
        "Selects the database; 0 is the only one."),
    spec("set", -3, "write denyoom", ONE_KEY, Store(data::set), "string",
        "Sets the string value of a key, on request only if the key exists or doesn't.").rest_at(2),
    spec("setnx", 3, WRITE, ONE_KEY, Store(data::setnx), "string",
        "Sets the string value of a key only when the key doesn't exist.").rest_at(2),
    spec("strlen", 2, READ, ONE_KEY, Store(data::strlen), "string",
        "Returns the length of a string value."),
    spec("time", 1, LOCAL, NO_KEY, Session(con::time), "server",
        "Returns the node's time."),
    spec("type", 2, READ, ONE_KEY, Store(data::kind), "generic",
        "Determines the type of value stored at a key."),
    spec("unlink", -2, "write fast", ALL_KEYS, Store(data::del), "generic",
        "Deletes one or more keys."),
    spec("wait", 3, "noscript", NO_KEY, Session(con::wait), "generic",
        "Returns the number of other nodes that hold the connection's writes."),
    spec("with", -3, "movablekeys", NO_KEY, With, "generic",
        "Executes one store command in the given consistency mode."),
];

#[rustfmt::skip]
static CLIENT: &[CommandSpec] = &[
    spec("client|getname", 2, LOCAL, NO_KEY, Session(con::client_getname), "connection",
        "Returns the name of the connection."),
    spec("client|help", 2, LOCAL, NO_KEY, Catalog(cat::help), "connection",
        "Returns helpful text about the different subcommands."),
    spec("client|id", 2, LOCAL, NO_KEY, Session(con::client_id), "connection",
        "Returns the unique client ID of the connection."),
    spec("client|info", 2, LOCAL, NO_KEY, Session(con::client_info), "connection",
        "Returns information about the connection."),
    spec("client|list", -2, LOCAL, NO_KEY, Session(con::client_list), "connection",
        "Lists open connections."),
    spec("client|no-evict", 3, LOCAL, NO_KEY, Session(con::client_switch), "connection",
        "Has no effect: a node evicts no connections."),
    spec("client|no-touch", 3, LOCAL, NO_KEY, Session(con::client_switch), "connection",
        "Has no effect: reads leave no trace."),
    spec("client|setinfo", 4, LOCAL, NO_KEY, Session(con::client_setinfo), "connection",
        "Sets information specific to the client or connection."),
    spec("client|setname", 3, LOCAL, NO_KEY, Session(con::client_setname), "connection",
        "Sets the connection name."),
];

#[rustfmt::skip]
static COMMAND: &[CommandSpec] = &[
    spec("command|count", 2, LOCAL, NO_KEY, Catalog(cat::command_count), "server",
        "Returns a count of commands."),
    spec("command|docs", -2, LOCAL, NO_KEY, Catalog(cat::command_docs), "server",
        "Returns documentary information about one, multiple or all commands."),
    spec("command|help", 2, LOCAL, NO_KEY, Catalog(cat::help), "server",
        "Returns helpful text about the different subcommands."),
    spec("command|info", -2, LOCAL, NO_KEY, Catalog(cat::command_info), "server",
        "Returns information about one, multiple or all commands."),
    spec("command|list", -2, LOCAL, NO_KEY, Catalog(cat::command_list), "server",
        "Returns a list of command names."),
];

#[rustfmt::skip]
static CONFIG: &[CommandSpec] = &[
    spec("config|get", -3, "loading stale", NO_KEY, Session(con::config_get), "server",
        "Returns the effective values of configuration parameters."),
    spec("config|help", 2, LOCAL, NO_KEY, Catalog(cat::help), "server",
        "Returns helpful text about the different subcommands."),
];
