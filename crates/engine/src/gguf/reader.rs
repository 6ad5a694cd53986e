//! Little-endian numbers and texts from a slice, none of them beyond its end.

/// A position in a file's bytes.
#[derive(Clone)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Where the next byte is taken.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// The next `n` bytes.
    pub(super) fn take(&mut self, n: u64) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let taken = usize::try_from(n).ok().and_then(|n| rest.get(..n)).ok_or_else(|| {
            let (at, left) = (self.at, rest.len());
            format!("is cut off or damaged: {n} bytes are claimed at byte {at}, {left} are left")
        })?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut all = [0; N];
        all.copy_from_slice(self.take(N as u64)?);
        Ok(all)
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A length and as many bytes of UTF-8.
    pub(super) fn text(&mut self) -> Result<&'a str, String> {
        let (at, bytes) = (self.at, self.text_bytes()?);
        std::str::from_utf8(bytes).map_err(|_| format!("is damaged: no text stands at byte {at}"))
    }

    /// A length and as many bytes.
    pub(super) fn text_bytes(&mut self) -> Result<&'a [u8], String> {
        let length = self.u64()?;
        self.take(length)
    }
}
