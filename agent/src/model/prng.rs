//! The random numbers that netem draws, so that one seed means the same with either engine.

/// L'Ecuyer's LFSR113 (Tables of Maximally Equidistributed Combined LFSR Generators, 1999), seeded as
/// the kernel seeds its own (`prandom_seed_state`, include/linux/prandom.h). Not for secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prng {
    state: [u32; 4],
}

/// Shifts and mask of each of the four registers.
const REGISTERS: [(u32, u32, u32, u32); 4] =
    [(6, 13, !1, 18), (2, 27, !7, 2), (13, 21, !15, 7), (3, 12, !127, 13)];

impl Prng {
    /// The generator that `seed` stands for.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        let mixed = ((seed >> 32) ^ (seed << 10) ^ seed) as u32;
        // A register whose high bits are all zero stays there.
        let state = [2, 8, 16, 128].map(|least| if mixed < least { mixed + least } else { mixed });
        Self { state }
    }

    /// The next number, uniform over all of u32.
    pub fn next_u32(&mut self) -> u32 {
        for (register, (a, b, mask, d)) in self.state.iter_mut().zip(REGISTERS) {
            *register = ((*register & mask) << d) ^ (((*register << a) ^ *register) >> b);
        }
        self.state.iter().fold(0, |sum, register| sum ^ register)
    }
}

/// Numbers of which each resembles the one before: `get_crandom`, net/sched/sch_netem.c.
#[derive(Clone, Debug)]
pub struct Correlated {
    correlation: u32,
    last: u32,
}

impl Correlated {
    /// `correlation` as netem counts, 0 to `u32::MAX`; `first` is what the first number resembles.
    #[must_use]
    pub fn new(correlation: u32, first: u32) -> Self {
        Self { correlation, last: first }
    }

    /// The next number.
    pub fn next_u32(&mut self, prng: &mut Prng) -> u32 {
        let fresh = prng.next_u32();
        if self.correlation == 0 {
            return fresh;
        }
        let weight = u64::from(self.correlation) + 1;
        let sum = u64::from(fresh) * ((1 << 32) - weight) + u64::from(self.last) * weight;
        self.last = (sum >> 32) as u32;
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked by hand from the recurrence with the seed 1: mixed = 1025.
    #[test]
    fn it_is_the_kernels_generator() {
        let mut prng = Prng::seeded(1);
        assert_eq!(prng.state, [1025; 4]);
        let s = 1025u32;
        let expected = [
            ((s & 0xffff_fffe) << 18) ^ (((s << 6) ^ s) >> 13),
            ((s & 0xffff_fff8) << 2) ^ (((s << 2) ^ s) >> 27),
            ((s & 0xffff_fff0) << 7) ^ (((s << 13) ^ s) >> 21),
            ((s & 0xffff_ff80) << 13) ^ (((s << 3) ^ s) >> 12),
        ];
        assert_eq!(prng.next_u32(), expected.iter().fold(0, |all, one| all ^ one));
        assert_eq!(prng.state, expected);
        // Registers that would get stuck are lifted.
        assert_eq!(Prng::seeded(0).state, [2, 8, 16, 128]);
    }

    #[test]
    fn numbers_are_spread_evenly() {
        let mut prng = Prng::seeded(42);
        let mut bins = [0u32; 64];
        for _ in 0..64_000 {
            bins[(prng.next_u32() >> 26) as usize] += 1;
        }
        // 1000 each; chi-squared with 63 degrees of freedom is above 120 once in 50,000.
        let chi: f64 = bins.iter().map(|n| (f64::from(*n) - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi < 120.0, "{chi}");
    }

    #[test]
    fn correlation_is_what_was_asked() {
        for share in [0.0, 0.25, 0.9] {
            let mut prng = Prng::seeded(7);
            let mut correlated = Correlated::new((share * f64::from(u32::MAX)) as u32, 1 << 31);
            let numbers: Vec<f64> =
                (0..100_000).map(|_| f64::from(correlated.next_u32(&mut prng))).collect();
            let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
            let covariance = |lag: usize| -> f64 {
                numbers.iter().zip(&numbers[lag..]).map(|(a, b)| (a - mean) * (b - mean)).sum()
            };
            let measured = covariance(1) / covariance(0);
            assert!((measured - share).abs() < 0.02, "{share}: {measured}");
        }
    }
}
