use super::*;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const FORMATS: [Format; 4] = [Format::F32, Format::Bf16, Format::F16, Format::Q8];

fn numbers(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

/// The product in double precision with the weights as stored.
fn expected(layer: &Linear, bias: Option<&[f32]>, x: &[f32]) -> Vec<f64> {
    let mut row = vec![0.0; layer.n_in()];
    let mut out = Vec::new();
    for x in x.chunks_exact(layer.n_in()) {
        for j in 0..layer.n_out() {
            layer.weight_row_into(j, &mut row);
            let sum: f64 = x.iter().zip(&row).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            out.push(sum + bias.map_or(0.0, |b| f64::from(b[j])));
        }
    }
    out
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_form_gives_the_product_and_the_same_bits(
        seed: u64, n_out in 1usize..150, n_in in 1usize..600, m in 1usize..20, with_bias: bool,
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let weights = numbers(&mut rng, n_out * n_in);
        let bias = with_bias.then(|| numbers(&mut rng, n_out));
        let x = numbers(&mut rng, m * n_in);
        let one = Threads::new(1).unwrap();
        for format in FORMATS {
            let layer = Linear::pack(&weights, n_out, n_in, bias.as_deref(), format).unwrap();
            let want = expected(&layer, bias.as_deref(), &x);
            let mut first = vec![0.0; m * n_out];
            layer.forward_as(Isa::all()[0], &x, &mut first, &one);
            // The inputs' 15 bits are all that 8-bit weights may lose beyond the order of a sum.
            let tolerance = if format == Format::Q8 { 6e-5 } else { 2e-6 } * (n_in as f64).sqrt() + 1e-6;
            for (got, want) in first.iter().zip(&want) {
                prop_assert!((f64::from(*got) - want).abs() < tolerance, "{format:?} {got} {want}");
            }
            for isa in &Isa::all()[1..] {
                let mut out = vec![f32::NAN; m * n_out];
                layer.forward_as(*isa, &x, &mut out, &one);
                prop_assert_eq!(bits(&out), bits(&first), "{:?} {:?}", format, isa);
            }
        }
    }
}

#[test]
fn company_and_threads_change_no_bit() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let (n_out, n_in, m) = (700, 517, 70);
    let weights = numbers(&mut rng, n_out * n_in);
    let x = numbers(&mut rng, m * n_in);
    for format in FORMATS {
        let layer = Linear::pack(&weights, n_out, n_in, None, format).unwrap();
        let mut alone = vec![0.0; m * n_out];
        let one = Threads::new(1).unwrap();
        for (x, out) in x.chunks_exact(n_in).zip(alone.chunks_exact_mut(n_out)) {
            layer.forward(x, out, &one);
        }
        for count in 1..=3 {
            let threads = Threads::new(count).unwrap();
            for rows in [2, 3, 5, 8, 9, 16, 31, 64, 65, 70] {
                let mut out = vec![0.0; rows * n_out];
                layer.forward(&x[..rows * n_in], &mut out, &threads);
                assert_eq!(
                    bits(&out),
                    bits(&alone[..rows * n_out]),
                    "{format:?} {rows} rows, {count} threads"
                );
            }
        }
    }
}

#[test]
fn gguf_blocks_load_without_loss() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let (n_out, n_in) = (35, 96);
    let mut blocks = Vec::new();
    let mut want = Vec::new();
    for _ in 0..n_out * n_in / 32 {
        let scale = f16::from_f32(rng.random_range(0.001..0.1));
        blocks.extend(scale.to_le_bytes());
        for _ in 0..32 {
            let q: i8 = rng.random();
            blocks.push(q as u8);
            want.push(scale.to_f32() * f32::from(q));
        }
    }
    let layer = Linear::from_q8_blocks(&blocks, n_out, n_in, None).unwrap();
    let mut row = vec![0.0; n_in];
    for (j, want) in want.chunks_exact(n_in).enumerate() {
        layer.weight_row_into(j, &mut row);
        assert_eq!(bits(&row), bits(want));
    }
    assert!(Linear::from_q8_blocks(&blocks[1..], n_out, n_in, None).is_err());
    assert!(Linear::from_q8_blocks(&blocks, n_out * 2, n_in / 2, None).is_err());
}

#[test]
fn sixteen_bit_weights_are_kept_exactly() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let numbers = numbers(&mut rng, 33 * 40);
    let short: Vec<bf16> = numbers.iter().map(|&x| bf16::from_f32(x)).collect();
    let half: Vec<f16> = numbers.iter().map(|&x| f16::from_f32(x)).collect();
    let bf = Linear::pack_bf16(&short, 33, 40, None, Format::Bf16).unwrap();
    let hf = Linear::pack_f16(&half, 33, 40, None, Format::F16).unwrap();
    let mut row = vec![0.0; 40];
    for j in 0..33 {
        bf.weight_row_into(j, &mut row);
        assert!(row.iter().zip(&short[j * 40..]).all(|(a, b)| *a == b.to_f32()));
        hf.weight_row_into(j, &mut row);
        assert!(row.iter().zip(&half[j * 40..]).all(|(a, b)| *a == b.to_f32()));
    }
    assert!(Linear::pack(&numbers, 33, 41, None, Format::F32).is_err());
    assert!(Linear::pack(&numbers, 33, 40, Some(&[0.0]), Format::F32).is_err());
}

#[test]
fn a_damaged_row_stays_alone() {
    let layer = Linear::pack(&[0.5; 40 * 64], 40, 64, None, Format::Q8).unwrap();
    let mut x = vec![1.0; 3 * 64];
    x[64 + 7] = f32::NAN;
    let mut out = vec![0.0; 3 * 40];
    layer.forward(&x, &mut out, &Threads::new(1).unwrap());
    assert!(out[..40].iter().chain(&out[80..]).all(|x| (x - 32.0).abs() < 0.1));
    assert!(out[40..80].iter().all(|x| x.is_nan()));
}
