//! The client protocols from outside: golden transcripts of sessions under `scripts/session`, and
//! properties that hold for any bytes in any pieces. A small map plays the store and the node.
//!
//! The language of the scripts (`UPDATE_GOLDENFILES=1` rewrites the expected output):
//!
//! - `> SET k v` sends a line; `lines "SET k v" "GET k"` sends several at once
//! - `resp SET k v` sends a RESP request; `pipeline "SET k v" "GET k"` sends several at once
//! - `send "*1\r\n"` sends bytes; `fill 70000 x` sends the byte `x` 70,000 times
//! - `session key_bytes_max=10 …` opens a new connection to the same node, with these limits;
//!   `consistency=eventual` sets its initial mode
//! - `node leader=none refuse=NoQuorum` changes the answers of the node; `profile` shows the
//!   profile
//!
//! The transcript shows, for each command, the work that the session hands out and, behind `<`, its
//! output: one line for each reply, with a blank in place of RESP's CRLF.

mod driven;
mod limits;
mod modes;

use std::error::Error;
use std::fmt::Write as _;

use driven::{Driven, replies, request};
use limits::tight;
use nodesync::protocol::Limits;
use nodesync::types::{Consistency, NodeId, Rejected, Unknown, Unserved};
use proptest::prelude::*;

/// Bytes of a script's text: each character is one byte.
fn bytes_of(text: &str) -> Vec<u8> {
    text.chars().map(|char| u8::try_from(char).expect("scripts stay within one byte")).collect()
}

/// Runner of one script.
struct Script(Driven);

impl Script {
    /// Serves the bytes sent so far and returns the transcript.
    fn served(&mut self) -> Result<String, Box<dyn Error>> {
        let driven = &mut self.0;
        driven.serve();
        let mut text = String::new();
        for line in driven.take_log() {
            writeln!(text, "{line}")?;
        }
        for reply in replies(&driven.output, driven.protocol()) {
            match reply.len() {
                0..=1000 => writeln!(text, "< {reply}")?,
                len => writeln!(text, "< {}… ({len} characters)", &reply[..20])?,
            }
        }
        driven.output.clear();
        Ok(text)
    }

    fn requests(&mut self, requests: &[Vec<Vec<u8>>]) -> Result<String, Box<dyn Error>> {
        let mut bytes = Vec::new();
        for words in requests {
            bytes.extend(request(&words.iter().map(Vec::as_slice).collect::<Vec<_>>()));
        }
        self.0.receive(&bytes);
        self.served()
    }

    fn open(&mut self, settings: &[(String, String)]) -> Result<(), Box<dyn Error>> {
        let (mut limits, mut password) = (Limits::default(), None);
        let mut consistency = Consistency::Strong;
        for (name, value) in settings {
            let limit = match name.as_str() {
                "password" => {
                    password = Some(value.as_str());
                    continue;
                }
                "consistency" => {
                    assert_eq!(value, "eventual");
                    consistency = Consistency::Eventual;
                    continue;
                }
                "key_bytes_max" => &mut limits.key_bytes_max,
                "value_bytes_max" => &mut limits.value_bytes_max,
                "arguments_max" => &mut limits.arguments_max,
                "request_bytes_max" => &mut limits.request_bytes_max,
                "reply_bytes_max" => &mut limits.reply_bytes_max,
                "output_bytes_max" => &mut limits.output_bytes_max,
                "batch_bytes_max" => &mut limits.batch_bytes_max,
                "batch_commands_max" => &mut limits.batch_commands_max,
                other => return Err(format!("no setting {other}").into()),
            };
            *limit = value.parse()?;
        }
        let mut driven = Driven::with(limits, password, consistency);
        (driven.node.leader, driven.node.refuse) = (self.0.node.leader, self.0.node.refuse);
        driven.node.store = std::mem::take(&mut self.0.node.store);
        self.0 = driven;
        Ok(())
    }

    fn node(&mut self, settings: &[(String, String)]) -> Result<(), Box<dyn Error>> {
        for (name, value) in settings {
            match (name.as_str(), value.as_str()) {
                ("leader", "none") => self.0.node.leader = None,
                ("leader", id) => self.0.node.leader = Some(NodeId(id.parse()?)),
                ("refuse", "none") => self.0.node.refuse = None,
                ("refuse", reason) => {
                    let reasons = reasons();
                    let found = reasons.into_iter().find(|(name, _)| *name == reason);
                    self.0.node.refuse = Some(found.ok_or("no such reason")?.1);
                }
                (other, _) => return Err(format!("no setting {other}").into()),
            }
        }
        Ok(())
    }
}

fn reasons() -> [(&'static str, Unserved); 10] {
    [
        ("NoQuorum", Rejected::NoQuorum.into()),
        ("NoLeader", Rejected::NoLeader.into()),
        ("Busy", Rejected::Busy.into()),
        ("Stopping", Rejected::Stopping.into()),
        ("DiskFull", Rejected::DiskFull.into()),
        ("ClockSkew", Rejected::ClockSkew.into()),
        ("Joining", Rejected::Joining.into()),
        ("TimedOut", Unknown::TimedOut.into()),
        ("ResultLost", Unknown::ResultLost.into()),
        ("Stopped", Unknown::Stopped.into()),
    ]
}

impl goldenscript::Runner for Script {
    type Command = goldenscript::Command;

    fn run(
        &mut self,
        command: &goldenscript::Command,
        _: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        let (mut words, mut settings) = (Vec::new(), Vec::new());
        for arg in &command.args {
            match arg {
                goldenscript::Argument::Positional(word) => words.push(bytes_of(word)),
                goldenscript::Argument::KeyValue(name, value) => {
                    settings.push((name.clone(), value.clone()));
                }
                other => return Err(format!("unknown argument: {other}").into()),
            }
        }
        let split = |text: &Vec<u8>| text.split(|&byte| byte == b' ').map(<[u8]>::to_vec).collect();
        match command.name.as_str() {
            "session" => self.open(&settings).map(|()| String::new()),
            "node" => self.node(&settings).map(|()| String::new()),
            "profile" => Ok(format!("{:?}", self.0.profile())),
            "resp" => self.requests(&[words]),
            "pipeline" => self.requests(&words.iter().map(split).collect::<Vec<_>>()),
            "lines" => {
                self.0.receive(
                    &words.iter().flat_map(|line| [line, &b"\n"[..]].concat()).collect::<Vec<_>>(),
                );
                self.served()
            }
            "send" => {
                self.0.receive(&words.concat());
                self.served()
            }
            "fill" => {
                let len = String::from_utf8_lossy(&words[0]).parse()?;
                self.0.receive(&words[1].repeat(len));
                self.served()
            }
            line => {
                self.0.receive(&bytes_of(&format!("{line}\n")));
                self.served()
            }
        }
    }
}

#[test]
fn sessions_follow_their_scripts() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts/session");
    let mut scripts: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder exists")
        .map(|entry| entry.expect("the folder can be listed").path())
        .collect();
    scripts.sort();
    assert!(!scripts.is_empty());
    for script in scripts {
        println!("{}", script.display());
        let mut runner = Script(Driven::new(Limits::default(), None));
        goldenscript::run(&mut runner, &script).expect("the script runs");
    }
}

/// Commands, output and final state of a session that receives these pieces.
fn trace(
    limits: &Limits,
    password: Option<&str>,
    pieces: &[&[u8]],
) -> (Vec<String>, Vec<u8>, bool) {
    let mut driven = Driven::new(limits.clone(), password);
    for piece in pieces {
        driven.receive(piece);
        driven.serve();
    }
    let asked = driven.take_log().into_iter().filter(|line| line.starts_with("ask"));
    let mut commands = driven.take_commands();
    commands.extend(asked);
    (commands, driven.output, driven.closed)
}

/// Requests of all kinds: whole, truncated and meaningless.
fn conversation() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        "[a-c]{1,2}".prop_map(String::into_bytes),
        prop::sample::select(&WORDS[..]).prop_map(|word| word.as_bytes().to_vec()),
        "-?[0-9]{1,3}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..30),
    ];
    let name = prop::sample::select(&NAMES[..]).prop_map(|name| name.as_bytes().to_vec());
    let prefix = prop_oneof![
        8 => Just(&[][..]),
        1 => Just(&["with", "eventual"][..]),
        1 => Just(&["With", "STRONG"][..]),
    ];
    let words =
        (prefix, name, prop::collection::vec(word, 0..4)).prop_map(|(prefix, name, words)| {
            let prefix = prefix.iter().map(|word| word.as_bytes().to_vec());
            prefix.chain([name]).chain(words).collect::<Vec<_>>()
        });
    let switch = prop::sample::select(&modes::SWITCHES[..])
        .prop_map(|words| words.split(' ').map(|word| word.as_bytes().to_vec()).collect());
    let words = prop_oneof![8 => words, 1 => switch];
    let resp = words
        .clone()
        .prop_map(|words| request(&words.iter().map(Vec::as_slice).collect::<Vec<_>>()));
    let line = words.prop_map(|words| [&words.join(&b' ')[..], b"\n"].concat());
    let junk = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        prop::sample::select(&JUNK[..]).prop_map(|junk| junk.as_bytes().to_vec()),
    ];
    prop_oneof![
        4 => prop::collection::vec(prop_oneof![20 => resp, 1 => junk.clone()], 0..20),
        2 => prop::collection::vec(prop_oneof![20 => line, 1 => junk], 0..20),
    ]
    .prop_map(|parts| parts.concat())
}

const NAMES: [&str; 48] = [
    "get",
    "SET",
    "setnx",
    "GetSet",
    "getdel",
    "mget",
    "mset",
    "append",
    "strlen",
    "incr",
    "decr",
    "incrby",
    "decrby",
    "del",
    "unlink",
    "exists",
    "type",
    "dbsize",
    "keys",
    "scan",
    "flushall",
    "ping",
    "echo",
    "hello",
    "auth",
    "select",
    "reset",
    "time",
    "client",
    "command",
    "config",
    "info",
    "role",
    "wait",
    "readonly",
    "leader",
    "nodes",
    "set",
    "set",
    "get",
    "get",
    "incr",
    "del",
    "nonsense",
    "post",
    "quit",
    "Consistency",
    "with",
];

const WORDS: [&str; 26] = [
    "nx", "XX", "get", "ex", "keepttl", "match", "count", "type", "*", "async", "0", "2", "3",
    "id", "list", "setname", "setinfo", "lib-name", "docs", "info", "filterby", "pattern",
    "default", "secret", "strong", "Eventual",
];

const JUNK: [&str; 12] = [
    "\r\n",
    "\n",
    "*",
    "*0\r\n",
    "*-1\r\n",
    "*1\r\n$-1\r\n",
    "*2\r\n$3\r\nGET\r\n",
    "*1\r\n:1\r\n",
    "*99999999999\r\n",
    "*1\r\n$99999999999\r\n",
    "GET / HTTP/1.1\r\n",
    "$3\r\n",
];

proptest! {
    #[test]
    fn pieces_make_no_difference(
        bytes in conversation(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        protected in any::<bool>(),
        narrow in any::<bool>(),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let ends = cuts.iter().copied().chain([bytes.len()]);
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let pieces: Vec<&[u8]> = starts.zip(ends).map(|(from, to)| &bytes[from..to]).collect();
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        let limits = if narrow { tight() } else { Limits::default() };
        let password = protected.then_some("secret");
        let whole = trace(&limits, password, &[&bytes]);
        prop_assert_eq!(&trace(&limits, password, &pieces), &whole);
        prop_assert_eq!(&trace(&limits, password, &single), &whole);
    }

    #[test]
    fn bytes_that_arrive_early_make_no_difference(
        bytes in conversation(), cut in any::<prop::sample::Index>(),
    ) {
        let at = cut.index(bytes.len() + 1);
        let (mut whole, mut split) = (Driven::new(tight(), None), Driven::new(tight(), None));
        whole.receive(&bytes);
        whole.serve();
        split.receive(&bytes[..at]);
        split.receive(&bytes[at..]);
        split.serve();
        prop_assert_eq!(whole.take_log(), split.take_log());
        prop_assert_eq!(whole.output, split.output);
    }

    #[test]
    fn replies_are_well_formed(bytes in conversation(), three in any::<bool>()) {
        let mut driven = Driven::new(Limits::default(), None);
        if three {
            driven.receive(&request(&[b"HELLO", b"3"]));
        }
        driven.receive(&bytes);
        driven.serve();
        replies(&driven.output, driven.protocol());
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..8),
    ) {
        for first in [&b""[..], b"*", b"*3\r\n$3\r\nSET\r\n$"] {
            let mut driven = Driven::new(tight(), None);
            driven.receive(first);
            for piece in &pieces {
                driven.receive(piece);
                driven.serve();
            }
        }
    }

    #[test]
    fn any_key_and_value_come_back_over_resp(
        key in prop::collection::vec(any::<u8>(), 0..40),
        value in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut driven = Driven::new(Limits::default(), None);
        driven.receive(&request(&[b"SET", &key, &value]));
        driven.receive(&request(&[b"GET", &key]));
        driven.serve();
        let head = format!("+OK\r\n${}\r\n", value.len());
        prop_assert_eq!(driven.output, [head.as_bytes(), &value, b"\r\n"].concat());
    }

    #[test]
    fn every_answer_on_a_line_is_one_line(
        name in prop::sample::select(&NAMES[..]),
        words in prop::collection::vec("[a-c*0-3]{1,3}", 0..3),
        value in prop::collection::vec(any::<u8>(), 0..10),
    ) {
        prop_assume!(name != "quit" && name != "post");
        let mut driven = Driven::new(Limits::default(), None);
        let pairs = [(b"a".to_vec(), value.clone()), (value, b"\r\n".to_vec())];
        driven.node.store.borrow_mut().0.extend(pairs);
        driven.receive(format!("{name} {}\r\n", words.join(" ")).as_bytes());
        driven.serve();
        let newlines = driven.output.iter().filter(|&&byte| byte == b'\n').count();
        prop_assert_eq!(newlines, 1);
        prop_assert_eq!(driven.output.last(), Some(&b'\n'));
        prop_assert!(!driven.output.contains(&b'\r'));
    }
}
