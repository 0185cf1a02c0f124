//! Reads a data file's transactions for a pack, and believes none of them.

use zeoring_shared::record::header::TRAILER;
use zeoring_shared::record::{
    COMMITTED, Damage, DataHeader, PACKED, TransactionHeader, UNDONE, VOTED,
};

use crate::storage::StorageError;
use crate::storage::window::Window;

/// Bytes of a transaction that is held in memory whole.
const WHOLE_MAX: u64 = 1024 * 1024;

/// The transaction at a position. It ends before `end`.
pub(super) fn transaction(
    window: &mut Window,
    position: u64,
    end: u64,
) -> Result<TransactionHeader, StorageError> {
    let bytes = window.bytes(position, TransactionHeader::LEN)?;
    let header = TransactionHeader::parse(bytes, position)?;
    header.fits(position, end)?;
    if !matches!(header.status, COMMITTED | PACKED | UNDONE) {
        let expected = match header.status {
            VOTED => "a transaction that was finished",
            _ => "a transaction's status",
        };
        return Err(StorageError::Corrupt { position, expected });
    }
    // In one piece, if it is not a huge one: what follows reads it from front to back.
    window.bytes(position, header.length.min(WHOLE_MAX) as usize + TRAILER)?;
    let trailer = header.trailer(position);
    if window.bytes(trailer, TRAILER)? != header.length.to_be_bytes() {
        let expected = "the transaction length, repeated";
        return Err(StorageError::Corrupt { position: trailer, expected });
    }
    Ok(header)
}

/// A walk over the records of one transaction.
///
/// Invariant: `position <= trailer`
#[derive(Debug)]
pub(super) struct Records {
    transaction: u64,
    position: u64,
    trailer: u64,
}

impl Records {
    /// Of a transaction that [`transaction`] has found.
    pub(super) fn of(position: u64, header: &TransactionHeader) -> Self {
        let first = position + header.head_length();
        Self { transaction: position, position: first, trailer: header.trailer(position) }
    }

    /// Position and header of the next record.
    pub(super) fn next(
        &mut self,
        window: &mut Window,
    ) -> Result<Option<(u64, DataHeader)>, StorageError> {
        let position = self.position;
        if position == self.trailer {
            return Ok(None);
        }
        let bytes = window.bytes(position, DataHeader::LEN_WITH_BACK)?;
        let record = DataHeader::parse(bytes, position)?;
        if record.transaction != self.transaction {
            return Err(Damage { position, expected: "a record of this transaction" }.into());
        }
        if self.trailer < record.end(position) {
            let expected = "a record that ends in its transaction";
            return Err(Damage { position, expected }.into());
        }
        self.position = record.end(position);
        Ok(Some((position, record)))
    }
}

/// The record that has the pickles of the one at `position`, or `None` if the object is gone with
/// it.
pub(super) fn with_data(
    window: &mut Window,
    mut position: u64,
    mut record: DataHeader,
    end: u64,
) -> Result<Option<(u64, DataHeader)>, StorageError> {
    while record.length == 0 {
        if record.back == 0 {
            return Ok(None);
        }
        let bytes = window.bytes(record.back, DataHeader::LEN_WITH_BACK)?;
        let older = DataHeader::parse(bytes, record.back)?;
        if older.oid != record.oid {
            let expected = "a back pointer to the same object";
            return Err(StorageError::Corrupt { position, expected });
        }
        (position, record) = (record.back, older);
    }
    if end < record.end(position) {
        let expected = "a record that ends within the file";
        return Err(StorageError::Corrupt { position, expected });
    }
    Ok(Some((position, record)))
}

/// The record at a position.
pub(super) fn record(window: &mut Window, position: u64) -> Result<DataHeader, StorageError> {
    let bytes = window.bytes(position, DataHeader::LEN_WITH_BACK)?;
    Ok(DataHeader::parse(bytes, position)?)
}
