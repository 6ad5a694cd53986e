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
        // Memory of a thread's own is slow, and easily asked for by accident.
        assert_eq!(frame_size(&cubin), 0, "{name} for {arch} does not keep to registers");
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

/// What a kernel's machine code keeps in memory of its own beside registers, in bytes a thread: spilled
/// registers, and arrays with a computed index.
fn frame_size(cubin: &[u8]) -> u32 {
    // A table of notes on the code: a format, a kind, the bytes of a value, and the value.
    const FRAME_SIZE: [u8; 4] = [4, 0x11, 8, 0];
    let notes = section(cubin, ".nv.info");
    let at = notes.windows(4).step_by(4).position(|note| note == FRAME_SIZE).expect("a note on the frame");
    word(notes, 4 * at + 8)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// A section of an ELF file of 64 bits.
fn section<'a>(elf: &'a [u8], name: &str) -> &'a [u8] {
    let long = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().unwrap()) as usize;
    let short = |at: usize| usize::from(u16::from_le_bytes(elf[at..at + 2].try_into().unwrap()));
    let (headers, size, count, names) = (long(0x28), short(0x3a), short(0x3c), short(0x3e));
    let place = |i: usize| long(headers + i * size + 0x18);
    let found = (0..count).find(|&i| {
        let own = &elf[place(names) + word(elf, headers + i * size) as usize..];
        own.starts_with(name.as_bytes()) && own[name.len()] == 0
    });
    let found = found.unwrap_or_else(|| panic!("there is a section {name}"));
    &elf[place(found)..][..long(headers + found * size + 0x20)]
}
