use super::*;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn tables(seed: u64, vocab: usize, d: usize) -> [EmbeddingTable; 4] {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let rows: Vec<f32> = (0..vocab * d).map(|_| rng.random_range(-1.0f32..1.0)).collect();
    let short = rows.iter().map(|&x| bf16::from_f32(x)).collect();
    let half = rows.iter().map(|&x| f16::from_f32(x)).collect();
    [
        EmbeddingTable::pack_with(vocab, d, Format::Q8, |id, row| {
            row.copy_from_slice(&rows[id * d..][..d]);
        }),
        EmbeddingTable::from_f32(rows, vocab, d).unwrap(),
        EmbeddingTable::from_bf16(short, vocab, d).unwrap(),
        EmbeddingTable::from_f16(half, vocab, d).unwrap(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_form_multiplies_and_gives_the_same_bits(seed: u64, vocab in 1usize..700, d in 1usize..150) {
        for table in tables(seed, vocab, d) {
            let features: Vec<f32> = (0..d).map(|i| (i as f32).sin()).collect();
            let mut row = vec![0.0; d];
            let want: Vec<f64> = (0..vocab as u32).map(|id| {
                table.row_into(id, &mut row);
                row.iter().zip(&features).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            }).collect();
            let lse = want.iter().map(|x| x.exp()).sum::<f64>().ln();
            let mut first = None;
            for isa in Isa::all() {
                let mut out = vec![0.0; vocab];
                table.dot_as(isa, 0.., &features, &mut out);
                prop_assert!(out.iter().zip(&want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4));
                let sums: Vec<u64> = (1..4).map(|count| {
                    table.log_sum_exp_as(isa, &features, &Threads::new(count).unwrap()).to_bits()
                }).collect();
                prop_assert!((f64::from_bits(sums[0]) - lse).abs() < 1e-5);
                let bits: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
                prop_assert!(sums.iter().all(|s| *s == sums[0]));
                prop_assert_eq!(first.get_or_insert_with(|| (bits.clone(), sums[0])), &(bits, sums[0]));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn weighed_rows_are_the_sum_in_double_precision(seed: u64, vocab in 1usize..700, d in 1usize..150) {
        const N: usize = 3;
        let shares: Vec<f32> = (0..N * vocab).map(|i| (i as f32 * 0.7).sin() / vocab as f32).collect();
        for table in tables(seed, vocab, d) {
            let mut row = vec![0.0; d];
            let mut want = vec![0.0f64; N * d];
            for id in 0..vocab {
                table.row_into(id as u32, &mut row);
                for (n, want) in want.chunks_mut(d).enumerate() {
                    let share = f64::from(shares[n * vocab + id]);
                    want.iter_mut().zip(&row).for_each(|(w, &r)| *w += share * f64::from(r));
                }
            }
            let mut first = None;
            for isa in Isa::all() {
                let mut out = vec![0.0; N * d];
                table.weigh_as(isa, &shares, &mut out);
                prop_assert!(out.iter().zip(&want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
                let bits: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
                prop_assert_eq!(first.get_or_insert_with(|| bits.clone()), &bits);
            }
        }
    }
}

#[test]
fn packing_keeps_what_a_format_can_hold() {
    let [q8, f32, bf16, f16] = tables(7, 9, 96);
    let row = |table: &EmbeddingTable, id: usize| {
        let mut row = vec![0.0; 96];
        table.row_into(id as u32, &mut row);
        row
    };
    for (format, table, near) in [
        (Format::F32, &f32, 0.0),
        (Format::Bf16, &bf16, 1.0 / 256.0),
        (Format::F16, &f16, 1.0 / 2048.0),
        // Half a step of the largest number over 127, and the rounding of its scale.
        (Format::Q8, &q8, 0.5 / 127.0 + 1.0 / 2048.0),
    ] {
        let packed = EmbeddingTable::pack_with(9, 96, format, |id, out| out.copy_from_slice(&row(table, id)));
        assert_eq!(packed.bytes(), table.bytes());
        for id in 0..9 {
            assert_eq!(row(&packed, id), row(table, id), "{format:?} keeps its own numbers");
            let away =
                row(table, id).iter().zip(row(&f32, id)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(away <= near, "{format:?}: {away}");
        }
    }
    let Rows::Q8(blocks) = q8.rows.clone() else { panic!("packed as asked") };
    let kept = EmbeddingTable::from_q8_blocks(blocks, 9, 96).unwrap();
    assert_eq!(row(&kept, 8), row(&q8, 8));
}

#[test]
fn a_wrong_length_is_refused() {
    assert!(EmbeddingTable::from_f32(vec![0.0; 11], 3, 4).is_err());
    assert!(EmbeddingTable::from_q8_blocks(vec![0; 34], 1, 31).is_err());
    assert!(EmbeddingTable::from_q8_blocks(vec![0; 35], 1, 32).is_err());
}
