//! A file read from front to back in big pieces, looked at in small ones.

use std::sync::Arc;

use zeoring_shared::io::DiskFile;

use super::StorageError;

/// Bytes of a read: big enough that the disk streams and a system call costs nothing.
const PIECE: usize = 1024 * 1024;

/// A part of a file in memory, which moves on as later positions are asked for.
///
/// Invariant: `filled <= buffer.len()`; the buffer grows to the longest piece ever asked for that
/// the file has.
#[derive(Debug)]
pub struct Window {
    file: Arc<dyn DiskFile>,
    end: u64,
    start: u64,
    filled: usize,
    buffer: Vec<u8>,
}

impl Window {
    /// Over a file, up to `end`.
    pub fn new(file: Arc<dyn DiskFile>, end: u64) -> Self {
        Self { file, end, start: 0, filled: 0, buffer: Vec::new() }
    }

    /// The bytes from `position` on: `length` of them, or fewer if the file ends before.
    ///
    /// # Errors
    ///
    /// [`StorageError::Read`].
    pub fn bytes(&mut self, position: u64, length: usize) -> Result<&[u8], StorageError> {
        if self.end <= position {
            return Ok(&[]);
        }
        let length = (self.end - position).min(length as u64) as usize;
        let inside =
            self.start <= position && position + length as u64 <= self.start + self.filled as u64;
        if !inside {
            self.fill(position, length)?;
        }
        let start = (position - self.start) as usize;
        Ok(&self.buffer[start..start + length])
    }

    fn fill(&mut self, position: u64, length: usize) -> Result<(), StorageError> {
        let wanted = (self.end - position).min(PIECE.max(length) as u64) as usize;
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        (self.start, self.filled) = (position, 0);
        self.file
            .read_exact_at(&mut self.buffer[..wanted], position)
            .map_err(|source| StorageError::Read { position, source })?;
        self.filled = wanted;
        Ok(())
    }
}
