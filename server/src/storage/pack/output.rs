//! The file that a pack writes: from front to back, gathered into big writes, and synced as it
//! grows, so that the last sync is short and nobody else's waits behind a gigabyte.

use std::path::Path;
use std::sync::Arc;

use zeoring_shared::io::{Access, Disk, DiskFile};
use zeoring_shared::record::{DataHeader, MAGIC};

use crate::storage::StorageError;
use crate::storage::window::Window;

/// Bytes gathered before they are written.
const PIECE: usize = 1024 * 1024;

/// Bytes written before they are synced.
const SYNC_EVERY: u64 = 32 * 1024 * 1024;

/// A file that grows.
///
/// ```text
///   0                       written           written + buffer.len()
///   | in the file ...       | in the buffer   | position of what comes next
/// ```
#[derive(Debug)]
pub(super) struct Output {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) buffer: Vec<u8>,
    written: u64,
    synced: u64,
}

/// What a failed write of a pack is: no harm to the storage.
pub(super) fn failed(doing: &'static str) -> impl Fn(std::io::Error) -> StorageError {
    move |source| StorageError::Pack { doing, source }
}

impl Output {
    /// Makes the file, in place of what an earlier pack may have left, for those who may read and
    /// write the `old` one.
    pub(super) fn create(
        disk: &dyn Disk,
        path: &Path,
        old: &dyn DiskFile,
    ) -> Result<Self, StorageError> {
        let file = disk.open(path, Access::Truncate).map_err(failed("making the new file"))?;
        file.take_after(old).map_err(failed("setting the new file's permissions"))?;
        let mut buffer = Vec::with_capacity(2 * PIECE);
        buffer.extend_from_slice(&MAGIC);
        Ok(Self { file, buffer, written: 0, synced: 0 })
    }

    /// Where the next byte goes.
    pub(super) fn position(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Writes what was gathered if it is much.
    pub(super) fn flush_if_big(&mut self) -> Result<(), StorageError> {
        if self.buffer.len() < PIECE {
            return Ok(());
        }
        self.flush()?;
        if SYNC_EVERY <= self.written - self.synced { self.sync() } else { Ok(()) }
    }

    /// Writes what was gathered.
    pub(super) fn flush(&mut self) -> Result<(), StorageError> {
        let written = self.file.write_all_at(&self.buffer, self.written);
        written.map_err(failed("writing the new file"))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Makes everything durable.
    pub(super) fn sync(&mut self) -> Result<(), StorageError> {
        self.flush()?;
        if self.synced < self.written {
            self.file.sync_data().map_err(failed("syncing the new file"))?;
            self.synced = self.written;
        }
        Ok(())
    }

    /// Appends bytes of another file, however many.
    pub(super) fn copy(
        &mut self,
        window: &mut Window,
        mut position: u64,
        length: u64,
    ) -> Result<(), StorageError> {
        let end = position + length;
        while position < end {
            let bytes = window.bytes(position, (end - position).min(PIECE as u64) as usize)?;
            if bytes.is_empty() {
                let expected = "a record that ends within the file";
                return Err(StorageError::Corrupt { position, expected });
            }
            position += bytes.len() as u64;
            self.buffer.extend_from_slice(bytes);
            self.flush_if_big()?;
        }
        Ok(())
    }

    /// Changes bytes that were appended before.
    pub(super) fn patch(&mut self, position: u64, bytes: &[u8]) -> Result<(), StorageError> {
        if position < self.written {
            // A transaction longer than a piece: what of it is in the buffer has to be there first.
            self.flush()?;
            let written = self.file.write_all_at(bytes, position);
            self.synced = self.synced.min(position);
            return written.map_err(failed("writing the new file"));
        }
        let start = (position - self.written) as usize;
        self.buffer[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// Reads a record's head back, wherever it is now.
    pub(super) fn record(&mut self, position: u64) -> Result<DataHeader, StorageError> {
        let mut bytes = [0; DataHeader::LEN_WITH_BACK];
        if position < self.written {
            if self.written < position + bytes.len() as u64 {
                self.flush()?;
            }
            let read = self.file.read_exact_at(&mut bytes, position);
            read.map_err(|source| StorageError::Read { position, source })?;
            return Ok(DataHeader::parse(&bytes, position)?);
        }
        let start = (position - self.written) as usize;
        Ok(DataHeader::parse(&self.buffer[start..], position)?)
    }
}
