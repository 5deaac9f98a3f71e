//! One client connection, as a value: bytes go in, work for the node and bytes for the client come
//! out. It waits for nothing and knows neither sockets nor time, so a thread that blocks and a loop
//! that serves many connections drive the same code.
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
//!         Accept { writes } => have them accepted, then finish_accept(existed, acceptor)
//!         Look              => finish_read(access to what this node holds)
//!         Ask(question)     => finish_ask(answer)
//!         Close             => write output(), close
//!     }
//! }
//! ```
//!
//! Rules:
//! - Replies leave in the order of the requests. Neighbouring store commands that are served in the
//!   same way share a run; anything else (PING, a wrong argument, INFO, CONSISTENCY) stays unread
//!   until the run before it is answered, and takes effect only then.
//! - One piece of work at a time: until it is finished, `next` gives `Wait`.
//! - Memory is bounded by [`Limits`](super::Limits) and by what the client has sent. A client that
//!   does not read its replies is held back by the driver, which calls `next` only when the output
//!   is written.

use std::sync::Arc;

use super::args::{Args, Span};
use super::command::{CommandSpec, Handler, Response};
use super::conn_state::{Call, ConnState, Profile, Protocol};
use super::input::{InputBuffer, KEEP_BYTES};
use super::line::{self, Lines, Refused};
use super::reply::{Reply, ReplyShape};
use super::resp::{self, Parser};
use super::run::{Run, Service};
use super::{Limits, Question, ServerInfo, Work};
use crate::types::{Command, NodeId, Outcome, Unknown, Unserved};

/// One client connection; see the module's text for how to drive it.
pub struct Session {
    conn: ConnState,
    input: InputBuffer,
    /// The words of the request at the front of the input.
    words: Vec<Span>,
    parser: Parser,
    lines: Lines,
    run: Run,
    pending: Pending,
    /// What writes came to and has not been told yet, because the output was full.
    unreplied: Option<Results>,
    output: Vec<u8>,
}

/// Work that was handed out and is not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Nothing,
    Write,
    Stamp,
    Read,
    Response(ReplyShape),
}

/// What writes came to, and who led or accepted them.
struct Results {
    outcomes: std::vec::IntoIter<Outcome>,
    leader: Option<NodeId>,
}

/// What came of a look at the input.
enum Step {
    /// A request was dealt with.
    Done,
    /// The request at the front is not complete, or has to wait for the run before it.
    Stop,
    /// A request that the node must answer.
    Ask(Question),
}

impl Session {
    /// A new connection. `id` is its number on this node, for CLIENT ID.
    pub fn new(id: u64, server_info: Arc<ServerInfo>) -> Session {
        Session {
            conn: ConnState::new(id, server_info),
            input: InputBuffer::default(),
            words: Vec::new(),
            parser: Parser::default(),
            lines: Lines::default(),
            run: Run::default(),
            pending: Pending::Nothing,
            unreplied: None,
            output: Vec::new(),
        }
    }

    /// Where to read the client's bytes into: at least 4 KiB. It grows to what a large value needs
    /// only as its bytes arrive, and shrinks afterwards. To be asked for before each read.
    pub fn space(&mut self) -> &mut [u8] {
        if self.output.is_empty() {
            self.output.shrink_to(KEEP_BYTES);
        }
        if self.words.is_empty() {
            self.words.shrink_to(KEEP_BYTES / size_of::<Span>());
        }
        self.input.space(self.parser.needed())
    }

    /// Takes note that `len` bytes were read into the space.
    ///
    /// # Panics
    /// If the space was shorter.
    pub fn filled(&mut self, len: usize) {
        self.input.filled(len);
    }

    /// What to do next; to be called until it gives `Wait` or `Close`.
    #[expect(clippy::should_implement_trait, reason = "a session is no iterator: it never ends")]
    pub fn next(&mut self) -> Work {
        if self.pending != Pending::Nothing {
            return Work::Wait;
        }
        self.tell();
        loop {
            if self.run.is_empty() && self.conn.closing {
                self.input.clear();
                return Work::Close;
            }
            if self.is_output_full() {
                return Work::Flush;
            }
            if self.run.is_under_way() {
                return self.launch();
            }
            match self.step() {
                Step::Done => {}
                Step::Stop => return self.launch(),
                Step::Ask(question) => return Work::Ask(question),
            }
        }
    }

    /// Bytes for the client: the driver writes them and clears them away.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// The bounds of this session.
    pub fn limits(&self) -> &Limits {
        &self.conn.server_info.limits
    }

    /// What the connection tells about itself.
    pub fn profile(&self) -> &Profile {
        &self.conn.profile
    }

    /// How many commands the work that was handed out is made of.
    pub fn commands_under_way(&self) -> usize {
        self.run.len()
    }

    /// The commands that a [`Work::Read`] or a [`Work::ReadLocal`] is about to read, encoded.
    pub fn reads_under_way(&self) -> &[u8] {
        self.run.unanswered()
    }

    /// Finishes a [`Work::Write`]: with one outcome for each of its commands, or with the reason
    /// why there are none, which is then the reply to each. `leader` is who leads now, if known.
    pub fn finish_write(&mut self, result: Result<Vec<Outcome>, Unserved>, leader: Option<NodeId>) {
        debug_assert_eq!(self.pending, Pending::Write);
        self.conclude(result, leader);
    }

    /// Finishes a [`Work::Stamp`]: for each of its writes with whether the key existed just before
    /// it, or with the reason why none was accepted, which is then the reply to each command.
    /// `stamper` is who has stamped them, if known.
    pub fn finish_stamp(&mut self, result: Result<Vec<bool>, Unserved>, stamper: Option<NodeId>) {
        debug_assert_eq!(self.pending, Pending::Stamp);
        let outcomes = result.map(|existed| self.run.accepted(&existed));
        self.conclude(outcomes, stamper);
    }

    /// Finishes a [`Work::Read`] or a [`Work::ReadLocal`]: with access to the store, or to what this
    /// node holds, or with the reason why there is none. When the replies grow large the rest of
    /// the run is asked for again, after a `Flush`.
    pub fn finish_read(
        &mut self,
        result: Result<&mut dyn FnMut(&Command<'_>) -> Outcome, Unserved>,
    ) {
        debug_assert_eq!(self.pending, Pending::Read);
        self.pending = Pending::Nothing;
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
        let Pending::Response(shape) = self.pending else {
            debug_assert!(false, "nothing was asked");
            return;
        };
        self.pending = Pending::Nothing;
        self.put(shape, &answer);
    }

    fn is_output_full(&self) -> bool {
        self.output.len() >= self.conn.server_info.limits.output_bytes_max
    }

    /// Takes note of what writes came to.
    fn conclude(&mut self, result: Result<Vec<Outcome>, Unserved>, leader: Option<NodeId>) {
        self.pending = Pending::Nothing;
        match result {
            Ok(outcomes) => {
                self.unreplied = Some(Results { outcomes: outcomes.into_iter(), leader });
                self.tell();
            }
            Err(unserved) => self.refuse(unserved),
        }
    }

    /// Replies with what writes came to, as far as the output has room.
    fn tell(&mut self) {
        let Some(mut results) = self.unreplied.take() else {
            return;
        };
        let on_line = self.conn.profile.protocol == Protocol::Line;
        let limits = &self.conn.server_info.limits;
        while self.output.len() < limits.output_bytes_max {
            let Some((shape, key)) = self.run.next_told(on_line) else {
                break;
            };
            let reply = match (results.outcomes.next(), key) {
                (Some(Outcome::Done), Some(key)) if shape == ReplyShape::Stored => {
                    line::write_stored(&mut self.output, key, results.leader);
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

    /// Replies to each command of the run that it was not served.
    fn refuse(&mut self, unserved: Unserved) {
        let reply = Reply::Unserved(unserved);
        while let Some(shape) = self.run.next_shape() {
            self.put(shape, &reply);
        }
        self.run.finish();
    }

    /// Hands the run out; without one there is nothing to do but wait.
    fn launch(&mut self) -> Work {
        if self.run.is_empty() {
            return Work::Wait;
        }
        let keep = self.conn.profile.protocol == Protocol::Line;
        let (pending, work) = match self.run.service() {
            Service::Strong if !self.run.writes() => (Pending::Read, Work::Read),
            Service::ReadLocal => (Pending::Read, Work::ReadLocal),
            Service::Stamp => (Pending::Stamp, Work::Stamp { writes: self.run.take_writes(keep) }),
            service @ (Service::Strong | Service::Update) => {
                let eventual = service == Service::Update;
                (Pending::Write, Work::Write { commands: self.run.batch(keep), eventual })
            }
        };
        self.pending = pending;
        work
    }

    /// Deals with the request at the front of the input.
    fn step(&mut self) -> Step {
        let len = match self.frame() {
            Ok(Some(len)) => len,
            Ok(None) => return Step::Stop,
            Err(_) if !self.run.is_empty() => return Step::Stop,
            Err(last_words) => {
                if let Some(reply) = last_words {
                    self.put(ReplyShape::Plain, &reply);
                }
                self.conn.closing = true;
                return Step::Done;
            }
        };
        if self.words.is_empty() {
            self.consume(len);
            return Step::Done;
        }
        self.execute(len)
    }

    /// Finds the request at the front of the input: its length if it is complete, with its words in
    /// `words`. An error ends the connection; it may hold a reply to end it with.
    fn frame(&mut self) -> Result<Option<usize>, Option<Reply>> {
        let unread = self.input.unread();
        if self.conn.profile.protocol == Protocol::Undecided {
            match unread {
                [] => return Ok(None),
                [b'\r' | b'\n', ..] => return Ok(Some(1)),
                [b'*', ..] => self.conn.speak(Protocol::Resp2),
                _ => self.conn.speak(Protocol::Line),
            }
        }
        if self.conn.profile.protocol == Protocol::Line {
            let bytes_max = self.conn.server_info.limits.line_bytes_max;
            return self.lines.poll(unread, &mut self.words, bytes_max).map_err(|why| match why {
                Refused::TooLong => {
                    Some(Reply::error("ERR Protocol error: too big inline request"))
                }
                Refused::Http => None,
            });
        }
        let bounds = self.conn.bounds();
        self.parser
            .poll(unread, &mut self.words, &bounds)
            .map_err(|text| Some(Reply::error(format!("ERR Protocol error: {text}"))))
    }

    /// Does what the words say, or adds it to the run. What cannot join the run stays where it is
    /// until the run is answered.
    fn execute(&mut self, len: usize) -> Step {
        let words = Args::new(self.input.unread(), &self.words);
        let Call { spec, args, mode } = match self.conn.admit(words) {
            Ok(call) => call,
            Err(reply) => return self.settle(len, None, Err(reply)),
        };
        match spec.handler {
            Handler::Session(_) if !self.run.is_empty() => Step::Stop,
            Handler::Session(act) => {
                let answer = act(args, &mut self.conn);
                self.settle(len, Some(spec), answer)
            }
            Handler::Store(parse) => match parse(args) {
                Ok(parsed) => {
                    let mode = mode.unwrap_or_else(|| self.conn.consistency_of(&parsed.command));
                    let service = Service::of(&parsed.command, mode);
                    if !self.run.push(&parsed, service, len, &self.conn.server_info.limits) {
                        return Step::Stop;
                    }
                    self.conn.count(spec);
                    self.consume(len);
                    Step::Done
                }
                Err(reply) => self.settle(len, Some(spec), Err(reply)),
            },
            Handler::With => {
                let text = "ERR WITH takes a command that reads or writes keys";
                self.settle(len, Some(spec), Err(Reply::error(text)))
            }
        }
    }

    /// Answers the request at the front of the input, unless there is a run before it.
    fn settle(
        &mut self,
        len: usize,
        spec: Option<&'static CommandSpec>,
        answer: Result<Response, Reply>,
    ) -> Step {
        if !self.run.is_empty() {
            return Step::Stop;
        }
        if let Some(spec) = spec {
            self.conn.count(spec);
        }
        self.consume(len);
        match answer {
            Ok(Response::Now(reply, shape)) => {
                self.put(shape, &reply);
                Step::Done
            }
            Err(reply) => {
                self.put(ReplyShape::Plain, &reply);
                Step::Done
            }
            Ok(Response::Ask(question, shape)) => {
                self.pending = Pending::Response(shape);
                Step::Ask(question)
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

/// Appends `reply` as `protocol` has it.
fn put(out: &mut Vec<u8>, protocol: Protocol, shape: ReplyShape, reply: &Reply) {
    match protocol {
        Protocol::Line => line::write(out, shape, reply),
        Protocol::Resp3 => resp::write(out, reply, true),
        Protocol::Undecided | Protocol::Resp2 => resp::write(out, reply, false),
    }
}
