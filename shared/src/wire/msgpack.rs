//! MessagePack, as much of it as ZEO uses (`ZEO/asyncio/marshal.py`).
//!
//! Python reads with `raw=False, use_list=False`: strings are UTF-8, every sequence is a tuple.
//! Extension types, duplicate keys and bytes after the message are refused.

use super::value::Value;
use super::{DEPTH_MAX, NODES_MAX, WireError};

/// Reads values off the front of a message.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    input: &'a [u8],
    nodes: usize,
    nodes_max: usize,
}

/// Reads a message that is one value.
///
/// # Errors
///
/// [`WireError`]
pub fn decode(input: &[u8]) -> Result<Value<'_>, WireError> {
    let mut reader = Reader::new(input, NODES_MAX);
    let value = reader.value(DEPTH_MAX)?;
    reader.end()?;
    Ok(value)
}

impl<'a> Reader<'a> {
    pub(super) fn new(input: &'a [u8], nodes_max: usize) -> Self {
        Self { input, nodes: 0, nodes_max }
    }

    /// What has not been read.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.input
    }

    /// Makes sure that nothing follows.
    pub(super) fn end(&self) -> Result<(), WireError> {
        if self.input.is_empty() { Ok(()) } else { Err(WireError::Trailing(self.input.len())) }
    }

    /// Reads the length of a sequence.
    pub(super) fn sequence(&mut self) -> Result<usize, WireError> {
        let count = match self.byte()? {
            byte @ 0x90..=0x9f => usize::from(byte & 0x0f),
            0xdc => usize::from(u16::from_be_bytes(self.array("a length")?)),
            0xdd => u32::from_be_bytes(self.array("a length")?) as usize,
            _ => return Err(WireError::Malformed("a sequence was expected")),
        };
        self.fits(count)
    }

    /// Reads one value, nested at most `depth` deep.
    pub(super) fn value(&mut self, depth: usize) -> Result<Value<'a>, WireError> {
        self.nodes += 1;
        if self.nodes_max < self.nodes {
            return Err(WireError::Limit("the number of values that a message may have"));
        }
        let deeper = depth.checked_sub(1);
        let byte = self.byte()?;
        Ok(match byte {
            0x00..=0x7f => Value::Int(i64::from(byte)),
            0xe0..=0xff => Value::Int(i64::from(byte as i8)),
            0x80..=0x8f => self.map(usize::from(byte & 0x0f), deeper)?,
            0x90..=0x9f => self.tuple(usize::from(byte & 0x0f), deeper)?,
            0xa0..=0xbf => self.text(usize::from(byte & 0x1f))?,
            0xc0 => Value::None,
            0xc2 => Value::Bool(false),
            0xc3 => Value::Bool(true),
            0xc4 => self.bytes_of::<1>()?,
            0xc5 => self.bytes_of::<2>()?,
            0xc6 => self.bytes_of::<4>()?,
            0xca => Value::Float(f64::from(f32::from_be_bytes(self.array("a float")?))),
            0xcb => Value::Float(f64::from_be_bytes(self.array("a float")?)),
            0xcc => Value::Int(i64::from(self.byte()?)),
            0xcd => Value::Int(i64::from(u16::from_be_bytes(self.array("an integer")?))),
            0xce => Value::Int(i64::from(u32::from_be_bytes(self.array("an integer")?))),
            0xcf => {
                let number = u64::from_be_bytes(self.array("an integer")?);
                i64::try_from(number).map_or(Value::Unsigned(number), Value::Int)
            }
            0xd0 => Value::Int(i64::from(self.byte()? as i8)),
            0xd1 => Value::Int(i64::from(i16::from_be_bytes(self.array("an integer")?))),
            0xd2 => Value::Int(i64::from(i32::from_be_bytes(self.array("an integer")?))),
            0xd3 => Value::Int(i64::from_be_bytes(self.array("an integer")?)),
            0xd9 => {
                let length = self.length::<1>()?;
                self.text(length)?
            }
            0xda => {
                let length = self.length::<2>()?;
                self.text(length)?
            }
            0xdb => {
                let length = self.length::<4>()?;
                self.text(length)?
            }
            0xdc => {
                let count = self.length::<2>()?;
                self.tuple(count, deeper)?
            }
            0xdd => {
                let count = self.length::<4>()?;
                self.tuple(count, deeper)?
            }
            0xde => {
                let count = self.length::<2>()?;
                self.map(count, deeper)?
            }
            0xdf => {
                let count = self.length::<4>()?;
                self.map(count, deeper)?
            }
            0xc1 => return Err(WireError::Malformed("a byte that msgpack never uses")),
            0xc7..=0xc9 | 0xd4..=0xd8 => return Err(WireError::Forbidden("an extension type")),
        })
    }

    fn tuple(&mut self, count: usize, depth: Option<usize>) -> Result<Value<'a>, WireError> {
        let depth = depth.ok_or(WireError::Limit("the depth that a message may have"))?;
        let count = self.fits(count)?;
        Ok(Value::Tuple((0..count).map(|_| self.value(depth)).collect::<Result<_, _>>()?))
    }

    fn map(&mut self, count: usize, depth: Option<usize>) -> Result<Value<'a>, WireError> {
        let depth = depth.ok_or(WireError::Limit("the depth that a message may have"))?;
        let count = self.fits(count.saturating_mul(2))? / 2;
        let mut entries: Vec<(Value<'a>, Value<'a>)> = Vec::with_capacity(count.min(64));
        let mut keys = std::collections::HashSet::with_capacity(count.min(64));
        for _ in 0..count {
            let key = self.value(depth)?;
            let name = match &key {
                Value::Str(text) => text.as_bytes().to_vec(),
                Value::Bytes(bytes) => bytes.to_vec(),
                // Python: strict_map_key.
                _ => return Err(WireError::Forbidden("a key that is neither text nor bytes")),
            };
            if !keys.insert((matches!(key, Value::Str(_)), name)) {
                return Err(WireError::Forbidden("a key twice"));
            }
            entries.push((key, self.value(depth)?));
        }
        Ok(Value::Dict(entries))
    }

    fn text(&mut self, length: usize) -> Result<Value<'a>, WireError> {
        let bytes = self.take(length, "a string")?;
        let text = str::from_utf8(bytes).map_err(|_| WireError::Malformed("text is not UTF-8"))?;
        Ok(Value::Str(text.into()))
    }

    fn bytes_of<const WIDTH: usize>(&mut self) -> Result<Value<'a>, WireError> {
        let length = self.length::<WIDTH>()?;
        Ok(Value::Bytes(self.take(length, "bytes")?.into()))
    }

    fn length<const WIDTH: usize>(&mut self) -> Result<usize, WireError> {
        let bytes: [u8; WIDTH] = self.array("a length")?;
        Ok(bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
    }

    /// Every value has at least one byte: a count of more than is left is a lie.
    fn fits(&self, count: usize) -> Result<usize, WireError> {
        if count <= self.input.len() { Ok(count) } else { Err(WireError::Truncated("a sequence")) }
    }

    fn byte(&mut self) -> Result<u8, WireError> {
        let [byte] = self.array("a value")?;
        Ok(byte)
    }

    fn array<const LENGTH: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; LENGTH], WireError> {
        let (bytes, rest) = self.input.split_first_chunk().ok_or(WireError::Truncated(what))?;
        self.input = rest;
        Ok(*bytes)
    }

    fn take(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], WireError> {
        let (bytes, rest) =
            self.input.split_at_checked(length).ok_or(WireError::Truncated(what))?;
        self.input = rest;
        Ok(bytes)
    }
}

/// Appends a value.
pub fn encode(value: &Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::None => out.push(0xc0),
        Value::Bool(value) => out.push(0xc2 | u8::from(*value)),
        Value::Int(number) => int(*number, out),
        Value::Unsigned(number) => {
            out.push(0xcf);
            out.extend_from_slice(&number.to_be_bytes());
        }
        Value::Float(number) => {
            out.push(0xcb);
            out.extend_from_slice(&number.to_be_bytes());
        }
        Value::Bytes(value) => bytes(value, out),
        Value::Str(value) => text(value, out),
        Value::Tuple(values) | Value::List(values) => {
            sequence(values.len(), out);
            values.iter().for_each(|value| encode(value, out));
        }
        Value::Dict(entries) => {
            header(entries.len(), [(0x80, 15)], [0xde, 0xde, 0xdf], out);
            for (key, value) in entries {
                encode(key, out);
                encode(value, out);
            }
        }
        // Python's packer cannot either: a client of M5 never sends one.
        Value::Prefix { path, .. } => text(&path.join("/"), out),
        // An exception within an exception, as `ZEO/asyncio/marshal.py` nests them.
        Value::UndoError { reason, oid } => {
            sequence(2, out);
            text("ZODB.POSException.UndoError", out);
            out.push(0x82);
            text("_reason", out);
            text(reason, out);
            text("_oid", out);
            match oid {
                Some(oid) => bytes(oid, out),
                None => out.push(0xc0),
            }
        }
    }
}

pub(super) fn sequence(count: usize, out: &mut Vec<u8>) {
    header(count, [(0x90, 15)], [0xdc, 0xdc, 0xdd], out);
}

pub(super) fn bytes(value: &[u8], out: &mut Vec<u8>) {
    header(value.len(), [], [0xc4, 0xc5, 0xc6], out);
    out.extend_from_slice(value);
}

pub(super) fn text(value: &str, out: &mut Vec<u8>) {
    header(value.len(), [(0xa0, 31)], [0xd9, 0xda, 0xdb], out);
    out.extend_from_slice(value.as_bytes());
}

pub(super) fn int(number: i64, out: &mut Vec<u8>) {
    match number {
        -32..=127 => out.push(number as u8),
        128..=0xff => out.extend_from_slice(&[0xcc, number as u8]),
        0x100..=0xffff => {
            out.push(0xcd);
            out.extend_from_slice(&(number as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(0xce);
            out.extend_from_slice(&(number as u32).to_be_bytes());
        }
        0x1_0000_0000.. => {
            out.push(0xcf);
            out.extend_from_slice(&number.to_be_bytes());
        }
        -0x80..=-33 => out.extend_from_slice(&[0xd0, number as u8]),
        -0x8000..=-0x81 => {
            out.push(0xd1);
            out.extend_from_slice(&(number as i16).to_be_bytes());
        }
        -0x8000_0000..=-0x8001 => {
            out.push(0xd2);
            out.extend_from_slice(&(number as i32).to_be_bytes());
        }
        ..-0x8000_0000 => {
            out.push(0xd3);
            out.extend_from_slice(&number.to_be_bytes());
        }
    }
}

/// Appends a length: in the type's byte itself if there is such a form, else in 1, 2 or 4 bytes.
/// Where the one-byte and the two-byte form are the same byte, there is no one-byte form.
fn header<const TINY: usize>(
    length: usize,
    tiny: [(u8, usize); TINY],
    wide: [u8; 3],
    out: &mut Vec<u8>,
) {
    if let Some((base, _)) = tiny.into_iter().find(|(_, max)| length <= *max) {
        return out.push(base | length as u8);
    }
    let [one, two, four] = wide;
    if length <= 0xff && one != two {
        out.extend_from_slice(&[one, length as u8]);
    } else if length <= 0xffff {
        out.push(two);
        out.extend_from_slice(&(length as u16).to_be_bytes());
    } else {
        out.push(four);
        out.extend_from_slice(
            &u32::try_from(length).expect("our values are shorter").to_be_bytes(),
        );
    }
}
