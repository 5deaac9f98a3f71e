//! The client protocols: bytes to commands, replies to bytes. Pure: no socket, thread or clock.
//!
//! # One port
//!
//! The first byte of a connection decides its protocol for its whole life:
//!
//! - `*`: **RESP**, what every Redis client speaks, version 2 until HELLO asks for 3 (`resp`);
//! - anything else: the **line protocol**, for people with telnet or netcat and for scripts
//!   (`line`).
//!
//! Peers dial the same port; the node recognises them by their magic bytes before it makes a
//! session. Line breaks before the first byte are skipped.
//!
//! # The path of a request
//!
//! ```text
//! space() ─ bytes ─▶ input ─ resp | line ─▶ words ─ admission ─┬▶ reply ─────────────┐
//!                                                              ├▶ question ─ driver ─┤
//!                                                              └▶ run ─ driver ──────┤
//! output() ◀─ bytes ──────────────────────── resp | line ◀─────────────────── reply ─┘
//! ```
//!
//! Words are spans of the receive buffer; nothing is copied before a command is encoded into its
//! run. One table of commands, in `command`, serves both protocols; `admission` decides whether the
//! client may call the command that the words name. The session answers commands about itself
//! (`command::connection`) and about the table (`command::catalog`). It asks the node what only a
//! node can answer ([`Question`]), and collects commands that need the store (`command::data`) into
//! runs: a pipeline of a thousand SETs is one proposal and one round trip.
//!
//! Imports go one way: `args number` ← `resp` ← `conn_state` ← `command` ← `admission line run` ←
//! `session`; `reply work server_info input` import none of these.
//!
//! # Runs and order
//!
//! All commands of a run take one route. The consistency of the session (CONSISTENCY, READONLY) or
//! of the command (WITH) and the kind of the command decide it:
//!
//! | consistency | command | [`Work`] |
//! |---|---|---|
//! | strong | a run with a write in it | `Write`, one batch |
//! | strong | a run of reads | `Read`, from the store after a ReadIndex |
//! | eventual | SET without options, MSET, DEL, UNLINK | `Stamp`, by one node |
//! | eventual | every other write, FLUSHALL included | `Write` with `eventual`, one batch |
//! | eventual | reads | `ReadLocal`, from the state of this node |
//!
//! In a strong batch the reads travel through the log with the writes, so that they see the writes
//! before them and none behind them. Reads of the whole store (DBSIZE, KEYS, SCAN) never enter the
//! log and make a run of their own. A command with another route than the run before it, and every
//! command that is no store command, waits until that run is answered: within a pipeline every
//! command takes effect after those before it, in any mix of modes.
//!
//! The reads of a session are eventual if the session is, and from READONLY to READWRITE; its
//! writes only if the session is. WITH outranks both, for one command. RESET restores
//! [`ServerInfo::consistency`].
//!
//! # Errors
//!
//! The first word of a RESP error is a contract: `CLUSTERDOWN` (no leader or no quorum), `TRYAGAIN`
//! (queue full, node stopping, clocks too far apart), `MISCONF` (disk full) and `LOADING` (node
//! joining) mean that the command is certainly not done, `UNKNOWN` that it may or may not be done;
//! `ERR`, `NOAUTH`, `WRONGPASS` and `NOPROTO` are Redis's. A protocol error closes the connection,
//! because nothing behind it can be understood; any other error concerns its own command only.
//!
//! # Left out
//!
//! Expiry (refused with an error), types other than strings, transactions, publish and subscribe,
//! scripts, several databases and several users. The node stamps, keeps and drains the writes of
//! eventual sessions.

mod admission;
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
