//! # The simulator: a cluster in one thread, under virtual time
//!
//! [`run`](fn@run) builds a cluster of 1, 3, 5 or 7 nodes. Replicas, failure detectors, logs, image
//! files, stores, client sessions and the whole [`service`](crate::service) room between session
//! and replica are the server's own code. Clocks, disks, links, threads and clients are models. One
//! number, the seed, decides everything: the size of the cluster, all timings, the commands of the
//! clients, and which faults strike when. The same seed gives the same run, event for event, on
//! every machine; [`Report::trace_hash`] proves it. So no code here reads a real clock, and none
//! lets the order of a hash table decide anything.
//!
//! A run has three acts.
//!
//! 1. **Trouble.** Clients work while faults strike.
//! 2. **Calm.** Every fault is healed and every node restarts. Within a bounded time the node with
//!    the highest id must lead, every request must have its answer, each node must serve a fresh
//!    write and a fresh read, and all nodes must hold the same state.
//! 3. **Judgement.** All nodes lose power at once, and each must recover that state from its own
//!    disk. The history that the clients saw must be linearizable
//!    ([`crate::testing::linearizability`]).
//!
//! ## Files
//!
//! The files form layers. Each uses only files that stand above it in this table; `mutant` alone
//! uses the world as well. Handlers and checks are methods of `World`, in one file for each
//! subject.
//!
//! | layer | file | content |
//! |---|---|---|
//! | words | `trace` | the events of a run, as a hash and as lines |
//! | | `faults`, `mutant` | the kinds of faults; deliberate bugs |
//! | | `options`, `report` | the choices of the caller, the result of a run |
//! | | `link` | one direction between two nodes, and the messages on it |
//! | | `plan` | the world that a seed draws: sizes, timings, limits, habits |
//! | state | `oracle`, `promises` | the facts that checks remember: of Raft, of the eventual mode |
//! | | `log_model`, `disk` | the model of a log; a directory that can fail |
//! | | `storage` | the files that a process has under way |
//! | | `client_loop`, `connection` | the server's side of its clients |
//! | | `process` | one running node |
//! | | `workload` | clients, and the history of their requests |
//! | | `events` | everything that can happen |
//! | world | `cluster` | `World`: all of the above, virtual time, the event queue |
//! | handlers | `dispatch` | takes the next event and calls its handler |
//! | | `lifecycle`, `turns` | a process starts and ends; its threads take turns at its shell |
//! | | `sessions`, `loops` | real session drivers, whose requests join in real rounds |
//! | | `disk_work` | the threads that write the log, images and spare segments |
//! | | `network` | messages travel, links break and come back |
//! | | `clients` | clients send commands and read replies |
//! | | `strikes` | faults strike and end |
//! | checks | `invariants`, `eventual` | the promises that must hold after each step |
//! | | `ending` | calm and judgement |
//! | whole runs | `run`, `shrink` | one run; the smallest run that fails alike |
//!
//! ## Checked
//!
//! **After each step.** Raft's own properties (§5): a term has one leader; logs match; a leader
//! holds all that was committed before its term; a committed entry never changes, and is durable
//! on a majority when the first node learns of its commit and when a client gets its answer; a node
//! votes once in a term, whatever it has forgotten; terms and commit indexes never fall. Equal logs
//! give equal states, equal images, and equal digests at a checkpoint. A request is executed once
//! and has one reply. Only requests that a client waits for are pending. A linearizable read covers
//! all that was committed before it. A session reads its own eventual writes, and each is newer
//! than those before it; versions never fall; a disk drops only eventual writes that are in the
//! log. Memory and disk stay within their bounds. The replica's own check passes.
//!
//! **At each start.** The disk holds the synced records, or these and the ones that were being
//! written, and nothing else. A vote that has left its node is still there.
//!
//! **At each crash.** An acknowledged eventual write is lost only if no node has held it for a
//! second.
//!
//! **At the end.** The newest write to each key has won, and of one client's writes the later one.
//!
//! ## Modelled
//!
//! - Clients: several share a loop and their requests join in one round, or each has a thread of
//!   its own; a long list of eventual writes is stamped in parts; a request that grows beyond
//!   `request_bytes_max` is refused; clients read slowly, hang up, and send in pieces.
//! - Threads: each wakes up late, and may be held up between its turn at the shell and the rest of
//!   that turn. SIGSTOP, kill -9 and clean stops.
//! - Network: messages are late, lost, doubled and reordered; connections break, are refused and
//!   come back; partitions of all shapes.
//! - Disks: power fails at any change of a disk, in the middle of a batch, of an image that is
//!   written, received or renamed, and of a recovery; a minority loses its directories; bits flip
//!   in sealed segments and images; writes and syncs fail; disks are slow, stalled and full.
//! - Clocks: wall clocks differ and jump, monotonic clocks run at different speeds.
//!
//! ## Not modelled
//!
//! - Locks and real threads: a turn at a shell is one event. `node` has stress tests.
//! - The sockets of the front end: readiness, partial writes, limits on connections.
//! - The bytes of peers' frames, which `wire` fuzzes.
//! - Commands beside reads and writes of keys: INFO, WAIT that really waits, and their like.
//! - Damage to the end of a log, which looks like a torn write.
//! - The identity file of a directory, and its lock.
//! - Two faults of one disk at a time.
//!
//! ## Proof that it finds bugs
//!
//! Each [`Mutant`] is a deliberate bug that breaks one promise. `tests/simulation.rs` demands that
//! a run catches each of them.

mod client_loop;
mod clients;
mod cluster;
mod connection;
mod disk;
mod disk_work;
mod dispatch;
mod ending;
mod events;
mod eventual;
mod faults;
mod invariants;
mod lifecycle;
mod link;
mod log_model;
mod loops;
mod mutant;
mod network;
mod options;
mod oracle;
mod plan;
mod process;
mod promises;
mod report;
mod run;
mod sessions;
mod shrink;
mod storage;
mod strikes;
mod trace;
mod turns;
mod workload;

pub use faults::{Fault, Struck};
pub use mutant::Mutant;
pub use options::{Options, TraceDetail};
pub use report::{Coverage, NO_PANIC, Report, Violation};
pub use run::run;
pub use shrink::shrink;
