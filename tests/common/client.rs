//! Two small blocking clients, written from the descriptions of the protocols and not with the code
//! under test. Every wait has a limit, so a server that hangs fails its test.

use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Limit of every wait; longer than any request may take by the default `--request-timeout`.
const WAIT_LIMIT: Duration = Duration::from_secs(30);

fn dial(port: u16) -> io::Result<TcpStream> {
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    let stream = TcpStream::connect_timeout(&address, WAIT_LIMIT)?;
    stream.set_read_timeout(Some(WAIT_LIMIT))?;
    stream.set_write_timeout(Some(WAIT_LIMIT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Reply of RESP 2.
#[derive(Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+`
    Simple(String),
    /// `-`
    Error(String),
    /// `:`
    Integer(i64),
    /// `$`
    Bulk(Vec<u8>),
    /// `$-1` and `*-1`
    Nil,
    /// `*`
    Array(Vec<Reply>),
}

impl Reply {
    /// True for `OK`.
    pub fn is_ok(&self) -> bool {
        *self == *"OK"
    }

    /// Text of an error reply.
    pub fn error(&self) -> Option<&str> {
        match self {
            Reply::Error(text) => Some(text),
            _ => None,
        }
    }

    /// Number in an integer or bulk reply; nil, the reply for a missing counter, counts as 0.
    pub fn number(&self) -> Option<u64> {
        match self {
            Reply::Integer(number) => u64::try_from(*number).ok(),
            Reply::Bulk(bytes) => std::str::from_utf8(bytes).ok()?.parse().ok(),
            Reply::Nil => Some(0),
            _ => None,
        }
    }
}

impl PartialEq<str> for Reply {
    fn eq(&self, text: &str) -> bool {
        match self {
            Reply::Simple(own) => own == text,
            Reply::Bulk(own) => own == text.as_bytes(),
            _ => false,
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reply::Simple(text) => write!(f, "+{text}"),
            Reply::Error(text) => write!(f, "-{text}"),
            Reply::Integer(number) => write!(f, ":{number}"),
            Reply::Bulk(bytes) if bytes.len() > 200 => write!(f, "${} bytes", bytes.len()),
            Reply::Bulk(bytes) => write!(f, "{:?}", String::from_utf8_lossy(bytes)),
            Reply::Nil => f.write_str("nil"),
            Reply::Array(items) => f.debug_list().entries(items).finish(),
        }
    }
}

/// Encodes a RESP request.
pub fn request<W: AsRef<[u8]>>(words: &[W]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words.iter().map(AsRef::as_ref) {
        bytes.extend(format!("${}\r\n", word.len()).into_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Connection that speaks RESP 2.
#[derive(Debug)]
pub struct Resp {
    stream: BufReader<TcpStream>,
}

impl Resp {
    /// Connects to a node on this machine.
    pub fn connect(port: u16) -> io::Result<Resp> {
        Ok(Resp { stream: BufReader::new(dial(port)?) })
    }

    /// Connects, and authenticates if there is a password.
    pub fn connect_as(port: u16, password: Option<&str>) -> io::Result<Resp> {
        let mut client = Resp::connect(port)?;
        if let Some(password) = password {
            let reply = client.call(&["AUTH", password])?;
            if !reply.is_ok() {
                return Err(io::Error::new(ErrorKind::PermissionDenied, format!("{reply:?}")));
            }
        }
        Ok(client)
    }

    /// Underlying socket.
    pub fn stream(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// Sends raw bytes.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Sends a request without waiting for its reply.
    pub fn send<W: AsRef<[u8]>>(&mut self, words: &[W]) -> io::Result<()> {
        self.send_bytes(&request(words))
    }

    /// Sends a request and returns its reply.
    pub fn call<W: AsRef<[u8]>>(&mut self, words: &[W]) -> io::Result<Reply> {
        self.send(words)?;
        self.receive()
    }

    /// Receives one reply.
    pub fn receive(&mut self) -> io::Result<Reply> {
        let mut line = Vec::new();
        // The first line is short; without a limit a faulty server could fill the memory.
        (&mut self.stream).take(64 << 10).read_until(b'\n', &mut line)?;
        let Some(line) = line.strip_suffix(b"\r\n") else {
            return Err(ErrorKind::UnexpectedEof.into());
        };
        let invalid = || io::Error::new(ErrorKind::InvalidData, format!("{:?}", line.to_vec()));
        let (marker, rest) = line.split_first().ok_or_else(invalid)?;
        let text = String::from_utf8_lossy(rest).into_owned();
        let number = || text.parse::<i64>().map_err(|_| invalid());
        Ok(match marker {
            b'+' => Reply::Simple(text),
            b'-' => Reply::Error(text),
            b':' => Reply::Integer(number()?),
            b'$' => match usize::try_from(number()?) {
                Ok(len) => {
                    let mut bytes = vec![0; len + 2];
                    self.stream.read_exact(&mut bytes)?;
                    bytes.truncate(len);
                    Reply::Bulk(bytes)
                }
                Err(_) => Reply::Nil,
            },
            b'*' => match number()? {
                -1 => Reply::Nil,
                count => {
                    Reply::Array((0..count).map(|_| self.receive()).collect::<Result<_, _>>()?)
                }
            },
            _ => return Err(invalid()),
        })
    }

    /// Sends a pipeline and returns all its replies.
    pub fn pipeline<W: AsRef<[u8]>>(&mut self, requests: &[Vec<W>]) -> io::Result<Vec<Reply>> {
        let bytes: Vec<u8> = requests.iter().flat_map(|words| request(words)).collect();
        self.send_bytes(&bytes)?;
        requests.iter().map(|_| self.receive()).collect()
    }

    /// Sets a key; panics unless the reply is OK.
    #[track_caller]
    pub fn set(&mut self, key: &str, value: &str) {
        let reply = self.call(&["SET", key, value]);
        assert!(reply.as_ref().is_ok_and(Reply::is_ok), "SET {key}: {reply:?}");
    }

    /// Returns the value of a key; panics on an error.
    #[track_caller]
    pub fn get(&mut self, key: &str) -> Option<String> {
        match self.call(&["GET", key]) {
            Ok(Reply::Bulk(bytes)) => Some(String::from_utf8(bytes).unwrap()),
            Ok(Reply::Nil) => None,
            other => panic!("GET {key}: {other:?}"),
        }
    }

    /// Returns the value of one field of INFO.
    #[track_caller]
    pub fn info(&mut self, field: &str) -> String {
        let Ok(Reply::Bulk(bytes)) = self.call(&["INFO"]) else { panic!("INFO") };
        let text = String::from_utf8(bytes).unwrap();
        let values = text.lines().filter_map(|line| line.split_once(':'));
        let found = values.filter(|(name, _)| *name == field).map(|(_, value)| value).next();
        found.unwrap_or_else(|| panic!("no {field} in {text}")).to_string()
    }
}

/// Connection that speaks the line protocol.
#[derive(Debug)]
pub struct Line {
    stream: BufReader<TcpStream>,
}

impl Line {
    /// Connects to a node on this machine.
    pub fn connect(port: u16) -> io::Result<Line> {
        Ok(Line { stream: BufReader::new(dial(port)?) })
    }

    /// Sends a line and returns the line that answers it.
    pub fn ask(&mut self, line: &str) -> io::Result<String> {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer)?;
        match answer.strip_suffix('\n') {
            Some(answer) => Ok(answer.to_string()),
            None => Err(ErrorKind::UnexpectedEof.into()),
        }
    }
}
