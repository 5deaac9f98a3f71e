//! Decimal integers as Redis reads and writes them; `types::parse_integer` has the grammar. Writing
//! goes straight into a buffer, because every length of every reply passes here.

use crate::types::parse_integer;

/// The number in `text`, if it is one and not negative.
pub(super) fn parse_u64(text: &[u8]) -> Option<u64> {
    parse_integer(text).and_then(|number| u64::try_from(number).ok())
}

/// Appends the digits of `number`.
pub(super) fn put_i64(out: &mut Vec<u8>, number: i64) {
    let mut text = [0; 20];
    let mut first = text.len();
    let mut rest = number.unsigned_abs();
    loop {
        first -= 1;
        text[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        first -= 1;
        text[first] = b'-';
    }
    out.extend_from_slice(&text[first..]);
}

/// Appends the digits of a length.
pub(super) fn put_len(out: &mut Vec<u8>, len: usize) {
    put_i64(out, i64::try_from(len).expect("no buffer is longer than isize::MAX"));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_one_spelling_of_a_number_is_read() {
        for text in ["", "-", "+1", " 1", "1 ", "01", "-0", "-01", "1x", "0x1", "--1", "1.0"] {
            assert_eq!(parse_integer(text.as_bytes()), None, "{text:?}");
        }
        for text in ["9223372036854775808", "-9223372036854775809", "99999999999999999999"] {
            assert_eq!(parse_integer(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(parse_u64(b"-1"), None);
        assert_eq!(parse_u64(b"7"), Some(7));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(number in any::<i64>()) {
            for number in [number, 0, -1, i64::MAX, i64::MIN] {
                let mut text = Vec::new();
                put_i64(&mut text, number);
                prop_assert_eq!(&text, &number.to_string().into_bytes());
                prop_assert_eq!(parse_integer(&text), Some(number));
            }
        }
    }
}
