//! Decimal integers as Redis reads and writes them. Reading is strict: no blanks, no plus sign, no
//! leading zeros, no minus zero, so that a number has one spelling. Writing goes straight into a
//! buffer, because every length and every counter of every reply passes here.

/// The number that `text` spells; `None` if it spells none or one beyond 64 bits.
pub(super) fn parse_i64(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] => return (!negative).then_some(0),
        // 19 digits always fit into 64 bits without a sign.
        [b'1'..=b'9', ..] if digits.len() <= 19 => {}
        _ => return None,
    }
    let mut magnitude: u64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        magnitude = magnitude * 10 + u64::from(digit - b'0');
    }
    if negative {
        0i64.checked_sub_unsigned(magnitude)
    } else {
        0i64.checked_add_unsigned(magnitude)
    }
}

/// The number that `text` spells, if it is not negative.
pub(super) fn parse_u64(text: &[u8]) -> Option<u64> {
    parse_i64(text).and_then(|number| u64::try_from(number).ok())
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
            assert_eq!(parse_i64(text.as_bytes()), None, "{text:?}");
        }
        for text in ["9223372036854775808", "-9223372036854775809", "99999999999999999999"] {
            assert_eq!(parse_i64(text.as_bytes()), None, "{text:?}");
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
                prop_assert_eq!(parse_i64(&text), Some(number));
            }
        }
    }
}
