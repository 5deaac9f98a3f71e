//! A run: the store commands at the front of a pipeline that take one route together, as one write
//! batch, one request for stamps, or one read of the store.
//!
//! A run holds encoded [`Command`]s. A write batch has this form anyway; a read is decoded again
//! when its turn comes, so nothing points into the receive buffer while the driver is at work.
//! Reads of the whole store have no encoded form and make a run of their own. Blind writes to be
//! stamped are held as [`Write`]s, so that each value is copied once.

use bytes::Bytes;

use crate::codec::Reader;
use crate::protocol::command::ParsedCommand;
use crate::protocol::input::KEEP_BYTES;
use crate::protocol::reply::ReplyShape;
use crate::protocol::server_info::Limits;
use crate::types::{Command, Consistency, Key, Outcome, Write};

/// The way that all commands of a run take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Route {
    /// Strong: through the log, or if all are reads, to the store after a ReadIndex.
    #[default]
    Strong,
    /// Eventual writes that depend on the stored value: through the log.
    Update,
    /// Eventual blind writes: to the node that stamps them.
    Stamp,
    /// Eventual reads: to the state of this node, at once.
    ReadLocal,
}

impl Route {
    /// The route of `command` with this consistency.
    pub(super) fn of(command: &Command<'_>, consistency: Consistency) -> Route {
        match consistency {
            Consistency::Strong => Route::Strong,
            Consistency::Eventual if !command.is_write() => Route::ReadLocal,
            Consistency::Eventual if command.is_blind_write() => Route::Stamp,
            Consistency::Eventual => Route::Update,
        }
    }
}

/// The commands of one run, in order, with the shapes of their replies.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// The route of all its commands.
    route: Route,
    /// Encoded commands, one after the other.
    encoded: Vec<u8>,
    /// The offset in `encoded` of the first unanswered command.
    at: usize,
    /// The shape of each command's reply.
    shapes: Vec<ReplyShape>,
    /// Number of commands that have their reply.
    answered: usize,
    /// True if one of them is a write.
    has_write: bool,
    /// The single command of a run that reads the whole store.
    whole_read: Option<WholeStoreRead>,
    /// The writes of a run to be stamped.
    blind: BlindWrites,
}

/// The writes of blind commands, and the way back from writes to commands.
#[derive(Debug, Default)]
struct BlindWrites {
    /// The writes, until the driver takes them.
    writes: Vec<Write>,
    /// Their total length in encoded form.
    bytes: usize,
    commands: Vec<BlindCommand>,
    /// The first key of each command, kept if the replies name keys.
    keys: Vec<Key>,
}

#[derive(Debug)]
struct BlindCommand {
    /// Number of its writes, at least one.
    writes: usize,
    /// True for a deletion, whose outcome counts the keys that existed.
    deletes: bool,
}

impl BlindWrites {
    fn push(&mut self, command: &Command<'_>) {
        let before = self.writes.len();
        command.push_writes(&mut self.writes);
        let new = &self.writes[before..];
        self.bytes += new.iter().map(Write::encoded_len).sum::<usize>();
        let deletes = matches!(command, Command::Delete { .. });
        self.commands.push(BlindCommand { writes: new.len(), deletes });
    }

    fn clear(&mut self) {
        self.writes.clear();
        self.commands.clear();
        self.keys.clear();
        self.bytes = 0;
    }
}

/// A read of the whole store, with its own copy of the pattern.
#[derive(Debug)]
enum WholeStoreRead {
    Count,
    Keys { pattern: Vec<u8> },
    Scan { cursor: u64, pattern: Option<Vec<u8>>, count: u64 },
}

impl WholeStoreRead {
    fn command(&self) -> Command<'_> {
        match self {
            WholeStoreRead::Count => Command::Count,
            WholeStoreRead::Keys { pattern } => Command::Keys { pattern },
            WholeStoreRead::Scan { cursor, pattern, count } => {
                Command::Scan { cursor: *cursor, pattern: pattern.as_deref(), count: *count }
            }
        }
    }
}

impl Run {
    /// True if there are no commands.
    pub(super) fn is_empty(&self) -> bool {
        self.shapes.is_empty()
    }

    /// Number of commands, answered or not.
    pub(super) fn len(&self) -> usize {
        self.shapes.len()
    }

    /// True if some commands are answered and others are not.
    pub(super) fn is_under_way(&self) -> bool {
        self.answered > 0
    }

    /// True if one of the commands is a write.
    pub(super) fn has_write(&self) -> bool {
        self.has_write
    }

    /// The route of the commands.
    pub(super) fn route(&self) -> Route {
        self.route
    }

    /// Adds a command whose request was `len` bytes long. False if the command may not join: the
    /// run is full, takes another route, or either of them reads the whole store.
    pub(super) fn push(
        &mut self,
        parsed: &ParsedCommand<'_>,
        route: Route,
        len: usize,
        limits: &Limits,
    ) -> bool {
        // `len` stands for the encoded length: a command is no longer encoded than as a RESP
        // request, and only a few bytes longer than as a line; so are its writes.
        let is_full = self.shapes.len() >= limits.batch_commands_max
            || self.encoded.len() + self.blind.bytes + len > limits.batch_bytes_max;
        let is_alone = self.whole_read.is_some() || !parsed.command.is_loggable();
        // An empty run takes any command, so a single one may exceed the limits of a batch.
        if !self.is_empty() && (is_full || is_alone || route != self.route) {
            return false;
        }
        self.route = route;
        match &parsed.command {
            Command::Count => self.whole_read = Some(WholeStoreRead::Count),
            Command::Keys { pattern } => {
                self.whole_read = Some(WholeStoreRead::Keys { pattern: pattern.to_vec() });
            }
            Command::Scan { cursor, pattern, count } => {
                let pattern = pattern.map(<[u8]>::to_vec);
                self.whole_read =
                    Some(WholeStoreRead::Scan { cursor: *cursor, pattern, count: *count });
            }
            command if route == Route::Stamp => self.blind.push(command),
            command => {
                if len > KEEP_BYTES {
                    self.encoded.reserve_exact(len);
                }
                command.encode(&mut self.encoded);
                self.has_write |= command.is_write();
            }
        }
        self.shapes.push(parsed.shape);
        true
    }

    /// The encoded commands that are not answered yet.
    pub(super) fn unanswered(&self) -> &[u8] {
        &self.encoded[self.at..]
    }

    /// The commands as one write batch. With `keep` the run can still read them afterwards.
    pub(super) fn batch(&mut self, keep: bool) -> Bytes {
        // Copy a small batch: the log then holds exactly its bytes, and the buffer stays here for
        // the next run. Hand a large one over.
        if keep || self.encoded.len() <= KEEP_BYTES {
            Bytes::copy_from_slice(&self.encoded)
        } else {
            self.encoded.shrink_to_fit();
            Bytes::from(std::mem::take(&mut self.encoded))
        }
    }

    /// Takes the writes of a run to be stamped. With `keep` the replies can name their keys.
    pub(super) fn take_writes(&mut self, keep: bool) -> Vec<Write> {
        let BlindWrites { writes, commands, keys, .. } = &mut self.blind;
        if keep {
            let mut at = 0;
            for command in commands {
                // A copy: a second reference would prevent stamping the write in place.
                keys.push(Key::from(&writes[at].key[..]));
                at += command.writes;
            }
        }
        std::mem::take(writes)
    }

    /// The outcomes of the commands of a stamped run. `existed` tells for each write whether its
    /// key existed before.
    pub(super) fn stamped_outcomes(&self, mut existed: &[bool]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(self.blind.commands.len());
        for command in &self.blind.commands {
            let Some((own, others)) = existed.split_at_checked(command.writes) else {
                break;
            };
            existed = others;
            outcomes.push(if command.deletes {
                Outcome::Integer(own.iter().filter(|&&existed| existed).count() as i64)
            } else {
                Outcome::Done
            });
        }
        outcomes
    }

    /// The next command to answer, and its shape. After [`Run::batch`] only if that kept it.
    pub(super) fn next_command(&mut self) -> Option<(Command<'_>, ReplyShape)> {
        let shape = *self.shapes.get(self.answered)?;
        self.answered += 1;
        if let Some(read) = &self.whole_read {
            return Some((read.command(), shape));
        }
        let mut reader = Reader::new(&self.encoded[self.at..]);
        let command = Command::decode(&mut reader).expect("the run holds what was encoded");
        self.at = self.encoded.len() - reader.rest().len();
        Some((command, shape))
    }

    /// The shape of the next command to answer and, with `with_key`, the key if it is a SET.
    pub(super) fn next_write(&mut self, with_key: bool) -> Option<(ReplyShape, Option<&[u8]>)> {
        // Only the line protocol repeats the key; RESP need not decode the command again.
        if !with_key {
            return self.next_shape().map(|shape| (shape, None));
        }
        if self.route == Route::Stamp {
            let index = self.answered;
            let shape = self.next_shape()?;
            return Some((shape, self.blind.keys.get(index).map(|key| &key[..])));
        }
        let (command, shape) = self.next_command()?;
        match command {
            Command::Set { key, .. } => Some((shape, Some(key))),
            _ => Some((shape, None)),
        }
    }

    /// The shape of the next command to answer.
    pub(super) fn next_shape(&mut self) -> Option<ReplyShape> {
        let shape = *self.shapes.get(self.answered)?;
        self.answered += 1;
        Some(shape)
    }

    /// Empties the run if all its commands are answered. True if it did.
    pub(super) fn finish(&mut self) -> bool {
        let finished = self.answered == self.shapes.len();
        if finished {
            self.encoded.clear();
            self.encoded.shrink_to(KEEP_BYTES);
            self.shapes.clear();
            (self.at, self.answered) = (0, 0);
            (self.has_write, self.whole_read) = (false, None);
            self.blind.clear();
        }
        finished
    }
}
