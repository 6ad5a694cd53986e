//! Sources to machine code by NVRTC, kept on disk by source, options and architecture.

use std::{
    ffi::{CStr, CString},
    fs,
    path::{Path, PathBuf},
};

use cudarc::nvrtc::{result, sys};

use super::{CudaError, Program};

const REMEDY: &str = "install CUDA 12 or 13 with NVRTC, or put the folder of libnvrtc.so on LD_LIBRARY_PATH";

/// NVRTC, loaded: a compiler that needs no card.
#[derive(Debug, Clone, Copy)]
pub struct Nvrtc(());

impl Nvrtc {
    /// Loads NVRTC from where the system's loader finds it.
    ///
    /// # Errors
    /// There is none.
    pub fn load() -> Result<Self, CudaError> {
        // cudarc panics where a library is absent, so it is looked for first; a program that is linked with it has
        // not started without it.
        // SAFETY: NVRTC's initialisers have no preconditions.
        #[cfg(not(feature = "linked"))]
        #[allow(unsafe_code)]
        let present = unsafe { sys::is_culib_present() };
        #[cfg(feature = "linked")]
        let present = true;
        if present { Ok(Self(())) } else { Err(absent("libnvrtc.so", "no such library")) }
    }

    /// Loads NVRTC of CUDA 13.0 from a folder, such as that of its Python wheel.
    ///
    /// # Errors
    /// The folder lacks it.
    pub fn load_from(folder: &Path) -> Result<Self, CudaError> {
        // Once loaded by their whole paths, they are found by their names: NVRTC asks for its builtins,
        // and cudarc for NVRTC.
        for name in ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"] {
            let path = folder.join(name);
            // SAFETY: as above.
            #[allow(unsafe_code)]
            let library = unsafe { libloading::Library::new(&path) };
            // It stays loaded to the end of the process.
            std::mem::forget(library.map_err(|e| absent(&path.display().to_string(), e))?);
        }
        Self::load()
    }

    /// The machine code (cubin) of a program for an architecture such as `sm_90`.
    ///
    /// # Errors
    /// The source does not compile; for an architecture that NVRTC does not know, too.
    pub fn compile(self, program: Program, arch: &str) -> Result<Vec<u8>, CudaError> {
        let failed = |log: String| CudaError::Compile { program: program.name(), arch: arch.into(), log };
        let source = CString::new(program.source()).map_err(|e| failed(e.to_string()))?;
        let mut options = program.options();
        options.push(format!("--gpu-architecture={arch}"));
        let unit = Unit(result::create_program(&source, None).map_err(|e| failed(e.to_string()))?);
        // SAFETY: the program lives, and so does its source.
        #[allow(unsafe_code)]
        unsafe {
            if let Err(error) = result::compile_program(unit.0, &options) {
                let log = result::get_program_log(unit.0).unwrap_or_default();
                let bytes: Vec<u8> = log.iter().map(|&c| c as u8).collect();
                let log = CStr::from_bytes_until_nul(&bytes).map(|log| log.to_string_lossy().into_owned());
                return Err(failed(format!("{error}\n{}", log.unwrap_or_default())));
            }
            let mut size = 0;
            sys::nvrtcGetCUBINSize(unit.0, &raw mut size).result().map_err(|e| failed(e.to_string()))?;
            let mut cubin = vec![0u8; size];
            sys::nvrtcGetCUBIN(unit.0, cubin.as_mut_ptr().cast())
                .result()
                .map_err(|e| failed(e.to_string()))?;
            Ok(cubin)
        }
    }
}

fn absent(library: &str, problem: impl ToString) -> CudaError {
    CudaError::Library { library: library.to_owned(), problem: problem.to_string(), remedy: REMEDY }
}

struct Unit(sys::nvrtcProgram);

impl Drop for Unit {
    fn drop(&mut self) {
        // SAFETY: it was created, and nobody uses it any more. A failure would leave a little memory.
        #[allow(unsafe_code)]
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// Compiled programs on disk, so that only the first start waits for the compiler.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// A cache in a folder, which is made when something is kept.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The machine code of a program: what is kept, or what `nvrtc` makes of it now.
    ///
    /// # Errors
    /// It does not compile. A folder that cannot be written costs the next start its time, no more.
    pub fn get(
        &self,
        program: Program,
        arch: &str,
        nvrtc: impl FnOnce() -> Result<Nvrtc, CudaError>,
    ) -> Result<Vec<u8>, CudaError> {
        let path = self.folder.join(file_name(program, arch));
        // ELF: a file that was cut off before its first bytes is made again.
        if let Some(kept) = fs::read(&path).ok().filter(|bytes| bytes.starts_with(b"\x7fELF")) {
            return Ok(kept);
        }
        let cubin = nvrtc()?.compile(program, arch)?;
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        let kept = fs::create_dir_all(&self.folder)
            .and_then(|()| fs::write(&temporary, &cubin))
            // Another process that starts now sees all of it or nothing.
            .and_then(|()| fs::rename(&temporary, &path));
        if kept.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        Ok(cubin)
    }
}

/// Names what the machine code depends on: the source, the options, and the architecture.
fn file_name(program: Program, arch: &str) -> String {
    let text = format!("{}\n{}", program.options().join("\n"), program.source());
    // FNV-1a of 128 bits: the sources are ours, so that nobody seeks collisions.
    let hash = text.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    format!("{}-{arch}-{hash:032x}.cubin", program.entry())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::Element;

    #[test]
    fn what_is_kept_is_not_compiled_again() {
        let folder = std::env::temp_dir().join(format!("attune-cubin-{}", std::process::id()));
        let cache = Cache::new(&folder);
        let program = Program::Select(Element::F32);
        let absent = || Err(absent("libnvrtc.so", "none"));
        assert!(matches!(cache.get(program, "sm_90", absent), Err(CudaError::Library { .. })));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(file_name(program, "sm_90")), b"\x7fELF of a card").unwrap();
        assert_eq!(cache.get(program, "sm_90", absent).unwrap(), b"\x7fELF of a card");
        // Another architecture and another type are other files.
        assert!(cache.get(program, "sm_80", absent).is_err());
        assert!(cache.get(Program::Select(Element::F16), "sm_90", absent).is_err());
        fs::write(folder.join(file_name(program, "sm_90")), b"").unwrap();
        assert!(cache.get(program, "sm_90", absent).is_err());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_folder_without_nvrtc_is_named() {
        let error = Nvrtc::load_from(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/libnvrtc-builtins.so.13.0"), "{error}");
    }
}
