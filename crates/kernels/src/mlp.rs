//! The elementwise parts of a transformer block.

/// `out = silu(gate) * up`: `gate_up` is `[rows, 2 * inter]`, the gate first, `out` `[rows, inter]`.
///
/// # Panics
/// The slices do not hold the same whole number of rows.
pub fn swiglu(gate_up: &[f32], inter: usize, out: &mut [f32]) {
    for (row, out) in gate_up.chunks_exact(2 * inter).zip(out.chunks_exact_mut(inter)) {
        let (gate, up) = row.split_at(inter);
        out.iter_mut().zip(gate).zip(up).for_each(|((o, g), u)| *o = g / (1.0 + (-g).exp()) * u);
    }
}

/// `x += y`, the residual connection.
///
/// # Panics
/// The slices differ in length.
pub fn add_assign(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "both sides of a residual have one shape");
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}
