//! A whole transaction in memory, taken apart.

use super::header::TRAILER;
use super::{Damage, DataHeader, TransactionHeader};

/// A transaction in a byte slice, its own lengths checked.
#[derive(Clone, Copy, Debug)]
pub struct Transaction<'a> {
    /// Where it stands in the file.
    pub position: u64,
    /// The fixed part.
    pub header: TransactionHeader,
    /// Who did it.
    pub user: &'a [u8],
    /// What was done.
    pub description: &'a [u8],
    /// A pickled dictionary, or nothing.
    pub extension: &'a [u8],
    records: &'a [u8],
}

impl<'a> Transaction<'a> {
    /// Takes the transaction off the front of `bytes`, which stand at `position` of the file.
    ///
    /// # Errors
    ///
    /// The bytes end before the transaction does, or its two lengths differ.
    pub fn parse(bytes: &'a [u8], position: u64) -> Result<Self, Damage> {
        let header = TransactionHeader::parse(bytes, position)?;
        header.fits(position, position.saturating_add(bytes.len() as u64))?;
        let (inside, trailer) = bytes.split_at(header.length as usize);
        if trailer[..TRAILER] != header.length.to_be_bytes() {
            let position = header.trailer(position);
            return Err(Damage { position, expected: "the transaction length, repeated" });
        }
        let (user, rest) = inside[TransactionHeader::LEN..].split_at(header.user.into());
        let (description, rest) = rest.split_at(header.description.into());
        let (extension, records) = rest.split_at(header.extension.into());
        Ok(Self { position, header, user, description, extension, records })
    }

    /// Its data records, in file order.
    pub fn records(&self) -> Records<'a> {
        Records {
            transaction: self.position,
            position: self.position + self.header.head_length(),
            bytes: self.records,
        }
    }
}

/// What a data record holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Body<'a> {
    /// Pickles.
    Data(&'a [u8]),
    /// A position of an older record of the object, which has the pickles.
    Back(u64),
    /// Nothing: the object is gone.
    Gone,
}

/// A data record in a byte slice.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Record<'a> {
    /// Where it stands in the file.
    pub position: u64,
    /// The fixed part.
    pub header: DataHeader,
    /// What it holds.
    pub body: Body<'a>,
}

/// Walks over the data records of a [`Transaction`]. Ends after the first damage.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    transaction: u64,
    position: u64,
    bytes: &'a [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        let record = self.take();
        if record.is_err() {
            self.bytes = &[];
        }
        Some(record)
    }
}

impl<'a> Records<'a> {
    fn take(&mut self) -> Result<Record<'a>, Damage> {
        let position = self.position;
        let header = DataHeader::parse(self.bytes, position)?;
        if header.transaction != self.transaction {
            return Err(Damage { position, expected: "a record of this transaction" });
        }
        let length = DataHeader::record_length(header.length);
        let split = usize::try_from(length).ok().and_then(|at| self.bytes.split_at_checked(at));
        let Some((record, rest)) = split else {
            return Err(Damage { position, expected: "a record that ends in its transaction" });
        };
        let body = match (header.length, header.back) {
            (0, 0) => Body::Gone,
            (0, back) => Body::Back(back),
            _ => Body::Data(&record[DataHeader::LEN..]),
        };
        self.position += length;
        self.bytes = rest;
        Ok(Record { position, header, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Oid, Tid};
    use crate::record::{Builder, COMMITTED};

    const AT: u64 = 1000;

    fn whole() -> Vec<u8> {
        let mut out = Vec::new();
        let lengths = [5, 0, 0];
        let texts = [b"user".as_slice(), b"what", b"}."];
        let mut builder = Builder::start(AT, Tid(7), COMMITTED, texts, lengths, &mut out).unwrap();
        builder.data(Oid(1), Tid(7), 10, b"hello", &mut out);
        builder.back(Oid(2), Tid(7), 500, 500, &mut out);
        builder.back(Oid(3), Tid(6), 0, 0, &mut out);
        builder.finish(&mut out);
        out
    }

    #[test]
    fn what_was_built_is_taken_apart() {
        let bytes = whole();
        let transaction = Transaction::parse(&bytes, AT).unwrap();
        let texts = [transaction.user, transaction.description, transaction.extension];
        assert_eq!(texts, [b"user".as_slice(), b"what", b"}."]);
        let found: Vec<_> = transaction
            .records()
            .map(|record| record.unwrap())
            .map(|record| (record.position, record.header.oid, record.header.serial, record.body))
            .collect();
        let first = AT + 23 + 10;
        let expected = [
            (first, Oid(1), Tid(7), Body::Data(b"hello")),
            (first + 47, Oid(2), Tid(7), Body::Back(500)),
            (first + 97, Oid(3), Tid(6), Body::Gone),
        ];
        assert_eq!(found, expected);
        assert_eq!(transaction.header.end(AT), AT + bytes.len() as u64);
    }

    #[test]
    fn every_prefix_of_a_transaction_is_damage() {
        let bytes = whole();
        for cut in 0..bytes.len() {
            assert!(Transaction::parse(&bytes[..cut], AT).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn any_byte_may_have_any_value() {
        let bytes = whole();
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                if let Ok(transaction) = Transaction::parse(&bytes, AT) {
                    assert!(transaction.records().count() <= 4, "three, and a damage");
                }
            }
        }
    }
}
