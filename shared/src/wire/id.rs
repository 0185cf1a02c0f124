//! Which call a reply answers: whatever the client chose, as the bytes that it sent.
//!
//! Python clients use small integers, and the tuple `(oid, tid)` for a load, so that equal loads
//! share an answer (`ZEO/asyncio/client.py`, `load_before`). A server never looks inside.

use std::fmt;
use std::hash::{Hash, Hasher};

use super::Codec;
use crate::ids::{Oid, Tid};

/// Bytes that fit without an allocation: the id of a load has 21 in either codec.
const INLINE: usize = 23;

/// A message id as it is encoded.
#[derive(Clone)]
pub struct MessageId(Bytes);

#[derive(Clone)]
enum Bytes {
    Inline { length: u8, bytes: [u8; INLINE] },
    Heap(Box<[u8]>),
}

impl MessageId {
    /// The id that is encoded so. The caller has seen that it is one whole value.
    pub(super) fn encoded(bytes: &[u8]) -> Self {
        let mut inline = [0; INLINE];
        match inline.get_mut(..bytes.len()) {
            Some(start) => {
                start.copy_from_slice(bytes);
                Self(Bytes::Inline { length: bytes.len() as u8, bytes: inline })
            }
            None => Self(Bytes::Heap(bytes.into())),
        }
    }

    /// A number, in the shortest form: Python's servers decode an id and encode it again, so any
    /// other form would come back as other bytes.
    pub fn int(codec: Codec, number: u32) -> Self {
        let [a, b, c, d] = number.to_be_bytes();
        match (codec, number) {
            (Codec::Msgpack, 0..=0x7f) => Self::encoded(&[d]),
            (Codec::Msgpack, 0x80..=0xff) => Self::encoded(&[0xcc, d]),
            (Codec::Msgpack, 0x100..=0xffff) => Self::encoded(&[0xcd, c, d]),
            (Codec::Msgpack, 0x1_0000..) => Self::encoded(&[0xce, a, b, c, d]),
            (Codec::Pickle, 0..=0xff) => Self::encoded(&[b'K', d]),
            (Codec::Pickle, 0x100..=0xffff) => Self::encoded(&[b'M', d, c]),
            (Codec::Pickle, 0x1_0000..=0x7fff_ffff) => Self::encoded(&[b'J', d, c, b, a]),
            // BININT is signed: LONG1 of five bytes.
            (Codec::Pickle, 0x8000_0000..) => Self::encoded(&[0x8a, 5, d, c, b, a, 0]),
        }
    }

    /// The tuple that names a load.
    pub fn load(codec: Codec, oid: Oid, before: Tid) -> Self {
        let mut bytes = [0; 21];
        let (prefix, oid_at, tid_at): (&[u8], usize, usize) = match codec {
            Codec::Msgpack => (&[0x92, 0xc4, 8], 3, 13),
            Codec::Pickle => (&[b'C', 8], 2, 12),
        };
        let parts: [(usize, &[u8]); 5] = [
            (0, prefix),
            (oid_at, &oid.to_bytes()),
            (oid_at + 8, &prefix[prefix.len() - 2..]),
            (tid_at, &before.to_bytes()),
            (20, if codec == Codec::Pickle { &[0x86] } else { &[] }),
        ];
        for (start, part) in parts {
            for (target, source) in bytes.iter_mut().skip(start).zip(part) {
                *target = *source;
            }
        }
        Self::encoded(&bytes)
    }

    /// The bytes to echo.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Inline { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or(bytes),
            Bytes::Heap(bytes) => bytes,
        }
    }
}

impl Eq for MessageId {}

impl PartialEq for MessageId {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Hash for MessageId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MessageId(")?;
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}
