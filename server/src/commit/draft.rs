//! A transaction as its client builds it up, from `tpc_begin` to `vote`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};

/// What a client did in a transaction, in its order. Nothing is checked before the vote.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Operation {
    /// `storea`: new data for an object that was read at `serial`.
    Store {
        /// Which object.
        oid: Oid,
        /// The revision that the client had read; [`Tid::ZERO`] for a new object.
        serial: Tid,
        /// The pickles.
        data: Span,
    },
    /// `deleteObject`: the object goes if it is still at `serial`.
    Delete {
        /// Which object.
        oid: Oid,
        /// The revision that the client knows.
        serial: Tid,
    },
    /// `checkCurrentSerialInTransaction`: the object must still be at `serial`.
    Check {
        /// Which object.
        oid: Oid,
        /// The revision that the client had read.
        serial: Tid,
    },
    /// `restorea`: a record copied from another storage, with its own tid.
    Restore {
        /// Which object.
        oid: Oid,
        /// The tid that the record is to have.
        serial: Tid,
        /// The pickles; `None` deletes the object.
        data: Option<Span>,
        /// A transaction that is said to hold the same data.
        previous: Option<Tid>,
    },
    /// `undoa`: what a transaction did is to be taken back.
    Undo {
        /// The transaction to undo.
        tid: Tid,
    },
}

impl Operation {
    /// The object that it writes, if it says so itself: undoing finds its objects in the file.
    pub fn written(&self) -> Option<Oid> {
        match self {
            Self::Store { oid, .. } | Self::Delete { oid, .. } | Self::Restore { oid, .. } => {
                Some(*oid)
            }
            Self::Check { .. } | Self::Undo { .. } => None,
        }
    }
}

/// A transaction from `tpc_begin` on.
#[derive(Debug, Default)]
pub struct Draft {
    /// Who: at most 65,535 bytes.
    pub user: Bytes,
    /// What for: at most 65,535 bytes.
    pub description: Bytes,
    /// A pickled dictionary, or nothing: at most 65,535 bytes.
    pub extension: Bytes,
    /// The id that a copy of another storage asks for.
    pub tid: Option<Tid>,
    /// Whether the transaction has status `p` (a copy of a packed one).
    pub packed: bool,
    /// What was asked, in order.
    pub operations: Vec<Operation>,
    /// The pickles of the operations.
    pub spool: Spool,
}

impl Draft {
    /// The transactions that it undoes.
    pub fn undone(&self) -> Vec<Tid> {
        let undo = |operation: &Operation| match operation {
            Operation::Undo { tid } => Some(*tid),
            _ => None,
        };
        self.operations.iter().filter_map(undo).collect()
    }

    /// The objects that it writes, less those that undoing writes.
    pub fn written(&self) -> impl Iterator<Item = Oid> {
        self.operations.iter().filter_map(Operation::written)
    }

    /// The objects that must not have changed since it read them.
    pub fn read(&self) -> impl Iterator<Item = Oid> {
        self.operations.iter().filter_map(|operation| match operation {
            Operation::Check { oid, .. } => Some(*oid),
            _ => None,
        })
    }
}

/// Where a pickle stands in a [`Spool`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Span {
    /// Bytes before it.
    pub start: u64,
    /// Its length, in bytes.
    pub length: u64,
}

/// The pickles of one transaction: in memory while they are few, then in a file without a name.
///
/// Invariant: what `memory` holds comes after what `file` holds.
#[derive(Debug, Default)]
pub struct Spool {
    memory: Vec<u8>,
    file: Option<File>,
    file_length: u64,
}

/// Past this many bytes, a transaction's pickles go to a file.
pub const SPOOL_MEMORY_MAX: usize = 8 * 1024 * 1024;

impl Spool {
    /// Adds a pickle.
    ///
    /// # Errors
    ///
    /// The temporary file could not be made or written; the spool is unchanged but for its file.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<Span> {
        if !self.memory.is_empty() && SPOOL_MEMORY_MAX < self.memory.len() + bytes.len() {
            self.spill()?;
        }
        let span = Span { start: self.length(), length: bytes.len() as u64 };
        self.memory.extend_from_slice(bytes);
        Ok(span)
    }

    /// Bytes of all pickles together.
    pub fn length(&self) -> u64 {
        self.file_length + self.memory.len() as u64
    }

    /// Appends a pickle to `target`.
    ///
    /// # Errors
    ///
    /// The temporary file could not be read.
    pub fn read(&self, span: Span, target: &mut Vec<u8>) -> io::Result<()> {
        if let Some(start) = span.start.checked_sub(self.file_length) {
            let start = start as usize;
            target.extend_from_slice(&self.memory[start..start + span.length as usize]);
            return Ok(());
        }
        let file = self.file.as_ref().expect("what is not in memory is in the file");
        let old = target.len();
        target.resize(old + span.length as usize, 0);
        file.read_exact_at(&mut target[old..], span.start)
    }

    fn spill(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile()?);
        }
        let file = self.file.as_ref().expect("it was just made");
        file.write_all_at(&self.memory, self.file_length)?;
        self.file_length += self.memory.len() as u64;
        self.memory.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spool_gives_back_what_it_took_from_memory_and_from_its_file() {
        let mut spool = Spool::default();
        let pickles: Vec<Vec<u8>> =
            (0..40_u8).map(|n| vec![n; SPOOL_MEMORY_MAX / 8 + usize::from(n)]).collect();
        let spans: Vec<Span> = pickles.iter().map(|p| spool.push(p).unwrap()).collect();
        assert!(spool.file.is_some(), "forty eighths do not fit");
        for (pickle, span) in pickles.iter().zip(spans) {
            let mut read = vec![0xa5];
            spool.read(span, &mut read).unwrap();
            assert_eq!(&read[1..], pickle);
        }
        assert_eq!(spool.length(), pickles.iter().map(|p| p.len() as u64).sum::<u64>());
    }
}
