//! The store commands at the front of a pipeline that are served together, in one way: one write
//! batch, one handful of writes to accept, or one turn at the store.
//!
//! A run is kept as encoded [`Command`]s. That is what a write batch has to be anyway; a read is
//! decoded again when its turn comes, so nothing points into the receive buffer while the driver is
//! busy. Reads of the whole store have no encoded form and make a run of their own. Blind writes to
//! be accepted are kept as the [`Write`]s that they stand for, so that a value is copied once.

use bytes::Bytes;

use super::Limits;
use super::command::ParsedCommand;
use super::input::KEEP_BYTES;
use super::reply::ReplyShape;
use crate::codec::Reader;
use crate::types::{Command, Consistency, Key, Outcome, Write};

/// Who serves a run. Commands that are served in different ways never share one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Service {
    /// The log; or the store, once that is fresh enough, if there are only reads.
    #[default]
    Strong,
    /// The log, for what an eventual session writes depending on what is there.
    Update,
    /// The node that accepts an eventual session's blind writes.
    Stamp,
    /// What the node asked holds, at once.
    ReadLocal,
}

impl Service {
    /// Who serves `command` under this promise.
    pub(super) fn of(command: &Command<'_>, consistency: Consistency) -> Service {
        match consistency {
            Consistency::Strong => Service::Strong,
            Consistency::Eventual if !command.is_write() => Service::ReadLocal,
            Consistency::Eventual if command.is_blind_write() => Service::Stamp,
            Consistency::Eventual => Service::Update,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// How all of its commands are served.
    service: Service,
    /// Encoded commands, one after the other.
    encoded: Vec<u8>,
    /// Where in `encoded` the first unanswered command begins.
    at: usize,
    /// How the outcome of each command is shown.
    shapes: Vec<ReplyShape>,
    /// How many have their answer.
    answered: usize,
    /// True if one of them is a write.
    writes: bool,
    /// The one command of a run that reads the whole store.
    whole: Option<Whole>,
    /// The writes of a run to be accepted.
    blind: Blind,
}

/// Commands as the writes that they stand for.
#[derive(Debug, Default)]
struct Blind {
    /// Until they are handed out.
    writes: Vec<Write>,
    /// How many bytes they would have in encoded form.
    bytes: usize,
    /// What each command is made of.
    parts: Vec<Part>,
    /// The first key of each command, if the answers are to name keys.
    keys: Vec<Key>,
}

#[derive(Debug)]
struct Part {
    /// How many writes, at least one.
    writes: usize,
    /// True if it deletes, so that its outcome is how many of its keys there were.
    deletes: bool,
}

impl Blind {
    fn push(&mut self, command: &Command<'_>) {
        let before = self.writes.len();
        command.push_writes(&mut self.writes);
        let new = &self.writes[before..];
        self.bytes += new.iter().map(Write::encoded_len).sum::<usize>();
        let deletes = matches!(command, Command::Delete { .. });
        self.parts.push(Part { writes: new.len(), deletes });
    }

    fn clear(&mut self) {
        self.writes.clear();
        self.parts.clear();
        self.keys.clear();
        self.bytes = 0;
    }
}

/// A read of the whole store, with its own copy of the pattern.
#[derive(Debug)]
enum Whole {
    Count,
    Keys { pattern: Vec<u8> },
    Scan { cursor: u64, pattern: Option<Vec<u8>>, count: u64 },
}

impl Whole {
    fn command(&self) -> Command<'_> {
        match self {
            Whole::Count => Command::Count,
            Whole::Keys { pattern } => Command::Keys { pattern },
            Whole::Scan { cursor, pattern, count } => {
                Command::Scan { cursor: *cursor, pattern: pattern.as_deref(), count: *count }
            }
        }
    }
}

impl Run {
    /// True if no command is waiting for its answer.
    pub(super) fn is_empty(&self) -> bool {
        self.shapes.is_empty()
    }

    /// How many commands there are, answered or not.
    pub(super) fn len(&self) -> usize {
        self.shapes.len()
    }

    /// True if some of the commands have their answer and some have not.
    pub(super) fn is_under_way(&self) -> bool {
        self.answered > 0
    }

    /// True if there is a write among the commands.
    pub(super) fn writes(&self) -> bool {
        self.writes
    }

    /// How the commands are served.
    pub(super) fn service(&self) -> Service {
        self.service
    }

    /// Adds a command whose request was `len` bytes long, if the run has room for it, is served in
    /// the same way, and the command may share one. An empty run takes any command.
    pub(super) fn push(
        &mut self,
        parsed: &ParsedCommand<'_>,
        service: Service,
        len: usize,
        limits: &Limits,
    ) -> bool {
        // Encoded a command takes no more room than as a RESP request; on a line a few bytes more,
        // and so do the writes that it stands for.
        let full = self.shapes.len() >= limits.batch_commands_max
            || self.encoded.len() + self.blind.bytes + len > limits.batch_bytes_max;
        let alone = self.whole.is_some() || !parsed.command.is_loggable();
        if !self.is_empty() && (full || alone || service != self.service) {
            return false;
        }
        self.service = service;
        match &parsed.command {
            Command::Count => self.whole = Some(Whole::Count),
            Command::Keys { pattern } => {
                self.whole = Some(Whole::Keys { pattern: pattern.to_vec() });
            }
            Command::Scan { cursor, pattern, count } => {
                let pattern = pattern.map(<[u8]>::to_vec);
                self.whole = Some(Whole::Scan { cursor: *cursor, pattern, count: *count });
            }
            command if service == Service::Stamp => self.blind.push(command),
            command => {
                if len > KEEP_BYTES {
                    self.encoded.reserve_exact(len);
                }
                command.encode(&mut self.encoded);
                self.writes |= command.is_write();
            }
        }
        self.shapes.push(parsed.shape);
        true
    }

    /// The encoded commands that have no answer yet.
    pub(super) fn unanswered(&self) -> &[u8] {
        &self.encoded[self.at..]
    }

    /// The commands as one write batch. A small batch is copied, so that the log holds no more
    /// memory than it needs and the buffer stays for the next one; a large one is handed over,
    /// unless `keep` says that the commands will be looked at again.
    pub(super) fn batch(&mut self, keep: bool) -> Bytes {
        if keep || self.encoded.len() <= KEEP_BYTES {
            Bytes::copy_from_slice(&self.encoded)
        } else {
            self.encoded.shrink_to_fit();
            Bytes::from(std::mem::take(&mut self.encoded))
        }
    }

    /// The writes of a run to be accepted. With `keep` the answers can name their keys.
    pub(super) fn take_writes(&mut self, keep: bool) -> Vec<Write> {
        let Blind { writes, parts, keys, .. } = &mut self.blind;
        if keep {
            let mut at = 0;
            for part in parts {
                // A copy: a share would keep the write from being stamped in place.
                keys.push(Key::from(&writes[at].key[..]));
                at += part.writes;
            }
        }
        std::mem::take(writes)
    }

    /// What the commands of an accepted run came to, by what is known of each write: whether its
    /// key existed before.
    pub(super) fn accepted(&self, mut existed: &[bool]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(self.blind.parts.len());
        for part in &self.blind.parts {
            let Some((own, others)) = existed.split_at_checked(part.writes) else {
                break;
            };
            existed = others;
            outcomes.push(if part.deletes {
                Outcome::Integer(own.iter().filter(|&&existed| existed).count() as i64)
            } else {
                Outcome::Done
            });
        }
        outcomes
    }

    /// The next command to answer, as [`Run::batch`] kept it, and its shape.
    pub(super) fn next_command(&mut self) -> Option<(Command<'_>, ReplyShape)> {
        let shape = *self.shapes.get(self.answered)?;
        self.answered += 1;
        if let Some(whole) = &self.whole {
            return Some((whole.command(), shape));
        }
        let mut reader = Reader::new(&self.encoded[self.at..]);
        let command = Command::decode(&mut reader).expect("the run holds what was encoded");
        self.at = self.encoded.len() - reader.rest().len();
        Some((command, shape))
    }

    /// The shape of the next command to answer and, with `named`, the key if it is a SET. Only a
    /// line repeats the key, so only then it is worth looking at the command again.
    pub(super) fn next_told(&mut self, named: bool) -> Option<(ReplyShape, Option<&[u8]>)> {
        if !named {
            return self.next_shape().map(|shape| (shape, None));
        }
        if self.service == Service::Stamp {
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

    /// The shape of the next command to answer, when the command itself is of no interest.
    pub(super) fn next_shape(&mut self) -> Option<ReplyShape> {
        let shape = *self.shapes.get(self.answered)?;
        self.answered += 1;
        Some(shape)
    }

    /// Makes room for the next run if all commands have their answer.
    pub(super) fn finish(&mut self) -> bool {
        let finished = self.answered == self.shapes.len();
        if finished {
            self.encoded.clear();
            self.encoded.shrink_to(KEEP_BYTES);
            self.shapes.clear();
            (self.at, self.answered) = (0, 0);
            (self.writes, self.whole) = (false, None);
            self.blind.clear();
        }
        finished
    }
}
