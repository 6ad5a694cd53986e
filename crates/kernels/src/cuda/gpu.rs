//! One card: its context, the stream that everything runs on, its matrix library and its programs.

use std::{
    collections::HashMap,
    ffi::c_void,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use cudarc::{
    driver::{CudaContext, CudaFunction, CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits, result, sys},
    nvrtc::Ptx,
};

use super::{Cache, CudaError, Nvrtc, Program, blas::Blas};

const DRIVER_REMEDY: &str = "install NVIDIA's driver, or choose --device cpu";
const BLAS_REMEDY: &str = "install cuBLAS of CUDA 12 or 13, or put its folder on LD_LIBRARY_PATH";

/// Numbers on a card.
pub type Array<T> = CudaSlice<T>;

/// A card that is ready to compute. Clones are the same card; work on it runs in the order in which it was
/// handed over, on one stream.
#[derive(Clone)]
pub struct Gpu(Arc<Card>);

struct Card {
    // Dropped in this order: what needs the context before the context.
    functions: HashMap<Program, OnceLock<CudaFunction>>,
    blas: Blas,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
    cache: Cache,
    name: String,
    arch: String,
    processors: usize,
}

/// Whether driver and cuBLAS are there.
#[cfg(not(feature = "linked"))]
fn libraries() -> (bool, bool) {
    // SAFETY: the initialisers of both libraries have no preconditions.
    #[allow(unsafe_code)]
    unsafe {
        (sys::is_culib_present(), cudarc::cublas::sys::is_culib_present())
    }
}

/// A program that is linked with them has not started without them.
#[cfg(feature = "linked")]
fn libraries() -> (bool, bool) {
    (true, true)
}

impl Gpu {
    /// Opens card `ordinal`; compiled programs are kept in `cache`.
    ///
    /// # Errors
    /// There is no driver, no such card, no cuBLAS, or the card is too old.
    pub fn open(ordinal: usize, cache: Cache) -> Result<Self, CudaError> {
        // cudarc panics where a library is absent, so both are looked for first.
        let (driver, blas) = libraries();
        let absent = |library: &str, remedy| {
            let problem = "no such library".to_owned();
            Err(CudaError::Library { library: library.into(), problem, remedy })
        };
        if !driver {
            return absent("libcuda.so", DRIVER_REMEDY);
        }
        let found = |e| CudaError::driver("looking for cards", e);
        let count = usize::try_from(CudaContext::device_count().map_err(found)?).unwrap_or(0);
        if ordinal >= count {
            let cards = if count == 1 { "one card".into() } else { format!("{count} cards") };
            return Err(CudaError::Unsupported(format!(
                "there is no cuda:{ordinal}: the driver sees {cards}, numbered from 0"
            )));
        }
        if !blas {
            return absent("libcublas.so", BLAS_REMEDY);
        }
        let opened = |e| CudaError::driver("opening the card", e);
        let context = CudaContext::new(ordinal).map_err(opened)?;
        let name = context.name().map_err(opened)?;
        let (major, minor) = context.compute_capability().map_err(opened)?;
        if major < 8 {
            return Err(CudaError::Unsupported(format!(
                "cuda:{ordinal}, {name}, has compute capability {major}.{minor}; 8.0 (Ampere) or newer is needed"
            )));
        }
        let processors = context
            .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .map_err(opened)?;
        // SAFETY: all arrays of this card are made, used and dropped on the one stream below, so that nothing
        // has to wait for another stream.
        #[allow(unsafe_code)]
        unsafe {
            context.disable_event_tracking();
        }
        let stream = context.new_stream().map_err(opened)?;
        keep_freed_memory(&context).map_err(opened)?;
        Ok(Self(Arc::new(Card {
            functions: Program::all().into_iter().map(|program| (program, OnceLock::new())).collect(),
            blas: Blas::new(&stream)?,
            stream,
            context,
            cache,
            name,
            arch: format!("sm_{major}{minor}"),
            processors: usize::try_from(processors).unwrap_or(1).max(1),
        })))
    }

    /// The card's name and architecture, such as "NVIDIA H100 80GB HBM3 (sm_90)".
    pub fn name(&self) -> String {
        format!("{} ({})", self.0.name, self.0.arch)
    }

    /// Its number, from 0.
    pub fn ordinal(&self) -> usize {
        self.0.context.ordinal()
    }

    /// Its multiprocessors.
    pub fn processors(&self) -> usize {
        self.0.processors
    }

    /// Free and total bytes of its memory.
    ///
    /// # Errors
    /// The driver failed.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.0.context.mem_get_info().map_err(|e| CudaError::driver("asking for free memory", e))
    }

    /// Waits until all that was handed over is done.
    ///
    /// # Errors
    /// Something of it failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.0.stream.synchronize().map_err(|e| CudaError::driver("computing", e))
    }

    /// Loads programs now rather than at their first launch, so that what is wrong shows at once.
    ///
    /// # Errors
    /// One does not compile or load.
    pub fn prepare(&self, programs: impl IntoIterator<Item = Program>) -> Result<(), CudaError> {
        programs.into_iter().try_for_each(|program| self.function(program).map(|_| ()))
    }

    /// Room for `len` numbers, whatever stood there before.
    pub(super) fn room<T: DeviceRepr>(&self, len: usize) -> Result<Array<T>, CudaError> {
        // SAFETY: callers write all of it before they read.
        #[allow(unsafe_code)]
        let room = unsafe { self.0.stream.alloc::<T>(len.max(1)) };
        room.map_err(|e| match CudaError::driver("making room on the card", e) {
            CudaError::OutOfMemory(_) => {
                let mib = |bytes: usize| bytes.div_ceil(1 << 20);
                let asked = mib(len * size_of::<T>());
                CudaError::OutOfMemory(match self.memory() {
                    Ok((free, total)) => format!(
                        "{asked} MiB were asked for, and {} of {} MiB are free",
                        mib(free),
                        mib(total)
                    ),
                    Err(_) => format!("{asked} MiB were asked for"),
                })
            }
            other => other,
        })
    }

    /// `len` zeros.
    ///
    /// # Errors
    /// The card's memory is full.
    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<Array<T>, CudaError> {
        let mut room = self.room(len)?;
        self.clear_array(&mut room)?;
        Ok(room)
    }

    pub(super) fn clear_array<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        array: &mut Array<T>,
    ) -> Result<(), CudaError> {
        self.0.stream.memset_zeros(array).map_err(|e| CudaError::driver("clearing memory", e))
    }

    pub(super) fn copy_array<T: DeviceRepr>(&self, array: &Array<T>) -> Result<Array<T>, CudaError> {
        let mut room = self.room(array.len())?;
        let copied = self.0.stream.memcpy_dtod(array, &mut room);
        copied.map_err(|e| CudaError::driver("copying on the card", e))?;
        Ok(room)
    }

    /// The numbers, on the card.
    ///
    /// # Errors
    /// The card's memory is full.
    pub fn upload<T: DeviceRepr>(&self, numbers: &[T]) -> Result<Array<T>, CudaError> {
        let mut room = self.room(numbers.len())?;
        if !numbers.is_empty() {
            let copied = self.0.stream.memcpy_htod(numbers, &mut room);
            copied.map_err(|e| CudaError::driver("copying to the card", e))?;
        }
        Ok(room)
    }

    /// The numbers, back from the card; waits for all that makes them.
    ///
    /// # Errors
    /// Something that was handed over before failed.
    pub fn download<T: DeviceRepr>(&self, numbers: &Array<T>) -> Result<Vec<T>, CudaError> {
        let copied = self.0.stream.clone_dtoh(numbers);
        let copied = copied.map_err(|e| CudaError::driver("copying from the card", e))?;
        self.synchronize()?;
        Ok(copied)
    }

    /// Seconds that the card takes, by its own clock, for what `work` hands over. What was handed over before
    /// should keep it busy meanwhile, or the host's time counts too.
    ///
    /// # Errors
    /// The work failed.
    pub fn time(&self, work: impl FnOnce() -> Result<(), CudaError>) -> Result<f64, CudaError> {
        let failed = |e| CudaError::driver("measuring", e);
        let mark = || {
            let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
            self.0.stream.record_event(Some(flags)).map_err(failed)
        };
        let begin = mark()?;
        work()?;
        let end = mark()?;
        end.synchronize().map_err(failed)?;
        Ok(f64::from(begin.elapsed_ms(&end).map_err(failed)?) / 1e3)
    }

    pub(super) fn blas(&self) -> &Blas {
        &self.0.blas
    }

    pub(super) fn stream(&self) -> &CudaStream {
        &self.0.stream
    }

    /// Launches a program over `grid` blocks. Arguments are the bits of numbers and the addresses of arrays,
    /// in the order of the kernel's parameters.
    pub(super) fn launch(
        &self,
        program: Program,
        grid: [usize; 3],
        arguments: &[u64],
    ) -> Result<(), CudaError> {
        if grid.contains(&0) {
            return Ok(());
        }
        let function = self.function(program)?;
        let failed = |e| CudaError::driver(program.name(), e);
        let [x, y, z] = grid.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let mut places: Vec<*mut c_void> =
            arguments.iter().map(|argument| std::ptr::from_ref(argument).cast_mut().cast()).collect();
        self.0.context.bind_to_thread().map_err(failed)?;
        // SAFETY: callers name arrays of the sizes that the kernel reads and writes, which live until the
        // stream has passed this launch: they are freed on the same stream. A parameter of four bytes is the
        // lower half of its argument.
        #[allow(unsafe_code)]
        let launched = unsafe {
            result::launch_kernel(
                function.cu_function(),
                (x, y, z),
                (program.threads(), 1, 1),
                0,
                self.0.stream.cu_stream(),
                &mut places,
            )
        };
        launched.map_err(failed)
    }

    fn function(&self, program: Program) -> Result<&CudaFunction, CudaError> {
        let card = &*self.0;
        let Some(slot) = card.functions.get(&program) else {
            return Err(CudaError::Unsupported(format!("there is no kernel {}", program.entry())));
        };
        if let Some(function) = slot.get() {
            return Ok(function);
        }
        let cubin = card.cache.get(program, &card.arch, Nvrtc::load)?;
        let failed = |e| CudaError::driver(program.name(), e);
        let module = card.context.load_module(Ptx::from_binary(cubin)).map_err(failed)?;
        let function = module.load_function(&program.entry()).map_err(failed)?;
        Ok(slot.get_or_init(|| function))
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cuda:{} {}", self.ordinal(), self.name())
    }
}

/// Tells the driver to keep what is freed for what is asked for next, so that a step makes no room anew.
fn keep_freed_memory(context: &CudaContext) -> Result<(), cudarc::driver::DriverError> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    context.bind_to_thread()?;
    let mut pool = std::ptr::null_mut();
    let mut threshold = u64::MAX;
    // SAFETY: both pointers are to values that outlive the calls, the second of the type that the attribute
    // has.
    #[allow(unsafe_code)]
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()).result()?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast()).result()
    }
}

impl Default for Cache {
    /// `attune/cubin` in the user's folder of caches, or in that of temporary files where there is none.
    fn default() -> Self {
        let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let caches = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
        Self::new(caches.unwrap_or_else(std::env::temp_dir).join("attune/cubin"))
    }
}
