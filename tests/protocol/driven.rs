//! Session with its real driver, and a small map that plays the store and the node.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use nodesync::clock::Now;
use nodesync::codec::Reader;
use nodesync::protocol::{
    Limits, Password, Profile, Protocol, Question, Reply, ServerInfo, Session,
};
use nodesync::replica::{Recovered, Replica, Settings, Status};
use nodesync::rng::Rng;
use nodesync::service::{Answer, Kind, Next, NodeView, Request, SessionDriver};
use nodesync::types::{
    Command, Consistency, Failure, NodeId, Outcome, Rejected, Unserved, Value, Version, When, Write,
};

/// Map that executes the commands of the store.
#[derive(Default)]
pub struct MapStore(pub BTreeMap<Vec<u8>, Vec<u8>>);

impl MapStore {
    fn run(&mut self, command: &Command<'_>) -> Outcome {
        let value = |value: Option<&Vec<u8>>| value.map(|value| Value::from(value.as_slice()));
        let found = |value: Option<Value>| value.map_or(Outcome::Nil, Outcome::Value);
        let count = |count: usize| Outcome::Integer(count as i64);
        match *command {
            Command::Get { key } => found(value(self.0.get(key))),
            Command::GetMany { ref keys } => {
                Outcome::Values(keys.iter().map(|&key| value(self.0.get(key))).collect())
            }
            Command::Length { key } => count(self.0.get(key).map_or(0, Vec::len)),
            Command::Exists { ref keys } => {
                count(keys.iter().filter(|&&key| self.0.contains_key(key)).count())
            }
            Command::Count => count(self.0.len()),
            Command::Keys { .. } => Outcome::Names(self.names(0, usize::MAX)),
            Command::Scan { cursor, count, .. } => {
                let names = self.names(cursor as usize, count as usize);
                let behind = cursor as usize + names.len();
                Outcome::Page(if behind < self.0.len() { behind as u64 } else { 0 }, names)
            }
            Command::Set { key, value: new, when, get } => {
                let old = value(self.0.get(key));
                let set = when == When::Always || (when == When::Present) == old.is_some();
                if set {
                    self.0.insert(key.to_vec(), new.to_vec());
                }
                if get {
                    found(old)
                } else if set {
                    Outcome::Done
                } else {
                    Outcome::Nil
                }
            }
            Command::SetMany { ref pairs } => {
                self.0.extend(pairs.iter().map(|(key, value)| (key.to_vec(), value.to_vec())));
                Outcome::Done
            }
            Command::Append { key, value } => {
                let whole = self.0.entry(key.to_vec()).or_default();
                whole.extend(value);
                count(whole.len())
            }
            Command::Increment { key, by } => self.increment(key, by),
            Command::Take { key } => found(value(self.0.remove(key).as_ref())),
            Command::Delete { ref keys } => {
                count(keys.iter().filter(|&&key| self.0.remove(key).is_some()).count())
            }
            Command::Clear => {
                self.0.clear();
                Outcome::Done
            }
            Command::Merge { .. } => panic!("no client command becomes a merge"),
        }
    }

    /// Applies an eventual write; true if the key existed before.
    fn put_overlay(&mut self, write: &Write) -> bool {
        match &write.value {
            Some(value) => self.0.insert(write.key.to_vec(), value.to_vec()),
            None => self.0.remove(&write.key[..]),
        }
        .is_some()
    }

    fn names(&self, skip: usize, take: usize) -> Vec<Value> {
        self.0.keys().skip(skip).take(take).map(|key| Value::from(key.as_slice())).collect()
    }

    fn increment(&mut self, key: &[u8], by: i64) -> Outcome {
        let text = self.0.get(key).map_or("0".into(), |value| String::from_utf8_lossy(value));
        let Ok(number) = text.parse::<i64>() else {
            return Outcome::Failed(Failure::NotAnInteger);
        };
        let Some(sum) = number.checked_add(by) else {
            return Outcome::Failed(Failure::Overflow);
        };
        self.0.insert(key.to_vec(), sum.to_string().into_bytes());
        Outcome::Integer(sum)
    }
}

/// Node without peers. Its one map is both the log's state and the overlay, so a session gets the
/// same replies in all modes.
pub struct FakeNode {
    pub store: RefCell<MapStore>,
    pub leader: Option<NodeId>,
    /// Refusal of every request, if set.
    pub refuse: Option<Unserved>,
    status: Status,
    /// Requests of the session, one line for each.
    log: RefCell<Vec<String>>,
    /// Store commands in execution order; the route precedes each one that is not strong.
    commands: RefCell<Vec<String>>,
    /// Commands of the read in progress.
    reading: RefCell<Vec<String>>,
    /// True once the driver has read undrained writes: the next batch is an eventual session's.
    is_update: Cell<bool>,
}

impl FakeNode {
    fn new() -> FakeNode {
        let settings = Settings::new(NodeId(5001), (5001..=5005).map(NodeId).collect());
        let replica = Replica::new(Now(0), settings, Recovered::default(), Rng::new(1));
        FakeNode {
            store: RefCell::default(),
            leader: Some(NodeId(5003)),
            refuse: None,
            status: replica.status(),
            log: RefCell::default(),
            commands: RefCell::default(),
            reading: RefCell::default(),
            is_update: Cell::default(),
        }
    }

    /// Records a request and its commands.
    fn note(&self, name: &str, prefix: &str, shown: &[String]) {
        self.log.borrow_mut().push(format!("{name}: {}", shown.join(" · ")));
        let commands = shown.iter().map(|command| format!("{prefix}{command}"));
        self.commands.borrow_mut().extend(commands);
    }

    /// Records the read that has ended, if there is one.
    fn note_read(&self, name: &str, prefix: &str) {
        let shown = self.reading.take();
        if !shown.is_empty() {
            self.note(name, prefix, &shown);
        }
    }

    fn run_read(&self, command: &Command<'_>) -> Outcome {
        assert!(!command.is_write(), "a read must not write");
        self.reading.borrow_mut().push(show(command));
        self.store.borrow_mut().run(command)
    }

    fn write(&self, commands: &[u8]) -> Answer {
        let is_update = self.is_update.take();
        let mut reader = Reader::new(commands);
        let (mut outcomes, mut shown) = (Vec::new(), Vec::new());
        while !reader.is_empty() {
            let command = Command::decode(&mut reader).expect("batches can be decoded");
            let blind = command.is_blind_write() || !command.is_write();
            assert!(!is_update || !blind, "an eventual batch holds nothing but updates");
            shown.push(show(&command));
            if self.refuse.is_none() {
                outcomes.push(self.store.borrow_mut().run(&command));
            }
        }
        let (name, prefix) = if is_update { ("update", "update ") } else { ("write", "") };
        self.note(name, prefix, &shown);
        self.refuse.map_or(Answer::Outcomes(outcomes), Answer::Unserved)
    }

    fn stamp(&self, writes: &[Write]) -> Answer {
        assert!(!writes.is_empty());
        let (mut existed, mut shown) = (Vec::new(), Vec::new());
        for write in writes {
            assert_eq!(write.version, Version::default(), "only the stamping node gives a version");
            shown.push(show_write(&write.key, write.value.as_deref()));
            if self.refuse.is_none() {
                existed.push(self.store.borrow_mut().put_overlay(write));
            }
        }
        self.note("stamp", "stamp ", &shown);
        let stamped = Answer::Stamped { existed, by: self.leader };
        self.refuse.map_or(stamped, Answer::Unserved)
    }
}

impl NodeView for FakeNode {
    fn now(&self) -> Now {
        Now(0)
    }

    fn leader(&self) -> Option<NodeId> {
        self.leader
    }

    fn status(&self) -> Status {
        self.status.clone()
    }

    fn read(&self, command: &Command<'_>) -> Outcome {
        self.run_read(command)
    }

    fn read_local(&self, command: &Command<'_>) -> Outcome {
        self.run_read(command)
    }

    fn undrained(&self, _: &[u8]) -> (Vec<u8>, Version) {
        self.is_update.set(true);
        (Vec::new(), Version::default())
    }

    fn trust(&self, _: Version) -> Result<(), Rejected> {
        Ok(())
    }

    /// Notices that a piece of work begins, so a local read before it has ended.
    fn count(&self, _: Kind) {
        self.note_read("local", "local ");
    }

    fn answer(&self, _: &Profile, question: &Question) -> Reply {
        self.note_read("local", "local ");
        self.log.borrow_mut().push(format!("ask: {question:?}"));
        self.reply(question)
    }
}

/// Session with its real driver, and the node that serves it.
pub struct Driven {
    driver: SessionDriver,
    pub node: FakeNode,
    pub output: Vec<u8>,
    pub closed: bool,
}

impl Driven {
    pub fn new(limits: Limits, password: Option<&str>) -> Driven {
        Driven::with(limits, password, Consistency::Strong)
    }

    /// Opens a session that begins with this consistency.
    pub fn with(limits: Limits, password: Option<&str>, consistency: Consistency) -> Driven {
        let config = [("appendonly", "yes"), ("maxclients", "10000"), ("save", "")];
        let server_info = ServerInfo {
            node: NodeId(5001),
            version: "0.1.0",
            password: password.map(|password| Password::new(password.as_bytes())),
            limits,
            consistency,
            config: config.map(|(name, value)| (name, value.to_owned())).to_vec(),
        };
        let session = Session::new(7, Arc::new(server_info));
        Driven {
            driver: SessionDriver::new(session, Duration::from_secs(1)),
            node: FakeNode::new(),
            output: Vec::new(),
            closed: false,
        }
    }

    pub fn profile(&self) -> &Profile {
        self.driver.profile()
    }

    pub fn protocol(&self) -> Protocol {
        self.driver.profile().protocol
    }

    /// Requests of the session since the last call, one line for each.
    pub fn take_log(&self) -> Vec<String> {
        self.node.log.take()
    }

    /// Store commands since the last call, in execution order.
    pub fn take_commands(&self) -> Vec<String> {
        self.node.commands.take()
    }

    /// Feeds bytes, in as many reads as the offered space requires.
    pub fn receive(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = self.driver.space();
            assert!(space.len() >= 4 << 10, "too little space: {}", space.len());
            let len = bytes.len().min(space.len());
            space[..len].copy_from_slice(&bytes[..len]);
            self.driver.filled(len);
            bytes = &bytes[len..];
        }
    }

    /// Serves until the session waits for more bytes, or closes.
    pub fn serve(&mut self) {
        loop {
            let next = self.driver.next(&self.node);
            self.node.note_read("local", "local ");
            match next {
                Next::Read => break self.flush(),
                Next::Flush => {
                    assert!(!self.driver.output().is_empty(), "there is something to flush");
                    self.node.log.borrow_mut().push("flush".into());
                    self.flush();
                }
                Next::Close => {
                    if !std::mem::replace(&mut self.closed, true) {
                        self.node.log.borrow_mut().push("close".into());
                    }
                    break self.flush();
                }
                Next::Yield => {}
                Next::Wait(wait) => {
                    self.node.log.borrow_mut().push("wait".into());
                    self.driver.finish_wait(wait.holding(&self.node.status));
                }
                Next::Ask(request) => self.answer(request),
            }
        }
    }

    fn answer(&mut self, request: Request) {
        let is_under_way = matches!(self.driver.next(&self.node), Next::Read);
        assert!(is_under_way, "one piece of work at a time");
        let is_read = matches!(request, Request::Read);
        let mut answer = match request {
            Request::Write(commands) => self.node.write(&commands),
            Request::Stamp(writes) => self.node.stamp(&writes),
            Request::Read => self.node.refuse.map_or(Answer::MayRead, Answer::Unserved),
        };
        self.driver.complete(&self.node, answer.as_share());
        if is_read {
            self.node.note("read", "", &self.node.reading.take());
        }
    }

    fn flush(&mut self) {
        self.output.append(self.driver.output());
    }
}

impl FakeNode {
    fn reply(&self, question: &Question) -> Reply {
        let node = |id: i64, role: &'static str| {
            let name = Reply::text("id");
            Reply::Map(vec![
                (name, Reply::Integer(id)),
                (Reply::text("role"), Reply::text(role)),
                (Reply::text("alive"), Reply::Boolean(id != 5002)),
            ])
        };
        match question {
            Question::Leader => Reply::leader(self.leader),
            Question::Time => Reply::time(Duration::from_micros(1_700_000_000_000_042)),
            Question::Wait { .. } => Reply::Integer(2),
            Question::Nodes => Reply::Array(vec![node(5001, "follower"), node(5002, "unknown")]),
            Question::Role => Reply::Array(vec![
                Reply::text("master"),
                Reply::Integer(12),
                Reply::Array(vec![Reply::Array(vec![Reply::text("127.0.0.1")])]),
            ]),
            Question::Info { .. } => {
                Reply::Verbatim("# Server\r\nnodesync_version:0.1.0\r\n\r\n# Raft\r\n".into())
            }
            Question::ClientInfo | Question::ClientList { .. } => {
                Reply::Verbatim("id=7 addr=127.0.0.1:4 name=\n".into())
            }
        }
    }
}

/// Shows a write to be stamped: `k=v`, or `k=-` for a deletion.
pub fn show_write(key: &[u8], value: Option<&[u8]>) -> String {
    let value = value.map_or("-".into(), |value| value.escape_ascii().to_string());
    shortened(format!("{}={value}", key.escape_ascii()))
}

/// Shows a store command in few words.
pub fn show(command: &Command<'_>) -> String {
    let list = |words: &[&[u8]]| {
        words.iter().map(|word| word.escape_ascii().to_string()).collect::<Vec<_>>().join(" ")
    };
    let text = match *command {
        Command::Get { key } => format!("get {}", list(&[key])),
        Command::GetMany { ref keys } => format!("get-many {}", list(keys)),
        Command::Length { key } => format!("length {}", list(&[key])),
        Command::Exists { ref keys } => format!("exists {}", list(keys)),
        Command::Count => "count".into(),
        Command::Keys { pattern } => format!("keys {}", list(&[pattern])),
        Command::Scan { cursor, pattern, count } => {
            format!("scan {cursor} {} {count}", list(&[pattern.unwrap_or(b"-")]))
        }
        Command::Set { key, value, when, get } => {
            format!("set {} {when:?}{}", list(&[key, value]), if get { " get" } else { "" })
        }
        Command::SetMany { ref pairs } => {
            format!(
                "set-many {}",
                list(&pairs.iter().flat_map(|&(k, v)| [k, v]).collect::<Vec<_>>())
            )
        }
        Command::Append { key, value } => format!("append {}", list(&[key, value])),
        Command::Increment { key, by } => format!("increment {} {by}", list(&[key])),
        Command::Take { key } => format!("take {}", list(&[key])),
        Command::Delete { ref keys } => format!("delete {}", list(keys)),
        Command::Clear => "clear".into(),
        Command::Merge { .. } => panic!("no client command becomes a merge"),
    };
    shortened(text)
}

fn shortened(text: String) -> String {
    if text.len() < 100 { text } else { format!("{}… ({} bytes)", &text[..20], text.len()) }
}

/// Encodes a RESP request.
pub fn request(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n", word.len()).into_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Splits `output` into its replies, in readable form.
///
/// # Panics
/// If a reply is not well formed.
pub fn replies(mut output: &[u8], protocol: Protocol) -> Vec<String> {
    let mut replies = Vec::new();
    while !output.is_empty() {
        let mut parts = Vec::new();
        if protocol == Protocol::Line {
            let end = output.iter().position(|&byte| byte == b'\n').expect("lines end");
            parts.push(readable(&output[..end]));
            output = &output[end + 1..];
        } else {
            output = resp_reply(output, &mut parts);
        }
        replies.push(parts.join(" "));
    }
    replies
}

/// Reads one RESP reply into its parts; returns the output behind it.
fn resp_reply<'a>(output: &'a [u8], parts: &mut Vec<String>) -> &'a [u8] {
    let end = output.windows(2).position(|two| two == b"\r\n").expect("lines end with CRLF");
    let line = &output[..end];
    let mut rest = &output[end + 2..];
    parts.push(readable(line));
    let number = || String::from_utf8_lossy(&line[1..]).parse::<i64>().expect("a length");
    let children = match line[0] {
        b'+' | b'-' | b':' | b'_' | b'#' => 0,
        b'$' | b'=' => {
            if let Ok(len) = usize::try_from(number()) {
                parts.push(readable(&rest[..len]));
                assert_eq!(&rest[len..len + 2], b"\r\n");
                rest = &rest[len + 2..];
            }
            0
        }
        b'*' | b'~' => number(),
        b'%' => 2 * number(),
        _ => panic!("no reply begins like {}", readable(line)),
    };
    for _ in 0..children {
        rest = resp_reply(rest, parts);
    }
    rest
}

fn readable(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string().replace("\\'", "'").replace("\\\"", "\"")
}
