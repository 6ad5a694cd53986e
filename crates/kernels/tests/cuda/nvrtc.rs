//! Every source compiles to machine code for three generations of cards; no card is needed.

use std::{path::PathBuf, thread};

use attune_kernels::cuda::{Cache, CudaError, Element, Nvrtc, Program};

use crate::left_out;

/// Where `scripts/nvrtc.sh` puts NVRTC, or what the environment names.
fn nvrtc() -> Result<Nvrtc, CudaError> {
    let installed = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools/nvrtc"));
    Nvrtc::load_from(&std::env::var_os("ATTUNE_NVRTC").map_or(installed, PathBuf::from))
}

#[test]
fn every_source_compiles_for_every_architecture() {
    let nvrtc = match nvrtc() {
        Ok(nvrtc) => nvrtc,
        Err(error) => return left_out(&format!("CUDA sources through NVRTC: {error} (scripts/nvrtc.sh)")),
    };
    // Kept between runs, by source.
    let cache = Cache::new(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cubin"));
    let tasks: Vec<(Program, &str)> = Program::all()
        .into_iter()
        .flat_map(|program| ["sm_80", "sm_90", "sm_100"].map(|arch| (program, arch)))
        // Number formats differ in how a number is read alone: one architecture is enough for all.
        .filter(|(program, arch)| {
            *arch == "sm_90" || !matches!(program.element(), Some(Element::F32 | Element::F16))
        })
        .collect();
    let compile = |&(program, arch): &(Program, &str)| {
        let cubin = cache.get(program, arch, || Ok(nvrtc)).unwrap();
        let name = program.entry();
        let holds = cubin.starts_with(b"\x7fELF") && cubin.windows(name.len()).any(|w| w == name.as_bytes());
        assert!(holds, "{name} is not in what was compiled for {arch}");
    };
    let half = tasks.len() / 2;
    thread::scope(|scope| {
        scope.spawn(|| tasks[..half].iter().for_each(compile));
        tasks[half..].iter().for_each(compile);
    });
    // An error names the source and says what is wrong with it.
    let error = nvrtc.compile(Program::FuseSample, "sm_1").unwrap_err().to_string();
    assert!(error.contains("fuse_sample") && error.contains("sm_1"), "{error}");
}
