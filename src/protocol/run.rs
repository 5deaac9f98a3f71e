//! The store commands at the front of a pipeline that are served together: one write batch, or one
//! turn at the store.
//!
//! A run is kept as encoded [`Command`]s. That is what a write batch has to be anyway; a read is
//! decoded again when its turn comes, so nothing points into the receive buffer while the driver is
//! busy. Reads of the whole store have no encoded form and make a run of their own.

use bytes::Bytes;

use super::Limits;
use super::command::Order;
use super::input::KEEP_BYTES;
use super::reply::Shape;
use crate::codec::Reader;
use crate::types::Command;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// Encoded commands, one after the other.
    encoded: Vec<u8>,
    /// Where in `encoded` the first unanswered command begins.
    at: usize,
    /// How the outcome of each command is shown.
    shapes: Vec<Shape>,
    /// How many have their answer.
    answered: usize,
    /// True if one of them is a write.
    writes: bool,
    /// The one command of a run that reads the whole store.
    whole: Option<Whole>,
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

    /// True if some of the commands have their answer and some have not.
    pub(super) fn is_under_way(&self) -> bool {
        self.answered > 0
    }

    /// True if there is a write among the commands.
    pub(super) fn writes(&self) -> bool {
        self.writes
    }

    /// Adds a command whose request was `len` bytes long, if the run has room for it and it may
    /// share one. An empty run takes any command.
    pub(super) fn push(&mut self, order: &Order<'_>, len: usize, limits: &Limits) -> bool {
        // Encoded a command takes no more room than as a RESP request; on a line a few bytes more.
        let full = self.shapes.len() >= limits.batch_commands_max
            || self.encoded.len() + len > limits.batch_bytes_max;
        let alone = self.whole.is_some() || !order.command.is_loggable();
        if !self.is_empty() && (full || alone) {
            return false;
        }
        match &order.command {
            Command::Count => self.whole = Some(Whole::Count),
            Command::Keys { pattern } => {
                self.whole = Some(Whole::Keys { pattern: pattern.to_vec() });
            }
            Command::Scan { cursor, pattern, count } => {
                let pattern = pattern.map(<[u8]>::to_vec);
                self.whole = Some(Whole::Scan { cursor: *cursor, pattern, count: *count });
            }
            command => {
                if len > KEEP_BYTES {
                    self.encoded.reserve_exact(len);
                }
                command.encode(&mut self.encoded);
                self.writes |= command.is_write();
            }
        }
        self.shapes.push(order.shape);
        true
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

    /// The next command to answer, as [`Run::batch`] kept it, and its shape.
    pub(super) fn next_command(&mut self) -> Option<(Command<'_>, Shape)> {
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

    /// The shape of the next command to answer, when the command itself is of no interest.
    pub(super) fn next_shape(&mut self) -> Option<Shape> {
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
        }
        finished
    }
}
