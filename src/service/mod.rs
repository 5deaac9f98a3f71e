//! # Between session and replica
//!
//! A pure room: no thread, no lock, no socket, no clock. A node runs it behind one lock and with
//! real queues (`node/core.rs`, `node/clients`), the simulator under virtual time
//! (`testing/sim/turns.rs`, `testing/sim/sessions.rs`, `testing/sim/loops.rs`). So the simulator
//! tries the code that serves clients. It does not run the wait of `--io threads`
//! (`Core::ask_and_wait` and its `Waiter`), nor the last answers of a node that ends
//! (`Shell::cancel_all`, `ParkedReads::refuse_all`): the tests of `node` do, with threads.
//!
//! ```text
//!   client bytes
//!        │
//!   protocol::Session ◀──▶ SessionDriver ──Request──▶ Rounds ──ask──▶ Shell ──step──▶ Replica
//!                               ▲                       │               │                │
//!                               └───────── Share ◀──────┴─── Inbox ◀── AfterStep ◀── Effects
//!                                                                       │
//!                                                   Outside: persist, post, pull, apply, poke
//! ```
//!
//! | file | idea |
//! |---|---|
//! | `driver` | one client: its session's work becomes requests, answers become replies |
//! | `rounds` | the clients of a loop: their requests join, an answer is split among them |
//! | `shell` | one node: steps the replica, keeps its waiting requests, routes effects |
//! | `completion` | answers and their addresses; why three tables keep a waiting request |
//! | `parked_reads` | reads that wait until their index is applied |
//! | `outside` | what a node or a simulator does for the shell |
//! | `wait` | the command WAIT |

mod completion;
mod driver;
mod outside;
mod parked_reads;
mod rounds;
mod shell;
mod wait;

pub use completion::{
    Answer, Answers, Consequence, Inbox, ReplyTo, Share, Superseded, Ticket, consequence,
    own_request,
};
pub use driver::{Kind, Next, NodeView, SessionDriver};
pub use outside::{ApplyWork, Outside};
pub use parked_reads::ParkedReads;
pub use rounds::{Member, Rounds, Settled};
pub use shell::{AfterStep, Failure, Request, RequestHandle, Shell, Taken};
pub use wait::{WAIT_STEP, Wait};
