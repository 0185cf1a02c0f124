//! What a storage says when it cannot do what it was asked.

use std::io;

use zeoring_shared::ids::{Oid, Tid};

/// The storage could not do what it was asked.
///
/// [`StorageError::verdict`] says who has to act: the client that asked, or whoever runs the
/// server.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// No such object, or not at that time: deleted, its creation undone, or never stored.
    #[error("{oid} is not there")]
    UnknownObject {
        /// The object that was asked for.
        oid: Oid,
    },
    /// A `checkCurrentSerialInTransaction`, or a delete, of an object that has changed.
    #[error("{oid} was read at {read} but changed at {committed}")]
    ReadConflict {
        /// Which object.
        oid: Oid,
        /// The current serial, or [`Tid::ZERO`] if there is none.
        committed: Tid,
        /// The serial that the client named.
        read: Tid,
    },
    /// A deletion of an object that has changed.
    #[error("{oid} was to be deleted at {read} but changed at {committed}")]
    DeleteConflict {
        /// Which object.
        oid: Oid,
        /// The current serial.
        committed: Tid,
        /// The serial that the client named.
        read: Tid,
    },
    /// The transaction cannot be undone, for the reason given in ZODB's words.
    #[error("{reason}")]
    Undo {
        /// Why, as `ZODB.POSException.UndoError` says it.
        reason: &'static str,
        /// The object that stands in the way, if it is one.
        oid: Option<Oid>,
    },
    /// Some objects of a transaction cannot be undone (`MultipleUndoErrors`).
    #[error("{} objects cannot be undone", failures.len())]
    MultipleUndo {
        /// Each object, and why.
        failures: Vec<(Oid, &'static str)>,
    },
    /// The storage is open read-only.
    #[error("the storage is read-only")]
    ReadOnly,
    /// The data would exceed the configured quota.
    #[error("the storage quota is exceeded")]
    Quota,
    /// The client asked for something that no storage can do.
    #[error("{0}")]
    Refused(String),
    /// The question has to wait for the disk, and the one who asked would not.
    #[error("the answer has to be read from disk")]
    WouldWait,
    /// An earlier write or sync failed: no commits until the server is started again.
    #[error("the storage takes no commits since a write failed; restart the server")]
    Poisoned,
    /// The data file does not say what its format requires.
    #[error("data file at {position}: expected {expected}")]
    Corrupt {
        /// Byte offset in the data file.
        position: u64,
        /// What should have been there.
        expected: &'static str,
    },
    /// A read failed. What the disk holds is unchanged.
    #[error("read at {position} failed: {source}")]
    Read {
        /// Byte offset in the data file.
        position: u64,
        /// What the system said.
        source: io::Error,
    },
    /// A write or a sync failed. What the disk holds is unknown until the file is opened again.
    #[error("write at {position} failed: {source}")]
    Write {
        /// Byte offset in the data file.
        position: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The index could not be saved. The next start reads more of the data file.
    #[error("the index could not be saved: {source}")]
    SaveIndex {
        /// What the system said.
        source: io::Error,
    },
    /// The root object is not there, so that all objects would be garbage.
    #[error("the root object is not there")]
    NoRoot,
    /// A pack to an earlier time than the last one's, of a storage that refuses that.
    #[error("Already packed to a later time")]
    PackedLater,
    /// A pack was told to give up. Nothing has changed.
    #[error("the pack was given up, as the server stops")]
    GivenUp,
    /// A pack failed. Nothing has changed.
    #[error("the pack failed: {doing}: {source}")]
    Pack {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// There is no room for the transaction. Nothing was written.
    #[error("no space left for the transaction: {source}")]
    NoSpace {
        /// What the system said.
        source: io::Error,
    },
}

/// What follows from a [`StorageError`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Tell the client. The storage is well.
    Refuse,
    /// Tell the client, accept no more commits, and say so in the log.
    Poison,
}

impl StorageError {
    /// Says who has to act. A new variant does not compile until it is sorted here.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::UnknownObject { .. }
            | Self::ReadConflict { .. }
            | Self::DeleteConflict { .. }
            | Self::Undo { .. }
            | Self::MultipleUndo { .. }
            | Self::ReadOnly
            | Self::Quota
            | Self::Refused(_)
            | Self::WouldWait
            | Self::Poisoned
            | Self::Corrupt { .. }
            | Self::Read { .. }
            | Self::SaveIndex { .. }
            | Self::NoRoot
            | Self::GivenUp
            | Self::PackedLater
            | Self::Pack { .. }
            | Self::NoSpace { .. } => Verdict::Refuse,
            Self::Write { .. } => Verdict::Poison,
        }
    }
}
