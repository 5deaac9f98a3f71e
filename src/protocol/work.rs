//! The work that a session hands to its driver.

use bytes::Bytes;

use crate::types::Write;

/// The next step of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Write the output, then read more bytes (the driver's `Next::Read` is the same need). While
    /// earlier work is in progress, finish that instead.
    Wait,
    /// Write the output, then call `next` again: the session makes no more output before.
    Flush,
    /// Propose a run with at least one write in it, then call `finish_write`.
    Write {
        /// Encoded [`Command`](crate::types::Command)s, one after the other, none of them a read of
        /// the whole store. The batch limits bound their number and size; a single longer command
        /// is a batch of its own.
        commands: Bytes,
        /// True if all of them are eventual writes that depend on the stored value (INCR, SET NX,
        /// GETSET, FLUSHALL, …). The driver then puts the node's own stamped writes to their keys,
        /// which the log may not hold yet, in front of them. False if none of them is eventual.
        eventual: bool,
    },
    /// Serve a run of strong reads: wait until the store may be read (ReadIndex, thesis §6.4), then
    /// call `finish_read`.
    Read,
    /// Have a run of eventual blind writes (SET without options, MSET, DEL, UNLINK) stamped, then
    /// call `finish_stamp`.
    Stamp {
        /// A write for each key of the commands, in their order, without a version yet. A key may
        /// come more than once: its last write is the newest. The batch limits bound them.
        writes: Vec<Write>,
    },
    /// Serve a run of eventual reads from the state of this node, without waiting, then call
    /// `finish_read`, as for `Read`.
    ReadLocal,
    /// Answer the question with `finish_ask`.
    Ask(Question),
    /// Write the output and close the connection.
    Close,
}

/// A question that only the node can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// INFO. The answer is `Verbatim`: lines `# Section` and `name:value`.
    Info {
        /// The wanted sections in lower case; none stands for the default ones.
        sections: Vec<String>,
    },
    /// LEADER. The answer is [`Reply::leader`](super::Reply::leader).
    Leader,
    /// NODES. The answer is an `Array` with a `Map` for each node.
    Nodes,
    /// ROLE. The answer is Redis's `Array`.
    Role,
    /// CLIENT LIST. The answer is `Verbatim`, a line for each connection.
    ClientList {
        /// The ids of the wanted connections; `None` for all.
        ids: Option<Vec<u64>>,
    },
    /// CLIENT INFO. The answer is `Verbatim`, this connection's line of CLIENT LIST.
    ClientInfo,
    /// TIME. The answer is [`Reply::time`](super::Reply::time).
    Time,
    /// WAIT. The answer is an `Integer`: the number of other nodes that hold this session's writes.
    Wait {
        /// The number of nodes that the client waits for; any number, as in Redis.
        replicas: i64,
        /// Longest wait in milliseconds; 0 for no bound.
        timeout_ms: u64,
    },
}
