//! Clients' bytes ⇄ commands and replies. Pure: no socket, thread, lock or clock.
//!
//! # One port
//!
//! The first byte of a connection tells which protocol it speaks, for its whole life:
//!
//! - `*`: **RESP**, what every Redis client speaks, version 2 until HELLO asks for 3 (`resp`);
//! - anything else: the **line protocol**, for people with telnet or netcat and for scripts
//!   (`line`).
//!
//! (Other nodes dial the same port. They are recognised by their magic bytes before any session is
//! made, so they are no concern of this module.) Line breaks before the first byte are skipped.
//!
//! # The way of a request
//!
//! ```text
//! space() ─ bytes ─▶ input ─ resp | line ─▶ words ─ table of commands ─┬▶ reply ─────────────┐
//!                                                                      ├▶ question ─ driver ─┤
//!                                                                      └▶ run ─ driver ──────┤
//! output() ◀─ bytes ──────────────────────── resp | line ◀─────────────────────────── reply ─┘
//! ```
//!
//! Words are places in the receive buffer; nothing is copied before a command is encoded into its
//! run. There is one table of commands, in `command`, for both protocols. A session answers by
//! itself what it can (`command::connection`, `command::catalog`), asks the node what only a node
//! knows ([`Question`]), and collects what needs the store (`command::data`) into runs: a pipeline
//! of a thousand SETs is one proposal and one round trip.
//!
//! # Runs and order
//!
//! All commands of a run are served in one way, which the promise that the session has chosen
//! (CONSISTENCY, READONLY) or the command's own (WITH) decides together with what the command does:
//!
//! | promise | command | [`Work`] |
//! |---|---|---|
//! | strong | a run with a write in it | `Write`, one batch |
//! | strong | a run that only reads | `Read`, from the store once that is fresh enough |
//! | eventual | SET without options, MSET, DEL, UNLINK | `Accept`, by one node |
//! | eventual | every other write, FLUSHALL among them | `Write` with `eventual`, one batch |
//! | eventual | reads | `ReadLocal`, at what this node holds |
//!
//! In a strong batch the reads travel along, so that they see what was written before them and not
//! what comes after. Reads of the whole store (DBSIZE, KEYS, SCAN) are never put into the log and
//! make a run of their own. A command that is served in another way than the run before it, and
//! everything that is no store command, waits until that run is answered: within a pipeline every
//! command takes effect behind those before it, whatever the mode of each.
//!
//! A session's reads are eventual if the session is, or from READONLY to READWRITE; its writes only
//! if the session is. WITH outranks both, for one command. RESET goes back to
//! [`ServerInfo::consistency`].
//!
//! # Errors
//!
//! The first word of a RESP error is a contract: `CLUSTERDOWN` (no leader or no quorum), `TRYAGAIN`
//! (queue full, node stopping, clocks too far apart), `MISCONF` (disk full) and `LOADING` (node
//! joining) mean that nothing was done, `UNKNOWN` that it may or may not have been; `ERR`,
//! `NOAUTH`, `WRONGPASS` and `NOPROTO` are Redis's. After a protocol error the connection is
//! closed, since nothing behind it can be understood; any other error concerns its own command
//! only.
//!
//! # Left out
//!
//! Expiry (refused in words), other types than strings, transactions, publish and subscribe,
//! scripts, several databases and several users. Stamping, keeping and draining what eventual
//! sessions write is the node's affair.

mod args;
mod command;
mod conn_state;
mod input;
mod line;
mod number;
mod reply;
mod resp;
mod run;
mod server_info;
mod session;
mod work;

pub use conn_state::{Profile, Protocol};
pub use reply::Reply;
pub use server_info::{Limits, Password, ServerInfo};
pub use session::Session;
pub use work::{Question, Work};
