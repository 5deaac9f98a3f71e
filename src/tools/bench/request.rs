//! Requests as bytes: encoded once; each sent request is a copy with another key.

use crate::client::encode;
use crate::rng::Rng;
use crate::tools::bench::args::{BenchPlan, SessionMode};
use crate::tools::bench::keys::{KEY_BYTES, Keys, write_key};
use crate::tools::bench::scan::WireProtocol;

/// The requests of a connection before its first operation.
#[derive(Clone, Debug)]
pub struct Greeting {
    /// The requests.
    pub bytes: Vec<u8>,
    /// Number of requests, and so of replies; at least one.
    pub replies: usize,
}

impl Greeting {
    /// The greeting of sessions in this mode.
    pub fn new(protocol: WireProtocol, mode: SessionMode, password: Option<&str>) -> Greeting {
        let mut requests: Vec<Vec<&str>> = Vec::new();
        requests.extend(password.map(|password| vec!["AUTH", password]));
        if mode != SessionMode::Default {
            requests.push(vec!["CONSISTENCY", mode.name()]);
        }
        requests.push(vec!["PING"]);
        let mut bytes = Vec::new();
        requests.iter().for_each(|words| put(protocol, words, &mut bytes));
        Greeting { bytes, replies: requests.len() }
    }
}

fn put(protocol: WireProtocol, words: &[&str], out: &mut Vec<u8>) {
    match protocol {
        WireProtocol::Resp => encode(words, out),
        WireProtocol::Line => {
            out.extend_from_slice(words.join(" ").as_bytes());
            out.push(b'\n');
        }
    }
}

/// An encoded request with a placeholder for the key.
#[derive(Clone, Debug)]
struct Template {
    bytes: Vec<u8>,
    key_at: usize,
}

impl Template {
    fn new(protocol: WireProtocol, words: &[&str]) -> Template {
        let mut bytes = Vec::new();
        put(protocol, words, &mut bytes);
        let key = words[1].as_bytes();
        let key_at = bytes.windows(key.len()).position(|bytes| bytes == key);
        Template { bytes, key_at: key_at.expect("the key is one of the words") }
    }

    #[inline]
    fn put(&self, key: &[u8; KEY_BYTES], out: &mut Vec<u8>) {
        let at = out.len() + self.key_at;
        out.extend_from_slice(&self.bytes);
        out[at..at + KEY_BYTES].copy_from_slice(key);
    }
}

/// The stream of random operations of one thread.
#[derive(Clone, Debug)]
pub struct RequestGenerator {
    write: Template,
    read: Template,
    keys: Keys,
    /// Number of reads in 2^64 operations.
    reads: u128,
    rng: Rng,
}

impl RequestGenerator {
    /// Operations as in the plan, drawn with `rng`.
    pub fn new(plan: &BenchPlan, keys: Keys, rng: Rng) -> RequestGenerator {
        let mut name = [0; KEY_BYTES];
        write_key(0, &mut name);
        let name = String::from_utf8_lossy(&name).into_owned();
        RequestGenerator {
            write: Template::new(plan.protocol, &["SET", &name, &value(plan.size)]),
            read: Template::new(plan.protocol, &["GET", &name]),
            keys,
            reads: (plan.ratio * 2f64.powi(64)) as u128,
            rng,
        }
    }

    /// Appends the next operation. True if it is a read.
    #[inline]
    pub fn put(&mut self, out: &mut Vec<u8>) -> bool {
        let read = self.reads > 0 && u128::from(self.rng.bits()) < self.reads;
        let mut key = [0; KEY_BYTES];
        write_key(self.keys.draw(&mut self.rng), &mut key);
        let template = if read { &self.read } else { &self.write };
        template.put(&key, out);
        read
    }
}

/// A value of this many letters.
pub fn value(size: usize) -> String {
    (0..size).map(|at| char::from(b'a' + (at % 26) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::bench::args::BenchArgs;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn requests(line: &str) -> RequestGenerator {
        let args = Line::try_parse_from(line.split_whitespace()).unwrap().args;
        let plan = BenchPlan::new(&args).unwrap();
        RequestGenerator::new(&plan, Keys::new(plan.distribution, plan.keys), Rng::new(1))
    }

    #[test]
    fn a_request_is_a_template_with_a_key() {
        let mut out = b"before".to_vec();
        assert!(!requests("bench --size 3 --keys 1").put(&mut out));
        let expected = b"before*3\r\n$3\r\nSET\r\n$16\r\nkey:000000000000\r\n$3\r\nabc\r\n";
        assert_eq!(out, expected);
        out.clear();
        assert!(requests("bench --protocol line --ratio 1 --keys 1").put(&mut out));
        assert_eq!(out, b"GET key:000000000000\n");
    }

    #[test]
    fn reads_have_their_share() {
        let (mut requests, mut out) = (requests("bench --ratio 0.25"), Vec::new());
        let reads = (0..40_000).filter(|_| requests.put(&mut out)).count();
        assert!((9_500..10_500).contains(&reads), "{reads}");
    }

    #[test]
    fn a_greeting_authenticates_and_sets_the_mode() {
        let greeting = Greeting::new(WireProtocol::Line, SessionMode::Eventual, Some("secret"));
        assert_eq!(greeting.bytes, b"AUTH secret\nCONSISTENCY eventual\nPING\n");
        assert_eq!(greeting.replies, 3);
        let greeting = Greeting::new(WireProtocol::Resp, SessionMode::Default, None);
        assert_eq!((&greeting.bytes[..], greeting.replies), (&b"*1\r\n$4\r\nPING\r\n"[..], 1));
    }
}
