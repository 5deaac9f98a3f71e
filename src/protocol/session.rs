//! One client connection as a value: bytes go in; work for the node and bytes for the client come
//! out. A session waits for nothing and knows neither sockets nor time, so a blocking thread and a
//! loop that serves many connections drive the same code.
//!
//! The driver's loop:
//!
//! ```text
//! loop {
//!     match session.next() {
//!         Wait              => write output(), clear it; read into space(), then filled(n)
//!         Flush             => write output(), clear it
//!         Write { .. }      => propose the commands, then finish_write(outcomes, leader)
//!         Read              => wait for a ReadIndex, then finish_read(access to the store)
//!         Stamp { writes }  => have them stamped, then finish_stamp(existed, stamper)
//!         ReadLocal         => finish_read(access to the state of this node)
//!         Ask(question)     => finish_ask(answer)
//!         Close             => write output(), close
//!     }
//! }
//! ```
//!
//! Rules:
//! - Replies leave in the order of the requests. Neighbouring store commands with the same route
//!   share a run; any other request (PING, a wrong argument, INFO, CONSISTENCY) stays unread until
//!   the run before it is answered, and takes effect only then.
//! - One piece of work at a time: until it is finished, `next` returns `Wait`.
//! - [`Limits`](crate::protocol::Limits) and the bytes that the client has sent bound the memory.
//!   The driver holds back a client that does not read its replies: it calls `next` only when the
//!   output is written.

use std::sync::Arc;

use crate::protocol::admission::{Call, admit};
use crate::protocol::args::{Args, Span};
use crate::protocol::command::{self, CommandSpec, Handler, Response};
use crate::protocol::conn_state::{ConnState, Profile, Protocol};
use crate::protocol::input::{InputBuffer, KEEP_BYTES};
use crate::protocol::line::{self, BadLine, Lines};
use crate::protocol::reply::{Reply, ReplyShape};
use crate::protocol::resp::{self, Parser};
use crate::protocol::run::{Route, Run};
use crate::protocol::server_info::{Limits, ServerInfo};
use crate::protocol::work::{Question, Work};
use crate::types::{Command, NodeId, Outcome, Unknown, Unserved};

/// One client connection. The module's text shows the loop that drives it.
pub struct Session {
    conn: ConnState,
    input: InputBuffer,
    /// The words of the request at the front of the input.
    words: Vec<Span>,
    parser: Parser,
    lines: Lines,
    run: Run,
    in_progress: InProgress,
    /// Results of writes whose replies are not written yet, because the output was full.
    unreplied: Option<WriteResults>,
    output: Vec<u8>,
}

/// The work that the driver has taken and not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InProgress {
    Nothing,
    Write,
    Stamp,
    Read,
    Ask(ReplyShape),
}

/// The outcomes of writes.
struct WriteResults {
    outcomes: std::vec::IntoIter<Outcome>,
    /// The node that leads, or for eventual writes the node that stamped them.
    by: Option<NodeId>,
}

/// The result of taking the request at the front of the input.
enum Taken {
    /// It is answered, or has joined the run.
    Done,
    /// It stays where it is: incomplete, or behind a run that must be answered first.
    NotYet,
    /// The node must answer it.
    Ask(Question),
}

impl Session {
    /// A new connection. `id` is its number on this node, which CLIENT ID returns.
    pub fn new(id: u64, server_info: Arc<ServerInfo>) -> Session {
        Session {
            conn: ConnState::new(id, server_info),
            input: InputBuffer::default(),
            words: Vec::new(),
            parser: Parser::default(),
            lines: Lines::default(),
            run: Run::default(),
            in_progress: InProgress::Nothing,
            unreplied: None,
            output: Vec::new(),
        }
    }

    /// The free space for the client's bytes, at least 4 KiB; ask for it before each read. It grows
    /// for a large value only as the value's bytes arrive, and shrinks afterwards.
    pub fn space(&mut self) -> &mut [u8] {
        if self.output.is_empty() {
            self.output.shrink_to(KEEP_BYTES);
        }
        if self.words.is_empty() {
            self.words.shrink_to(KEEP_BYTES / size_of::<Span>());
        }
        self.input.space(self.parser.needed())
    }

    /// Adds the first `len` bytes of the space to the input.
    ///
    /// # Panics
    /// If the space was shorter.
    pub fn filled(&mut self, len: usize) {
        self.input.filled(len);
    }

    /// The next work for the driver. Call it until it returns `Wait` or `Close`.
    #[expect(clippy::should_implement_trait, reason = "a session is no iterator: it never ends")]
    pub fn next(&mut self) -> Work {
        if self.in_progress != InProgress::Nothing {
            return Work::Wait;
        }
        self.reply_to_writes();
        loop {
            // QUIT or a protocol error: drop the requests behind it, but answer those before it.
            if self.run.is_empty() && self.conn.closing {
                self.input.clear();
                return Work::Close;
            }
            // Back pressure: make no more output before the client has read some of it.
            if self.is_output_full() {
                return Work::Flush;
            }
            // A flush has interrupted the replies to a run of reads: launch the rest of it.
            if self.run.is_under_way() {
                return self.launch();
            }
            match self.take_request() {
                Taken::Done => {}
                // No further request can join the run: launch it.
                Taken::NotYet => return self.launch(),
                Taken::Ask(question) => return Work::Ask(question),
            }
        }
    }

    /// The bytes for the client. The driver writes them and clears the buffer.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// The bounds of this session.
    pub fn limits(&self) -> &Limits {
        &self.conn.server_info.limits
    }

    /// The connection's description of itself.
    pub fn profile(&self) -> &Profile {
        &self.conn.profile
    }

    /// Number of commands in the run that the driver has taken.
    pub fn commands_under_way(&self) -> usize {
        self.run.len()
    }

    /// The encoded commands of the [`Work::Read`] or [`Work::ReadLocal`] that the driver has taken.
    pub fn reads_under_way(&self) -> &[u8] {
        self.run.unanswered()
    }

    /// Finishes a [`Work::Write`] with one outcome for each of its commands, or with the reason why
    /// there are none, which becomes the reply to each. `leader` is the current leader, if known.
    pub fn finish_write(&mut self, result: Result<Vec<Outcome>, Unserved>, leader: Option<NodeId>) {
        debug_assert_eq!(self.in_progress, InProgress::Write);
        self.finish_writes(result, leader);
    }

    /// Finishes a [`Work::Stamp`]: `result` tells for each write whether its key existed just
    /// before it, or why none was stamped, which becomes the reply to each command. `stamper` is
    /// the node that stamped them, if known.
    pub fn finish_stamp(&mut self, result: Result<Vec<bool>, Unserved>, stamper: Option<NodeId>) {
        debug_assert_eq!(self.in_progress, InProgress::Stamp);
        let outcomes = result.map(|existed| self.run.stamped_outcomes(&existed));
        self.finish_writes(outcomes, stamper);
    }

    /// Finishes a [`Work::Read`] or a [`Work::ReadLocal`] with access to the store, or to the state
    /// of this node, or with the reason why there is none. If the output gets full, `next` returns
    /// the rest of the run as new work after a `Flush`.
    pub fn finish_read(
        &mut self,
        result: Result<&mut dyn FnMut(&Command<'_>) -> Outcome, Unserved>,
    ) {
        debug_assert_eq!(self.in_progress, InProgress::Read);
        self.in_progress = InProgress::Nothing;
        let read = match result {
            Ok(read) => read,
            Err(unserved) => return self.refuse(unserved),
        };
        let limits = &self.conn.server_info.limits;
        while let Some((command, shape)) = self.run.next_command() {
            let reply = shape.reply(read(&command), limits.reply_bytes_max);
            put(&mut self.output, self.conn.profile.protocol, shape, &reply);
            if self.output.len() >= limits.output_bytes_max {
                break;
            }
        }
        self.run.finish();
    }

    /// Finishes a [`Work::Ask`].
    pub fn finish_ask(&mut self, answer: Reply) {
        let InProgress::Ask(shape) = self.in_progress else {
            debug_assert!(false, "no question is in progress");
            return;
        };
        self.in_progress = InProgress::Nothing;
        self.put(shape, &answer);
    }

    fn is_output_full(&self) -> bool {
        self.output.len() >= self.conn.server_info.limits.output_bytes_max
    }

    fn finish_writes(&mut self, result: Result<Vec<Outcome>, Unserved>, by: Option<NodeId>) {
        self.in_progress = InProgress::Nothing;
        match result {
            Ok(outcomes) => {
                self.unreplied = Some(WriteResults { outcomes: outcomes.into_iter(), by });
                self.reply_to_writes();
            }
            Err(unserved) => self.refuse(unserved),
        }
    }

    /// Replies to finished writes, as far as the output has room.
    fn reply_to_writes(&mut self) {
        let Some(mut results) = self.unreplied.take() else {
            return;
        };
        let is_line = self.conn.profile.protocol == Protocol::Line;
        let limits = &self.conn.server_info.limits;
        while self.output.len() < limits.output_bytes_max {
            let Some((shape, key)) = self.run.next_write(is_line) else {
                break;
            };
            let reply = match (results.outcomes.next(), key) {
                (Some(Outcome::Done), Some(key)) if shape == ReplyShape::Stored => {
                    line::write_stored(&mut self.output, key, results.by);
                    continue;
                }
                (Some(outcome), _) => shape.reply(outcome, limits.reply_bytes_max),
                (None, _) => {
                    debug_assert!(false, "fewer outcomes than commands");
                    Reply::Unserved(Unknown::ResultLost.into())
                }
            };
            put(&mut self.output, self.conn.profile.protocol, shape, &reply);
        }
        if !self.run.finish() {
            self.unreplied = Some(results);
        }
    }

    /// Answers each command of the run with the reason why it was not served.
    fn refuse(&mut self, unserved: Unserved) {
        let reply = Reply::Unserved(unserved);
        while let Some(shape) = self.run.next_shape() {
            self.put(shape, &reply);
        }
        self.run.finish();
    }

    /// Hands the run to the driver. Without a run the driver waits for more bytes.
    fn launch(&mut self) -> Work {
        if self.run.is_empty() {
            return Work::Wait;
        }
        // A reply on a line repeats the key of a SET, so the run must keep its commands.
        let keep = self.conn.profile.protocol == Protocol::Line;
        let (in_progress, work) = match self.run.route() {
            // Reads alone need no entry in the log: a ReadIndex is enough (thesis §6.4). Beside a
            // write they travel with it, to see exactly the writes before them.
            Route::Strong if !self.run.has_write() => (InProgress::Read, Work::Read),
            Route::ReadLocal => (InProgress::Read, Work::ReadLocal),
            Route::Stamp => (InProgress::Stamp, Work::Stamp { writes: self.run.take_writes(keep) }),
            route @ (Route::Strong | Route::Update) => {
                let eventual = route == Route::Update;
                (InProgress::Write, Work::Write { commands: self.run.batch(keep), eventual })
            }
        };
        self.in_progress = in_progress;
        work
    }

    /// Takes the request at the front of the input.
    fn take_request(&mut self) -> Taken {
        let len = match self.frame() {
            Ok(Some(len)) => len,
            Ok(None) => return Taken::NotYet,
            // Replies keep the order of requests, the reply to a protocol error included.
            Err(_) if !self.run.is_empty() => return Taken::NotYet,
            Err(last_reply) => {
                if let Some(reply) = last_reply {
                    self.put(ReplyShape::Plain, &reply);
                }
                self.conn.closing = true;
                return Taken::Done;
            }
        };
        if self.words.is_empty() {
            self.consume(len);
            return Taken::Done;
        }
        self.execute(len)
    }

    /// Finds the request at the front of the input. Returns its length if it is complete, with its
    /// words in `words`. An error ends the connection, after the reply in it, if any.
    fn frame(&mut self) -> Result<Option<usize>, Option<Reply>> {
        let unread = self.input.unread();
        // The first byte that is no line break decides the protocol for the connection's life.
        if self.conn.profile.protocol == Protocol::Undecided {
            match unread {
                [] => return Ok(None),
                [b'\r' | b'\n', ..] => return Ok(Some(1)),
                [b'*', ..] => self.conn.set_protocol(Protocol::Resp2),
                _ => self.conn.set_protocol(Protocol::Line),
            }
        }
        if self.conn.profile.protocol == Protocol::Line {
            let bytes_max = self.conn.server_info.limits.line_bytes_max;
            return self.lines.poll(unread, &mut self.words, bytes_max).map_err(|bad| match bad {
                BadLine::TooLong => {
                    Some(Reply::error("ERR Protocol error: too big inline request"))
                }
                BadLine::Http => None,
            });
        }
        let bounds = self.conn.bounds();
        self.parser
            .poll(unread, &mut self.words, &bounds)
            .map_err(|text| Some(Reply::error(format!("ERR Protocol error: {text}"))))
    }

    /// Executes the request in `words`, or adds it to the run. A request that cannot join the run
    /// stays in the input until the run is answered.
    fn execute(&mut self, len: usize) -> Taken {
        let words = Args::new(self.input.unread(), &self.words);
        let Call { spec, args, mode } = match admit(&self.conn, words) {
            Ok(call) => call,
            Err(reply) => return self.reply_now(len, None, Err(reply)),
        };
        match spec.handler {
            // The command may change how later requests are served (CONSISTENCY, HELLO, QUIT), so
            // it takes effect only after the run before it.
            Handler::Session(_) | Handler::Catalog(_) if !self.run.is_empty() => Taken::NotYet,
            Handler::Session(run) => {
                let response = run(args, &mut self.conn);
                self.reply_now(len, Some(spec), response)
            }
            Handler::Catalog(describe) => {
                let reply = describe(args, command::TABLE);
                let response = reply.map(|reply| Response::Now(reply, ReplyShape::Plain));
                self.reply_now(len, Some(spec), response)
            }
            Handler::Store(parse) => match parse(args) {
                Ok(parsed) => {
                    let mode = mode.unwrap_or_else(|| self.conn.consistency_of(&parsed.command));
                    let route = Route::of(&parsed.command, mode);
                    // Another route or a full run: this command begins the next run.
                    if !self.run.push(&parsed, route, len, &self.conn.server_info.limits) {
                        return Taken::NotYet;
                    }
                    self.conn.note_call(spec.name);
                    self.consume(len);
                    Taken::Done
                }
                Err(reply) => self.reply_now(len, Some(spec), Err(reply)),
            },
            Handler::With => {
                let text = "ERR WITH takes a command that reads or writes keys";
                self.reply_now(len, Some(spec), Err(Reply::error(text)))
            }
        }
    }

    /// Answers the request at the front of the input, unless a run before it is unanswered.
    fn reply_now(
        &mut self,
        len: usize,
        spec: Option<&'static CommandSpec>,
        response: Result<Response, Reply>,
    ) -> Taken {
        if !self.run.is_empty() {
            return Taken::NotYet;
        }
        if let Some(spec) = spec {
            self.conn.note_call(spec.name);
        }
        self.consume(len);
        match response {
            Ok(Response::Now(reply, shape)) => {
                self.put(shape, &reply);
                Taken::Done
            }
            Err(reply) => {
                self.put(ReplyShape::Plain, &reply);
                Taken::Done
            }
            Ok(Response::Ask(question, shape)) => {
                self.in_progress = InProgress::Ask(shape);
                Taken::Ask(question)
            }
        }
    }

    /// Drops the request at the front of the input.
    fn consume(&mut self, len: usize) {
        self.input.consume(len);
        self.words.clear();
        match self.conn.profile.protocol {
            Protocol::Undecided => {}
            Protocol::Line => self.lines.reset(),
            Protocol::Resp2 | Protocol::Resp3 => self.parser.reset(),
        }
    }

    /// Appends a reply to the output.
    fn put(&mut self, shape: ReplyShape, reply: &Reply) {
        put(&mut self.output, self.conn.profile.protocol, shape, reply);
    }
}

/// Appends `reply` in the form of `protocol`.
fn put(out: &mut Vec<u8>, protocol: Protocol, shape: ReplyShape, reply: &Reply) {
    match protocol {
        Protocol::Line => line::write(out, shape, reply),
        Protocol::Resp3 => resp::write(out, reply, true),
        Protocol::Undecided | Protocol::Resp2 => resp::write(out, reply, false),
    }
}
