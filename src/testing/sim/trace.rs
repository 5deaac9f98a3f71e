//! The trace of a run: a hash of every event, and lines of text for the reader.
//!
//! Text costs time, so a run makes none unless its options want it. A run that fails is repeated
//! with the same seed and keeps its last lines. The hash proves that both runs are the same.

use std::collections::VecDeque;

/// The trace of a run.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    /// The number of lines to keep; 0: no text is made.
    keep: usize,
    /// Keep only the lines whose first word behind the node's name is in capitals, or is a dash.
    headlines: bool,
    lines: VecDeque<String>,
}

impl Trace {
    /// A trace that keeps the last `keep` lines: of all, or of the headlines.
    pub fn new(keep: usize, headlines: bool) -> Trace {
        Trace { hash: 0xcbf2_9ce4_8422_2325, keep, headlines, lines: VecDeque::new() }
    }

    /// Adds an event, at this time since the run began. `what` names it in numbers, `text` in
    /// words.
    pub fn note(&mut self, age_micros: u64, what: [u64; 3], text: impl FnOnce() -> String) {
        for number in [age_micros, what[0], what[1], what[2]] {
            self.hash = mix(self.hash, number);
        }
        if self.keep > 0 {
            let text = text();
            let mut letters = text.split(' ').nth(1).unwrap_or_default().chars();
            if self.headlines && !letters.all(|c| c == '-' || c == ':' || c.is_ascii_uppercase()) {
                return;
            }
            if self.lines.len() == self.keep {
                self.lines.pop_front();
            }
            self.lines.push_back(format!("{:>10.3} ms  {text}", age_micros as f64 / 1000.0));
        }
    }

    /// Equal for equal runs.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The kept lines.
    pub fn into_lines(self) -> Vec<String> {
        self.lines.into()
    }
}

/// Folds a number into a hash that is the same on every machine and in every version.
pub fn mix(hash: u64, number: u64) -> u64 {
    let mut z = (hash ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z ^= z >> 32;
    z.wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// Folds bytes into a hash of [`mix`].
pub fn mix_bytes(hash: u64, bytes: &[u8]) -> u64 {
    let words = bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    words.fold(mix(hash, bytes.len() as u64), mix)
}
