//! Redis's glob patterns for KEYS and SCAN (`stringmatchlen` in its util.c).
//!
//! | pattern | matches |
//! |---|---|
//! | `*` | any number of bytes, also none |
//! | `?` | one byte |
//! | `[abc]` `[a-z]` | one byte of the set; a range may be written backwards |
//! | `[^a-z]` | one byte that is not of the set |
//! | `\x` | the byte `x`, inside a set too |
//!
//! Redis's oddities stay, because patterns in use may rely on them: a set that is never closed ends
//! with the pattern, `[]` matches nothing, and in `[a-]` the `]` is the end of a range. One
//! difference: here `*` matches the empty name too.
//!
//! Patterns come from clients, so the time must be bounded. Every element except `*` takes exactly
//! one byte. When an element behind a star does not match, it is therefore enough to give one more
//! byte to the *latest* star: an earlier star can only reach places that the latest reaches too.
//! That bounds the work by pattern length × text length, without recursion.

/// True if all of `text` matches `pattern`. Both may hold any bytes.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut read) = (0, 0);
    // The place behind the latest star in the pattern, and the text taken up to there.
    let mut star: Option<(usize, usize)> = None;
    while read < text.len() {
        if pattern.get(at) == Some(&b'*') {
            at += 1;
            star = Some((at, read));
        } else if let Some(len) = match_one(&pattern[at..], text[read]) {
            at += len;
            read += 1;
        } else if let Some((behind, taken)) = star {
            // No match: the latest star takes one more byte, and matching goes on behind it.
            star = Some((behind, taken + 1));
            (at, read) = (behind, taken + 1);
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|&byte| byte == b'*')
}

/// Matches one byte with the first element of `pattern`; returns the element's length on a match.
fn match_one(pattern: &[u8], byte: u8) -> Option<usize> {
    match *pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'[', ref set @ ..] => {
            let (hit, len) = match_set(set, byte);
            hit.then_some(1 + len)
        }
        [b'\\', literal, ..] => (literal == byte).then_some(2),
        [literal, ..] => (literal == byte).then_some(1),
    }
}

/// Matches `byte` with the set that starts behind a `[`; also returns the set's length with its
/// `]`.
fn match_set(set: &[u8], byte: u8) -> (bool, usize) {
    let negated = set.first() == Some(&b'^');
    let mut rest = if negated { &set[1..] } else { set };
    let mut hit = false;
    loop {
        rest = match *rest {
            [] => break,
            [b'\\', literal, ref rest @ ..] => {
                hit |= literal == byte;
                rest
            }
            [b']', ref behind @ ..] => {
                rest = behind;
                break;
            }
            [from, b'-', to, ref rest @ ..] => {
                hit |= (from.min(to)..=from.max(to)).contains(&byte);
                rest
            }
            [literal, ref rest @ ..] => {
                hit |= literal == byte;
                rest
            }
        };
    }
    (hit != negated, set.len() - rest.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "anything", true),
            ("a*", "a", true),
            ("a*b", "ab", true),
            ("a*b", "a-b-c", false),
            ("a**b", "axxb", true),
            ("*:name:*", "user:name:1", true),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-b]llo", "hbllo", true),
            ("h[b-a]llo", "hbllo", true),
            ("h[a-b]llo", "hcllo", false),
            ("[a-c-]", "-", true),
            ("[a-]", "^", true),
            ("[]", "a", false),
            ("[^]", "a", true),
            ("[abc", "b", true),
            ("[", "[", false),
            (r"[\]]", "]", true),
            (r"[\^a]", "^", true),
            (r"\*", "*", true),
            (r"\*", "x", false),
            (r"a\\b", r"a\b", true),
            (r"a\", r"a\", true),
            ("*a", "bba", true),
            ("*[ab]?", "xxbx", true),
            ("Hello", "hello", false),
        ] {
            let found = matches(pattern.as_bytes(), text.as_bytes());
            assert_eq!(found, expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn names_need_not_be_text() {
        assert!(matches(b"\xff?[\x00-\x02]*", b"\xff\n\x01\xfe"));
        assert!(!matches(b"[\x80-\xfe]", b"\xff"));
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = "a*".repeat(1_000) + "b";
        assert!(!matches(pattern.as_bytes(), "a".repeat(10_000).as_bytes()));
    }

    /// The plain definition, exponential and recursive.
    fn matches_slowly(pattern: &[u8], text: &[u8]) -> bool {
        match pattern {
            [] => text.is_empty(),
            [b'*', rest @ ..] => (0..=text.len()).any(|taken| matches_slowly(rest, &text[taken..])),
            _ => text.split_first().is_some_and(|(&byte, text)| {
                match_one(pattern, byte).is_some_and(|len| matches_slowly(&pattern[len..], text))
            }),
        }
    }

    proptest! {
        #[test]
        fn backtracking_to_the_latest_star_is_enough(
            pattern in "[ab*?\\[\\]\\^\\\\-]{0,10}", text in "[ab\\]\\^-]{0,8}",
        ) {
            let expected = matches_slowly(pattern.as_bytes(), text.as_bytes());
            prop_assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected);
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            pattern in prop::collection::vec(any::<u8>(), 0..40),
            text in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            matches(&pattern, &text);
            prop_assert!(matches(b"*", &text));
        }
    }
}
