//! RESP, Redis's serialization protocol: requests are read in place and incrementally, replies are
//! written in version 2 or 3 (<https://redis.io/docs/latest/develop/reference/protocol-spec/>).
//!
//! A request is an array of bulk strings, `*2 $3 GET $1 k` with CRLF behind each part. [`Parser`]
//! remembers its place in an incomplete request, so each byte is read once even if they arrive one
//! at a time, and it leaves the arguments in the receive buffer. Every announced length is checked
//! before use.
//!
//! Two points are stricter than in Redis, which would go on with a guess: the CRLF behind a bulk
//! string must be present, and a length line of more than 32 bytes is refused at once. Left out:
//! inline commands (a connection that does not begin with `*` speaks the line protocol), streamed
//! types and attributes.

use crate::protocol::args::Span;
use crate::protocol::number::{put_i64, put_len};
use crate::protocol::reply::Reply;
use crate::types::parse_integer;

/// Longest length line in bytes. No valid length needs more.
const LENGTH_LINE_BYTES_MAX: usize = 32;

/// The limits on the lengths that a request announces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Most words, the name counted.
    pub(super) arguments_max: usize,
    /// Most bytes of a word.
    pub(super) value_bytes_max: usize,
    /// Most bytes of the whole request.
    pub(super) request_bytes_max: usize,
    /// The word for a length beyond the limits in errors: `unauthenticated` before AUTH, else
    /// `invalid`, as in Redis.
    pub(super) complaint: &'static str,
}

/// Reads one request at a time from the front of the unread bytes.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// Bytes of the request that are parsed.
    at: usize,
    /// Number of missing words; unknown until the `*` line is complete.
    missing: Option<usize>,
    /// The length of the word under way; unknown until its `$` line is complete.
    bulk: Option<usize>,
}

impl Parser {
    /// Parses on in the request at the front of `unread`. Returns its length once it is complete,
    /// with its words in `spans`, and `None` if bytes are missing. A request without words (`*0`,
    /// an empty line) has a length and no spans. Without new bytes the result stays the same.
    ///
    /// # Errors
    /// The text of a protocol error. Nothing behind it on this connection can be understood.
    pub(super) fn poll(
        &mut self,
        unread: &[u8],
        spans: &mut Vec<Span>,
        bounds: &Bounds,
    ) -> Result<Option<usize>, String> {
        let found = self.parse(unread, spans, bounds);
        if found.is_err() {
            self.reset(); // the same bytes give the same error again
        }
        found
    }

    fn parse(
        &mut self,
        unread: &[u8],
        spans: &mut Vec<Span>,
        bounds: &Bounds,
    ) -> Result<Option<usize>, String> {
        let mut missing = match self.missing {
            Some(missing) => missing,
            None => {
                spans.clear();
                match self.begin(unread, bounds)? {
                    Some(count) => count,
                    None => return Ok(None),
                }
            }
        };
        while missing > 0 {
            let Some(span) = self.word(unread, bounds)? else {
                self.missing = Some(missing);
                return Ok(None);
            };
            spans.push(span);
            missing -= 1;
        }
        self.missing = Some(0);
        Ok(Some(self.at))
    }

    /// Forgets the request. Call it once the request is consumed.
    pub(super) fn reset(&mut self) {
        *self = Parser::default();
    }

    /// The length of the request under way, as far as it has announced it.
    pub(super) fn needed(&self) -> usize {
        self.at + self.bulk.map_or(0, |len| len + 2)
    }

    /// Reads the `*` line and returns the number of words.
    fn begin(&mut self, unread: &[u8], bounds: &Bounds) -> Result<Option<usize>, String> {
        let count = match unread {
            [] => return Ok(None),
            // redis-cli --pipe sends line breaks between requests: each is an empty request.
            [b'\r' | b'\n', ..] => {
                self.at = 1;
                return Ok(Some(0));
            }
            [b'*', line @ ..] => length_line(line),
            [other, ..] => return Err(unexpected('*', *other)),
        };
        match count {
            Length::Incomplete => Ok(None),
            Length::TooLong => Err("too big mbulk count string".into()),
            Length::Is(count, len) => match usize::try_from(count) {
                // Refused before the spans of that many words cost memory.
                Ok(count) if count > bounds.arguments_max => {
                    Err(format!("{} multibulk length", bounds.complaint))
                }
                count => {
                    self.at = 1 + len;
                    // As in Redis, a negative count is an empty request.
                    Ok(Some(count.unwrap_or(0)))
                }
            },
            Length::NoNumber => Err("invalid multibulk length".into()),
        }
    }

    /// Reads one word: its `$` line, its bytes and the CRLF behind them.
    fn word(&mut self, unread: &[u8], bounds: &Bounds) -> Result<Option<Span>, String> {
        let len = match self.bulk {
            Some(len) => len,
            None => match self.bulk_len(&unread[self.at..], bounds)? {
                Some(len) => len,
                None => return Ok(None),
            },
        };
        let end = self.at + len;
        let Some(&[cr, lf]) = unread.get(end..end + 2) else {
            self.bulk = Some(len);
            return Ok(None);
        };
        if [cr, lf] != *b"\r\n" {
            return Err("expected CRLF behind a bulk string".into());
        }
        let span = Span::new(self.at, end);
        self.at = end + 2;
        self.bulk = None;
        Ok(Some(span))
    }

    /// Reads a `$` line, moves behind it and returns the length of the word.
    fn bulk_len(&mut self, rest: &[u8], bounds: &Bounds) -> Result<Option<usize>, String> {
        let line = match rest {
            [] => return Ok(None),
            [b'$', line @ ..] => line,
            [other, ..] => return Err(unexpected('$', *other)),
        };
        let (number, line_len) = match length_line(line) {
            Length::Incomplete => return Ok(None),
            Length::TooLong => return Err("too big bulk count string".into()),
            Length::Is(number, line_len) => (number, line_len),
            Length::NoNumber => return Err("invalid bulk length".into()),
        };
        let len = usize::try_from(number).map_err(|_| String::from("invalid bulk length"))?;
        // Check the announced length: refuse a long word before its bytes arrive.
        if len > bounds.value_bytes_max {
            return Err(format!("{} bulk length", bounds.complaint));
        }
        let start = self.at + 1 + line_len;
        if start + len + 2 > bounds.request_bytes_max {
            return Err(format!("request longer than {} bytes", bounds.request_bytes_max));
        }
        self.at = start;
        Ok(Some(len))
    }
}

/// The content of a length line, without its marker.
enum Length {
    Incomplete,
    TooLong,
    NoNumber,
    /// The number, and the length of the line with its CRLF.
    Is(i64, usize),
}

fn length_line(line: &[u8]) -> Length {
    let window = &line[..line.len().min(LENGTH_LINE_BYTES_MAX)];
    let Some(end) = window.iter().position(|&byte| byte == b'\r' || byte == b'\n') else {
        return if window.len() < LENGTH_LINE_BYTES_MAX {
            Length::Incomplete
        } else {
            Length::TooLong
        };
    };
    match line[end..] {
        [b'\r'] => Length::Incomplete,
        [b'\r', b'\n', ..] => match parse_integer(&line[..end]) {
            Some(number) => Length::Is(number, end + 2),
            None => Length::NoNumber,
        },
        _ => Length::NoNumber,
    }
}

fn unexpected(expected: char, got: u8) -> String {
    format!("expected '{expected}', got '{}'", got.escape_ascii())
}

/// Appends `reply` in RESP3 if `resp3`, else in RESP2.
pub(super) fn write(out: &mut Vec<u8>, reply: &Reply, resp3: bool) {
    match reply {
        Reply::Simple(text) => put_line(out, b'+', text),
        Reply::Error(text) => put_line(out, b'-', text),
        Reply::Unserved(unserved) => {
            let (code, consequence) = (Reply::code(unserved), Reply::consequence(unserved));
            put_line(out, b'-', &format!("{code} {unserved}: {consequence}"));
        }
        Reply::Integer(number) => {
            out.push(b':');
            put_i64(out, *number);
            out.extend_from_slice(b"\r\n");
        }
        Reply::Boolean(yes) if resp3 => {
            out.extend_from_slice(if *yes { b"#t\r\n" } else { b"#f\r\n" });
        }
        Reply::Boolean(yes) => out.extend_from_slice(if *yes { b":1\r\n" } else { b":0\r\n" }),
        Reply::Bulk(bytes) => put_bulk(out, bytes),
        Reply::Text(text) => put_bulk(out, text.as_bytes()),
        Reply::Null => out.extend_from_slice(if resp3 { b"_\r\n" } else { b"$-1\r\n" }),
        Reply::Array(items) => put_items(out, b'*', items, resp3),
        Reply::Set(items) => put_items(out, if resp3 { b'~' } else { b'*' }, items, resp3),
        Reply::Map(pairs) => {
            if resp3 {
                put_header(out, b'%', pairs.len());
            } else {
                put_header(out, b'*', 2 * pairs.len());
            }
            for (name, value) in pairs {
                write(out, name, resp3);
                write(out, value, resp3);
            }
        }
        Reply::Verbatim(text) if resp3 => {
            put_header(out, b'=', text.len() + 4);
            out.extend_from_slice(b"txt:");
            out.extend_from_slice(text.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        Reply::Verbatim(text) => put_bulk(out, text.as_bytes()),
    }
}

fn put_header(out: &mut Vec<u8>, marker: u8, len: usize) {
    out.push(marker);
    put_len(out, len);
    out.extend_from_slice(b"\r\n");
}

fn put_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    put_header(out, b'$', bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

fn put_items(out: &mut Vec<u8>, marker: u8, items: &[Reply], resp3: bool) {
    put_header(out, marker, items.len());
    for item in items {
        write(out, item, resp3);
    }
}

/// Appends a line of text. As in Redis, a line break in it becomes a blank: an error may quote a
/// client's own words, and those must not begin a reply of their own.
fn put_line(out: &mut Vec<u8>, marker: u8, text: &str) {
    out.push(marker);
    out.extend(text.bytes().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte }));
    out.extend_from_slice(b"\r\n");
}
