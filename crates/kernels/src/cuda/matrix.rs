//! Matrices on a card, and small arrays that travel there in one copy.

use cudarc::driver::{CudaStream, DevicePtr};
use half::{bf16, f16};

use super::{Array, CudaError, Element, Gpu};

/// Rows of numbers on a card, one behind the other.
pub struct Matrix {
    data: Array<u8>,
    element: Element,
    rows: usize,
    width: usize,
}

impl Matrix {
    /// How its numbers are stored.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Its rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Its bytes on the card.
    pub fn bytes(&self) -> usize {
        self.rows * self.width * self.element.bytes()
    }

    pub(super) fn at(&self, stream: &CudaStream) -> u64 {
        address(&self.data, stream)
    }

    pub(super) fn row_at(&self, row: usize, stream: &CudaStream) -> u64 {
        self.at(stream) + (row * self.width * self.element.bytes()) as u64
    }
}

impl Gpu {
    /// Room for a matrix, whatever stood there before.
    pub(super) fn matrix(&self, element: Element, rows: usize, width: usize) -> Result<Matrix, CudaError> {
        Ok(Matrix { data: self.room(rows * width * element.bytes())?, element, rows, width })
    }

    /// A matrix of zeros.
    ///
    /// # Errors
    /// The card's memory is full.
    pub fn zero_matrix(&self, element: Element, rows: usize, width: usize) -> Result<Matrix, CudaError> {
        Ok(Matrix { data: self.zeros(rows * width * element.bytes())?, element, rows, width })
    }

    /// Makes a matrix's numbers 0, which also puts what the card's cache held out of it.
    ///
    /// # Errors
    /// The card failed.
    pub fn clear(&self, matrix: &mut Matrix) -> Result<(), CudaError> {
        self.clear_array(&mut matrix.data)
    }

    /// A copy of a matrix.
    ///
    /// # Errors
    /// The card failed, or its memory is full.
    pub fn copy(&self, matrix: &Matrix) -> Result<Matrix, CudaError> {
        let data = self.copy_array(&matrix.data)?;
        let &Matrix { element, rows, width, .. } = matrix;
        Ok(Matrix { data, element, rows, width })
    }

    /// A matrix whose bytes stand on the host as they will on the card.
    ///
    /// # Errors
    /// The bytes are not as many as the shape needs, or the card's memory is full.
    pub fn upload_matrix(
        &self,
        element: Element,
        rows: usize,
        width: usize,
        bytes: &[u8],
    ) -> Result<Matrix, CudaError> {
        if bytes.len() != rows * width * element.bytes() {
            let problem = format!("a matrix of {rows} rows of {width} has not {} bytes", bytes.len());
            return Err(CudaError::Unsupported(problem));
        }
        Ok(Matrix { data: self.upload(bytes)?, element, rows, width })
    }

    /// The matrix, rounded from single precision.
    ///
    /// # Errors
    /// As [`Gpu::upload_matrix`].
    pub fn upload_numbers(
        &self,
        element: Element,
        rows: usize,
        width: usize,
        numbers: &[f32],
    ) -> Result<Matrix, CudaError> {
        let mut bytes = Vec::with_capacity(numbers.len() * element.bytes());
        element.extend(&mut bytes, numbers);
        self.upload_matrix(element, rows, width, &bytes)
    }

    /// The matrix's numbers, row-major, in single precision; waits for all that makes them.
    ///
    /// # Errors
    /// Something that was handed over before failed.
    pub fn numbers(&self, matrix: &Matrix) -> Result<Vec<f32>, CudaError> {
        if matrix.bytes() == 0 {
            return Ok(Vec::new());
        }
        let bytes = self.download(&matrix.data)?;
        Ok(match matrix.element {
            Element::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Element::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            Element::Bf16 => bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
        })
    }
}

impl Element {
    /// Appends the numbers as a card stores them, rounded to the nearest.
    pub fn extend(self, bytes: &mut Vec<u8>, numbers: &[f32]) {
        match self {
            Self::F32 => bytes.extend(numbers.iter().flat_map(|x| x.to_le_bytes())),
            Self::F16 => bytes.extend(numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes())),
            Self::Bf16 => bytes.extend(numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes())),
        }
    }
}

pub(super) fn address<T>(array: &Array<T>, stream: &CudaStream) -> u64 {
    // Nothing is recorded on drop: the card's context tracks no events.
    array.device_ptr(stream).0
}

/// Arrays of words on their way to a card, in one copy.
#[derive(Debug, Default)]
pub(super) struct Words(Vec<u32>);

/// Where an array begins among others.
#[derive(Debug, Clone, Copy)]
pub(super) struct At(usize);

/// Arrays of words on a card.
pub(super) struct Stored {
    words: Array<u32>,
}

impl Words {
    pub(super) fn add(&mut self, words: impl IntoIterator<Item = u32>) -> At {
        // At multiples of 16 bytes, as wide loads and words of 8 bytes need it.
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        let at = At(self.0.len());
        self.0.extend(words);
        at
    }

    pub(super) fn add_floats(&mut self, numbers: &[f32]) -> At {
        self.add(numbers.iter().map(|x| x.to_bits()))
    }

    pub(super) fn add_longs(&mut self, numbers: impl IntoIterator<Item = u64>) -> At {
        self.add(numbers.into_iter().flat_map(|x| [x as u32, (x >> 32) as u32]))
    }

    pub(super) fn store(&self, gpu: &Gpu) -> Result<Stored, CudaError> {
        Ok(Stored { words: gpu.upload(&self.0)? })
    }
}

impl Stored {
    pub(super) fn at(&self, at: At, gpu: &Gpu) -> u64 {
        address(&self.words, gpu.stream()) + 4 * at.0 as u64
    }
}

/// Room for results in several arrays of words that come back in one copy.
pub(super) struct Results {
    words: Array<u32>,
    ends: Vec<usize>,
}

impl Results {
    pub(super) fn new<const N: usize>(gpu: &Gpu, lengths: [usize; N]) -> Result<Self, CudaError> {
        let ends = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        let ends: Vec<usize> = ends.collect();
        Ok(Self { words: gpu.room(ends.last().copied().unwrap_or(0))?, ends })
    }

    /// The address of the array at `index`.
    pub(super) fn at(&self, index: usize, gpu: &Gpu) -> u64 {
        let begin = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        address(&self.words, gpu.stream()) + 4 * begin as u64
    }

    /// The arrays, in their order; waits for all that makes them.
    pub(super) fn read<const N: usize>(&self, gpu: &Gpu) -> Result<[Vec<u32>; N], CudaError> {
        let words = gpu.download(&self.words)?;
        let begin = |i: usize| i.checked_sub(1).map_or(0, |before| self.ends[before]);
        Ok(std::array::from_fn(|i| words[begin(i)..self.ends[i]].to_vec()))
    }
}

pub(super) fn floats(words: &[u32]) -> Vec<f32> {
    words.iter().map(|&bits| f32::from_bits(bits)).collect()
}
