//! The line protocol, for telnet and netcat: one line in, one line out.
//!
//! A request ends with `\n` or `\r\n`, a reply with `\n`. Empty lines are ignored. Blanks separate
//! words. A last argument that is a value (SET, SETNX, GETSET, APPEND, ECHO) is the rest of the
//! line, also behind WITH; so SET takes no options here. All commands of the table work:
//!
//! | line | reply |
//! |---|---|
//! | `PING` | `PONG` |
//! | `LEADER` | `LEADER 5002`, or `ERROR: Leader unavailable` |
//! | `SET k the rest of the line` | `OK: k set by leader 5002` |
//! | `GET k`, `GETDEL k` | `VALUE: v`, or `ERROR: Key not found` |
//! | `DEL k …`, `UNLINK k …` | `OK: 2 deleted` |
//! | `INCR k`, `EXISTS k …`, `STRLEN k`, `DBSIZE`, … | `VALUE: 3` |
//! | `SETNX k v` | `VALUE: 1`, or `VALUE: 0` if the key was there |
//! | `GETSET k v` | `VALUE: old`, or `VALUE: (nil)` |
//! | `TYPE k` | `VALUE: string`, or `VALUE: none` |
//! | `MGET k …`, `KEYS *`, `TIME`, `ROLE`, `CONFIG GET x` | `VALUES: a b "with blanks" (nil)` |
//! | `SCAN 0` | `VALUES: 17 [a b]`; the number is the cursor of the next SCAN |
//! | `MSET k v …`, `FLUSHALL`, `AUTH password`, `SELECT 0`, … | `OK` |
//! | `CONSISTENCY` | `VALUE: strong` |
//! | `CONSISTENCY eventual` | `OK: consistency set to eventual` |
//! | `CONSISTENCY other`, `WITH other GET k` | `ERROR: invalid consistency mode` |
//! | `WITH eventual SET k the rest of the line` | the reply of the command |
//! | `NODES` | `NODES {id=5001 …} {id=5002 …}` |
//! | `INFO`, `CLIENT LIST` | `VALUE: # Server \| version:0.1.0 \| …`, lines joined by bars |
//! | `QUIT` | `OK`, and the connection is closed |
//! | a command that is not in the table | `ERROR: Invalid command` |
//! | a command with wrong arguments | `ERROR: ` and RESP's text without its `ERR` |
//! | no leader | `ERROR: Leader unavailable` |
//! | no quorum | `FAIL: quorum not reached` |
//! | not done for another reason | `FAIL: too many requests in flight`, … |
//! | perhaps done | `UNKNOWN: no result within the request timeout` |
//!
//! `FAIL` means that nothing was done, `UNKNOWN` that the command may have been done. The reply to
//! an eventual SET names the node that stamped it.
//!
//! A reply shows a line feed as `\n` and a carriage return as `\r`; it leaves a backslash as it is,
//! so the original bytes are not always certain. An item of a list is quoted if it has blanks,
//! quotes or brackets in it, and inside the quotes a backslash precedes a quote or a backslash. A
//! program that needs exact bytes speaks RESP.
//!
//! A web page can make a browser send an HTTP request to any port, with command lines of its choice
//! in the body (cross-protocol scripting, as against Redis). So a first line that ends in
//! ` HTTP/1.x`, and any line that begins with the word `POST` or `Host:`, closes the connection
//! without a reply.

use crate::protocol::args::Span;
use crate::protocol::command::{self, Handler};
use crate::protocol::number::put_i64;
use crate::protocol::reply::{Reply, ReplyShape};
use crate::types::{NodeId, Rejected, Unserved};

/// Reads one line at a time from the front of the unread bytes.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// Bytes of the line under way that hold no line feed.
    scanned: usize,
    /// True once a line was consumed: only the first line can be HTTP's request line.
    has_first: bool,
}

/// A line that ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadLine {
    /// The line is longer than allowed.
    TooLong,
    /// The client speaks HTTP.
    Http,
}

impl Lines {
    /// Finds the line at the front of `unread`. Returns its length with its line end, and its words
    /// in `spans` (none for an empty line); `None` if the line is not complete. Without new bytes
    /// the result stays the same.
    pub(super) fn poll(
        &mut self,
        unread: &[u8],
        spans: &mut Vec<Span>,
        bytes_max: usize,
    ) -> Result<Option<usize>, BadLine> {
        // Search only the bytes that a valid line may have, and each of them once.
        let window = &unread[..unread.len().min(bytes_max)];
        let Some(found) = window[self.scanned..].iter().position(|&byte| byte == b'\n') else {
            self.scanned = window.len();
            return if window.len() < bytes_max { Ok(None) } else { Err(BadLine::TooLong) };
        };
        let end = self.scanned + found;
        self.scanned = end;
        let line = window[..end].strip_suffix(b"\r").unwrap_or(&window[..end]);
        // Cross-protocol scripting: close before any line of the body is executed.
        if !self.has_first && is_http_request_line(line) {
            return Err(BadLine::Http);
        }
        spans.clear();
        split(line, spans);
        match spans.first() {
            Some(first) if is_http_word(first.of(line)) => Err(BadLine::Http),
            _ => Ok(Some(end + 1)),
        }
    }

    /// Forgets the line. Call it once the line is consumed.
    pub(super) fn reset(&mut self) {
        *self = Lines { scanned: 0, has_first: true };
    }
}

fn is_http_request_line(line: &[u8]) -> bool {
    matches!(line, [.., b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor]
        if minor.is_ascii_digit())
}

fn is_http_word(word: &[u8]) -> bool {
    word.eq_ignore_ascii_case(b"post") || word.eq_ignore_ascii_case(b"host:")
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// Finds the words of `line`. If the command takes the rest of the line, that is the last word.
fn split(line: &[u8], spans: &mut Vec<Span>) {
    let (mut name_at, mut rest_at) = (0, 0);
    let mut at = 0;
    loop {
        at += line[at..].iter().take_while(|&&byte| is_blank(byte)).count();
        if at == line.len() {
            return;
        }
        let takes_rest = rest_at > 0 && spans.len() == rest_at;
        let word = line[at..].iter().take_while(|&&byte| takes_rest || !is_blank(byte)).count();
        // The command decides where the rest of the line begins. Behind WITH the command's own name
        // is a later word.
        if spans.len() == name_at {
            match command::find(&line[at..at + word]) {
                Some(spec) if matches!(spec.handler, Handler::With) => {
                    name_at += command::WITH_WORDS;
                }
                Some(spec) if spec.rest_at > 0 => rest_at = name_at + spec.rest_at,
                _ => {}
            }
        }
        spans.push(Span::new(at, at + word));
        at += word;
    }
}

/// Appends `reply` as one line.
pub(super) fn write(out: &mut Vec<u8>, shape: ReplyShape, reply: &Reply) {
    match (shape, reply) {
        (ReplyShape::Lookup, Reply::Null) => out.extend_from_slice(b"ERROR: Key not found"),
        (ReplyShape::Leader, Reply::Null) => out.extend_from_slice(b"ERROR: Leader unavailable"),
        (ReplyShape::Leader, Reply::Integer(_)) => put_scalar(out, "LEADER ", reply),
        (ReplyShape::Nodes, Reply::Array(nodes)) => {
            put_list(out, "NODES", nodes.iter().map(ListItem::One))
        }
        (ReplyShape::Kind, Reply::Simple(_)) => put_scalar(out, "VALUE: ", reply),
        (ReplyShape::Deleted, Reply::Integer(_)) => {
            put_scalar(out, "OK: ", reply);
            out.extend_from_slice(b" deleted");
        }
        (ReplyShape::Chosen(mode), Reply::Simple(_)) => {
            out.extend_from_slice(b"OK: consistency set to ");
            out.extend_from_slice(mode.as_str().as_bytes());
        }
        (_, Reply::Simple(word)) => out.extend_from_slice(word.as_bytes()),
        (_, Reply::Error(text)) => {
            out.extend_from_slice(b"ERROR: ");
            put_escaped(out, text.strip_prefix("ERR ").unwrap_or(text).as_bytes());
        }
        (_, Reply::Unserved(unserved)) => out.extend_from_slice(unserved_text(unserved).as_bytes()),
        (_, Reply::Array(items) | Reply::Set(items)) => {
            put_list(out, "VALUES:", items.iter().map(ListItem::One));
        }
        (_, Reply::Map(pairs)) => {
            put_list(out, "VALUES:", pairs.iter().map(|(name, value)| ListItem::Pair(name, value)));
        }
        (_, Reply::Integer(_) | Reply::Boolean(_) | Reply::Bulk(_) | Reply::Text(_))
        | (_, Reply::Null | Reply::Verbatim(_)) => put_scalar(out, "VALUE: ", reply),
    }
    out.push(b'\n');
}

/// Appends the reply to SET. `by` is the node that leads, or for an eventual write the node that
/// stamped it.
pub(super) fn write_stored(out: &mut Vec<u8>, key: &[u8], by: Option<NodeId>) {
    out.extend_from_slice(b"OK: ");
    put_escaped(out, key);
    out.extend_from_slice(b" set");
    if let Some(NodeId(node)) = by {
        out.extend_from_slice(b" by leader ");
        put_i64(out, i64::from(node));
    }
    out.push(b'\n');
}

fn unserved_text(unserved: &Unserved) -> String {
    match unserved {
        Unserved::Rejected(Rejected::NoLeader) => "ERROR: Leader unavailable".into(),
        Unserved::Rejected(reason) => format!("FAIL: {reason}"),
        Unserved::Unknown(reason) => format!("UNKNOWN: {reason}"),
    }
}

/// One element of a list, or one pair of a map.
enum ListItem<'a> {
    One(&'a Reply),
    Pair(&'a Reply, &'a Reply),
}

fn put_list<'a>(
    out: &mut Vec<u8>,
    label: &str,
    items: impl ExactSizeIterator<Item = ListItem<'a>>,
) {
    out.extend_from_slice(label.as_bytes());
    if items.len() == 0 {
        out.extend_from_slice(b" (empty)");
    }
    for item in items {
        out.push(b' ');
        put_list_item(out, &item);
    }
}

fn put_list_item(out: &mut Vec<u8>, item: &ListItem<'_>) {
    match item {
        ListItem::One(value) => put_value(out, value),
        ListItem::Pair(name, value) => {
            put_value(out, name);
            out.push(b'=');
            put_value(out, value);
        }
    }
}

/// Appends a value inside a list: a nested list in brackets, a text in quotes if it needs them.
fn put_value(out: &mut Vec<u8>, item: &Reply) {
    match item {
        Reply::Array(items) | Reply::Set(items) => {
            put_nested(out, *b"[]", items.iter().map(ListItem::One));
        }
        Reply::Map(pairs) => {
            let pairs = pairs.iter().map(|(name, value)| ListItem::Pair(name, value));
            put_nested(out, *b"{}", pairs);
        }
        Reply::Bulk(bytes) => put_quoted(out, bytes),
        Reply::Text(text) => put_quoted(out, text.as_bytes()),
        Reply::Verbatim(text) => put_quoted(out, text.as_bytes()),
        Reply::Error(text) => put_quoted(out, text.as_bytes()),
        Reply::Unserved(unserved) => put_quoted(out, unserved_text(unserved).as_bytes()),
        Reply::Simple(_) | Reply::Integer(_) | Reply::Boolean(_) | Reply::Null => {
            put_scalar(out, "", item);
        }
    }
}

fn put_nested<'a>(out: &mut Vec<u8>, brackets: [u8; 2], items: impl Iterator<Item = ListItem<'a>>) {
    out.push(brackets[0]);
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push(b' ');
        }
        put_list_item(out, &item);
    }
    out.push(brackets[1]);
}

/// Appends `label` and a reply that is not a list.
fn put_scalar(out: &mut Vec<u8>, label: &str, reply: &Reply) {
    out.extend_from_slice(label.as_bytes());
    match reply {
        Reply::Simple(word) => out.extend_from_slice(word.as_bytes()),
        Reply::Integer(number) => put_i64(out, *number),
        Reply::Boolean(yes) => out.extend_from_slice(if *yes { b"true" } else { b"false" }),
        Reply::Bulk(bytes) => put_escaped(out, bytes),
        Reply::Text(text) => put_escaped(out, text.as_bytes()),
        Reply::Verbatim(text) => {
            let lines = text.lines().filter(|line| !line.is_empty());
            put_escaped(out, lines.collect::<Vec<_>>().join(" | ").as_bytes());
        }
        _ => out.extend_from_slice(b"(nil)"),
    }
}

/// Appends `bytes` with line breaks escaped, so that the reply stays on one line.
fn put_escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    for &byte in bytes {
        match byte {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            _ => out.push(byte),
        }
    }
}

/// Appends `bytes`, in quotes if their end would not be plain without.
fn put_quoted(out: &mut Vec<u8>, bytes: &[u8]) {
    const SPECIAL: &[u8] = b" \t\r\n\"\\()[]{}=";
    if !bytes.is_empty() && !bytes.iter().any(|byte| SPECIAL.contains(byte)) {
        out.extend_from_slice(bytes);
        return;
    }
    out.push(b'"');
    for &byte in bytes {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        put_escaped(out, &[byte]);
    }
    out.push(b'"');
}
