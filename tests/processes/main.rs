//! The program as users run it: real processes, real sockets, real files.
//!
//! Tests run side by side, as many as there are processors. A test that measures time or loads the
//! machine runs alone ([`common::alone`]); every other test calls [`common::shared`].

mod bad_input;
mod bench_command;
mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod redis_client;
mod sim_command;
mod stress;
mod verify;
