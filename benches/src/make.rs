//! Makes a data file of any size, by writing it: no server commits ten million objects for us.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::record::{Builder, COMMITTED, FIRST, MAGIC};

use crate::error::{BenchError, doing};
use crate::raw::record;

/// Objects in a transaction.
const OBJECTS_A_TRANSACTION: u64 = 100;

/// The first transaction: 2000-01-01, long before whatever is committed to the file later.
const FIRST_TID: u64 = 0x033b_8d40_0000_0000;

/// Writes a data file with one revision of each of `objects` objects, from oid 0 up, each with
/// `length` bytes of data.
///
/// Returns the length of the file.
pub(crate) fn data_file(path: &Path, objects: u64, length: usize) -> Result<u64, BenchError> {
    let failed = doing("writing a data file");
    let write = || {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        file.write_all(&MAGIC)?;
        let (mut position, mut bytes) = (FIRST, Vec::new());
        for first in (0..objects).step_by(OBJECTS_A_TRANSACTION as usize) {
            let oids = first..objects.min(first + OBJECTS_A_TRANSACTION);
            let tid = Tid(FIRST_TID + first / OBJECTS_A_TRANSACTION);
            let lengths = oids.clone().map(|_| length as u64);
            bytes.clear();
            let mut transaction =
                Builder::start(position, tid, COMMITTED, [b""; 3], lengths, &mut bytes)
                    .expect("no text is too long");
            for oid in oids.map(Oid) {
                transaction.data(oid, tid, 0, &record(oid, length), &mut bytes);
            }
            position = transaction.finish(&mut bytes);
            file.write_all(&bytes)?;
        }
        file.flush()?;
        Ok(position)
    };
    write().map_err(failed)
}

#[cfg(test)]
mod tests {
    use zeoring_shared::record::{Body, Transaction};

    use super::*;

    #[test]
    fn every_object_is_in_the_file_once_and_every_transaction_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Data.fs");
        let length = data_file(&path, 250, 300).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, length);
        let (mut position, mut oids, mut last) = (FIRST, Vec::new(), Tid::ZERO);
        while position < length {
            let rest = &bytes[position as usize..];
            let transaction = Transaction::parse(rest, position).unwrap();
            assert!(last < transaction.header.tid);
            last = transaction.header.tid;
            for found in transaction.records() {
                let found = found.unwrap();
                oids.push(found.header.oid.0);
                assert_eq!(found.body, Body::Data(&record(found.header.oid, 300)));
            }
            position = transaction.header.end(position);
        }
        assert!(oids.iter().copied().eq(0..250));
    }
}
