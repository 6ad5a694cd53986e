//! A slice that several threads write, each its own part.
// Column panels of a row-major matrix are no contiguous parts, so that the standard library has no
// safe split for them.
#![allow(unsafe_code)]

use std::marker::PhantomData;

/// A mutable slice whose parts are handed to threads by index.
pub(crate) struct Disjoint<'a, T = f32> {
    start: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a `&mut [T]`, whose parts may be sent to other threads; `part` asks of its
// caller that no two overlap.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), owner: PhantomData }
    }

    /// `len` elements from `at`.
    ///
    /// # Safety
    /// No two parts that live at the same time overlap.
    ///
    /// # Panics
    /// The part lies outside the slice.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at <= self.len && len <= self.len - at, "a part lies inside its slice");
        // SAFETY: inside the borrowed slice, and not shared, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
