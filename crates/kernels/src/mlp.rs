//! The elementwise parts of a transformer block.

use crate::simd::{Isa, LANES, Lanes, exp::exp, simd_fn};

/// `out = silu(gate) * up`: `gate_up` is `[rows, 2 * inter]`, the gate first, `out` `[rows, inter]`.
///
/// # Panics
/// The slices do not hold the same whole number of rows.
pub fn swiglu(gate_up: &[f32], inter: usize, out: &mut [f32]) {
    assert!(inter > 0 && out.len().is_multiple_of(inter), "an output holds whole rows");
    assert_eq!(gate_up.len(), 2 * out.len(), "a gate and a value for every output");
    rows(Isa::best(), gate_up, inter, out);
}

simd_fn!(fn rows(gate_up: &[f32], inter: usize, out: &mut [f32]) = rows_body);

#[inline(always)]
fn rows_body<L: Lanes>(l: L, gate_up: &[f32], inter: usize, out: &mut [f32]) {
    for (row, out) in gate_up.chunks_exact(2 * inter).zip(out.chunks_exact_mut(inter)) {
        let (gate, up) = row.split_at(inter);
        let (gate, gate_rest) = gate.as_chunks::<LANES>();
        let (up, up_rest) = up.as_chunks::<LANES>();
        let (out, out_rest) = out.as_chunks_mut::<LANES>();
        for ((gate, up), out) in gate.iter().zip(up).zip(out) {
            l.store(out, gated(l, l.load(gate), l.load(up)));
        }
        if !out_rest.is_empty() {
            let rest = gated(l, l.load_part(gate_rest, 0.0), l.load_part(up_rest, 0.0));
            l.store_part(out_rest, rest);
        }
    }
}

/// `gate / (1 + e^-gate) * up`.
#[inline(always)]
fn gated<L: Lanes>(l: L, gate: L::V, up: L::V) -> L::V {
    let down = exp(l, l.sub(l.splat(0.0), gate));
    l.mul(l.div(gate, l.add(l.splat(1.0), down)), up)
}

/// `x += y`, the residual connection.
///
/// # Panics
/// The slices differ in length.
pub fn add_assign(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "both sides of a residual have one shape");
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_form_gates_and_gives_the_same_bits(
            values in proptest::collection::vec((-100.0f32..100.0, -3.0f32..3.0), 1..100), copies in 1usize..3,
        ) {
            let (gate, up): (Vec<f32>, Vec<f32>) = values.iter().copied().unzip();
            let company = [gate, up].concat().repeat(copies);
            let mut first = None;
            for isa in Isa::all() {
                let mut out = vec![0.0; values.len() * copies];
                rows(isa, &company, values.len(), &mut out);
                for (got, (gate, up)) in out.iter().zip(values.iter().cycle()) {
                    let (gate, up) = (f64::from(*gate), f64::from(*up));
                    let want = gate / (1.0 + (-gate).exp()) * up;
                    prop_assert!((f64::from(*got) - want).abs() <= 1e-6 * want.abs() + 1e-30, "{got} {want}");
                }
                let bits: Vec<u32> = out[out.len() - values.len()..].iter().map(|x| x.to_bits()).collect();
                prop_assert_eq!(first.get_or_insert_with(|| bits.clone()), &bits);
            }
        }
    }

    #[test]
    fn a_damaged_number_is_not_hidden() {
        let mut out = [0.0; 1];
        swiglu(&[f32::NAN, 1.0], 1, &mut out);
        assert!(out[0].is_nan());
    }
}
