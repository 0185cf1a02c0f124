//! A transaction written as bytes, from front to back.

use super::header::TRAILER;
use super::{DataHeader, TransactionHeader};
use crate::ids::{Oid, Tid};

/// Writes one transaction into a buffer that the caller may empty between any two calls.
///
/// The length of a transaction stands at its front, so all lengths are told at the start; the
/// builder asserts that what follows agrees with them.
#[derive(Debug)]
pub struct Builder {
    transaction: u64,
    position: u64,
    length: u64,
}

impl Builder {
    /// Appends the head of a transaction that will stand at `position`: user, description and
    /// extension are the `texts`, and each of the records is to have as many bytes of pickles as
    /// `lengths` say, 0 for a back pointer.
    ///
    /// Returns `None`, and appends nothing, if a text is longer than 65,535 bytes.
    pub fn start(
        position: u64,
        tid: Tid,
        status: u8,
        texts: [&[u8]; 3],
        lengths: impl IntoIterator<Item = u64>,
        out: &mut Vec<u8>,
    ) -> Option<Self> {
        let [Ok(user), Ok(description), Ok(extension)] = texts.map(|text| text.len().try_into())
        else {
            return None;
        };
        let records: u64 = lengths.into_iter().map(DataHeader::record_length).sum();
        let mut header = TransactionHeader { tid, length: 0, status, user, description, extension };
        header.length = header.head_length() + records;
        header.emit(out);
        for text in texts {
            out.extend_from_slice(text);
        }
        let position_of_records = position + header.head_length();
        Some(Self { transaction: position, position: position_of_records, length: header.length })
    }

    /// Appends a record with pickles, and returns its position.
    pub fn data(
        &mut self,
        oid: Oid,
        serial: Tid,
        previous: u64,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> u64 {
        let position = self.data_head(oid, serial, previous, data.len() as u64, out);
        out.extend_from_slice(data);
        position
    }

    /// Appends the head of a record whose `length` bytes of pickles, not 0, the caller appends
    /// next. Returns the record's position.
    pub fn data_head(
        &mut self,
        oid: Oid,
        serial: Tid,
        previous: u64,
        length: u64,
        out: &mut Vec<u8>,
    ) -> u64 {
        assert!(length != 0, "a record without pickles has a back pointer");
        self.head(
            DataHeader { oid, serial, previous, transaction: self.transaction, length, back: 0 },
            out,
        )
    }

    /// Appends a record with a back pointer, 0 if the object is gone. Returns its position.
    pub fn back(
        &mut self,
        oid: Oid,
        serial: Tid,
        previous: u64,
        back: u64,
        out: &mut Vec<u8>,
    ) -> u64 {
        let header =
            DataHeader { oid, serial, previous, transaction: self.transaction, length: 0, back };
        let position = self.head(header, out);
        out.extend_from_slice(&back.to_be_bytes());
        position
    }

    /// Appends the length, repeated, and returns where the next transaction will stand.
    pub fn finish(self, out: &mut Vec<u8>) -> u64 {
        assert_eq!(self.position, self.transaction + self.length, "the lengths told at the start");
        out.extend_from_slice(&self.length.to_be_bytes());
        self.position + TRAILER as u64
    }

    fn head(&mut self, header: DataHeader, out: &mut Vec<u8>) -> u64 {
        header.emit(out);
        let position = self.position;
        self.position = header.end(position);
        position
    }
}
