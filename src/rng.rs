//! A seeded generator of pseudo-random numbers (SplitMix64; Steele, Lea, Flood 2014). Ours and not
//! a crate's because a seed printed by a failing simulation must replay on every later version. Not
//! for secrets: those come from the operating system.

/// A stream of numbers that its seed alone decides.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`; 0 if `bound` is 0. (The bias of the remainder is below 2^-32 for the
    /// small bounds used here.)
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits().checked_rem(bound).unwrap_or(0)
    }

    /// True in `numerator` of `denominator` cases.
    pub fn chance(&mut self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }

    /// An independent stream, split off this one.
    pub fn fork(&mut self) -> Rng {
        Rng(self.bits())
    }
}
