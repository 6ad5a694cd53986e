//! Rotary position embedding.

/// Rotates every head of every row by its position, in place (Su et al., 2021; the form of
/// transformers, where element `i` pairs with `i + head_dim / 2`).
///
/// `x` is `[rows, heads * head_dim]`, `positions` `[rows]`, `cos` and `sin`
/// `[max_position, head_dim / 2]`.
///
/// # Panics
/// A slice does not have the length of its shape, or a position lies outside the tables.
pub fn rope(x: &mut [f32], positions: &[u32], cos: &[f32], sin: &[f32], heads: usize, head_dim: usize) {
    let half = head_dim / 2;
    for (row, &position) in x.chunks_exact_mut(heads * head_dim).zip(positions) {
        let at = position as usize * half;
        let (cos, sin) = (&cos[at..][..half], &sin[at..][..half]);
        for head in row.chunks_exact_mut(head_dim) {
            let (low, high) = head.split_at_mut(half);
            for i in 0..half {
                let (a, b) = (low[i], high[i]);
                low[i] = a * cos[i] - b * sin[i];
                high[i] = b * cos[i] + a * sin[i];
            }
        }
    }
}
