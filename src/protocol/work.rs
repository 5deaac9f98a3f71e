//! What a session wants from its driver.

use bytes::Bytes;

use crate::types::Write;

/// What the driver has to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Write the output, then read more bytes; or, while earlier work is under way, finish that.
    Wait,
    /// Write the output before more of it is made, then call `next` again.
    Flush,
    /// Propose this run of a pipeline, which holds at least one write; then `finish_write`.
    Write {
        /// Encoded [`Command`](crate::types::Command)s, one after the other, none of them a read of
        /// the whole store. The batch limits bound their number and size; a single longer command
        /// is a batch of its own.
        commands: Bytes,
        /// True if all of them are commands of an eventual context that write depending on what is
        /// there (INCR, SET NX, GETSET, FLUSHALL, …). What the node asked has accepted for their
        /// keys, and the log may not have yet, belongs in front of them. False if none of them is.
        eventual: bool,
    },
    /// Serve a run that only reads: wait until the store may be read (ReadIndex, thesis §6.4), then
    /// `finish_read`.
    Read,
    /// Have a run of blind writes of an eventual context (SET without options, MSET, DEL, UNLINK)
    /// stamped and accepted; then `finish_stamp`.
    Stamp {
        /// One for each key named, in the order of the commands, not stamped yet. A key may come
        /// more than once: the last of its writes is the newest. The limits of a batch bound them.
        writes: Vec<Write>,
    },
    /// Serve a run that only reads, in an eventual context: from what this node holds, without
    /// waiting. Then `finish_read`, as for `Read`.
    ReadLocal,
    /// Answer this, with `finish_ask`.
    Ask(Question),
    /// Write the output and close the connection.
    Close,
}

/// What only the node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// INFO. The answer is `Verbatim`: lines `# Section` and `name:value`.
    Info {
        /// Sections in lower case, as the client gave them; none for the usual ones.
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
        /// Only the connections with these ids; `None` for all.
        ids: Option<Vec<u64>>,
    },
    /// CLIENT INFO. The answer is `Verbatim`, this connection's line of CLIENT LIST.
    ClientInfo,
    /// TIME. The answer is [`Reply::time`](super::Reply::time).
    Time,
    /// WAIT. The answer is an `Integer`: how many other nodes hold this session's writes.
    Wait {
        /// How many nodes the client would like to wait for; any number, as Redis takes it.
        replicas: i64,
        /// How long to wait at most, in milliseconds; 0 for no bound.
        timeout_ms: u64,
    },
}
