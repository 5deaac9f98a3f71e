//! Reference reader of the two client protocols. From all bytes of a connection at once it derives
//! the number of replies that a session must give, and whether it must close; it also checks that
//! output is well formed. It assumes the default limits, and inputs that stay below them.

/// Result that the bytes of a connection must have.
#[derive(Debug, Default)]
pub struct Expected {
    /// True if the bytes select the line protocol.
    pub line: bool,
    pub replies: usize,
    pub closed: bool,
    /// True if the client may have requested RESP3.
    pub three: bool,
}

/// Derives the expected result of the whole input.
pub fn expected(input: &[u8]) -> Expected {
    let start = input.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
    let Some(start) = start else { return Expected::default() };
    let mut expected = Expected { line: input[start] != b'*', ..Expected::default() };
    if expected.line {
        read_lines(&input[start..], &mut expected);
    } else {
        read_requests(&input[start..], &mut expected);
    }
    expected
}

fn read_lines(input: &[u8], expected: &mut Expected) {
    for (number, line) in input.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let Some(line) = line.strip_suffix(b"\n") else { return };
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let first = line.split(|byte| matches!(byte, b' ' | b'\t')).find(|word| !word.is_empty());
        let first = first.unwrap_or_default().to_ascii_lowercase();
        let http_line = line.len() >= 9
            && line[..line.len() - 1].ends_with(b" HTTP/1.")
            && line[line.len() - 1].is_ascii_digit();
        expected.closed = number == 0 && http_line || first == b"post" || first == b"host:";
        if expected.closed {
            return;
        }
        expected.replies += usize::from(!first.is_empty());
        expected.closed = first == b"quit";
        if expected.closed {
            return;
        }
    }
}

fn read_requests(mut input: &[u8], expected: &mut Expected) {
    while !expected.closed {
        while let [b'\r' | b'\n', rest @ ..] = input {
            input = rest;
        }
        match read_request(&mut input) {
            Ok(None) => return,
            Ok(Some(words)) => {
                let Some(name) = words.first() else { continue };
                expected.replies += 1;
                expected.closed = name.eq_ignore_ascii_case(b"quit");
                expected.three |= name.eq_ignore_ascii_case(b"hello");
            }
            Err(()) => {
                // The protocol error is a reply, too.
                expected.replies += 1;
                expected.closed = true;
            }
        }
    }
}

/// Reads one request and advances `input` behind it; `None` if the request is incomplete, an error
/// if it can never become valid.
fn read_request<'a>(input: &mut &'a [u8]) -> Result<Option<Vec<&'a [u8]>>, ()> {
    const ARGUMENTS_MAX: i64 = 1 << 20;
    const VALUE_BYTES_MAX: i64 = 512 << 20;
    let mut rest = *input;
    let Some(count) = length(&mut rest, b'*', ARGUMENTS_MAX)? else { return Ok(None) };
    let mut words = Vec::new();
    for _ in 0..count.max(0) {
        let Some(len) = length(&mut rest, b'$', VALUE_BYTES_MAX)? else { return Ok(None) };
        let len = usize::try_from(len).map_err(|_| ())?;
        if rest.len() < len + 2 {
            return Ok(None);
        }
        if rest[len..len + 2] != *b"\r\n" {
            return Err(());
        }
        words.push(&rest[..len]);
        rest = &rest[len + 2..];
    }
    *input = rest;
    Ok(Some(words))
}

/// Reads a marker and the number behind it.
fn length(input: &mut &[u8], marker: u8, max: i64) -> Result<Option<i64>, ()> {
    let Some((first, line)) = input.split_first() else { return Ok(None) };
    if *first != marker {
        return Err(());
    }
    let digits = line.iter().take_while(|byte| !matches!(byte, b'\r' | b'\n')).count();
    if digits >= 32 {
        return Err(());
    }
    match line[digits..] {
        [] | [b'\r'] => return Ok(None),
        [b'\r', b'\n', ..] => *input = &line[digits + 2..],
        _ => return Err(()),
    }
    let number = integer(&line[..digits]).ok_or(())?;
    if number > max { Err(()) } else { Ok(Some(number)) }
}

/// Parses a number that has exactly this spelling.
fn integer(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    text.parse::<i64>().ok().filter(|number| number.to_string() == text)
}

/// Counts the lines in the output of the line protocol.
pub fn lines(output: &[u8]) -> Result<usize, String> {
    if output.contains(&b'\r') || output.last().is_some_and(|byte| *byte != b'\n') {
        return Err("output that is not made of lines".into());
    }
    Ok(output.iter().filter(|byte| **byte == b'\n').count())
}

/// Counts the RESP replies in the output; the types of RESP3 are valid only with `three`.
pub fn resp_replies(mut output: &[u8], three: bool) -> Result<usize, String> {
    let mut count = 0;
    while !output.is_empty() {
        output = resp_reply(output, three, 0)?;
        count += 1;
    }
    Ok(count)
}

/// Returns the output behind its first reply.
fn resp_reply(output: &[u8], three: bool, depth: usize) -> Result<&[u8], String> {
    let end = output.windows(2).position(|two| two == b"\r\n").ok_or("a line without an end")?;
    let (line, rest) = (&output[..end], &output[end + 2..]);
    let (marker, text) = line.split_first().ok_or("an empty line")?;
    if text.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
        return Err("a line break within a line".into());
    }
    if depth > 8 {
        return Err("too deep".into());
    }
    let number = || integer(text).ok_or_else(|| format!("no number: {}", text.escape_ascii()));
    let len = || number().and_then(|n| usize::try_from(n).map_err(|_| format!("a length of {n}")));
    let items = match (marker, three) {
        (b'+' | b'-', _) => return Ok(rest),
        (b':', _) => return number().map(|_| rest),
        (b'$', _) if text == b"-1" => return Ok(rest),
        (b'_', true) if text.is_empty() => return Ok(rest),
        (b'#', true) if text == b"t" || text == b"f" => return Ok(rest),
        (b'$', _) | (b'=', true) => {
            let len = len()?;
            return match rest.get(len..len + 2) {
                Some(b"\r\n") => Ok(&rest[len + 2..]),
                _ => Err(format!("no string of {len} bytes")),
            };
        }
        (b'*', _) | (b'~', true) => len()?,
        (b'%', true) => 2 * len()?,
        _ => return Err(format!("no reply begins with {}", line.escape_ascii())),
    };
    (0..items).try_fold(rest, |rest, _| resp_reply(rest, three, depth + 1))
}
