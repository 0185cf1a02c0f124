//! What a client is told when a storage cannot do what it was asked.

use zeoring_shared::ids::Oid;
use zeoring_shared::wire::reply::ErrorReply;

use crate::storage::StorageError;

/// The exception that a Python client raises for this error.
///
/// Facts about the machine (paths, what the system said) stay in the log.
pub fn of(error: &StorageError) -> ErrorReply {
    match error {
        StorageError::UnknownObject { oid } => ErrorReply::pos_key_error(*oid),
        StorageError::ReadConflict { oid, committed, read } => {
            ErrorReply::read_conflict(*oid, *committed, *read)
        }
        StorageError::DeleteConflict { oid, committed, read } => {
            ErrorReply::conflict(*oid, *committed, *read)
        }
        StorageError::Undo { reason, oid } => ErrorReply::undo_error(reason, *oid),
        StorageError::MultipleUndo { failures } => ErrorReply::multiple_undo(failures),
        StorageError::ReadOnly => ErrorReply::read_only(),
        StorageError::Quota => ErrorReply::storage_error("The storage quota has been exceeded."),
        StorageError::Refused(_)
        | StorageError::WouldWait
        | StorageError::Poisoned
        | StorageError::Corrupt { .. }
        | StorageError::SaveIndex { .. } => ErrorReply::storage_error(&error.to_string()),
        StorageError::Read { position, .. } => {
            ErrorReply::storage_error(&format!("read at {position} failed"))
        }
        StorageError::Write { position, .. } => {
            ErrorReply::storage_error(&format!("write at {position} failed"))
        }
        StorageError::NoRoot => ErrorReply::no_object(Oid::ROOT),
        StorageError::PackedLater => ErrorReply::value_error(&error.to_string()),
        StorageError::GivenUp => ErrorReply::storage_error(&error.to_string()),
        StorageError::Pack { doing, .. } => {
            ErrorReply::storage_error(&format!("the pack failed: {doing}"))
        }
        StorageError::NoSpace { .. } => {
            ErrorReply::storage_error("no space left for the transaction")
        }
    }
}
