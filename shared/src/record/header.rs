//! The two headers, their fields, and what can be told from a header alone.

use std::ops::Range;

use super::Damage;
use crate::ids::{Oid, Tid};

/// The head of a transaction, without the texts that follow it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TransactionHeader {
    /// Which transaction.
    pub tid: Tid,
    /// Bytes of the whole transaction, less the 8 of the length repeated at its end.
    pub length: u64,
    /// [`super::COMMITTED`], [`super::PACKED`], [`super::VOTED`] or [`super::UNDONE`].
    pub status: u8,
    /// Bytes of the user's name.
    pub user: u16,
    /// Bytes of the description.
    pub description: u16,
    /// Bytes of the extension.
    pub extension: u16,
}

impl TransactionHeader {
    /// Bytes of the fixed part.
    pub const LEN: usize = 23;

    /// Where in it the length stands, for whoever knows it last.
    pub const LENGTH_AT: u64 = Self::LENGTH.start as u64;

    const TID: Range<usize> = 0..8;
    const LENGTH: Range<usize> = 8..16;
    const STATUS: usize = 16;
    const USER: Range<usize> = 17..19;
    const DESCRIPTION: Range<usize> = 19..21;
    const EXTENSION: Range<usize> = 21..23;

    /// Reads the header at the front of `bytes`, which stand at `position` of the file.
    ///
    /// # Errors
    ///
    /// There are fewer than [`Self::LEN`] bytes. What the fields say is not checked: see
    /// [`Self::fits`].
    pub fn parse(bytes: &[u8], position: u64) -> Result<Self, Damage> {
        let Some(bytes) = bytes.first_chunk::<{ Self::LEN }>() else {
            return Err(Damage { position, expected: "a transaction header" });
        };
        Ok(Self {
            tid: Tid(u64_at(bytes, Self::TID)),
            length: u64_at(bytes, Self::LENGTH),
            status: bytes[Self::STATUS],
            user: u16_at(bytes, Self::USER),
            description: u16_at(bytes, Self::DESCRIPTION),
            extension: u16_at(bytes, Self::EXTENSION),
        })
    }

    /// Appends the 23 bytes.
    pub fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.tid.to_bytes());
        out.extend_from_slice(&self.length.to_be_bytes());
        out.push(self.status);
        out.extend_from_slice(&self.user.to_be_bytes());
        out.extend_from_slice(&self.description.to_be_bytes());
        out.extend_from_slice(&self.extension.to_be_bytes());
    }

    /// Bytes of user, description and extension together.
    pub const fn texts_length(&self) -> usize {
        self.user as usize + self.description as usize + self.extension as usize
    }

    /// Bytes before the first record: the header and the texts.
    pub const fn head_length(&self) -> u64 {
        (Self::LEN + self.texts_length()) as u64
    }

    /// Where the repeated length stands: behind the last record.
    ///
    /// Of use only after [`Self::fits`]; a nonsense length saturates.
    pub const fn trailer(&self, position: u64) -> u64 {
        position.saturating_add(self.length)
    }

    /// Where the next transaction begins.
    ///
    /// Of use only after [`Self::fits`]; a nonsense length saturates.
    pub const fn end(&self, position: u64) -> u64 {
        self.trailer(position).saturating_add(TRAILER as u64)
    }

    /// Checks the lengths: the texts fit in, and the transaction ends at or before `end`.
    ///
    /// # Errors
    ///
    /// They do not, so that nothing past this header can be made sense of.
    pub fn fits(&self, position: u64, end: u64) -> Result<(), Damage> {
        if self.length < self.head_length() {
            return Err(Damage { position, expected: "a transaction longer than its header" });
        }
        let whole = self.length.checked_add(TRAILER as u64);
        let inside =
            whole.and_then(|whole| position.checked_add(whole)).is_some_and(|at| at <= end);
        if !inside {
            return Err(Damage { position, expected: "a transaction that ends within the file" });
        }
        Ok(())
    }
}

/// Bytes of the length that is repeated at a transaction's end, and of a back pointer.
pub const TRAILER: usize = 8;

/// The head of a data record: one revision of an object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DataHeader {
    /// Which object.
    pub oid: Oid,
    /// The revision's tid.
    pub serial: Tid,
    /// Where the object's revision before this one stands; 0 if there is none.
    pub previous: u64,
    /// Where the transaction begins.
    pub transaction: u64,
    /// Bytes of pickles; 0 if a back pointer stands in their place.
    pub length: u64,
    /// Where the record with the pickles stands. 0 if they are here, or if the object is gone.
    pub back: u64,
}

impl DataHeader {
    /// Bytes of the fixed part.
    pub const LEN: usize = 42;

    /// What to read for a header and a back pointer. Every record has that much of file behind it,
    /// as a record with less than 8 bytes of pickles is followed by a length of 8.
    pub const LEN_WITH_BACK: usize = Self::LEN + TRAILER;

    const OID: Range<usize> = 0..8;
    const SERIAL: Range<usize> = 8..16;
    const PREVIOUS: Range<usize> = 16..24;
    const TRANSACTION: Range<usize> = 24..32;
    const VERSION: Range<usize> = 32..34;
    const LENGTH: Range<usize> = 34..42;
    const BACK: Range<usize> = 42..50;

    /// Reads the header, and the back pointer if there is one, at the front of `bytes`, which stand
    /// at `position` of the file.
    ///
    /// # Errors
    ///
    /// The bytes end before, the record belongs to a version (gone since ZODB 3.9), or a pointer
    /// does not lead back, as each has to.
    pub fn parse(bytes: &[u8], position: u64) -> Result<Self, Damage> {
        let Some(head) = bytes.first_chunk::<{ Self::LEN }>() else {
            return Err(Damage { position, expected: "a data record" });
        };
        if u16_at(head, Self::VERSION) != 0 {
            return Err(Damage { position, expected: "a data record without a version" });
        }
        let length = u64_at(head, Self::LENGTH);
        let back = match bytes.first_chunk::<{ Self::LEN_WITH_BACK }>() {
            _ if length != 0 => 0,
            Some(bytes) => u64_at(bytes, Self::BACK),
            None => return Err(Damage { position, expected: "a back pointer" }),
        };
        let header = Self {
            oid: Oid(u64_at(head, Self::OID)),
            serial: Tid(u64_at(head, Self::SERIAL)),
            previous: u64_at(head, Self::PREVIOUS),
            transaction: u64_at(head, Self::TRANSACTION),
            length,
            back,
        };
        // Whoever follows pointers comes to an end because each leads to a smaller position.
        let backwards =
            header.previous < position && back < position && header.transaction < position;
        if !backwards {
            return Err(Damage { position, expected: "pointers that lead back" });
        }
        Ok(header)
    }

    /// Appends the 42 bytes, without the back pointer.
    pub fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.oid.to_bytes());
        out.extend_from_slice(&self.serial.to_bytes());
        out.extend_from_slice(&self.previous.to_be_bytes());
        out.extend_from_slice(&self.transaction.to_be_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&self.length.to_be_bytes());
    }

    /// Bytes of a record with that many bytes of pickles, or of a back pointer if that is 0.
    pub const fn record_length(length: u64) -> u64 {
        (Self::LEN as u64).saturating_add(if length == 0 { TRAILER as u64 } else { length })
    }

    /// Where the record ends. A nonsense length saturates.
    pub const fn end(&self, position: u64) -> u64 {
        position.saturating_add(Self::record_length(self.length))
    }

    /// Whether the object is gone with this record: deleted, or its creation undone.
    pub const fn is_gone(&self) -> bool {
        self.length == 0 && self.back == 0
    }
}

const _: () = assert!(TransactionHeader::EXTENSION.end == TransactionHeader::LEN);
const _: () = assert!(DataHeader::LENGTH.end == DataHeader::LEN);
const _: () = assert!(DataHeader::BACK.end == DataHeader::LEN_WITH_BACK);

fn u64_at(bytes: &[u8], field: Range<usize>) -> u64 {
    u64::from_be_bytes(bytes[field].try_into().expect("the field has eight bytes"))
}

fn u16_at(bytes: &[u8], field: Range<usize>) -> u16 {
    u16::from_be_bytes(bytes[field].try_into().expect("the field has two bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a file written by ZODB 6.4: `struct.pack(">8sQcHHH", ...)` and `">8s8sQQHQ"`.
    const TRANSACTION: &[u8; 23] =
        b"\x04\x0d\x34\xe3\x35\x55\x55\x55\0\0\0\0\0\0\0\x9a \0\x04\0\x0b\0\0";

    #[test]
    fn headers_are_read_as_they_were_written() {
        let header = TransactionHeader::parse(TRANSACTION, 4).unwrap();
        let expected = TransactionHeader {
            tid: Tid(0x040d_34e3_3555_5555),
            length: 0x9a,
            status: b' ',
            user: 4,
            description: 11,
            extension: 0,
        };
        assert_eq!(header, expected);
        let mut out = vec![0xa5];
        header.emit(&mut out);
        assert_eq!(&out[1..], TRANSACTION);

        for (length, back) in [(7, 0), (0, 99), (0, 0)] {
            let record = DataHeader {
                oid: Oid(1),
                serial: Tid(2),
                previous: 3,
                transaction: 4,
                length,
                back,
            };
            let mut out = Vec::new();
            record.emit(&mut out);
            out.extend_from_slice(&back.to_be_bytes());
            assert_eq!(DataHeader::parse(&out, 100), Ok(record));
        }
    }

    #[test]
    fn every_prefix_of_a_header_is_damage() {
        for cut in 0..TRANSACTION.len() {
            assert!(TransactionHeader::parse(&TRANSACTION[..cut], 4).is_err(), "cut at {cut}");
        }
        for cut in 0..DataHeader::LEN_WITH_BACK {
            assert!(DataHeader::parse(&vec![0; cut], 100).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn lengths_that_no_file_can_have_do_not_fit() {
        let mut header = TransactionHeader::parse(TRANSACTION, 4).unwrap();
        assert_eq!(header.fits(4, 4 + 0x9a + 8), Ok(()));
        assert!(header.fits(4, 4 + 0x9a + 7).is_err());
        for length in [0, 22, 37, u64::MAX, u64::MAX - 8, u64::MAX - 12, 1 << 63] {
            header.length = length;
            assert!(header.fits(4, 1 << 40).is_err(), "{length}");
        }
    }

    #[test]
    fn a_record_that_points_forward_is_damage() {
        for field in [DataHeader::PREVIOUS, DataHeader::TRANSACTION, DataHeader::BACK] {
            let mut bytes = [0; DataHeader::LEN_WITH_BACK];
            bytes[field].copy_from_slice(&100_u64.to_be_bytes());
            assert!(DataHeader::parse(&bytes, 100).is_err());
            assert!(DataHeader::parse(&bytes, 101).is_ok());
        }
    }
}
