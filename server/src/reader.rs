//! Reads records that memory holds: those read lately, and those in the kernel's page cache.
//!
//! A record never changes while its file is open, so what was read once stays true until a pack puts
//! another file in place. Records lie in one ring of bytes, the oldest overwritten first:
//!
//! ```text
//!   ring     | newest ... | oldest ...       |        a place is alive until the head comes near it
//!   table    hash(storage, position) -> place, length
//! ```

use std::io;
use std::sync::Arc;

use zeoring_shared::io::DiskFile;
use zeoring_shared::record::DataHeader;

use crate::storage::load::Want;

/// Bytes of records that a reactor keeps. Only what is used becomes resident.
const RING_LENGTH: usize = 64 * 1024 * 1024;

/// Places in the table: records of half a kilobyte fill the ring.
const PLACES: usize = RING_LENGTH / 512;

/// Longer records are read from the kernel every time: copying them costs more than the call.
const KEPT_LENGTH_MAX: usize = 64 * 1024;

/// A record's storage and position in its file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Key(u64);

#[derive(Clone, Copy, Debug)]
struct Place {
    key: Key,
    /// Bytes ever put into the ring before this record.
    start: u64,
    length: u32,
}

/// Where no record is.
const NOWHERE: Place = Place { key: Key(u64::MAX), start: 0, length: 0 };

/// Records in memory, for one reactor.
#[derive(Debug)]
pub struct Reader {
    ring: Vec<u8>,
    table: Vec<Place>,
    /// Bytes ever put into the ring, with what was skipped at its end.
    head: u64,
    /// A record that was read from disk for a load that goes on now, and long ones.
    fresh: Option<(Key, Vec<u8>)>,
}

impl Key {
    /// Positions are 48 bits, as `.index` has them.
    fn new(storage: usize, position: u64) -> Self {
        Self((storage as u64) << 48 | position)
    }

    fn storage(self) -> usize {
        (self.0 >> 48) as usize
    }

    fn position(self) -> u64 {
        self.0 & ((1 << 48) - 1)
    }

    fn slot(self) -> usize {
        // Fibonacci hashing: the high bits of the product are the well-mixed ones.
        (self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % PLACES
    }
}

impl Default for Reader {
    fn default() -> Self {
        Self { ring: vec![0; RING_LENGTH], table: vec![NOWHERE; PLACES], head: 0, fresh: None }
    }
}

impl Reader {
    /// Reads a record without waiting: at least what is wanted, unless the file ends before.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] if it has to come from disk: read it, and [`Reader::keep`] it.
    pub fn read(
        &mut self,
        storage: usize,
        file: &Arc<dyn DiskFile>,
        want: Want,
    ) -> io::Result<&[u8]> {
        let key = Key::new(storage, want.position);
        // The first read of a long record brings only its start: then the rest is wanted, too.
        let enough = |(fresh, bytes): &(Key, Vec<u8>)| *fresh == key && want.length <= bytes.len();
        if self.fresh.as_ref().is_some_and(enough) {
            let (_, bytes) = self.fresh.as_ref().expect("it was just looked at");
            return Ok(bytes);
        }
        let place = self.table[key.slot()];
        // Reads go to the bytes at the head before it is known whether they are kept, so the oldest
        // ones are not to be trusted.
        let alive = self.head + KEPT_LENGTH_MAX as u64 <= place.start + RING_LENGTH as u64;
        if place.key == key && alive {
            let start = place.start as usize % RING_LENGTH;
            return Ok(&self.ring[start..start + place.length as usize]);
        }
        self.read_file(key, file, want)
    }

    /// Takes what was read from disk, for the load that waited for it.
    pub fn keep(&mut self, storage: usize, position: u64, bytes: Vec<u8>) {
        self.fresh = Some((Key::new(storage, position), bytes));
    }

    /// Forgets a storage's records: another file is in place, with other records where they were.
    pub fn forget(&mut self, storage: usize) {
        for place in &mut self.table {
            if place.key.storage() == storage {
                *place = NOWHERE;
            }
        }
        self.fresh.take_if(|(key, _)| key.storage() == storage);
    }

    /// The load that waited has gone on: keeps its record among the others, if it is whole.
    pub fn settle(&mut self) -> Option<Vec<u8>> {
        let (key, bytes) = self.fresh.take()?;
        if let Some(length) = record_length(&bytes, key.position()) {
            let start = self.room(length);
            self.ring[start..start + length].copy_from_slice(&bytes[..length]);
            self.put(key, length);
        }
        Some(bytes)
    }

    fn read_file(&mut self, key: Key, file: &Arc<dyn DiskFile>, want: Want) -> io::Result<&[u8]> {
        if KEPT_LENGTH_MAX < want.length {
            let (_, bytes) = self.fresh.get_or_insert_with(|| (key, Vec::new()));
            bytes.resize(want.length, 0);
            let read = read_all_now(file, bytes, want.position);
            return match read {
                Ok(count) => {
                    let (fresh, bytes) = self.fresh.as_mut().expect("it was just made");
                    *fresh = key;
                    bytes.truncate(count);
                    Ok(bytes)
                }
                Err(error) => {
                    self.fresh = None;
                    Err(error)
                }
            };
        }
        let start = self.room(want.length);
        let count = read_all_now(file, &mut self.ring[start..start + want.length], want.position)?;
        if let Some(length) = record_length(&self.ring[start..start + count], want.position) {
            self.put(key, length);
        }
        Ok(&self.ring[start..start + count])
    }

    /// Makes the next bytes of the ring free, and returns where they start.
    fn room(&mut self, length: usize) -> usize {
        let start = self.head as usize % RING_LENGTH;
        if RING_LENGTH < start + length {
            self.head += (RING_LENGTH - start) as u64;
            return 0;
        }
        start
    }

    /// Lets the table know of the record that now lies at the head.
    fn put(&mut self, key: Key, length: usize) {
        self.table[key.slot()] = Place { key, start: self.head, length: length as u32 };
        self.head += length as u64;
    }
}

/// Reads until the buffer is full or the file ends, if memory holds it all.
fn read_all_now(file: &Arc<dyn DiskFile>, buffer: &mut [u8], position: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at_now(&mut buffer[done..], position + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// The length of the record at the front of `bytes`, if it is whole and worth keeping.
fn record_length(bytes: &[u8], position: u64) -> Option<usize> {
    let header = DataHeader::parse(bytes, position).ok()?;
    let length = usize::try_from(DataHeader::record_length(header.length)).ok()?;
    (length <= bytes.len().min(KEPT_LENGTH_MAX)).then_some(length)
}

#[cfg(test)]
mod tests {
    use zeoring_shared::ids::{Oid, Tid};
    use zeoring_shared::io::{Access, Disk, RealDisk};

    use super::*;

    /// A file with one record of each of these lengths of data; returns their positions.
    fn file(lengths: &[usize]) -> (tempfile::TempDir, Arc<dyn DiskFile>, Vec<u64>) {
        let folder = tempfile::tempdir().unwrap();
        let file = RealDisk.open(&folder.path().join("Data.fs"), Access::Create).unwrap();
        let mut bytes = vec![0; 27];
        let mut positions = Vec::new();
        for (number, length) in lengths.iter().enumerate() {
            positions.push(bytes.len() as u64);
            let header = DataHeader {
                oid: Oid(number as u64),
                serial: Tid(1),
                previous: 0,
                transaction: 4,
                length: *length as u64,
                back: 0,
            };
            header.emit(&mut bytes);
            bytes.resize(bytes.len() + length, number as u8);
        }
        file.write_all_at(&bytes, 0).unwrap();
        (folder, file, positions)
    }

    #[test]
    fn a_record_that_was_read_once_is_not_read_again() {
        let (_folder, file, positions) = file(&[100, 3000, 7]);
        let mut reader = Reader::default();
        for position in &positions {
            let want = Want { position: *position, length: 42 + 7 };
            assert_eq!(reader.read(0, &file, want).unwrap().len(), want.length);
        }
        // The first read of the long ones brought their start only.
        for (position, length) in positions.iter().zip([100, 3000, 7]) {
            let want = Want { position: *position, length: 42 + length };
            assert_eq!(reader.read(0, &file, want).unwrap().len(), want.length);
        }
        file.set_length(0).unwrap();
        for ((number, position), length) in (0..).zip(&positions).zip([100, 3000, 7]) {
            let want = Want { position: *position, length: 2090 };
            let record = reader.read(0, &file, want).unwrap();
            assert_eq!(&record[42..], vec![number; length]);
        }
        let elsewhere = Want { position: positions[0], length: 49 };
        assert_eq!(reader.read(1, &file, elsewhere).unwrap(), b"", "another storage's file");
    }

    #[test]
    fn what_is_forgotten_is_read_anew_and_what_is_not_stays() {
        let (_folder, file, positions) = file(&[100, 100]);
        let mut reader = Reader::default();
        let want = |at: usize| Want { position: positions[at], length: 142 };
        for storage in [0, 1] {
            for at in [0, 1] {
                reader.read(storage, &file, want(at)).unwrap();
            }
        }
        reader.keep(0, positions[0], vec![0; 142]);
        reader.forget(0);
        file.set_length(0).unwrap();
        for at in [0, 1] {
            assert_eq!(reader.read(0, &file, want(at)).unwrap(), b"");
            assert_eq!(reader.read(1, &file, want(at)).unwrap().len(), 142);
        }
    }

    #[test]
    fn what_the_ring_has_overwritten_is_read_again_and_right() {
        let count = 3 * RING_LENGTH / 60_000;
        let (_folder, file, positions) = file(&vec![60_000; count]);
        let mut reader = Reader::default();
        for round in 0..2 {
            for (number, position) in positions.iter().enumerate().skip(round) {
                let want = Want { position: *position, length: 60_042 };
                let record = reader.read(0, &file, want).unwrap();
                assert!(record[42..].iter().all(|byte| *byte == number as u8), "{number}");
            }
        }
    }

    #[test]
    fn a_record_from_the_disk_is_there_for_its_load_and_then_among_the_others() {
        let (_folder, file, positions) = file(&[100]);
        let mut reader = Reader::default();
        let want = Want { position: positions[0], length: 142 };
        let mut bytes = vec![0; 142];
        file.read_exact_at(&mut bytes, want.position).unwrap();
        reader.keep(0, want.position, bytes.clone());
        file.set_length(0).unwrap();
        assert_eq!(reader.read(0, &file, want).unwrap(), bytes);
        assert_eq!(reader.settle(), Some(bytes.clone()));
        assert_eq!(reader.read(0, &file, want).unwrap(), bytes);
    }
}
