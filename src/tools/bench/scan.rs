//! A scanner that finds the ends of replies without keeping them: a load generator needs to know
//! only that a reply came, and whether it was an error.
//!
//! Bytes may come in any pieces. Between pieces a [`Scanner`] keeps a few numbers, and at most
//! [`TEXT_MAX`] bytes of an error's text. Nested arrays need no stack: the scanner counts the
//! missing values, and each array adds its own. It shares no code with the parsers of client and
//! server, which keep the bytes that they read.

use clap::ValueEnum;

/// Most bytes of an error's text that are kept.
pub const TEXT_MAX: usize = 200;
/// Most values of a reply, at all levels together.
const PARTS_MAX: u64 = 1 << 32;

/// The protocol of the load's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WireProtocol {
    /// RESP, the protocol of Redis clients
    Resp,
    /// The line protocol, for telnet and netcat
    Line,
}

/// The kind of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyKind {
    /// An answer.
    Answer,
    /// An error; [`Scanner::text`] returns its text.
    Error,
}

/// The error for bytes that are no replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Garbage;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ScanState {
    /// Before a value.
    Marker,
    /// In the length of a text or an array.
    Number { marker: u8, number: u64, negative: bool },
    /// In a line whose content is skipped.
    Line,
    /// In the first line of an error.
    ErrorLine,
    /// In a text, with this many bytes left, its line end included.
    Text { left: u64, error: bool },
}

/// The place in the stream of replies of one connection.
#[derive(Debug)]
pub struct Scanner {
    protocol: WireProtocol,
    state: ScanState,
    /// Number of values that are missing before the reply is complete.
    left: u64,
    /// True inside an array or a map.
    is_nested: bool,
    kind: ReplyKind,
    text: Vec<u8>,
}

impl Scanner {
    /// A scanner before the first reply.
    pub fn new(protocol: WireProtocol) -> Scanner {
        let text = Vec::with_capacity(TEXT_MAX);
        let (state, kind) = (ScanState::Marker, ReplyKind::Answer);
        Scanner { protocol, state, left: 1, is_nested: false, kind, text }
    }

    /// The text of the last reply: of an error, and in the line protocol of any reply.
    pub fn text(&self) -> &[u8] {
        self.text.trim_ascii_end()
    }

    /// Scans to the end of the next reply and leaves the rest in `input`. `None` if the bytes end
    /// before.
    #[inline]
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<ReplyKind>, Garbage> {
        if self.protocol == WireProtocol::Line {
            return Ok(self.next_line(input));
        }
        // Fast path for the most frequent reply.
        if self.state == ScanState::Marker
            && !self.is_nested
            && let Some(rest) = input.strip_prefix(b"+OK\r\n")
        {
            *input = rest;
            return Ok(Some(ReplyKind::Answer));
        }
        while let Some((byte, rest)) = input.split_first() {
            if self.step(*byte, rest, input)? {
                self.left -= 1;
                self.state = ScanState::Marker;
                if self.left == 0 {
                    (self.left, self.is_nested) = (1, false);
                    return Ok(Some(std::mem::replace(&mut self.kind, ReplyKind::Answer)));
                }
            }
        }
        Ok(None)
    }

    /// Consumes at least one byte. True at the end of a value.
    fn step<'a>(
        &mut self,
        byte: u8,
        rest: &'a [u8],
        input: &mut &'a [u8],
    ) -> Result<bool, Garbage> {
        match self.state {
            ScanState::Marker => {
                *input = rest;
                self.state = match byte {
                    b'+' | b':' | b'_' | b',' | b'#' | b'(' => ScanState::Line,
                    b'-' => {
                        self.text.clear();
                        ScanState::ErrorLine
                    }
                    b'$' | b'=' | b'!' | b'*' | b'~' | b'>' | b'%' => {
                        ScanState::Number { marker: byte, number: 0, negative: false }
                    }
                    _ => return Err(Garbage),
                };
                Ok(false)
            }
            ScanState::Number { marker, number, negative } => {
                *input = rest;
                match byte {
                    b'\n' => return self.begin(marker, number, negative),
                    b'\r' => {}
                    b'-' => self.state = ScanState::Number { marker, number, negative: true },
                    b'0'..=b'9' => {
                        let number = number.checked_mul(10).ok_or(Garbage)?;
                        let number = number.checked_add(u64::from(byte - b'0')).ok_or(Garbage)?;
                        self.state = ScanState::Number { marker, number, negative };
                    }
                    _ => return Err(Garbage),
                }
                Ok(false)
            }
            ScanState::Line | ScanState::ErrorLine => {
                let end = input.iter().position(|byte| *byte == b'\n');
                if self.state == ScanState::ErrorLine {
                    self.keep(&input[..end.unwrap_or(input.len())]);
                    self.note_error();
                }
                *input = &input[end.map_or(input.len(), |end| end + 1)..];
                Ok(end.is_some())
            }
            ScanState::Text { left, error } => {
                let len = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
                if error {
                    self.keep(&input[..len]);
                }
                *input = &input[len..];
                let left = left - len as u64;
                self.state = ScanState::Text { left, error };
                Ok(left == 0)
            }
        }
    }

    /// Starts the content behind a complete length. True if there is none.
    fn begin(&mut self, marker: u8, number: u64, negative: bool) -> Result<bool, Garbage> {
        if negative {
            return Ok(true);
        }
        match marker {
            b'$' | b'=' | b'!' => {
                let error = marker == b'!';
                if error {
                    self.text.clear();
                    self.note_error();
                }
                let left = number.checked_add(2).ok_or(Garbage)?;
                self.state = ScanState::Text { left, error };
                Ok(false)
            }
            _ => {
                self.is_nested = true;
                let parts = number.checked_mul(if marker == b'%' { 2 } else { 1 });
                let left = parts.and_then(|parts| parts.checked_add(self.left));
                self.left = left.filter(|left| *left <= PARTS_MAX).ok_or(Garbage)?;
                Ok(true)
            }
        }
    }

    /// Marks the reply as an error. An error inside an array does not count.
    fn note_error(&mut self) {
        if !self.is_nested {
            self.kind = ReplyKind::Error;
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = TEXT_MAX - self.text.len();
        self.text.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn next_line(&mut self, input: &mut &[u8]) -> Option<ReplyKind> {
        if self.state == ScanState::Marker {
            self.text.clear();
            self.state = ScanState::Line;
        }
        let end = input.iter().position(|byte| *byte == b'\n');
        self.keep(&input[..end.unwrap_or(input.len())]);
        *input = &input[end.map_or(input.len(), |end| end + 1)..];
        end?;
        self.state = ScanState::Marker;
        let refused = [&b"ERROR:"[..], b"FAIL", b"UNKNOWN"];
        let refused = refused.iter().any(|start| self.text.starts_with(start));
        // GET of an absent key is an answer, no failure.
        let error = refused && self.text() != b"ERROR: Key not found";
        Some(if error { ReplyKind::Error } else { ReplyKind::Answer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REPLIES: &[(&[u8], Option<&str>)] = &[
        (b"+OK\r\n", None),
        (b"+PONG\r\n", None),
        (b":12\r\n", None),
        (b"$-1\r\n", None),
        (b"$0\r\n\r\n", None),
        (b"$5\r\na\r\n-b\r\n", None),
        (b"-CLUSTERDOWN no quorum\r\n", Some("CLUSTERDOWN no quorum")),
        (b"*0\r\n", None),
        (b"*-1\r\n", None),
        (b"*3\r\n$6\r\nmaster\r\n:7\r\n*2\r\n*1\r\n+a\r\n*0\r\n", None),
        (b"*2\r\n-ERR within\r\n:1\r\n", None),
        (b"*2\r\n:1\r\n-ERR last\r\n", None),
        (b"*1\r\n+OK\r\n", None),
        (b"%2\r\n+a\r\n#t\r\n+b\r\n%1\r\n_\r\n,1.5\r\n", None),
        (b"!10\r\nERR no way\r\n", Some("ERR no way")),
        (b"=7\r\ntxt:abc\r\n", None),
    ];

    fn scan(protocol: WireProtocol, pieces: &[&[u8]]) -> Result<Vec<Option<String>>, Garbage> {
        let mut scanner = Scanner::new(protocol);
        let mut found = Vec::new();
        for piece in pieces {
            let mut input = *piece;
            while let Some(seen) = scanner.next(&mut input)? {
                let text = String::from_utf8_lossy(scanner.text()).into_owned();
                found.push((seen == ReplyKind::Error).then_some(text));
            }
            assert!(input.is_empty());
        }
        Ok(found)
    }

    fn in_pieces<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        cuts.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect()
    }

    proptest! {
        #[test]
        fn replies_are_found_however_they_are_cut(
            chosen in prop::collection::vec(0..REPLIES.len(), 1..12),
            cuts in prop::collection::vec(any::<usize>(), 0..20),
        ) {
            let bytes: Vec<u8> = chosen.iter().flat_map(|at| REPLIES[*at].0).copied().collect();
            let expected: Vec<Option<String>> =
                chosen.iter().map(|at| REPLIES[*at].1.map(String::from)).collect();
            prop_assert_eq!(scan(WireProtocol::Resp, &in_pieces(&bytes, &cuts)).unwrap(), expected);
        }

        #[test]
        fn lines_are_found_however_they_are_cut(
            cuts in prop::collection::vec(any::<usize>(), 0..9),
        ) {
            let bytes = b"OK: k set by leader 5002\nERROR: Key not found\nVALUE: FAIL\r\n\
                          FAIL: quorum not reached\nERROR: Leader unavailable\r\n";
            let expected = [None, None, None, Some("FAIL: quorum not reached"),
                Some("ERROR: Leader unavailable")].map(|text| text.map(String::from));
            prop_assert_eq!(scan(WireProtocol::Line, &in_pieces(bytes, &cuts)).unwrap(), expected);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = scan(WireProtocol::Resp, &[&bytes]);
            let _ = scan(WireProtocol::Line, &[&bytes]);
        }
    }

    #[test]
    fn garbage_is_an_error() {
        for bytes in [&b"HTTP/1.1 200\r\n"[..], b"$x\r\n", b"*99999999999999999999999\r\n"] {
            assert_eq!(scan(WireProtocol::Resp, &[bytes]), Err(Garbage), "{bytes:?}");
        }
    }

    #[test]
    fn a_long_error_is_cut() {
        let bytes = [b"-ERR ".to_vec(), vec![b'x'; 1000], b"\r\n+OK\r\n".to_vec()].concat();
        let found = scan(WireProtocol::Resp, &[&bytes[..300], &bytes[300..]]).unwrap();
        assert_eq!(found[0].as_ref().map(String::len), Some(TEXT_MAX));
        assert_eq!(found[1], None);
    }
}
