//! A small blocking client of one node: RESP2 or RESP3 over one TCP connection. The project's own
//! tools use it, and so may any other program.
//!
//! A request has one of three results: a [`Reply`], which may be an error's text; certainly not
//! sent ([`Error::NotSent`]); or sent with its reply lost ([`Error::Lost`]), so that it may or may
//! not be done. The client never repeats a request. A connection that has failed once stays closed:
//! make another one.
//!
//! Rules: every wait has a deadline. A reply takes at most [`Options::reply_bytes_max`] of memory
//! and a few levels of depth, whatever lengths it announces.
//!
//! The client follows the protocol's specification and shares no code with the server's parser, so
//! that it does not repeat a bug there. Left out: TLS, pools, subscriptions, streamed RESP3
//! replies.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Most levels of nested arrays; no reply of a node has more than four.
const DEPTH_MAX: usize = 16;
/// Longest line with a length or a text.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Most bytes of one read from the socket.
const READ_BYTES: usize = 16 << 10;

/// The options of a connection: its greeting, time-outs and limits.
#[derive(Clone, Debug)]
pub struct Options {
    /// The password for AUTH, sent first.
    pub password: Option<String>,
    /// True to send `HELLO 3`, for maps, sets and other replies of RESP3.
    pub resp3: bool,
    /// Longest wait for a connection, for each address of the name.
    pub connect_timeout: Duration,
    /// Longest wait until a request is sent and all replies of a [`Client::pipeline`] have come.
    pub timeout: Duration,
    /// Most bytes of memory that one reply may take.
    pub reply_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            password: None,
            resp3: false,
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(15),
            // The longest value that a node stores, and room for its framing.
            reply_bytes_max: (512 << 20) + (1 << 20),
        }
    }
}

/// The reply of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// `+`: a short text, such as OK.
    Simple(String),
    /// `-` or `!`: an error's text; its first word is its kind.
    Error(String),
    /// `:`
    Integer(i64),
    /// `$`, and `=` without its format.
    Bulk(Vec<u8>),
    /// `$-1`, `*-1` and `_`
    Nil,
    /// `*`, and `~` and `>` of RESP3.
    Array(Vec<Reply>),
    /// `%`
    Map(Vec<(Reply, Reply)>),
    /// `,`
    Double(f64),
    /// `#`
    Boolean(bool),
    /// `(`: a number of any size, as text.
    BigNumber(String),
}

impl Reply {
    /// True for `+OK`.
    pub fn is_ok(&self) -> bool {
        matches!(self, Reply::Simple(text) if text == "OK")
    }

    /// The text of an error.
    pub fn error(&self) -> Option<&str> {
        match self {
            Reply::Error(text) => Some(text),
            _ => None,
        }
    }
}

/// The reason why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No byte of the request was sent: it is certainly not done.
    #[error("not sent: {0}")]
    NotSent(io::Error),
    /// The node refused the greeting with this error: AUTH or HELLO failed.
    #[error("refused: {0}")]
    Refused(String),
    /// A part of the request was sent, and no reply came: it may or may not be done.
    #[error("no reply: {0}")]
    Lost(io::Error),
}

/// A connection to a node.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    timeout: Duration,
    reply_bytes_max: usize,
    /// Received bytes; those from `start` on are not parsed yet.
    buffer: Vec<u8>,
    start: usize,
    /// The deadline for all replies to the requests sent last.
    deadline: Instant,
    is_broken: bool,
}

impl Client {
    /// Connects to `HOST:PORT` and sends the greeting that the options ask for.
    pub fn connect(address: &str, options: &Options) -> Result<Client, Error> {
        let stream = dial(address, options.connect_timeout).map_err(Error::NotSent)?;
        let mut client = Client {
            stream,
            timeout: options.timeout,
            reply_bytes_max: options.reply_bytes_max,
            buffer: Vec::new(),
            start: 0,
            deadline: Instant::now(),
            is_broken: false,
        };
        if let Some(password) = &options.password {
            client.greet(&["AUTH", password])?;
        }
        if options.resp3 {
            client.greet(&["HELLO", "3"])?;
        }
        Ok(client)
    }

    /// Sends a request of the greeting, which changes nothing on the node. So without a reply no
    /// request was sent yet.
    fn greet(&mut self, words: &[&str]) -> Result<(), Error> {
        match self.call(words) {
            Ok(Reply::Error(text)) => Err(Error::Refused(text)),
            Ok(_) => Ok(()),
            Err(Error::Lost(error)) => Err(Error::NotSent(error)),
            Err(error) => Err(error),
        }
    }

    /// Sends a request and waits for its reply.
    pub fn call<W: AsRef<[u8]>>(&mut self, words: &[W]) -> Result<Reply, Error> {
        let mut bytes = Vec::new();
        encode(words, &mut bytes);
        self.send(&bytes)?;
        self.receive()
    }

    /// Sends requests together and waits for all their replies. To keep the replies that came
    /// before a failure, use [`Client::send`] and [`Client::receive`].
    pub fn pipeline<W: AsRef<[u8]>>(&mut self, requests: &[Vec<W>]) -> Result<Vec<Reply>, Error> {
        let mut bytes = Vec::new();
        requests.iter().for_each(|words| encode(words, &mut bytes));
        self.send(&bytes)?;
        requests.iter().map(|_| self.receive()).collect()
    }

    /// Sends requests in the form of [`encode`], and sets the deadline for their replies.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.is_broken {
            return Err(Error::NotSent(ErrorKind::NotConnected.into()));
        }
        self.deadline = Instant::now() + self.timeout;
        let mut sent = 0;
        while sent < bytes.len() {
            let wrote = self.remaining().and_then(|left| {
                self.stream.set_write_timeout(Some(left))?;
                self.stream.write(&bytes[sent..])
            });
            let error = match wrote {
                Ok(0) => ErrorKind::WriteZero.into(),
                Ok(len) => {
                    sent += len;
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            // After the first byte no one can tell how much has reached the node.
            self.is_broken = true;
            return Err(if sent == 0 { Error::NotSent(error) } else { Error::Lost(error) });
        }
        Ok(())
    }

    /// Waits for the next reply, until the deadline that [`Client::send`] has set.
    pub fn receive(&mut self) -> Result<Reply, Error> {
        if self.is_broken {
            return Err(Error::Lost(ErrorKind::NotConnected.into()));
        }
        let mut budget = self.reply_bytes_max;
        self.reply(DEPTH_MAX, &mut budget).map_err(|error| {
            self.is_broken = true;
            Error::Lost(error)
        })
    }

    fn reply(&mut self, depth: usize, budget: &mut usize) -> io::Result<Reply> {
        spend(budget, size_of::<Reply>())?;
        let line = self.line(budget)?;
        let (marker, rest) = line.split_first().ok_or_else(|| invalid("an empty line"))?;
        let text = || String::from_utf8_lossy(rest).into_owned();
        Ok(match marker {
            b'+' => Reply::Simple(text()),
            b'-' => Reply::Error(text()),
            b':' => Reply::Integer(integer(rest)?),
            b'(' => Reply::BigNumber(text()),
            b'_' => Reply::Nil,
            b',' => Reply::Double(text().parse().map_err(|_| invalid("not a double"))?),
            b'#' => match rest {
                b"t" => Reply::Boolean(true),
                b"f" => Reply::Boolean(false),
                _ => return Err(invalid("not a boolean")),
            },
            b'$' | b'=' | b'!' => match length(rest)? {
                None => Reply::Nil,
                Some(len) => self.blob(*marker, len, budget)?,
            },
            b'*' | b'~' | b'>' => match length(rest)? {
                None => Reply::Nil,
                Some(count) => Reply::Array(self.items(count, depth, budget)?),
            },
            b'%' => {
                let count = length(rest)?.ok_or_else(|| invalid("a map of length -1"))?;
                let count = count.checked_mul(2).ok_or_else(|| invalid("too large a map"))?;
                let mut items = self.items(count, depth, budget)?.into_iter();
                let pair = || Some((items.next()?, items.next()?));
                Reply::Map(std::iter::from_fn(pair).collect())
            }
            _ => return Err(invalid("an unknown kind of reply")),
        })
    }

    /// The items of an array. An announced length alone takes no memory.
    fn items(&mut self, count: usize, depth: usize, budget: &mut usize) -> io::Result<Vec<Reply>> {
        let depth = depth.checked_sub(1).ok_or_else(|| invalid("arrays are nested too deep"))?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(self.reply(depth, budget)?);
        }
        Ok(items)
    }

    fn blob(&mut self, marker: u8, len: usize, budget: &mut usize) -> io::Result<Reply> {
        spend(budget, len)?;
        while self.buffer.len() - self.start < len + 2 {
            self.fill()?;
        }
        let end = self.start + len;
        if &self.buffer[end..end + 2] != b"\r\n" {
            return Err(invalid("a text that does not end where it should"));
        }
        let bytes = self.buffer[self.start..end].to_vec();
        self.start = end + 2;
        Ok(match marker {
            b'$' => Reply::Bulk(bytes),
            b'!' => Reply::Error(String::from_utf8_lossy(&bytes).into_owned()),
            // Three letters of format and a colon.
            _ => Reply::Bulk(bytes.get(4..).unwrap_or_default().to_vec()),
        })
    }

    /// The next line, without its end.
    fn line(&mut self, budget: &mut usize) -> io::Result<Vec<u8>> {
        let mut seen = 0;
        let len = loop {
            let unread = &self.buffer[self.start..];
            if let Some(at) = unread[seen..].iter().position(|byte| *byte == b'\n') {
                break seen + at;
            }
            seen = unread.len();
            if seen > LINE_BYTES_MAX {
                return Err(invalid("a line without an end"));
            }
            self.fill()?;
        };
        let line = &self.buffer[self.start..self.start + len];
        let line = line.strip_suffix(b"\r").ok_or_else(|| invalid("a line without \\r"))?.to_vec();
        self.start += len + 1;
        spend(budget, line.len())?;
        Ok(line)
    }

    /// Reads received bytes into the buffer; waits for them if there are none.
    fn fill(&mut self) -> io::Result<()> {
        if self.start > 0 && self.start * 2 >= self.buffer.len() {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        loop {
            self.stream.set_read_timeout(Some(self.remaining()?))?;
            let mut piece = [0; READ_BYTES];
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => {
                    self.buffer.extend_from_slice(&piece[..len]);
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(ErrorKind::TimedOut.into());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The time until the deadline; an error once it has passed.
    fn remaining(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

/// Appends a request to `out` in RESP.
pub fn encode<W: AsRef<[u8]>>(words: &[W], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words.iter().map(AsRef::as_ref) {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// Connects to the first address of a name that accepts. Returns the last error if none does.
fn dial(address: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, reason)
}

fn spend(budget: &mut usize, bytes: usize) -> io::Result<()> {
    *budget = budget.checked_sub(bytes).ok_or_else(|| invalid("a reply beyond the limit"))?;
    Ok(())
}

fn integer(text: &[u8]) -> io::Result<i64> {
    let text = std::str::from_utf8(text).ok();
    text.and_then(|text| text.parse().ok()).ok_or_else(|| invalid("not a number"))
}

/// A length; `None` for -1.
fn length(text: &[u8]) -> io::Result<Option<usize>> {
    match integer(text)? {
        -1 => Ok(None),
        length => length.try_into().map(Some).map_err(|_| invalid("a negative length")),
    }
}

#[cfg(test)]
mod tests;
