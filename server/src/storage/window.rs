//! A file read from front to back in big pieces, looked at in small ones.

use std::sync::Arc;

use zeoring_shared::io::DiskFile;

use super::StorageError;

/// Bytes of a read: big enough that the disk streams and a system call costs nothing.
const PIECE: usize = 1024 * 1024;

/// Bytes of a read where the next may be anywhere: most records are smaller.
const PIECE_SCATTERED: usize = 16 * 1024;

/// Bytes that the disk is asked to have ready behind a read of a whole piece.
const AHEAD: u64 = 4 * PIECE as u64;

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
    /// Bytes of the next read, and of the smallest.
    piece: usize,
    piece_min: usize,
}

impl Window {
    /// Over a file, up to `end`.
    pub fn new(file: Arc<dyn DiskFile>, end: u64) -> Self {
        let (piece, piece_min) = (PIECE, PIECE);
        Self { file, end, start: 0, filled: 0, buffer: Vec::new(), piece, piece_min }
    }

    /// Over a file that is looked at here and there: reads grow while they follow each other.
    pub fn scattered(file: Arc<dyn DiskFile>, end: u64) -> Self {
        Self { piece: PIECE_SCATTERED, piece_min: PIECE_SCATTERED, ..Self::new(file, end) }
    }

    /// Moves the end: the file has grown.
    pub fn extend(&mut self, end: u64) {
        self.end = end;
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
        let last = self.start + self.filled as u64;
        let follows = self.start <= position && position <= last + self.piece as u64;
        self.piece = if follows { PIECE.min(2 * self.piece) } else { self.piece_min };
        let wanted = (self.end - position).min(self.piece.max(length) as u64) as usize;
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        (self.start, self.filled) = (position, 0);
        self.file
            .read_exact_at(&mut self.buffer[..wanted], position)
            .map_err(|source| StorageError::Read { position, source })?;
        self.filled = wanted;
        if self.piece == PIECE {
            let next = position + wanted as u64;
            self.file.will_need(next, AHEAD.min(self.end - next));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zeoring_shared::io::{Access, Disk, RealDisk};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn wherever_one_looks_the_bytes_are_those_of_the_file(
            looks in prop::collection::vec((0_u64..3_000_000, 0_usize..70_000, any::<bool>()), 1..60),
            scattered in any::<bool>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let file = RealDisk.open(&folder.path().join("file"), Access::Create).unwrap();
            let bytes: Vec<u8> = (0..2_500_000_u32).map(|n| (n / 7 + n / 1000) as u8).collect();
            file.write_all_at(&bytes, 0).unwrap();
            let mut end = bytes.len() / 2;
            let mut window = match scattered {
                true => Window::scattered(file, end as u64),
                false => Window::new(file, end as u64),
            };
            let mut next = 0;
            for (number, (position, length, follows)) in looks.into_iter().enumerate() {
                if number == 20 {
                    end = bytes.len();
                    window.extend(end as u64);
                }
                let position = if follows { next } else { position };
                let start = (position as usize).min(end);
                let expected = &bytes[start..(start + length).min(end)];
                prop_assert_eq!(window.bytes(position, length).unwrap(), expected);
                next = position + length as u64;
            }
        }
    }
}
