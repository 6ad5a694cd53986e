//! The weights of a checkpoint, from safetensors or GGUF, and their way into packed form.

pub(crate) mod adapter;
mod path;
mod safetensors;
pub(crate) mod stored;

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use attune_kernels::{EmbeddingTable, Format, Linear, cuda};
use memmap2::Mmap;
use sha2::{Digest as _, Sha256};

use crate::{
    DecoderConfig, LoadError,
    gguf::{self, GgufFile},
};
use adapter::Adapter;
pub use path::ModelPath;
use safetensors::SafetensorsFiles;
pub(crate) use safetensors::shards;
use stored::{Element, Stored};

/// The tensors of a checkpoint, by the names that they have in safetensors. Nothing is read before it is
/// asked for.
pub struct Checkpoint {
    /// Where the weights lie.
    base: PathBuf,
    files: Arc<Files>,
    /// What is added to them, and where it lies.
    adapter: Option<(PathBuf, Adapter)>,
}

enum Files {
    Safetensors(SafetensorsFiles),
    Gguf(Box<GgufFile>),
}

impl Files {
    fn contains(&self, name: &str) -> bool {
        match self {
            Self::Safetensors(files) => files.contains(name),
            Self::Gguf(file) => file.contains(name),
        }
    }
}

impl Checkpoint {
    /// Opens a GGUF file (by its ending, or as the only weights of a folder) or the safetensors of a
    /// folder, and the adapter on it.
    ///
    /// # Errors
    /// A missing, truncated or damaged file is named.
    pub fn open(path: impl Into<ModelPath>) -> Result<Self, LoadError> {
        let ModelPath { base: path, adapter } = path.into();
        let (base, files) = if let Some(file) = gguf::find(&path)? {
            let folder = file.parent().unwrap_or(Path::new("")).to_path_buf();
            (folder, Files::Gguf(Box::new(GgufFile::open(&file)?)))
        } else if ModelPath::is_adapter(&path) {
            let problem = "holds an adapter and no model; name the base that it is worn on (base_model)";
            return Err(LoadError::file(&path, problem));
        } else if path.is_dir() {
            let files = SafetensorsFiles::open(&path)?;
            (path, Files::Safetensors(files))
        } else {
            let problem =
                "is neither a folder nor a .gguf file; give a checkpoint folder, such a file or a hub id";
            return Err(LoadError::file(&path, problem));
        };
        let worn = |folder: PathBuf| {
            let adapter = Adapter::open(&folder, |name| files.contains(name))?;
            Ok::<_, LoadError>((folder, adapter))
        };
        let adapter = adapter.map(worn).transpose()?;
        Ok(Self { base, files: Arc::new(files), adapter })
    }

    /// Opens one safetensors file beside the model's own.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_file(folder: &Path, name: &str) -> Result<Self, LoadError> {
        let files = SafetensorsFiles::open_files(folder, vec![folder.join(name)])?;
        let files = Arc::new(Files::Safetensors(files));
        Ok(Self { base: folder.to_path_buf(), files, adapter: None })
    }

    /// The folder of what makes the model what it is: the adapter's, where there is one, else the weights'.
    pub fn folder(&self) -> &Path {
        self.adapter.as_ref().map_or(&self.base, |(folder, _)| folder)
    }

    /// The folder that the weights lie in.
    pub fn base_folder(&self) -> &Path {
        &self.base
    }

    /// The same weights with the adapter off. `None`: there is none.
    pub fn without_adapter(&self) -> Option<Self> {
        self.adapter.as_ref()?;
        Some(Self { base: self.base.clone(), files: Arc::clone(&self.files), adapter: None })
    }

    /// The GGUF file, where the weights are one.
    pub(crate) fn gguf(&self) -> Option<&GgufFile> {
        match &*self.files {
            Files::Gguf(file) => Some(file),
            Files::Safetensors(_) => None,
        }
    }

    /// The shape of the decoder: from `config.json`, or from the GGUF file itself.
    ///
    /// # Errors
    /// As [`DecoderConfig::load`]; the adapter is not made for such a shape.
    pub fn config(&self) -> Result<DecoderConfig, LoadError> {
        let config = match &*self.files {
            Files::Safetensors(_) => DecoderConfig::load(&self.base)?,
            Files::Gguf(file) => file.config().clone(),
        };
        let head = "lm_head.weight";
        match &self.adapter {
            Some((folder, adapter)) if config.tied && adapter.has(head) => {
                let problem = "is adapted, but the base has no output embedding of its own";
                Err(LoadError::tensor(folder, head, problem))
            }
            _ => Ok(config),
        }
    }

    /// Whether a tensor of this name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.files.contains(name)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Stored<'_>, LoadError> {
        match &*self.files {
            Files::Safetensors(files) => files.tensor(name, shape),
            Files::Gguf(file) => file.tensor(name, shape),
        }
    }

    /// Whether the adapter adds to this tensor.
    fn adapts(&self, name: &str, shape: &[usize]) -> Result<bool, LoadError> {
        let adapts = self.adapter.as_ref().map(|(folder, adapter)| {
            adapter.adapts(name, shape).map_err(|e| LoadError::tensor(folder, name, e))
        });
        Ok(adapts.transpose()?.unwrap_or(false))
    }

    /// The packed format that stores a tensor's numbers as the checkpoint does, or as nearly as any.
    ///
    /// # Errors
    /// As `f32`.
    pub fn format(&self, name: &str, shape: &[usize]) -> Result<Format, LoadError> {
        Ok(self.tensor(name, shape)?.element().format())
    }

    /// An embedding, `[V, d]`, in the checkpoint's own format; where ours has none for it, in `format`, or
    /// in 8-bit blocks without one.
    ///
    /// # Errors
    /// As `f32`.
    pub fn table(
        &self,
        name: &str,
        shape: [usize; 2],
        format: Option<Format>,
    ) -> Result<EmbeddingTable, LoadError> {
        let [vocab, d] = shape;
        let tensor = self.tensor(name, &shape)?;
        let format = match tensor.element() {
            Element::Quantized(_) => format.unwrap_or(Format::Q8),
            own => own.format(),
        };
        let rows = Rows::new(vec![(name, tensor)]);
        let plain = !self.adapts(name, &shape)?;
        match rows.q8_blocks().filter(|_| plain) {
            Some(blocks) => Ok(EmbeddingTable::from_q8_blocks(blocks, vocab, d)?),
            None => self.pack(rows, |fill| Ok(EmbeddingTable::pack_with(vocab, d, format, fill))),
        }
    }

    /// A linear layer of one or several matrices, `[n_out, n_in]` each, one below the other. Without a
    /// `format`: the one that all of them have; single precision where they differ.
    ///
    /// # Errors
    /// As `f32`.
    pub fn linear(
        &self,
        parts: &[(String, usize)],
        n_in: usize,
        bias: Option<&[f32]>,
        format: Option<Format>,
    ) -> Result<Linear, LoadError> {
        let stored = |(name, n_out): &'_ (String, usize)| self.tensor(name, &[*n_out, n_in]);
        let tensors = parts.iter().map(|part| Ok((part.0.as_str(), stored(part)?)));
        let rows = Rows::new(tensors.collect::<Result<_, LoadError>>()?);
        let n_out = parts.iter().map(|part| part.1).sum();
        let format = format.unwrap_or_else(|| rows.format());
        let mut plain = true;
        for (name, n_out) in parts {
            plain &= !self.adapts(name, &[*n_out, n_in])?;
        }
        match rows.q8_blocks().filter(|_| plain && format == Format::Q8) {
            Some(blocks) => Ok(Linear::from_q8_blocks(&blocks, n_out, n_in, bias)?),
            None => self.pack(rows, |fill| Linear::pack_with(n_out, n_in, bias, format, fill)),
        }
    }

    /// The numbers of matrices, `[n_out, n_in]` each, one below the other, as a card stores them.
    ///
    /// # Errors
    /// As `f32`.
    pub(crate) fn card_bytes(
        &self,
        parts: &[(String, usize)],
        n_in: usize,
        element: cuda::Element,
    ) -> Result<Vec<u8>, LoadError> {
        let rows: usize = parts.iter().map(|part| part.1).sum();
        let mut bytes = Vec::with_capacity(rows * n_in * element.bytes());
        let mut numbers = vec![0.0; n_in];
        for (name, n_out) in parts {
            let tensor = self.tensor(name, &[*n_out, n_in])?;
            let plain = tensor.element().is(element) && !self.adapts(name, &[*n_out, n_in])?;
            for row in 0..tensor.rows() {
                if plain {
                    bytes.extend_from_slice(tensor.row(row));
                    continue;
                }
                let read = tensor.row_into(row, &mut numbers);
                read.map_err(|e| LoadError::tensor(&self.base, name, e))?;
                if let Some((_, adapter)) = &self.adapter {
                    adapter.add(name, row, &mut numbers);
                }
                element.extend(&mut bytes, &numbers);
            }
        }
        Ok(bytes)
    }

    /// Packs rows that are read one by one, so that no second copy of a matrix is made.
    fn pack<T>(
        &self,
        rows: Rows<'_>,
        pack: impl FnOnce(&mut dyn FnMut(usize, &mut [f32])) -> Result<T, attune_kernels::KernelError>,
    ) -> Result<T, LoadError> {
        let mut rows_left = rows.iter();
        let mut failed = None;
        let packed = pack(&mut |_, out| {
            let Some((name, tensor, row)) = rows_left.next() else { return };
            match (tensor.row_into(row, out), &self.adapter) {
                (Ok(()), Some((_, adapter))) => adapter.add(name, row, out),
                (Ok(()), None) => {}
                (Err(error), _) => {
                    failed.get_or_insert_with(|| LoadError::tensor(&self.base, name, error));
                }
            }
        });
        failed.map_or(Ok(()), Err)?;
        Ok(packed?)
    }

    /// The numbers of a tensor, row-major, widened to f32.
    ///
    /// # Errors
    /// It is missing, of another shape, or of a type that is not supported.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let tensor = self.tensor(name, shape)?;
        let count = shape.iter().product();
        let mut values = tensor.f32(count).map_err(|e| LoadError::tensor(&self.base, name, e))?;
        if let (true, Some((_, adapter))) = (self.adapts(name, shape)?, &self.adapter) {
            let width = (count / tensor.rows().max(1)).max(1);
            values.chunks_exact_mut(width).enumerate().for_each(|(row, out)| adapter.add(name, row, out));
        }
        Ok(values)
    }

    /// A fingerprint of the files, hexadecimal: over names, shapes, types and sampled content.
    ///
    /// It tells checkpoints apart without reading gigabytes; it is no proof of integrity.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        match &*self.files {
            Files::Safetensors(files) => files.bytes().for_each(|bytes| sample(bytes, &mut hash)),
            Files::Gguf(file) => sample(file.bytes(), &mut hash),
        }
        if let Some((_, adapter)) = &self.adapter {
            adapter.bytes().for_each(|bytes| sample(bytes, &mut hash));
            hash.update(adapter.scale().to_le_bytes());
        }
        hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect()
    }
}

/// The rows of one or several matrices, one below the other.
struct Rows<'a> {
    tensors: Vec<(&'a str, Stored<'a>)>,
}

impl<'a> Rows<'a> {
    fn new(tensors: Vec<(&'a str, Stored<'a>)>) -> Self {
        Self { tensors }
    }

    fn iter(&self) -> impl Iterator<Item = (&'a str, &Stored<'a>, usize)> {
        self.tensors.iter().flat_map(|(name, tensor)| (0..tensor.rows()).map(move |row| (*name, tensor, row)))
    }

    fn format(&self) -> Format {
        let mut formats = self.tensors.iter().map(|(_, tensor)| tensor.element().format());
        let first = formats.next().unwrap_or(Format::F32);
        if formats.all(|format| format == first) { first } else { Format::F32 }
    }

    /// All rows as blocks of Q8_0, where the files hold such.
    fn q8_blocks(&self) -> Option<Vec<u8>> {
        let all = self.tensors.iter().all(|(_, tensor)| tensor.element() == Element::Q8);
        all.then(|| self.iter().flat_map(|(_, tensor, row)| tensor.row(row)).copied().collect())
    }
}

/// Hashes a file's length, its beginning and parts of the rest.
fn sample(bytes: &[u8], hash: &mut Sha256) {
    const SAMPLE: usize = 4096;
    hash.update((bytes.len() as u64).to_le_bytes());
    let header = bytes.len().min(1 << 20);
    hash.update(&bytes[..header]);
    let stride = (bytes.len() / 256).max(SAMPLE);
    for start in (header..bytes.len()).step_by(stride) {
        hash.update(&bytes[start..bytes.len().min(start + SAMPLE)]);
    }
}

/// A file's bytes.
///
/// # Errors
/// The file cannot be opened or mapped.
pub(crate) fn map(path: &Path) -> Result<Mmap, LoadError> {
    let file = File::open(path).map_err(|e| LoadError::file(path, e))?;
    map_file(&file).map_err(|e| LoadError::file(path, e))
}

/// The crate's one unsafe function.
#[allow(unsafe_code)]
fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only; as with every mapped file, whoever truncates a checkpoint while a
    // service runs on it ends that service. Weights are copied out while loading, so the time is short.
    unsafe { Mmap::map(file) }
}
