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

    /// The number that this is, if it is one of [`MessageId::int`].
    pub fn as_int(&self, codec: Codec) -> Option<u32> {
        let (lead, rest) = self.as_bytes().split_first()?;
        match (codec, *lead, rest) {
            (Codec::Msgpack, number @ 0..=0x7f, []) => Some(u32::from(number)),
            (Codec::Msgpack, 0xcc, &[a]) | (Codec::Pickle, b'K', &[a]) => Some(u32::from(a)),
            (Codec::Msgpack, 0xcd, &[b, a]) | (Codec::Pickle, b'M', &[a, b]) => {
                Some(u32::from_be_bytes([0, 0, b, a]))
            }
            (Codec::Msgpack, 0xce, &[d, c, b, a])
            | (Codec::Pickle, b'J', &[a, b, c, d])
            | (Codec::Pickle, 0x8a, &[5, a, b, c, d, 0]) => Some(u32::from_be_bytes([d, c, b, a])),
            _ => None,
        }
    }

    /// The load that this names, if it is one of [`MessageId::load`].
    pub fn as_load(&self, codec: Codec) -> Option<(Oid, Tid)> {
        let bytes = self.as_bytes();
        let (oid, before) = match codec {
            Codec::Msgpack => (bytes.get(3..11)?, bytes.get(13..21)?),
            Codec::Pickle => (bytes.get(2..10)?, bytes.get(12..20)?),
        };
        let load =
            (Oid::from_bytes(oid.try_into().ok()?), Tid::from_bytes(before.try_into().ok()?));
        (Self::load(codec, load.0, load.1) == *self).then_some(load)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_finds_its_numbers_and_loads_again() {
        for codec in [Codec::Msgpack, Codec::Pickle] {
            for number in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x1_0000, 0x7fff_ffff, u32::MAX] {
                let id = MessageId::int(codec, number);
                assert_eq!((id.as_int(codec), id.as_load(codec)), (Some(number), None), "{id:?}");
            }
            let load = (Oid(0x0102_0304_0506_0708), Tid::MAX);
            let id = MessageId::load(codec, load.0, load.1);
            assert_eq!((id.as_int(codec), id.as_load(codec)), (None, Some(load)));
            for other in [&b""[..], b"\x93", b"\xa1x", &[0; 21]] {
                let id = MessageId::encoded(other);
                assert_eq!(id.as_load(codec), None, "{id:?}");
            }
        }
    }
}
