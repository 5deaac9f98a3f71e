//! NodeSync is a fault-tolerant replicated key-value store: one binary, N equal nodes, and no async
//! runtime. This page is the guide to its code.
//!
//! **Threads wait, the replica decides, the disk speaks first.** Each dedicated thread waits for
//! one thing: a client, a peer, a deadline, a disk. One pure value, [`replica::Replica`], makes
//! every decision and never waits. A node sends no promise of durability before its write-ahead log
//! has synced.
//!
//! ```text
//!  client bytes ──▶ protocol::Session ──▶ ┌──────────────────┐ ──▶ wal ──▶ disk
//!                                         │ service          │
//!  peer bytes ────▶ wire::FrameReader ──▶ │  one lock around │ ──▶ wire ──▶ peers
//!                                         │ replica::Replica │
//!  deadlines ───────────────────────────▶ └──────────────────┘ ──▶ store ──▶ replies
//! ```
//!
//! # The public face
//!
//! A program that embeds a node needs three names: [`config::Config`], [`node::Node`] and
//! [`node::Stop`], with [`node::Fatal`] for the reasons why a node ends. A program that talks to a
//! cluster needs [`client::Client`]. The other modules are public for the project's own tests and
//! benches, and promise nothing; `RUSTDOCFLAGS="--cfg house" cargo doc` documents them too.
//!
//! # The rooms
//!
//! | room | what it holds |
//! |---|---|
//! | `types`, `codec`, `clock`, `rng` | words of every room: entries, bytes, time, chance |
//! | `replica` | Raft and the eventual mode as one pure state machine: inputs in, effects out |
//! | `store` | the replicated state: base, overlay, images, the table of applied requests |
//! | `wal` | the write-ahead log, images on disk, the data directory, recovery |
//! | `wire` | frames between peers, and their handshake |
//! | `protocol` | client bytes to commands and replies to bytes, RESP and lines |
//! | `service` | between a session and the replica, pure: which client waits for which answer |
//! | `node` | threads, channels, sockets: the only room that waits |
//! | `testing` | the simulator, the linearizability checker, a disk in memory |
//! | `tools` | `nodesync bench`, `nodesync verify`, `nodesync sim` |
//! | `config` | command line and environment to the settings of a node |
//! | `client` | a blocking client of a cluster; uses no other room |
//!
//! A room uses only rooms below it, never one beside or above:
//!
//! ```text
//! types codec clock rng  ←  replica  ←  store  wal  wire
//! types codec            ←  protocol
//! types                  ←  config
//! replica protocol store ←  service
//! all of these           ←  node
//! all but node, config   ←  testing
//! what node may, client, testing  ←  tools
//! ```
//!
//! Only `node` and `tools` name threads, channels and sockets (and [`client`], which is a socket).
//! Only the disk and the data directory of `wal`, and `tools`, name files; beside them, `config`
//! reads the password file, and `node/info.rs` reads `/proc`. Only `clock` reads a real clock for
//! the rooms below `node`. `replica` and `service` depend on nothing but their inputs, so that the
//! simulator runs the very code of the server. `tests/tidy.rs` checks all of this.
//!
//! The feature `tools` (default) holds `tools` and `testing`. `--no-default-features` builds the
//! server alone.
//!
//! # Where to begin
//!
//! Read `types`, then `replica` with its essay `replica::raft`, then `node` with the map of its
//! threads. `docs/architecture.md` walks through the rooms five times, function by function.
//! `CONTRIBUTING.md` says how to build, test and change the code.

#![warn(clippy::unwrap_used)]

pub mod client;
pub mod config;
pub mod node;

// Public for the project's own tests and benches alone.
#[cfg_attr(not(house), doc(hidden))]
pub mod clock;
#[cfg_attr(not(house), doc(hidden))]
pub mod codec;
#[cfg_attr(not(house), doc(hidden))]
pub mod protocol;
#[cfg_attr(not(house), doc(hidden))]
pub mod replica;
#[cfg_attr(not(house), doc(hidden))]
pub mod rng;
#[cfg_attr(not(house), doc(hidden))]
pub mod service;
#[cfg_attr(not(house), doc(hidden))]
pub mod store;
#[cfg(any(test, feature = "tools"))]
#[cfg_attr(not(house), doc(hidden))]
pub mod testing;
#[cfg(feature = "tools")]
#[cfg_attr(not(house), doc(hidden))]
pub mod tools;
#[cfg_attr(not(house), doc(hidden))]
pub mod types;
#[cfg_attr(not(house), doc(hidden))]
pub mod wal;
#[cfg_attr(not(house), doc(hidden))]
pub mod wire;
