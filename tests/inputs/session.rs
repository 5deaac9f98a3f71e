//! Client bytes, in both protocols. For any bytes, in pieces of any size:
//!
//! - the driver's commands, questions and output are the same, in order;
//! - the output is well-formed RESP, or lines without a carriage return; without a password there
//!   are as many replies as `reference.rs` counts requests, and the session closes where the
//!   reference does;
//! - each piece of work keeps to the limits and to its description, and is finished before the next
//!   one is handed out;
//! - the buffers stay within the bytes received and the limits;
//! - a closed session stays closed and writes nothing more.
//!
//! A fake without state plays the node: the outcome of a command depends on its words alone, and
//! values contain line breaks.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use super::limits::tight;
use nodesync::clock::Now;
use nodesync::codec::Reader;
use nodesync::protocol::{Limits, Password, Profile, Question, Reply, ServerInfo, Session};
use nodesync::replica::{Recovered, Replica, Settings, Status};
use nodesync::rng::Rng;
use nodesync::service::{Answer, Next, NodeView, Request, SessionDriver};
use nodesync::types::{
    Command, Consistency, Failure, NodeId, Outcome, Rejected, Unserved, Value, Version, When, Write,
};

use super::reference::{self, Expected};
use super::{Case, Seeds};

/// Least space that a read is offered, and the slack in the bound of the buffers, in bytes.
const READ_BYTES: usize = 4 << 10;

/// Longest single reply to these inputs, in bytes: COMMAND DOCS gives it.
const REPLY_BYTES_MAX: usize = 64 << 10;

/// Server of a connection, and the refusal with which its node answers, if any.
struct Setting {
    server_info: Arc<ServerInfo>,
    refused: Option<Unserved>,
    /// True if `reference.rs` knows the expected result.
    plain: bool,
}

fn settings() -> [Setting; 3] {
    let server_info = |limits, password: Option<&str>, consistency| ServerInfo {
        node: NodeId(5001),
        version: "0.1.0",
        password: password.map(|password| Password::new(password.as_bytes())),
        limits,
        consistency,
        config: vec![("appendonly", "yes".to_owned()), ("save", String::new())],
    };
    let plain = server_info(Limits::default(), None, Consistency::Strong);
    let guarded = server_info(tight(), Some("secret"), Consistency::Eventual);
    let narrow = server_info(tight(), None, Consistency::Eventual);
    let no_quorum = Some(Unserved::Rejected(Rejected::NoQuorum));
    [
        Setting { server_info: Arc::new(plain), refused: None, plain: true },
        Setting { server_info: Arc::new(guarded), refused: no_quorum, plain: false },
        Setting { server_info: Arc::new(narrow), refused: None, plain: false },
    ]
}

/// Node without state, behind a session.
struct FakeNode<'a> {
    setting: &'a Setting,
    status: Status,
    /// Encoded commands and questions in order, each behind a letter for its route.
    trace: RefCell<Vec<u8>>,
    /// True once the driver has read undrained writes: the next batch is an eventual session's.
    is_update: Cell<bool>,
}

impl NodeView for FakeNode<'_> {
    fn now(&self) -> Now {
        Now(0)
    }

    fn leader(&self) -> Option<NodeId> {
        Some(NodeId(5003))
    }

    fn status(&self) -> Status {
        self.status.clone()
    }

    fn read(&self, command: &Command<'_>) -> Outcome {
        self.read_as(b's', command)
    }

    fn read_local(&self, command: &Command<'_>) -> Outcome {
        self.read_as(b'l', command)
    }

    fn undrained(&self, _: &[u8]) -> (Vec<u8>, Version) {
        self.is_update.set(true);
        (Vec::new(), Version::default())
    }

    fn trust(&self, _: Version) -> Result<(), Rejected> {
        Ok(())
    }

    fn answer(&self, _: &Profile, question: &Question) -> Reply {
        self.trace.borrow_mut().extend(format!("?{question:?}").into_bytes());
        answer(question)
    }
}

/// Session with its driver and its node.
struct Conversation<'a> {
    driver: SessionDriver,
    node: FakeNode<'a>,
    received: usize,
    output: Vec<u8>,
    closed: bool,
}

pub fn run(case: &Case<'_>) -> bool {
    let mut rng = Rng::new(crc32fast::hash(case.bytes).into());
    let bytes = case.bytes;
    let mut closed = false;
    for setting in &settings() {
        let whole = Conversation::of(setting, bytes, |_| usize::MAX);
        let longest = 1 + rng.below(40);
        let pieces = Conversation::of(setting, bytes, |_| 1 + rng.below(longest) as usize);
        whole.check_same(&pieces, "in pieces");
        if bytes.len() <= 1500 {
            whole.check_same(&Conversation::of(setting, bytes, |_| 1), "byte by byte");
        }
        whole.check_output(bytes);
        closed |= setting.plain && whole.closed;
    }
    !closed
}

impl<'a> Conversation<'a> {
    /// Feeds the bytes in pieces; `piece` maps the number of bytes left to the length of the next
    /// piece.
    fn of(
        setting: &'a Setting,
        bytes: &[u8],
        mut piece: impl FnMut(usize) -> usize,
    ) -> Conversation<'a> {
        let session = Session::new(7, Arc::clone(&setting.server_info));
        let driver = SessionDriver::new(session, Duration::from_secs(1));
        let settings = Settings::new(NodeId(5001), vec![NodeId(5001)]);
        let replica = Replica::new(Now(0), settings, Recovered::default(), Rng::new(1));
        let (trace, is_update) = (RefCell::default(), Cell::default());
        let node = FakeNode { setting, status: replica.status(), trace, is_update };
        let mut conversation =
            Conversation { driver, node, received: 0, output: Vec::new(), closed: false };
        let mut rest = bytes;
        while !rest.is_empty() && !conversation.closed {
            let (now, later) = rest.split_at(piece(rest.len()).min(rest.len()));
            conversation.receive(now);
            conversation.serve();
            rest = later;
        }
        if conversation.closed {
            conversation.check_closed();
        }
        conversation
    }

    fn receive(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = self.driver.space();
            let len = space.len();
            assert!(len >= READ_BYTES, "too little space: {len}");
            let bound = 2 * (self.received + 2 * READ_BYTES);
            assert!(len <= bound, "{len} bytes of space after {} bytes", self.received);
            let len = bytes.len().min(len);
            space[..len].copy_from_slice(&bytes[..len]);
            self.driver.filled(len);
            self.received += len;
            bytes = &bytes[len..];
        }
    }

    fn serve(&mut self) {
        loop {
            match self.driver.next(&self.node) {
                Next::Read => break self.flush(),
                Next::Flush => {
                    assert!(!self.driver.output().is_empty(), "nothing to flush");
                    self.flush();
                }
                Next::Close => {
                    self.closed = true;
                    break self.flush();
                }
                Next::Yield => {}
                Next::Wait(wait) => {
                    self.node.trace.borrow_mut().push(b'w');
                    self.driver.finish_wait(wait.holding(&self.node.status));
                }
                Next::Ask(request) => {
                    let mut answer =
                        self.node.answer_request(request, self.driver.commands_under_way());
                    self.driver.complete(&self.node, answer.as_share());
                }
            }
        }
    }

    fn flush(&mut self) {
        let bound = self.node.setting.server_info.limits.output_bytes_max + REPLY_BYTES_MAX;
        let len = self.driver.output().len();
        assert!(len <= bound, "{len} bytes of output without a flush");
        self.output.append(self.driver.output());
    }

    fn check_same(&self, other: &Conversation<'_>, how: &str) {
        let trace = |conversation: &Conversation<'_>| {
            conversation.node.trace.borrow().escape_ascii().to_string()
        };
        assert_eq!(trace(self), trace(other));
        assert_eq!(
            self.output.escape_ascii().to_string(),
            other.output.escape_ascii().to_string(),
            "{how}"
        );
        assert_eq!(self.closed, other.closed, "{how}");
    }

    fn check_output(&self, input: &[u8]) {
        let Expected { line, replies, closed, three } = reference::expected(input);
        let found = if line {
            reference::lines(&self.output)
        } else {
            reference::resp_replies(&self.output, three)
        };
        let found = found.unwrap_or_else(|what| {
            panic!("{what}, in {}", self.output.escape_ascii());
        });
        if self.node.setting.plain {
            let output = self.output.escape_ascii();
            assert_eq!((found, self.closed), (replies, closed), "replies, closed: {output}");
        }
    }

    /// Checks that a closed session ignores further bytes.
    fn check_closed(&mut self) {
        let (trace, output) = (self.node.trace.borrow().clone(), self.output.clone());
        for more in [&b""[..], b"*1\r\n$4\r\nPING\r\n", b"PING\nSET k v\n"] {
            self.receive(more);
            assert!(matches!(self.driver.next(&self.node), Next::Close));
            self.serve();
        }
        let same = (trace, &output) == (self.node.trace.borrow().clone(), &self.output);
        assert!(same, "a closed session wrote more output");
    }
}

impl FakeNode<'_> {
    fn answer_request(&self, request: Request, commands: usize) -> Answer {
        let answer = match request {
            Request::Write(bytes) => self.write(&bytes, commands),
            Request::Stamp(writes) => self.stamp(&writes),
            Request::Read => Answer::MayRead,
        };
        self.setting.refused.map_or(answer, Answer::Unserved)
    }

    fn write(&self, commands: &[u8], expected: usize) -> Answer {
        let is_update = self.is_update.take();
        let mut reader = Reader::new(commands);
        let (mut outcomes, mut writes) = (Vec::new(), 0);
        while !reader.is_empty() {
            let command = Command::decode(&mut reader).expect("batches can be decoded");
            writes += usize::from(command.is_write());
            let blind = command.is_blind_write() || !command.is_write();
            assert!(!is_update || !blind, "no update: {command:?}");
            self.check_words(&command);
            // After a refusal the driver requests no reads, except in a batch with a write.
            if self.setting.refused.is_none() || command.is_write() {
                self.trace.borrow_mut().push(if is_update { b'u' } else { b's' });
                command.encode(&mut self.trace.borrow_mut());
            }
            outcomes.push(outcome(&command));
        }
        assert!(writes > 0, "a batch without a write");
        assert_eq!(outcomes.len(), expected, "commands in a batch");
        self.check_batch(outcomes.len(), commands.len());
        Answer::Outcomes(outcomes)
    }

    fn stamp(&self, writes: &[Write]) -> Answer {
        assert!(!writes.is_empty());
        for write in writes {
            assert_eq!(write.version, Version::default(), "only the stamping node gives a version");
            self.check_key(&write.key);
            self.trace.borrow_mut().push(b'a');
            write.encode(&mut self.trace.borrow_mut());
        }
        // The encoded form of each write is a few bytes longer than its request.
        let len: usize = writes.iter().map(|write| write.encoded_len() - 13).sum();
        self.check_batch(0, len);
        let existed = writes.iter().map(|write| digest(&write.key).is_multiple_of(2)).collect();
        Answer::Stamped { existed, by: Some(NodeId(5003)) }
    }

    fn read_as(&self, service: u8, command: &Command<'_>) -> Outcome {
        assert!(!command.is_write(), "a read must not write");
        let mut trace = self.trace.borrow_mut();
        trace.push(service);
        if command.is_loggable() {
            command.encode(&mut trace);
        } else {
            trace.extend(format!("{command:?}").into_bytes());
        }
        outcome(command)
    }

    /// Checks keys and values against the limits; a line's length bounds its value.
    fn check_words(&self, command: &Command<'_>) {
        let limits = &self.setting.server_info.limits;
        let value_max = limits.value_bytes_max.max(limits.line_bytes_max);
        let check_value = |value: &[u8]| assert!(value.len() <= value_max, "a long value");
        match command {
            Command::GetMany { keys } | Command::Exists { keys } | Command::Delete { keys } => {
                keys.iter().for_each(|key| self.check_key(key));
            }
            Command::SetMany { pairs } => pairs.iter().for_each(|(key, value)| {
                self.check_key(key);
                check_value(value);
            }),
            Command::Set { key, value, .. } | Command::Append { key, value } => {
                self.check_key(key);
                check_value(value);
            }
            Command::Get { key }
            | Command::Length { key }
            | Command::Increment { key, .. }
            | Command::Take { key } => self.check_key(key),
            Command::Clear => (),
            other => panic!("no session can put this into the log: {other:?}"),
        }
    }

    fn check_key(&self, key: &[u8]) {
        assert!(key.len() <= self.setting.server_info.limits.key_bytes_max, "a long key: {key:?}");
    }

    /// Checks the batch limits; the last command's encoded form may be longer than its request.
    fn check_batch(&self, count: usize, len: usize) {
        let limits = &self.setting.server_info.limits;
        assert!(count <= limits.batch_commands_max, "{count} commands in a batch");
        let longest = limits.request_bytes_max.max(4 * limits.line_bytes_max);
        assert!(len <= limits.batch_bytes_max + longest, "{len} bytes in a batch");
    }
}

fn digest(key: &[u8]) -> u32 {
    crc32fast::hash(key)
}

fn value_of(key: &[u8]) -> Option<Value> {
    let value = || Value::from([key, b"\r\n$5\r\n"].concat());
    (!digest(key).is_multiple_of(4)).then(value)
}

/// Outcome of a command, derived from its words.
fn outcome(command: &Command<'_>) -> Outcome {
    let found = |value: Option<Value>| value.map_or(Outcome::Nil, Outcome::Value);
    let count = |len: usize| Outcome::Integer(len as i64);
    let names = |first: &[u8]| [first, b"a\r\nb", b""].map(Value::from).to_vec();
    match command {
        Command::Get { key } | Command::Take { key } => found(value_of(key)),
        Command::Set { key, get: true, .. } => found(value_of(key)),
        Command::GetMany { keys } => {
            Outcome::Values(keys.iter().map(|key| value_of(key)).collect())
        }
        Command::Length { key } => count(key.len()),
        Command::Exists { keys } | Command::Delete { keys } => count(keys.len()),
        Command::Count => Outcome::Integer(i64::MAX),
        Command::Keys { pattern } => Outcome::Names(names(pattern)),
        Command::Scan { cursor, pattern, .. } => {
            Outcome::Page(!cursor, names(pattern.unwrap_or(b"\n")))
        }
        Command::Set { key, when, .. } => {
            match *when == When::Always || digest(key).is_multiple_of(2) {
                true => Outcome::Done,
                false => Outcome::Nil,
            }
        }
        Command::Append { key, .. } if digest(key).is_multiple_of(5) => {
            Outcome::Failed(Failure::TooLong)
        }
        Command::Append { value, .. } => count(value.len()),
        Command::Increment { by, .. } if by % 5 == 2 => Outcome::Failed(Failure::NotAnInteger),
        Command::Increment { by, .. } if by % 5 == 3 => Outcome::Failed(Failure::Overflow),
        Command::Increment { by, .. } => Outcome::Integer(*by),
        Command::SetMany { .. } | Command::Clear => Outcome::Done,
        Command::Merge { .. } => panic!("no client command becomes a merge"),
    }
}

fn answer(question: &Question) -> Reply {
    let pair = |name, value| (Reply::text(name), value);
    match question {
        Question::Leader => Reply::leader(Some(NodeId(5002))),
        Question::Time => Reply::time(Duration::from_micros(1_700_000_000_000_042)),
        Question::Wait { .. } => panic!("WAIT is the driver's own"),
        Question::Nodes => Reply::Array(vec![Reply::Map(vec![
            pair("id", Reply::Integer(5001)),
            pair("alive", Reply::Boolean(true)),
        ])]),
        Question::Role => Reply::Array(vec![Reply::text("master"), Reply::Array(Vec::new())]),
        Question::Info { sections } => {
            Reply::Verbatim(format!("# {}\r\na:b\r\n", sections.join(",")))
        }
        Question::ClientInfo | Question::ClientList { .. } => {
            Reply::Verbatim("id=7 name=\n".into())
        }
    }
}

/// Encodes a RESP request from words that bars separate.
fn request(words: &str) -> Vec<u8> {
    let words: Vec<&str> = words.split('|').collect();
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
    }
    bytes
}

const CONVERSATIONS: [(&str, &str); 9] = [
    ("strings", "SET|k|v;GET|k;APPEND|k|more;STRLEN|k;GETSET|k|w;GETDEL|k;SET|k|v|NX|GET;TYPE|k"),
    ("numbers", "INCR|n;DECR|n;INCRBY|n|-9223372036854775808;DECRBY|n|7;INCRBY|n|x"),
    ("many-keys", "MSET|a|1|b|2;MGET|a|b|c;DEL|a|b;EXISTS|a|a;UNLINK|b;SETNX|a|1;DBSIZE;FLUSHALL"),
    ("whole-store", "KEYS|*;SCAN|0|MATCH|a*|COUNT|3;SCAN|7;DBSIZE"),
    (
        "modes",
        "CONSISTENCY|eventual;SET|k|v;GET|k;INCR|n;MSET|a|1|b|2;DEL|a;WITH|strong|GET|k;READONLY;\
         CONSISTENCY|strong;GET|k;WITH|eventual|SET|k|w;READWRITE;RESET;CONSISTENCY",
    ),
    (
        "connection",
        "HELLO|3|SETNAME|me;CLIENT|LIST|ID|7;CLIENT|SETINFO|LIB-NAME|x;CLIENT|GETNAME;INFO|raft;\
         CONFIG|GET|*;NODES;ROLE;TIME;WAIT|1|0;LEADER;COMMAND|COUNT;SELECT|0;ECHO|\u{e4}",
    ),
    ("auth", "HELLO|2|AUTH|default|secret;AUTH|secret;AUTH|no;SET|k|v;RESET;GET|k"),
    ("wrong", "GET;SET|k|v|NX|XX;NONSENSE|a|b;CLIENT|NONE;SELECT|9;SCAN|x;HELLO|9;SET|k|v|EX|1"),
    ("commands", "COMMAND|DOCS|get;COMMAND|INFO|set|nothing;COMMAND|LIST;CLIENT|HELP"),
];

pub fn seeds() -> Seeds {
    let mut seeds: Seeds = Vec::new();
    for (name, conversation) in CONVERSATIONS {
        let requests = conversation.split(';').map(str::trim_start);
        let resp: Vec<u8> = requests.clone().flat_map(request).collect();
        seeds.push((format!("resp-{name}"), resp));
        if !["commands", "auth"].contains(&name) {
            let lines: Vec<String> =
                requests.map(|words| words.replace('|', " ") + "\r\n").collect();
            seeds.push((format!("line-{name}"), lines.concat().into_bytes()));
        }
    }
    let three = [request("HELLO|3"), request("COMMAND|DOCS|client"), request("GET|a")].concat();
    seeds.push(("resp-three".into(), three));
    let mut quit = request("PING");
    quit.extend(b"\r\n*0\r\n*-1\r\n");
    quit.extend(request("QUIT"));
    seeds.push(("refused-resp-quit".into(), quit));
    let http = b"POST / HTTP/1.1\r\nHost: a\r\n\r\nSET smuggled yes\r\n";
    seeds.push(("refused-line-http".into(), http.to_vec()));
    seeds
}
