//! Compiles a kernel's source for the CPU, and launches it in a process of its own, so that a planted bug
//! may do what it likes.

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash, Hasher},
    path::PathBuf,
    process::Command,
    sync::Mutex,
};

use attune_kernels::cuda::{Element, Program};

/// Tests of one program wait for one another's compilation.
static COMPILING: Mutex<()> = Mutex::new(());

/// A kernel's source as a program for this machine.
pub(crate) struct Emulator {
    binary: PathBuf,
    programs: Vec<Program>,
}

/// One argument of a launch.
pub(crate) enum Arg {
    Number(u64),
    Buffer(Vec<u8>),
    Null,
    /// Addresses: of each, the argument that it lies in and its offset in bytes; `None`: null.
    Places(Vec<Option<(usize, usize)>>),
}

impl Arg {
    pub(crate) fn float(x: f32) -> Self {
        Self::Number(u64::from(x.to_bits()))
    }

    pub(crate) fn u32s(numbers: &[u32]) -> Self {
        Self::Buffer(numbers.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    pub(crate) fn u64s(numbers: &[u64]) -> Self {
        Self::Buffer(numbers.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    pub(crate) fn f32s(numbers: &[f32]) -> Self {
        Self::Buffer(numbers.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// Room that no kernel may take for zeros.
    pub(crate) fn room(bytes: usize) -> Self {
        Self::Buffer(vec![0xEE; bytes])
    }

    pub(crate) fn zeros(bytes: usize) -> Self {
        Self::Buffer(vec![0; bytes])
    }
}

/// A launch, to be run with others.
pub(crate) struct Launch {
    pub(crate) program: Program,
    pub(crate) grid: [usize; 3],
    pub(crate) args: Vec<Arg>,
}

/// A launch's arguments after it; what is no buffer is empty.
pub(crate) struct Buffers(pub(crate) Vec<Vec<u8>>);

impl Buffers {
    pub(crate) fn u32s(&self, arg: usize) -> Vec<u32> {
        self.0[arg].as_chunks::<4>().0.iter().map(|&b| u32::from_le_bytes(b)).collect()
    }

    pub(crate) fn f32s(&self, arg: usize) -> Vec<f32> {
        self.0[arg].as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }
}

impl Emulator {
    /// The source of this name with all its kernels. `None`: this machine has no C++ compiler.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let programs: Vec<Program> = Program::all().into_iter().filter(|p| p.name() == name).collect();
        Self::compile(&programs, &[], |source| source)
    }

    /// One program alone, its source changed.
    pub(crate) fn changed(program: Program, defines: &[&str], from: &str, to: &str) -> Option<Self> {
        Self::compile(&[program], defines, |source| {
            assert_eq!(source.matches(from).count(), 1, "{from:?} stands once in the source");
            source.replace(from, to)
        })
    }

    /// The number formats that it was compiled for.
    pub(crate) fn elements(&self) -> Vec<Element> {
        let mut elements: Vec<Element> = self.programs.iter().filter_map(|p| p.element()).collect();
        elements.dedup();
        elements
    }

    fn compile(programs: &[Program], defines: &[&str], change: impl Fn(String) -> String) -> Option<Self> {
        let compiler = ["c++", "g++", "clang++"]
            .into_iter()
            .find(|c| Command::new(c).arg("--version").output().is_ok_and(|o| o.status.success()))?;
        let kernels: Vec<String> = programs.iter().map(|p| format!("KERNEL({})", p.entry())).collect();
        let defines: String = defines.iter().map(|d| format!("#define {d}\n")).collect();
        let text = format!(
            "{defines}{}\n{}\n#define KERNELS {}\n{}",
            include_str!("emulator.h"),
            change(programs[0].source()),
            kernels.join(" "),
            include_str!("run.cpp"),
        );
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cuda-on-cpu");
        let binary = folder.join(format!("{:016x}", hasher.finish()));
        let _one = COMPILING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !binary.exists() {
            fs::create_dir_all(&folder).unwrap();
            let (source, made) = (binary.with_extension("cpp"), binary.with_extension("made"));
            fs::write(&source, text).unwrap();
            // Its own arithmetic is not contracted, as that of `fuse_sample` on a card is not.
            let flags = [
                "-std=c++17",
                "-O1",
                "-U_FORTIFY_SOURCE",
                "-ffp-contract=off",
                "-fno-strict-aliasing",
                "-w",
                "-o",
            ];
            let out = Command::new(compiler).args(flags).arg(&made).arg(&source).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            fs::rename(made, &binary).unwrap();
        }
        Some(Self { binary, programs: programs.to_vec() })
    }

    /// Runs the launches one after the other and gives every one's arguments as they are then.
    ///
    /// # Errors
    /// What stopped the process: a barrier that some never reach, a write outside a buffer, a crash.
    pub(crate) fn run(&self, launches: &[Launch]) -> Result<Vec<Buffers>, String> {
        let mut input = Vec::new();
        for launch in launches {
            let name = launch.program.entry();
            input.extend((name.len() as u64).to_le_bytes());
            input.extend(name.as_bytes());
            let [x, y, z] = launch.grid.map(|n| n as u64);
            for n in [x, y, z, u64::from(launch.program.threads()), launch.args.len() as u64] {
                input.extend(n.to_le_bytes());
            }
            for arg in &launch.args {
                let mut places = Vec::new();
                let (kind, number, bytes): (u64, Option<u64>, &[u8]) = match arg {
                    Arg::Number(n) => (0, Some(*n), &[]),
                    Arg::Buffer(bytes) => (1, Some(bytes.len() as u64), bytes),
                    Arg::Null => (2, None, &[]),
                    Arg::Places(all) => {
                        for place in all {
                            let (arg, offset) = place.map_or((0, 0), |(arg, offset)| (arg + 1, offset));
                            places.extend([arg, offset].into_iter().flat_map(|n| (n as u64).to_le_bytes()));
                        }
                        (3, Some(all.len() as u64), &places)
                    }
                };
                input.extend(kind.to_le_bytes());
                input.extend(number.into_iter().flat_map(u64::to_le_bytes));
                input.extend(bytes);
            }
        }
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (from, to) = (folder.path().join("in"), folder.path().join("out"));
        fs::write(&from, input).unwrap();
        let out = Command::new(&self.binary).args([&from, &to]).output().unwrap();
        if !out.status.success() {
            return Err(format!("{}: {}", out.status, String::from_utf8_lossy(&out.stderr)));
        }
        let output = fs::read(to).unwrap();
        let mut rest = output.as_slice();
        let mut take = |arg: &Arg| match arg {
            Arg::Buffer(bytes) => {
                let (own, behind) = rest.split_at(bytes.len());
                rest = behind;
                own.to_vec()
            }
            _ => Vec::new(),
        };
        let buffers = launches.iter().map(|l| Buffers(l.args.iter().map(&mut take).collect())).collect();
        assert!(rest.is_empty(), "the process wrote more than its buffers");
        Ok(buffers)
    }
}
