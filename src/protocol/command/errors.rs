//! Error replies that several commands share, in Redis's words.

use std::borrow::Cow;

use crate::protocol::args::Args;
use crate::protocol::reply::Reply;

/// Most bytes of a client's own words that an error repeats, as in Redis.
const EXCERPT_BYTES_MAX: usize = 128;

/// The arity error of command `name`.
pub(super) fn wrong_count(name: &str) -> Reply {
    Reply::error(format!("ERR wrong number of arguments for '{name}' command"))
}

pub(super) fn syntax_error() -> Reply {
    Reply::error("ERR syntax error")
}

pub(super) fn not_an_integer() -> Reply {
    Reply::error("ERR value is not an integer or out of range")
}

/// The part of a client's word that an error repeats.
pub(super) fn excerpt(word: &[u8]) -> Cow<'_, str> {
    excerpt_up_to(word, EXCERPT_BYTES_MAX)
}

fn excerpt_up_to(word: &[u8], bytes_max: usize) -> Cow<'_, str> {
    String::from_utf8_lossy(&word[..word.len().min(bytes_max)])
}

/// The error for a command that is not in the table.
pub fn unknown_command(args: Args<'_>) -> Reply {
    let mut quoted = String::new();
    for arg in args.rest(1) {
        if quoted.len() >= EXCERPT_BYTES_MAX {
            break;
        }
        let arg = excerpt_up_to(arg, EXCERPT_BYTES_MAX - quoted.len());
        quoted.extend(["'", &arg, "' "]);
    }
    let name = excerpt(args.at(0));
    Reply::error(format!("ERR unknown command '{name}', with args beginning with: {quoted}"))
}

/// The error for a subcommand that `family` does not have.
pub(super) fn unknown_subcommand(family: &str, name: &[u8]) -> Reply {
    let (name, family) = (excerpt(name), family.to_ascii_uppercase());
    Reply::error(format!("ERR unknown subcommand '{name}'. Try {family} HELP."))
}
