//! The one table of commands, which serves both protocols and answers COMMAND.
//!
//! A new command is one row in [`table`] and one function: in `data` if it needs the store, in
//! `connection` if it concerns the session or asks the node, in `catalog` if it describes the
//! table itself.
//!
//! Imports go one way: `spec` and `errors` know no command, the handlers in `data`, `connection`
//! and `catalog` use them, and `table` names the handlers. Only `catalog` needs the finished
//! table; it gets it as an argument.

mod catalog;
mod connection;
mod data;
mod errors;
mod spec;
mod table;

pub(super) use connection::parse_consistency;
pub(super) use errors::unknown_command;
pub(super) use spec::{CommandSpec, Handler, ParsedCommand, Response, WITH_WORDS};
pub(super) use table::{TABLE, find};

#[cfg(test)]
mod tests;
