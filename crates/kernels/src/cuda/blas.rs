//! Matrix products by cuBLAS.

use std::ffi::c_int;

use cudarc::{
    cublas::{result, sys},
    driver::CudaStream,
};

use super::{CudaError, Element};

/// cuBLAS on one stream.
pub(super) struct Blas(sys::cublasHandle_t);

// SAFETY: cuBLAS allows a handle to be used by any thread, one at a time. All of a model's work is handed
// over by the one thread that owns it.
#[allow(unsafe_code)]
unsafe impl Send for Blas {}
#[allow(unsafe_code)]
unsafe impl Sync for Blas {}

/// The shape of `y = x w^T`: `x [rows, n_in]`, `w [n_out, n_in]`, `y [rows, n_out]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    pub(super) rows: usize,
    pub(super) n_in: usize,
    pub(super) n_out: usize,
    /// Of `x` and `w`.
    pub(super) element: Element,
    /// Of `y`: the same, or single precision.
    pub(super) out: Element,
    /// Adds to what stands in `y`.
    pub(super) add: bool,
}

impl Blas {
    pub(super) fn new(stream: &CudaStream) -> Result<Self, CudaError> {
        let failed = |e| CudaError::blas("starting cuBLAS", e);
        let bound = stream.context().bind_to_thread();
        bound.map_err(|e| CudaError::driver("starting cuBLAS", e))?;
        let handle = Self(result::create_handle().map_err(failed)?);
        // SAFETY: the handle is new, and both libraries call a stream the same.
        #[allow(unsafe_code)]
        unsafe {
            result::set_stream(handle.0, stream.cu_stream().cast()).map_err(failed)?;
        }
        Ok(handle)
    }

    /// Computes the product; `x`, `w` and `y` are addresses on the card. Sums are in single precision.
    pub(super) fn product(&self, shape: Product, x: u64, w: u64, y: u64) -> Result<(), CudaError> {
        let size = |n: usize| {
            c_int::try_from(n).map_err(|_| CudaError::Unsupported(format!("a matrix has a side of {n}")))
        };
        let (rows, n_in, n_out) = (size(shape.rows)?, size(shape.n_in)?, size(shape.n_out)?);
        let (alpha, beta) = (1.0f32, if shape.add { 1.0f32 } else { 0.0 });
        let (element, out) = (kind(shape.element), kind(shape.out));
        // cuBLAS counts by columns: our rows are its columns, so `y^T = w x^T`.
        // SAFETY: callers give arrays of the sizes that the shape says, on this stream.
        #[allow(unsafe_code)]
        let computed = unsafe {
            result::gemm_ex(
                self.0,
                sys::cublasOperation_t::CUBLAS_OP_T,
                sys::cublasOperation_t::CUBLAS_OP_N,
                n_out,
                rows,
                n_in,
                (&raw const alpha).cast(),
                w as *const _,
                element,
                n_in,
                x as *const _,
                element,
                n_in,
                (&raw const beta).cast(),
                y as *mut _,
                out,
                n_out,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        computed.map_err(|e| CudaError::blas("a matrix product", e))
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more. On a card that has failed this fails too, and the process ends.
        #[allow(unsafe_code)]
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

fn kind(element: Element) -> sys::cudaDataType {
    match element {
        Element::F32 => sys::cudaDataType::CUDA_R_32F,
        Element::F16 => sys::cudaDataType::CUDA_R_16F,
        Element::Bf16 => sys::cudaDataType::CUDA_R_16BF,
    }
}
