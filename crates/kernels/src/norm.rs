//! Root-mean-square norm of rows.

/// `out = x / sqrt(mean(x^2) + eps) * weight`, row by row: `x` and `out` are `[rows, d]`, `weight`
/// `[d]` (Zhang and Sennrich, 2019; the order of operations is that of Llama in transformers).
///
/// # Panics
/// The slices do not hold the same whole number of rows.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let d = weight.len();
    for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
        let mean = x.iter().map(|v| v * v).sum::<f32>() / d as f32;
        let scale = 1.0 / (mean + eps).sqrt();
        out.iter_mut().zip(x).zip(weight).for_each(|((o, x), w)| *o = x * scale * w);
    }
}
