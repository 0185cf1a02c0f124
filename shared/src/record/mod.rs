//! FileStorage's transactions and data records as bytes: what a `Data.fs` is made of.
//!
//! Reads and writes byte slices; never a file, never a clock. What a header says about lengths is
//! compared with the bytes that are there before anything is done with it, so bytes from a damaged
//! file give a [`Damage`] and nothing worse. The format is that of `ZODB/FileStorage/format.py`,
//! all integers big endian:
//!
//! ```text
//!   0    4                                                                  end
//!   FS30 | transaction | transaction | ...                                  |
//!
//!   transaction   header 23 | user | description | extension | records ... | length 8
//!   record        header 42 | pickles        or, if the length is 0: header 42 | back pointer 8
//! ```

pub mod blob;
pub mod build;
pub mod header;
pub mod references;
pub mod scan;

pub use blob::{BLOB_PREFIX, is_blob};
pub use build::Builder;
pub use header::{DataHeader, TransactionHeader};
pub use references::{References, Unreadable};
pub use scan::{Body, Record, Records, Transaction};

/// The first bytes of a data file (`packed_version` of `ZODB/_compat.py` on Python 3).
pub const MAGIC: [u8; 4] = *b"FS30";

/// The position of the first transaction.
pub const FIRST: u64 = MAGIC.len() as u64;

/// The status byte of a committed transaction.
pub const COMMITTED: u8 = b' ';

/// The status byte of a transaction that a pack has been through: it cannot be undone.
pub const PACKED: u8 = b'p';

/// The status byte of a transaction that was voted for and not finished.
pub const VOTED: u8 = b'c';

/// The status byte of a transaction to skip, written by ancient versions only.
pub const UNDONE: u8 = b'u';

/// Bytes that are not what the format requires.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("at {position}: expected {expected}")]
pub struct Damage {
    /// Byte offset in the data file.
    pub position: u64,
    /// What should have been there.
    pub expected: &'static str,
}
