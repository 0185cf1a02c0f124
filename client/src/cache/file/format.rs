//! The bytes of a cache file: its header, the headers of its segments, and its records.
//!
//! ```text
//!   0          4096                      4096 + size
//!   | header   | segment 0               | segment 1 | ...
//!              | header | record | record | ... | whatever was there before |
//! ```
//!
//! All numbers are big endian. Nothing here reads or writes a file.

use zeoring_shared::ids::{Oid, Tid};

use crate::cache::index::OPEN;

/// Bytes before the first segment. A page, so that segments begin on pages.
pub(super) const HEADER_LENGTH: u64 = 4096;

/// Bytes of the header that mean something: less than a sector, so that they are written at once.
const HEADER_USED: usize = 128;

/// The kernel's `boot_id` is a UUID, 36 characters.
const BOOT_LENGTH: usize = 64;

const MAGIC: [u8; 8] = *b"ZeoRingC";
const VERSION: u32 = 1;

/// Fewer would make each a large part of the file, and recycling coarse.
const SEGMENTS: u64 = 16;
const SEGMENTS_MIN: u64 = 4;
const SEGMENT_MIN: u64 = 4096;
/// A segment is read as one when it is recycled and when the file is opened.
const SEGMENT_MAX: u64 = 16 * 1024 * 1024;

/// The smallest file that holds anything.
pub(super) const SIZE_MIN: u64 = HEADER_LENGTH + SEGMENTS_MIN * SEGMENT_MIN;

/// How a file is divided.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Geometry {
    pub(super) segment_size: u32,
    pub(super) segments: u32,
}

impl Geometry {
    /// Divides a file of at most `size_max` bytes; `None` if that is less than [`SIZE_MIN`].
    pub(super) fn new(size_max: u64) -> Option<Self> {
        let room = size_max.checked_sub(HEADER_LENGTH)?;
        let size = (room / SEGMENTS / SEGMENT_MIN * SEGMENT_MIN).clamp(SEGMENT_MIN, SEGMENT_MAX);
        let segments = u32::try_from(room / size).unwrap_or(u32::MAX);
        let is_enough = SEGMENTS_MIN <= u64::from(segments);
        is_enough.then_some(Self { segment_size: size as u32, segments })
    }

    pub(super) fn file_size(self) -> u64 {
        HEADER_LENGTH + u64::from(self.segments) * u64::from(self.segment_size)
    }

    /// The slot of a segment, by its place in the log.
    pub(super) fn slot(self, sequence: u64) -> usize {
        (sequence % u64::from(self.segments)) as usize
    }

    /// Where the slot begins in the file.
    pub(super) fn position(self, slot: usize) -> u64 {
        HEADER_LENGTH + slot as u64 * u64::from(self.segment_size)
    }

    /// The longest data that a record can have.
    pub(super) fn data_max(self) -> usize {
        self.segment_size as usize - Segment::LENGTH - Record::LENGTH
    }
}

/// The header of the file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Header {
    pub(super) geometry: Geometry,
    /// Names the log: segments of another are left over from before it was begun anew.
    pub(super) epoch: u64,
    /// Which boot of the machine wrote it: the kernel's `boot_id`, filled up with zeros.
    pub(super) boot: [u8; BOOT_LENGTH],
    /// Where the log ends, if everything was written out and made durable.
    pub(super) clean: Option<End>,
}

/// A place in the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct End {
    pub(super) sequence: u64,
    pub(super) offset: u32,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_USED] {
        let mut bytes = [0; HEADER_USED];
        let clean = self.clean.unwrap_or(End { sequence: 0, offset: 0 });
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.geometry.segment_size.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.geometry.segments.to_be_bytes());
        bytes[20..24].copy_from_slice(&clean.offset.to_be_bytes());
        bytes[24..32].copy_from_slice(&clean.sequence.to_be_bytes());
        bytes[32..40].copy_from_slice(&self.epoch.to_be_bytes());
        bytes[40..40 + BOOT_LENGTH].copy_from_slice(&self.boot);
        let checksum = crc32c::crc32c(&bytes[..HEADER_USED - 4]);
        bytes[HEADER_USED - 4..].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    /// Reads a header; `None` if this is none of ours, or damaged.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let used = bytes.get(..HEADER_USED)?;
        let is_ours = used[..8] == MAGIC
            && u32_at(used, 8) == VERSION
            && u32_at(used, HEADER_USED - 4) == crc32c::crc32c(&used[..HEADER_USED - 4]);
        if !is_ours {
            return None;
        }
        let geometry = Geometry { segment_size: u32_at(used, 12), segments: u32_at(used, 16) };
        let end = End { sequence: u64_at(used, 24), offset: u32_at(used, 20) };
        let clean = (end.offset != 0).then_some(end);
        let boot = used[40..40 + BOOT_LENGTH].try_into().expect("the range is as long");
        Some(Self { geometry, epoch: u64_at(used, 32), boot, clean })
    }
}

/// A boot's name as a header has it. Longer ones are cut off.
pub(super) fn boot(id: &str) -> [u8; BOOT_LENGTH] {
    let mut boot = [0; BOOT_LENGTH];
    boot.iter_mut().zip(id.trim().bytes()).for_each(|(byte, named)| *byte = named);
    boot
}

/// The header of a segment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Segment {
    pub(super) epoch: u64,
    /// The segment's place in the log: one more than the segment's before.
    pub(super) sequence: u64,
    /// A random number in the checksums of its records, so that what was in this slot before is
    /// never taken for a record of this segment.
    pub(super) nonce: u64,
    /// What the log before it is true for.
    pub(super) last_tid: Option<Tid>,
    /// Where the segment before it ended. What lies there beyond that is not in the log.
    pub(super) previous_end: u32,
}

impl Segment {
    pub(super) const LENGTH: usize = 48;
    const MAGIC: [u8; 4] = *b"Zseg";

    pub(super) fn encode(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..4].copy_from_slice(&Self::MAGIC);
        bytes[8..16].copy_from_slice(&self.epoch.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[24..32].copy_from_slice(&self.nonce.to_be_bytes());
        bytes[32..40].copy_from_slice(&self.last_tid.unwrap_or(OPEN).to_bytes());
        bytes[40..44].copy_from_slice(&self.previous_end.to_be_bytes());
        let checksum = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..Self::LENGTH)?;
        let is_one = bytes[..4] == Self::MAGIC && u32_at(bytes, 4) == crc32c::crc32c(&bytes[8..]);
        let last_tid = Tid(u64_at(bytes, 32));
        is_one.then(|| Self {
            epoch: u64_at(bytes, 8),
            sequence: u64_at(bytes, 16),
            nonce: u64_at(bytes, 24),
            last_tid: (last_tid <= Tid::MAX).then_some(last_tid),
            previous_end: u32_at(bytes, 40),
        })
    }
}

/// What a record says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// A revision; its data follow.
    Revision { oid: Oid, serial: Tid, end: Tid },
    /// A transaction wrote the objects whose oids follow. All of the log before, with this record,
    /// is true for it.
    End { tid: Tid },
    /// Nothing is known any more of what is current of the objects whose oids follow.
    Forget,
    /// All of the log before is true for this transaction.
    Advance { tid: Tid },
}

/// The head of a record. What follows it, `length` bytes, has a checksum of its own, so that damage
/// to the data of a revision costs that revision only.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) length: u32,
    checksum: u32,
}

impl Record {
    pub(super) const LENGTH: usize = 40;

    pub(super) fn new(kind: Kind, body: &[u8]) -> Self {
        let length = u32::try_from(body.len()).expect("a body fits a segment");
        let record = Self { kind, length, checksum: 0 };
        Self { checksum: record.body_checksum(body), ..record }
    }

    fn numbers(&self) -> (u8, [u64; 3]) {
        match self.kind {
            Kind::Revision { oid, serial, end } => (1, [oid.0, serial.0, end.0]),
            Kind::End { tid } => (2, [tid.0, 0, 0]),
            Kind::Forget => (3, [0, 0, 0]),
            Kind::Advance { tid } => (4, [tid.0, 0, 0]),
        }
    }

    /// Of what follows the head, together with whose it is: what was recycled does not fit.
    fn body_checksum(&self, body: &[u8]) -> u32 {
        let (kind, [first, second, _]) = self.numbers();
        let mut names = [kind; 17];
        names[1..9].copy_from_slice(&first.to_be_bytes());
        names[9..].copy_from_slice(&second.to_be_bytes());
        crc32c::crc32c_append(crc32c::crc32c(&names), body)
    }

    /// Whether these bytes follow the head.
    pub(super) fn fits(&self, body: &[u8]) -> bool {
        body.len() == self.length as usize && self.checksum == self.body_checksum(body)
    }

    /// The head, for a record that begins at `offset` of the segment with this nonce.
    pub(super) fn encode(&self, nonce: u64, offset: usize) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        let (kind, numbers) = self.numbers();
        bytes[4] = kind;
        bytes[8..12].copy_from_slice(&self.length.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.checksum.to_be_bytes());
        for (place, number) in numbers.iter().enumerate() {
            bytes[16 + 8 * place..24 + 8 * place].copy_from_slice(&number.to_be_bytes());
        }
        let checksum = head_checksum(&bytes, nonce, offset);
        bytes[..4].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    /// Reads the head at the front of `bytes`, wherever it was written to.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..Self::LENGTH)?;
        let [first, second, third] = [16, 24, 32].map(|at| u64_at(bytes, at));
        let kind = match bytes[4] {
            1 => Kind::Revision { oid: Oid(first), serial: Tid(second), end: Tid(third) },
            2 if first <= Tid::MAX.0 => Kind::End { tid: Tid(first) },
            3 => Kind::Forget,
            4 if first <= Tid::MAX.0 => Kind::Advance { tid: Tid(first) },
            _ => return None,
        };
        Some(Self { kind, length: u32_at(bytes, 8), checksum: u32_at(bytes, 12) })
    }

    /// Reads the head at `offset` of a segment; `None` if no whole record of it begins there.
    ///
    /// The data of a revision are not looked at: that is done when they are used. Everything else
    /// is checked.
    pub(super) fn decode_at(segment: &[u8], nonce: u64, offset: usize) -> Option<(Self, &[u8])> {
        let head = segment.get(offset..)?.get(..Self::LENGTH)?;
        if u32_at(head, 0) != head_checksum(head, nonce, offset) {
            return None;
        }
        let record = Self::decode(head)?;
        let body = segment.get(offset + Self::LENGTH..)?.get(..record.length as usize)?;
        let is_whole = matches!(record.kind, Kind::Revision { .. }) || record.fits(body);
        is_whole.then_some((record, body))
    }
}

/// The oids in the body of a record.
pub(super) fn oids(body: &[u8]) -> impl Iterator<Item = Oid> {
    let (oids, _) = body.as_chunks::<8>();
    oids.iter().map(|oid| Oid::from_bytes(*oid))
}

fn head_checksum(head: &[u8], nonce: u64, offset: usize) -> u32 {
    let mut seed = [0; 16];
    seed[..8].copy_from_slice(&nonce.to_be_bytes());
    seed[8..].copy_from_slice(&(offset as u64).to_be_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&seed), &head[4..])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes are four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes are eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_they_were_written() {
        let geometry = Geometry::new(1 << 20).unwrap();
        for clean in [None, Some(End { sequence: 7, offset: 48 })] {
            let header = Header { geometry, epoch: 1, boot: boot("b"), clean };
            assert_eq!(Header::decode(&header.encode()), Some(header));
        }
        let (epoch, sequence, nonce, previous_end) = (1, 2, 3, 4);
        for last_tid in [None, Some(Tid(5))] {
            let segment = Segment { epoch, sequence, nonce, last_tid, previous_end };
            assert_eq!(Segment::decode(&segment.encode()), Some(segment));
        }
    }

    #[test]
    fn a_record_is_read_only_where_it_was_written_and_from_its_segment() {
        let kind = Kind::Revision { oid: Oid(1), serial: Tid(2), end: OPEN };
        for (kind, body) in [(kind, &b"data"[..]), (Kind::Forget, &[7; 16]), (kind, b"")] {
            let record = Record::new(kind, body);
            let mut segment = vec![0; 10];
            segment.extend(record.encode(3, 10));
            segment.extend(body);
            assert_eq!(Record::decode_at(&segment, 3, 10), Some((record, body)));
            assert!(record.fits(body));
            assert_eq!(Record::decode_at(&segment, 4, 10), None);
            assert_eq!(Record::decode_at(&segment[1..], 3, 9), None);
            for cut in 0..segment.len() {
                assert_eq!(Record::decode_at(&segment[..cut], 3, 10), None, "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_file_is_divided_into_segments_that_fit_it() {
        assert_eq!(Geometry::new(SIZE_MIN - 1), None);
        for size in [SIZE_MIN, SIZE_MIN + 5000, 1 << 20, 20 << 20, 3 << 30, u64::MAX] {
            let geometry = Geometry::new(size).unwrap();
            assert!(geometry.file_size() <= size, "{size}");
            assert!(SEGMENTS_MIN <= u64::from(geometry.segments), "{size}");
            let is_used = size / 4 < geometry.file_size() || size == u64::MAX;
            assert!(is_used, "{size}");
        }
    }
}
