//! What a decoder's layers are made of, against loops in double precision.

use attune_kernels::cuda::{Element, Program};
use rand::RngExt;

use crate::emulator::{Arg, Emulator, Launch};
use crate::{ensure, left_out, loaded, numbers, rng, stored};

/// How far a number may be from its value in double precision, relative to what went into it.
fn tolerance(element: Element) -> f64 {
    match element {
        Element::F32 => 3e-6,
        Element::F16 => 1e-3,
        Element::Bf16 => 8e-3,
    }
}

fn close(what: &str, element: Element, got: &[f32], want: &[f64]) -> Result<(), String> {
    ensure(got.len() == want.len(), || format!("{what}: {} numbers for {}", got.len(), want.len()))?;
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let allowed = tolerance(element) * want.abs().max(0.3);
        ensure((f64::from(got) - want).abs() <= allowed, || {
            format!("{what} {element:?}: number {i} is {got} for {want}")
        })?;
    }
    Ok(())
}

fn number(n: usize) -> Arg {
    Arg::Number(n as u64)
}

pub(crate) fn check_rms_norm(emulator: &Emulator) -> Result<(), String> {
    for element in emulator.elements() {
        for (d, rows) in [(5, &[2u32, 0, 2][..]), (704, &[1, 3]), (8200, &[2]), (8203, &[])] {
            let mut rng = rng(d as u64);
            let (x, weight) = (numbers(&mut rng, 4 * d, 2.0), numbers(&mut rng, d, 1.5));
            let all: Vec<u32> = (0..4).collect();
            for (chosen, taken) in [(Arg::Null, &all[..]), (Arg::u32s(rows), rows)] {
                let launch = Launch {
                    program: Program::RmsNorm(element),
                    grid: [taken.len(), 1, 1],
                    args: vec![
                        Arg::f32s(&x),
                        chosen,
                        Arg::f32s(&weight),
                        number(d),
                        Arg::float(1e-5),
                        Arg::room(taken.len() * d * element.bytes()),
                    ],
                };
                let got = loaded(&emulator.run(&[launch])?[0].0[5], element);
                let row = |&row: &u32| {
                    let own = &x[row as usize * d..][..d];
                    let mean = own.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / d as f64;
                    let scale = 1.0 / (mean + 1e-5).sqrt();
                    let value = move |(x, w): (&f32, &f32)| f64::from(*x) * scale * f64::from(*w);
                    own.iter().zip(&weight).map(value).collect::<Vec<f64>>()
                };
                let want: Vec<f64> = taken.iter().flat_map(row).collect();
                close("rms_norm", element, &got, &want)?;
            }
        }
    }
    Ok(())
}

struct Heads {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    bias: bool,
    norms: bool,
}

fn rotate_shape(emulator: &Emulator, element: Element, shape: &Heads) -> Result<(), String> {
    let &Heads { heads, kv_heads, dim, bias, norms } = shape;
    let (all, half) = (heads + 2 * kv_heads, dim / 2);
    let mut rng = rng((all * dim) as u64);
    let (positions, slots) = ([7u32, 0, 30, 8], [5u32, 18, 1, 6]);
    let (rows, context, places) = (positions.len(), 40, 20);
    let qkv = numbers(&mut rng, rows * all * dim, 2.0);
    let shift = if bias { numbers(&mut rng, all * dim, 1.0) } else { vec![0.0; all * dim] };
    let angles = numbers(&mut rng, context * half, 3.0);
    let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
    let weights = [(); 2].map(|()| numbers(&mut rng, dim, 1.5));
    let optional = |numbers: &[f32], on: bool| if on { Arg::f32s(numbers) } else { Arg::Null };
    let cache = places * kv_heads * dim * element.bytes();
    let launch = Launch {
        program: Program::Rotate(element),
        grid: [rows, all.div_ceil(4), 1],
        args: vec![
            Arg::f32s(&qkv),
            optional(&shift, bias),
            number(heads),
            number(kv_heads),
            number(dim),
            Arg::u32s(&positions),
            Arg::u32s(&slots),
            Arg::f32s(&cos),
            Arg::f32s(&sin),
            optional(&weights[0], norms),
            optional(&weights[1], norms),
            Arg::float(1e-6),
            Arg::room(rows * heads * dim * element.bytes()),
            Arg::zeros(cache),
            Arg::zeros(cache),
        ],
    };
    let buffers = emulator.run(&[launch])?.remove(0);
    let [q, keys, values] = [12, 13, 14].map(|i| loaded(&buffers.0[i], element));
    let head = |row: usize, head: usize| -> Vec<f64> {
        let at = |i: usize| f64::from(qkv[(row * all + head) * dim + i]) + f64::from(shift[head * dim + i]);
        let mut x: Vec<f64> = (0..dim).map(at).collect();
        if head >= heads + kv_heads {
            return x;
        }
        if norms {
            let scale = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / dim as f64 + 1e-6).sqrt();
            let weight = &weights[usize::from(head >= heads)];
            x.iter_mut().zip(weight).for_each(|(x, w)| *x *= scale * f64::from(*w));
        }
        let turned = |i: usize| {
            let at = positions[row] as usize * half + i % half;
            let (c, s) = (f64::from(cos[at]), f64::from(sin[at]));
            if i < half { x[i] * c - x[i + half] * s } else { x[i] * c + x[i - half] * s }
        };
        (0..dim).map(turned).collect()
    };
    let want: Vec<f64> = (0..rows).flat_map(|row| (0..heads).flat_map(move |h| head(row, h))).collect();
    close("queries", element, &q, &want)?;
    for (what, cache, first) in [("keys", keys, heads), ("values", values, heads + kv_heads)] {
        let mut want = vec![0.0; places * kv_heads * dim];
        for (row, &slot) in slots.iter().enumerate() {
            for h in 0..kv_heads {
                let own = head(row, first + h);
                want[(slot as usize * kv_heads + h) * dim..][..dim].copy_from_slice(&own);
            }
        }
        close(what, element, &cache, &want)?;
    }
    Ok(())
}

pub(crate) fn check_rotate(emulator: &Emulator) -> Result<(), String> {
    for element in emulator.elements() {
        for shape in [
            Heads { heads: 4, kv_heads: 2, dim: 64, bias: false, norms: false },
            Heads { heads: 3, kv_heads: 1, dim: 20, bias: true, norms: false },
            Heads { heads: 2, kv_heads: 2, dim: 128, bias: false, norms: true },
            Heads { heads: 1, kv_heads: 1, dim: 66, bias: true, norms: true },
        ] {
            rotate_shape(emulator, element, &shape)?;
        }
    }
    Ok(())
}

pub(crate) fn check_silu_gate(emulator: &Emulator) -> Result<(), String> {
    let shapes = emulator.elements().into_iter().flat_map(|element| [(element, 300), (element, 2080)]);
    for (element, n) in shapes {
        let rows = 3;
        let mut gate_up = numbers(&mut rng(3), rows * 2 * n, 3.0);
        (gate_up[0], gate_up[1], gate_up[2]) = (-100.0, 100.0, f32::NAN);
        let launch = Launch {
            program: Program::SiluGate(element),
            grid: [rows, n.div_ceil(8 * 256), 1],
            args: vec![Arg::f32s(&gate_up), number(n), Arg::room(rows * n * element.bytes())],
        };
        let mut got = loaded(&emulator.run(&[launch])?[0].0[2], element);
        ensure(got[2].is_nan(), || "a damaged number is hidden".into())?;
        let value = |i: usize| {
            let at = i / n * 2 * n + i % n;
            let gate = f64::from(gate_up[at]);
            gate / (1.0 + (-gate).exp()) * f64::from(gate_up[at + n])
        };
        let mut want: Vec<f64> = (0..rows * n).map(value).collect();
        (got[2], want[2]) = (0.0, 0.0);
        close("silu_gate", element, &got, &want)?;
    }
    Ok(())
}

pub(crate) fn check_embed(emulator: &Emulator) -> Result<(), String> {
    let shapes = emulator.elements().into_iter().flat_map(|element| [(element, 300), (element, 2080)]);
    for (element, d) in shapes {
        let ids = [4u32, 0, 4, 9];
        let table = stored(&numbers(&mut rng(4), 10 * d, 2.0), element);
        let launch = Launch {
            program: Program::Embed(element),
            grid: [ids.len(), 1, 1],
            args: vec![Arg::Buffer(table.0), Arg::u32s(&ids), number(d), Arg::room(ids.len() * d * 4)],
        };
        let got = emulator.run(&[launch])?[0].f32s(3);
        let want: Vec<f32> =
            ids.iter().flat_map(|&id| table.1[id as usize * d..][..d].iter().copied()).collect();
        ensure(got == want, || format!("embed {element:?}: other numbers"))?;
    }
    Ok(())
}

pub(crate) fn check_copy_rows(emulator: &Emulator) -> Result<(), String> {
    let shapes = emulator.elements().into_iter().flat_map(|element| [(element, 270), (element, 2080)]);
    for (element, d) in shapes {
        let rows = 4;
        let mut rng = rng(5);
        let from = stored(&numbers(&mut rng, 6 * d, 2.0), element);
        let weights = numbers(&mut rng, 2 * d, 2.0);
        let taken: Vec<usize> = (0..rows).map(|_| rng.random_range(0..6)).collect();
        let weighed = [Some(1), None, Some(0), None];
        let launch = Launch {
            program: Program::CopyRows(element),
            grid: [rows, 1, 1],
            args: vec![
                Arg::Places(taken.iter().map(|row| Some((4, row * d * element.bytes()))).collect()),
                Arg::Places(weighed.iter().map(|w| w.map(|row: usize| (5, row * d * 4))).collect()),
                number(d),
                Arg::room(rows * d * element.bytes()),
                Arg::Buffer(from.0),
                Arg::f32s(&weights),
            ],
        };
        let got = loaded(&emulator.run(&[launch])?[0].0[3], element);
        let value = |i: usize| {
            let weight = weighed[i / d].map_or(1.0, |row| f64::from(weights[row * d + i % d]));
            f64::from(from.1[taken[i / d] * d + i % d]) * weight
        };
        close("copy_rows", element, &got, &(0..rows * d).map(value).collect::<Vec<f64>>())?;
    }
    Ok(())
}

pub(crate) fn check_add_bias(emulator: &Emulator) -> Result<(), String> {
    for element in emulator.elements() {
        let (n, rows) = (260, 3);
        let mut rng = rng(6);
        let x = stored(&numbers(&mut rng, rows * n, 2.0), element);
        let bias = numbers(&mut rng, n, 2.0);
        let launch = Launch {
            program: Program::AddBias(element),
            grid: [rows, n.div_ceil(256), 1],
            args: vec![Arg::Buffer(x.0), Arg::f32s(&bias), number(n)],
        };
        let got = loaded(&emulator.run(&[launch])?[0].0[0], element);
        let value = |i: usize| f64::from(x.1[i]) + f64::from(bias[i % n]);
        close("add_bias", element, &got, &(0..rows * n).map(value).collect::<Vec<f64>>())?;
    }
    Ok(())
}

#[test]
fn the_layers_kernels_compute_what_their_names_say() {
    type Check = fn(&Emulator) -> Result<(), String>;
    let checks: [(&str, Check); 6] = [
        ("rms_norm", check_rms_norm),
        ("rotate", check_rotate),
        ("silu_gate", check_silu_gate),
        ("embed", check_embed),
        ("copy_rows", check_copy_rows),
        ("add_bias", check_add_bias),
    ];
    for (name, check) in checks {
        let Some(emulator) = Emulator::of(name) else { return left_out("CUDA sources on a CPU: no c++") };
        check(&emulator).unwrap();
    }
}
