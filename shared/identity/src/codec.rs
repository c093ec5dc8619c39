//! The one reader and writer of this crate's encodings: big-endian, bounded, never an index out of range.

/// Why bytes, or text, are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The bytes end too early.
    #[error("it ends too early")]
    Truncated,
    /// Bytes are left over behind the end.
    #[error("there is something behind its end")]
    Trailing,
    /// A list or text is longer than allowed.
    #[error("{0} is too long")]
    TooLong(&'static str),
    /// A field has a value it must not have.
    #[error("{0}")]
    Invalid(&'static str),
}

/// Reads from the front of a slice.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader(bytes)
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], ParseError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(ParseError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], ParseError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(ParseError::Truncated)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, ParseError> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, ParseError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, ParseError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, ParseError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A byte that is 0 or 1.
    pub(crate) fn flag(&mut self) -> Result<bool, ParseError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(ParseError::Invalid("a flag is neither 0 nor 1")),
        }
    }

    /// A text preceded by its length (u8).
    pub(crate) fn text(&mut self) -> Result<&'a str, ParseError> {
        let len = self.u8()?;
        std::str::from_utf8(self.take(len.into())?).map_err(|_| ParseError::Invalid("a text is not UTF-8"))
    }

    /// A list preceded by its length (u8), of at most `max` items.
    pub(crate) fn list<T>(
        &mut self,
        max: usize,
        what: &'static str,
        mut item: impl FnMut(&mut Self) -> Result<T, ParseError>,
    ) -> Result<Vec<T>, ParseError> {
        let len = usize::from(self.u8()?);
        if len > max {
            return Err(ParseError::TooLong(what));
        }
        (0..len).map(|_| item(self)).collect()
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn finish(self) -> Result<(), ParseError> {
        if self.0.is_empty() { Ok(()) } else { Err(ParseError::Trailing) }
    }
}

/// Appends to a vector. Lengths were checked by whoever made the value; what is too long is cut, and then refused
/// by the parser that every encoding of ours goes through.
pub(crate) trait Put {
    fn put(&mut self, bytes: &[u8]);

    fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_be_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.put(&value.to_be_bytes());
    }

    fn put_flag(&mut self, value: bool) {
        self.put_u8(value.into());
    }

    fn put_text(&mut self, text: &str) {
        let bytes = text.as_bytes();
        let len = bytes.len().min(255);
        self.put_u8(len as u8);
        self.put(bytes.get(..len).unwrap_or_default());
    }

    fn put_list<T>(&mut self, items: &[T], mut item: impl FnMut(&mut Self, &T)) {
        let len = items.len().min(255);
        self.put_u8(len as u8);
        for one in items.iter().take(len) {
            item(self, one);
        }
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}
