//! Memory for packed weights: aligned to cache lines and, where they are many, on huge pages.
//!
//! A step streams all weights once. With pages of 4 KB the page walks alone cost a fifth of the
//! bandwidth.

use memmap2::MmapMut;

use super::panels::Line;

const HUGE_PAGE: usize = 2 << 20;

/// Zeroed lines.
pub(crate) struct Store(Memory);

enum Memory {
    Heap(Vec<Line>),
    Huge { map: MmapMut, offset: usize, lines: usize },
}

impl Store {
    pub(crate) fn zeroed(lines: usize) -> Self {
        let bytes = lines * size_of::<Line>();
        if bytes >= HUGE_PAGE
            && let Some(memory) = huge(bytes)
        {
            return Self(memory);
        }
        Self(Memory::Heap(vec![Line::ZERO; lines]))
    }

    #[inline(always)]
    pub(crate) fn lines(&self) -> &[Line] {
        match &self.0 {
            Memory::Heap(lines) => lines,
            Memory::Huge { map, offset, lines } => {
                // SAFETY: any bytes are a line; `align_to` itself sees to the alignment.
                #[allow(unsafe_code)]
                let (_, all, _) = unsafe { map[*offset..].align_to::<Line>() };
                &all[..*lines]
            }
        }
    }

    pub(crate) fn lines_mut(&mut self) -> &mut [Line] {
        match &mut self.0 {
            Memory::Heap(lines) => lines,
            Memory::Huge { map, offset, lines } => {
                // SAFETY: any bytes are a line; `align_to` itself sees to the alignment.
                #[allow(unsafe_code)]
                let (_, all, _) = unsafe { map[*offset..].align_to_mut::<Line>() };
                &mut all[..*lines]
            }
        }
    }
}

impl Clone for Store {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.lines().len());
        copy.lines_mut().copy_from_slice(self.lines());
        copy
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({} lines)", self.lines().len())
    }
}

/// Memory that begins on a huge page and leaves room for its last one. Room that is never touched
/// takes none.
fn huge(bytes: usize) -> Option<Memory> {
    let map = MmapMut::map_anon(bytes.next_multiple_of(HUGE_PAGE) + HUGE_PAGE).ok()?;
    // Where the system has no huge pages, it works without.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    let offset = (map.as_ptr() as usize).wrapping_neg() % HUGE_PAGE;
    Some(Memory::Huge { map, offset, lines: bytes / size_of::<Line>() })
}
