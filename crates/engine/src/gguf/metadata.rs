//! The settings of a GGUF file: keys and typed values.

use std::collections::HashMap;

use super::reader::Reader;

/// A list within a list within ...: real files have no such thing.
const MOST_NESTED: usize = 4;

/// Every key with its value; lists as they lie in the file.
#[derive(Debug)]
pub(super) struct Metadata {
    values: HashMap<String, Value>,
}

#[derive(Debug)]
enum Value {
    Integer(i128),
    Number(f64),
    Flag(bool),
    Text(Box<[u8]>),
    List(List),
}

/// A list of one type.
#[derive(Debug)]
struct List {
    kind: Kind,
    count: u64,
    bytes: Box<[u8]>,
}

/// The types of values, numbered as in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    List,
    U64,
    I64,
    F64,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::Text,
        Self::List,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    fn read(reader: &mut Reader<'_>) -> Result<Self, String> {
        let id = reader.u32()?;
        let kind = Self::ALL.get(id as usize).copied();
        kind.ok_or_else(|| format!("is damaged: a value of type {id}, which does not exist"))
    }

    /// The bytes of one value; none where values differ in length.
    fn width(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text | Self::List => None,
        }
    }
}

impl Metadata {
    pub(super) fn read(reader: &mut Reader<'_>, entries: u64) -> Result<Self, String> {
        let mut values = HashMap::new();
        for _ in 0..entries {
            let key = reader.text()?;
            let kind = Kind::read(reader)?;
            let value = read(reader, kind).map_err(|problem| format!("`{key}` {problem}"))?;
            if values.insert(key.to_owned(), value).is_some() {
                return Err(format!("has the key `{key}` twice"));
            }
        }
        Ok(Self { values })
    }

    /// A whole number.
    pub(super) fn integer(&self, key: &str) -> Result<Option<u64>, String> {
        self.get(key, "a whole number", |value| match value {
            Value::Integer(n) => u64::try_from(*n).ok(),
            _ => None,
        })
    }

    /// Any finite number.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, String> {
        self.get(key, "a number", |value| match value {
            Value::Integer(n) => Some(*n as f64),
            Value::Number(n) => Some(*n).filter(|n| n.is_finite()),
            _ => None,
        })
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        self.get(key, "true or false", |value| match value {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        })
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, String> {
        self.get(key, "a text", |value| match value {
            Value::Text(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        })
    }

    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, String> {
        self.get(key, "a list of texts", |value| match value {
            Value::List(List { kind: Kind::Text, count, bytes }) => {
                let mut reader = Reader::new(bytes);
                (0..*count).map(|_| reader.text().ok()).collect()
            }
            _ => None,
        })
    }

    /// A list of numbers, or one number as a list of one.
    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, String> {
        self.get(key, "a list of numbers", |value| match value {
            Value::Integer(n) => Some(vec![*n as f64]),
            Value::Number(n) => Some(vec![*n]),
            Value::List(List { kind, count, bytes }) if kind.width().is_some() => {
                let mut reader = Reader::new(bytes);
                (0..*count)
                    .map(|_| match read(&mut reader, *kind).ok()? {
                        Value::Integer(n) => Some(n as f64),
                        Value::Number(n) => Some(n),
                        _ => None,
                    })
                    .collect()
            }
            _ => None,
        })
    }

    fn get<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        as_wanted: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        as_wanted(value).map(Some).ok_or_else(|| format!("`{key}` is not {wanted}"))
    }
}

fn read(reader: &mut Reader<'_>, kind: Kind) -> Result<Value, String> {
    if let Some(width) = kind.width() {
        return number(kind, reader.take(width)?);
    }
    match kind {
        Kind::Text => Ok(Value::Text(reader.text_bytes()?.into())),
        _ => list(reader),
    }
}

fn number(kind: Kind, bytes: &[u8]) -> Result<Value, String> {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let n = u64::from_le_bytes(wide);
    Ok(match kind {
        Kind::F32 => Value::Number(f64::from(f32::from_bits(n as u32))),
        Kind::F64 => Value::Number(f64::from_bits(n)),
        Kind::Bool if n > 1 => return Err(format!("is damaged: {n} is neither true nor false")),
        Kind::Bool => Value::Flag(n == 1),
        Kind::I8 => Value::Integer((n as i8).into()),
        Kind::I16 => Value::Integer((n as i16).into()),
        Kind::I32 => Value::Integer((n as i32).into()),
        Kind::I64 => Value::Integer((n as i64).into()),
        _ => Value::Integer(n.into()),
    })
}

fn list(reader: &mut Reader<'_>) -> Result<Value, String> {
    let kind = Kind::read(reader)?;
    let count = reader.u64()?;
    let mut ahead = reader.clone();
    skip(&mut ahead, kind, count, 0)?;
    let bytes = reader.take((ahead.position() - reader.position()) as u64)?;
    Ok(Value::List(List { kind, count, bytes: bytes.into() }))
}

/// Goes past the items of a list.
fn skip(reader: &mut Reader<'_>, kind: Kind, count: u64, depth: usize) -> Result<(), String> {
    if let Some(width) = kind.width() {
        let bytes = count.checked_mul(width).ok_or_else(|| format!("claims {count} items"))?;
        return reader.take(bytes).map(drop);
    }
    if depth == MOST_NESTED {
        return Err("has lists within lists beyond reason".to_owned());
    }
    // Each item takes at least its length, so that the count is held against the file's end.
    for _ in 0..count {
        if kind == Kind::Text {
            reader.text_bytes()?;
        } else {
            let kind = Kind::read(reader)?;
            let count = reader.u64()?;
            skip(reader, kind, count, depth + 1)?;
        }
    }
    Ok(())
}
