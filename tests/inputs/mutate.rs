//! Damage of the kinds that find bugs in readers: flipped bits, special bytes, lengths off by one
//! or absurd, numbers in text, and pieces cut out, doubled, moved, or taken from another input. In
//! half of the cases the checksums are corrected afterwards, so that the damage reaches the code
//! behind them.

use nodesync::rng::Rng;

/// Length limit, in bytes; longer inputs are truncated.
const LEN_MAX: usize = 16 << 10;

/// Damaged input.
pub struct DamagedInput {
    pub bytes: Vec<u8>,
    /// Index of the input that it was made from; none if another input contributed or a checksum
    /// was corrected.
    pub origin: Option<usize>,
}

const BYTES: [u8; 16] =
    [0, 1, 2, 3, 4, 7, 8, 0x7f, 0x80, 0xf5, 0xff, b'\r', b'\n', b' ', b'*', b'$'];

const TOKENS: [&[u8]; 16] = [
    b"\r\n",
    b"\n",
    b"*1\r\n",
    b"$0\r\n\r\n",
    b"*-1\r\n",
    b"$-1\r\n",
    b"$536870912\r\n",
    b"*1048576\r\n",
    b"QUIT\r\n",
    b" = ",
    b"crc32 = ",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"18446744073709551616",
    b"with eventual ",
    b"NSYNCWAL",
];

/// Damages an input of the corpus.
pub fn damaged_input(
    rng: &mut Rng,
    corpus: &[Vec<u8>],
    repair: Option<fn(&mut [u8])>,
) -> DamagedInput {
    let base = rng.below(corpus.len() as u64) as usize;
    let mut bytes = corpus[base].clone();
    let mut origin = Some(base);
    // Usually one or two changes: more leave little of the structure.
    let mut changes = 1;
    while rng.chance(2, 5) && changes < 8 {
        changes += 1;
    }
    for _ in 0..changes {
        if rng.chance(1, 12) {
            let other = &corpus[rng.below(corpus.len() as u64) as usize];
            splice(rng, &mut bytes, other);
            origin = None;
        } else {
            change(rng, &mut bytes);
        }
    }
    bytes.truncate(LEN_MAX);
    if let Some(repair) = repair
        && rng.chance(1, 2)
    {
        repair(&mut bytes);
        origin = None;
    }
    DamagedInput { bytes, origin }
}

/// Position in `0..=len`; in half of the cases at a multiple of 8 or 1024 bytes.
fn place(rng: &mut Rng, len: usize) -> usize {
    let at = rng.below(len as u64 + 1) as usize;
    match rng.below(4) {
        0 => at & !7,
        1 => at & !1023,
        _ => at,
    }
}

fn range(rng: &mut Rng, len: usize) -> std::ops::Range<usize> {
    let (a, b) = (place(rng, len), place(rng, len));
    // Usually a short range.
    let longest = if rng.chance(3, 4) { 32 } else { len };
    a.min(b)..a.max(b).min(a.min(b) + longest)
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let len = bytes.len();
    if len == 0 {
        bytes.extend((0..rng.below(40)).map(|_| rng.bits() as u8));
        return;
    }
    let at = rng.below(len as u64) as usize;
    match rng.below(14) {
        0 | 1 => bytes[at] ^= 1 << rng.below(8),
        2 => bytes[at] = BYTES[rng.below(BYTES.len() as u64) as usize],
        3 => bytes[at] = rng.bits() as u8,
        4 | 5 => change_length(rng, bytes),
        6 | 7 => change_digits(rng, bytes),
        8 => bytes.truncate(place(rng, len)),
        9 => drop(bytes.drain(range(rng, len))),
        10 => {
            let copy = bytes[range(rng, len)].to_vec();
            let to = place(rng, len);
            bytes.splice(to..to, copy);
        }
        11 => {
            let zeroed = range(rng, len);
            bytes[zeroed].fill(0);
        }
        12 => {
            let token = TOKENS[rng.below(TOKENS.len() as u64) as usize];
            let replaced = if rng.chance(1, 2) { at..at } else { at..len.min(at + token.len()) };
            bytes.splice(replaced, token.iter().copied());
        }
        // One block overwrites another.
        _ => {
            let block = 1 << rng.below(11);
            let (from, to) = (at / block * block, place(rng, len) / block * block);
            let size = block.min(len - from).min(len - to);
            bytes.copy_within(from..from + size, to);
        }
    }
}

/// Changes a binary field, preferably one that looks like a length or a count: a small number in
/// little-endian form.
fn change_length(rng: &mut Rng, bytes: &mut [u8]) {
    let width = if rng.chance(2, 3) { 4 } else { 8 };
    let Some(last) = bytes.len().checked_sub(width) else { return };
    let value = |bytes: &[u8], at: usize| {
        let field = &bytes[at..at + width];
        field.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
    };
    let mut at = rng.below(last as u64 + 1) as usize;
    for _ in 0..40 {
        if (1..=bytes.len() as u64).contains(&value(bytes, at)) {
            break;
        }
        at = rng.below(last as u64 + 1) as usize;
    }
    let old = value(bytes, at);
    let new = match rng.below(9) {
        0 => old.wrapping_add(1),
        1 => old.wrapping_sub(1),
        2 => 0,
        3 => u64::MAX,
        4 => u64::MAX - 1,
        5 => u64::from(u32::MAX) >> 1,
        6 => 1 << 30,
        7 => (bytes.len() - at) as u64,
        _ => rng.below(1 << 20),
    };
    bytes[at..at + width].copy_from_slice(&new.to_le_bytes()[..width]);
}

/// Changes a decimal number in text.
fn change_digits(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let start = rng.below(bytes.len() as u64) as usize;
    let Some(at) = (start..bytes.len()).find(|at| bytes[*at].is_ascii_digit()) else { return };
    let len = bytes[at..].iter().take(20).take_while(|byte| byte.is_ascii_digit()).count();
    let old: u64 = String::from_utf8_lossy(&bytes[at..at + len]).parse().unwrap_or(0);
    let new = match rng.below(8) {
        0 => old.wrapping_add(1).to_string(),
        1 => old.wrapping_sub(1).to_string(),
        2 => "0".into(),
        3 => format!("0{old}"),
        4 => format!("-{old}"),
        5 => u64::MAX.to_string(),
        6 => i64::MAX.to_string(),
        _ => rng.below(1 << 32).to_string(),
    };
    bytes.splice(at..at + len, new.into_bytes());
}

/// Inserts a piece of `other`, or its rest from some position on.
fn splice(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    let from = place(rng, other.len());
    let piece = if rng.chance(1, 2) { &other[from..] } else { &other[range(rng, other.len())] };
    let at = if rng.chance(1, 2) { from.min(bytes.len()) } else { place(rng, bytes.len()) };
    let end = if rng.chance(1, 2) { bytes.len() } else { at };
    bytes.splice(at..end, piece.iter().copied());
}
