//! The choice of keys and their names: `key:` and twelve digits, so that each has 16 bytes.
//!
//! The Zipfian choice follows Gray et al., *Quickly Generating Billion-Record Synthetic Databases*
//! (1994), with theta 0.99, and ranks scattered over the keys by a hash, both as in YCSB (Cooper et
//! al., 2010), so that the most frequent keys are not neighbours.

use clap::ValueEnum;

use crate::rng::Rng;

/// Length of a key in bytes.
pub const KEY_BYTES: usize = 16;
/// The exponent of the distribution, as in YCSB and Gray et al.
const THETA: f64 = 0.99;

/// The distribution of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Distribution {
    /// All keys equally often
    Uniform,
    /// A few keys very often, most keys rarely (theta 0.99, as in YCSB)
    Zipfian,
}

/// A random choice of keys.
#[derive(Clone, Debug)]
pub enum Keys {
    /// Uniform among this many keys.
    Uniform(u64),
    /// Zipfian.
    Zipfian(Zipfian),
}

impl Keys {
    /// A choice among `count` keys.
    pub fn new(distribution: Distribution, count: u64) -> Keys {
        match distribution {
            Distribution::Uniform => Keys::Uniform(count),
            Distribution::Zipfian => Keys::Zipfian(Zipfian::new(count)),
        }
    }

    /// The number of the next key.
    #[inline]
    pub fn draw(&self, rng: &mut Rng) -> u64 {
        match self {
            Keys::Uniform(count) => rng.below(*count),
            Keys::Zipfian(zipfian) => scatter(zipfian.rank(rng)) % zipfian.count,
        }
    }
}

/// The constants of Gray's formula.
#[derive(Clone, Debug)]
pub struct Zipfian {
    count: u64,
    alpha: f64,
    zeta: f64,
    eta: f64,
}

impl Zipfian {
    fn new(count: u64) -> Zipfian {
        let zeta: f64 = (1..=count).map(|rank| (rank as f64).powf(-THETA)).sum();
        let zeta_of_two = 1.0 + 0.5f64.powf(THETA);
        let eta = (1.0 - (2.0 / count as f64).powf(1.0 - THETA)) / (1.0 - zeta_of_two / zeta);
        Zipfian { count, alpha: 1.0 / (1.0 - THETA), zeta, eta }
    }

    /// The rank of the next key; 0 is the most frequent one.
    fn rank(&self, rng: &mut Rng) -> u64 {
        // 53 bits: as many as the fraction of a float has.
        let uniform = (rng.bits() >> 11) as f64 / (1u64 << 53) as f64;
        let scaled = uniform * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5f64.powf(THETA) {
            return 1.min(self.count - 1);
        }
        let share = (self.eta * uniform - self.eta + 1.0).powf(self.alpha);
        // The cast turns NaN into 0.
        ((self.count as f64 * share) as u64).min(self.count - 1)
    }
}

/// The FNV-1a hash of the eight bytes of a rank.
fn scatter(rank: u64) -> u64 {
    let bytes = rank.to_le_bytes();
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Writes the name of a key.
#[inline]
pub fn write_key(number: u64, out: &mut [u8; KEY_BYTES]) {
    out[..4].copy_from_slice(b"key:");
    let mut rest = number;
    for digit in out[4..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_twelve_digits() {
        let mut name = [0; KEY_BYTES];
        write_key(1_234_567, &mut name);
        assert_eq!(&name, b"key:000001234567");
    }

    #[test]
    fn uniform_choice_reaches_every_key_about_as_often() {
        let (keys, mut rng) = (Keys::new(Distribution::Uniform, 10), Rng::new(1));
        let mut hits = [0u32; 10];
        (0..100_000).for_each(|_| hits[keys.draw(&mut rng) as usize] += 1);
        assert!(hits.iter().all(|hits| (9_000..11_000).contains(hits)), "{hits:?}");
    }

    #[test]
    fn the_share_of_a_rank_falls_as_zipf_says() {
        const DRAWS: u32 = 400_000;
        let (zipfian, mut rng) = (Zipfian::new(1000), Rng::new(2));
        let mut hits = vec![0u32; 1000];
        (0..DRAWS).for_each(|_| hits[zipfian.rank(&mut rng) as usize] += 1);
        // The first two ranks are exact, the others an approximation by Gray.
        for (rank, tolerance) in [(0, 0.02), (1, 0.03), (9, 0.2), (99, 0.2)] {
            let expected = ((rank + 1) as f64).powf(-THETA) / zipfian.zeta * f64::from(DRAWS);
            let ratio = f64::from(hits[rank]) / expected;
            assert!((1.0 - tolerance..1.0 + tolerance).contains(&ratio), "rank {rank}: {ratio}");
        }
    }

    #[test]
    fn frequent_keys_are_scattered_and_all_are_in_range() {
        let (keys, mut rng) = (Keys::new(Distribution::Zipfian, 1000), Rng::new(3));
        let mut hits = vec![0u32; 1000];
        (0..100_000).for_each(|_| hits[keys.draw(&mut rng) as usize] += 1);
        let most = (0..1000).max_by_key(|key| hits[*key]).unwrap();
        assert_eq!(most as u64, scatter(0) % 1000);
        assert!(hits[most] > 10_000 && most > 1, "{most}: {}", hits[most]);
    }

    #[test]
    fn small_numbers_of_keys_stay_in_range() {
        for count in 1..4 {
            let (keys, mut rng) = (Keys::new(Distribution::Zipfian, count), Rng::new(4));
            assert!((0..1000).all(|_| keys.draw(&mut rng) < count));
        }
    }
}
