//! Gumbel noise from a counter-based generator: no state, so that neither the order of rows, nor
//! `k`, nor the batch, nor a failover changes what a token draws.

/// Standard Gumbel noise of one token at one step.
///
/// Keyed by the request's seed, the index of the generated token, and the token's id.
pub fn gumbel(seed: u64, index: u32, token: u32) -> f64 {
    let bits = philox4x32([index, token, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let word = u64::from(bits[0]) << 32 | u64::from(bits[1]);
    // 53 bits, centred in their interval: never 0 and never 1, so that both logarithms are finite.
    let uniform = ((word >> 11) as f64 + 0.5) * (1.0 / (1u64 << 53) as f64);
    -(-uniform.ln()).ln()
}

/// Philox4x32-10 (Salmon et al., 'Parallel random numbers: as easy as 1, 2, 3', SC 2011).
fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for _ in 0..10 {
        let a = MULTIPLIERS[0] * u64::from(counter[0]);
        let b = MULTIPLIERS[1] * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        // Known-answer vectors of the generator's authors.
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn the_noise_has_the_moments_of_a_gumbel() {
        let n = 200_000;
        let draws: Vec<f64> = (0..n).map(|i| gumbel(7, i / 100, i % 100)).collect();
        let mean = draws.iter().sum::<f64>() / f64::from(n);
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(n);
        assert!((mean - 0.577_215_66).abs() < 0.01, "{mean}");
        assert!((variance - std::f64::consts::PI.powi(2) / 6.0).abs() < 0.03, "{variance}");
    }
}
