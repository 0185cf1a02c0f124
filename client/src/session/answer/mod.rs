//! Results of calls as types, read from what the server sends. A value of the wrong form is an
//! error of the server.

mod history;
mod iteration;
pub(crate) mod read;
mod status;
mod vote;

use std::sync::Arc;

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::request::Request;
use zeoring_shared::wire::value::Value;

pub use self::history::{HistoryEntry, UndoEntry};
pub use self::iteration::{CurrentRecord, RecordEntry, TransactionEntry};
pub use self::status::{Info, Status};
pub use self::vote::{Conflict, Verdict};
use crate::blob::Received;
use crate::error::ServerError;

/// One state of an object, and how long it was the current one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Revision {
    /// The record: two pickles, which this client does not read.
    pub data: Bytes,
    /// The transaction that wrote it.
    pub serial: Tid,
    /// The transaction that wrote the next revision; `None` while this is the current one.
    pub end: Option<Tid>,
}

/// The result of a call. Which variant depends on the call alone.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Of a load: `None` when the object has no revision as old as that.
    Revision(Option<Revision>),
    /// Of `loadSerial`: a record's two pickles.
    Data(Bytes),
    /// Of `lastTransaction`, `getTid` and `tpc_finish`.
    Tid(Tid),
    /// Of `new_oids` and `new_oid`.
    Oids(Vec<Oid>),
    /// Of `get_info`.
    Info(Info),
    /// Of `server_status`.
    Status(Status),
    /// Of `getInvalidations`: the last transaction, and what was written since the one that was
    /// asked about; `None` when the server does not remember so much.
    Invalidated(Option<(Tid, Vec<Oid>)>),
    /// Of `history`: the newest first.
    History(Vec<HistoryEntry>),
    /// Of `undoLog` and `undoInfo`: the newest first.
    UndoLog(Vec<UndoEntry>),
    /// Of `record_iternext`.
    CurrentRecord(CurrentRecord),
    /// Of `iterator_start` and `iterator_record_start`: the server's name for the iterator.
    Iterator(i64),
    /// Of `iterator_next`: `None` at the end, and the server has forgotten the iterator.
    TransactionEntry(Option<TransactionEntry>),
    /// Of `iterator_record_next`: `None` at the end, and the server has forgotten the iterator.
    RecordEntry(Option<RecordEntry>),
    /// Of `vote`.
    Verdict(Verdict),
    /// Of many loads as of one moment, in the order in which they were asked for.
    Revisions(Vec<Result<Option<Revision>, ServerError>>),
    /// Of `sendBlob`, where the client keeps blobs: all that came before it.
    Blob(Arc<Received>),
    /// Of a call without a result: `ping`, `pack`, `tpc_abort`, and `sendBlob`.
    Done,
}

/// What kind of answer a call waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Register,
    Load,
    LoadSerial,
    GetTid,
    LastTransaction,
    NewOids,
    NewOid,
    Info,
    Status,
    Invalidations,
    History,
    UndoLog,
    UndoInfo,
    CurrentRecord,
    Iterator,
    NextTransaction,
    RecordIterator,
    NextRecord,
    SendBlob,
    Pack,
    Ping,
    Vote,
    Finish,
    Abort,
}

impl Kind {
    /// What a request waits for. Those that have no answer are not to be asked about.
    pub(super) fn of(request: &Request<'_>) -> Self {
        match request {
            Request::Register { .. } => Self::Register,
            Request::LoadBefore { .. } => Self::Load,
            Request::LoadSerial { .. } => Self::LoadSerial,
            Request::GetTid { .. } => Self::GetTid,
            Request::LastTransaction => Self::LastTransaction,
            Request::NewOids { .. } => Self::NewOids,
            Request::NewOid => Self::NewOid,
            Request::GetInfo => Self::Info,
            Request::ServerStatus => Self::Status,
            Request::GetInvalidations { .. } => Self::Invalidations,
            Request::History { .. } => Self::History,
            Request::UndoLog { .. } => Self::UndoLog,
            Request::UndoInfo { .. } => Self::UndoInfo,
            Request::RecordIternext { .. } => Self::CurrentRecord,
            Request::IteratorStart { .. } => Self::Iterator,
            Request::IteratorNext { .. } => Self::NextTransaction,
            Request::IteratorRecordStart { .. } => Self::RecordIterator,
            Request::IteratorRecordNext { .. } => Self::NextRecord,
            Request::SendBlob { .. } => Self::SendBlob,
            Request::Pack { .. } => Self::Pack,
            Request::Ping => Self::Ping,
            Request::Vote { .. } => Self::Vote,
            Request::TpcFinish { .. } => Self::Finish,
            Request::TpcAbort { .. } => Self::Abort,
            Request::SetClientLabel { .. }
            | Request::TpcBegin { .. }
            | Request::Storea { .. }
            | Request::DeleteObject { .. }
            | Request::CheckCurrentSerial { .. }
            | Request::Restorea { .. }
            | Request::Undoa { .. }
            | Request::StoreBlobStart
            | Request::StoreBlobChunk { .. }
            | Request::StoreBlobEnd { .. }
            | Request::StoreBlobShared { .. }
            | Request::IteratorGc { .. } => panic!("{} has no answer", request.name()),
        }
    }

    /// The call as the server knows it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Load => "loadBefore",
            Self::LoadSerial => "loadSerial",
            Self::GetTid => "getTid",
            Self::LastTransaction => "lastTransaction",
            Self::NewOids => "new_oids",
            Self::NewOid => "new_oid",
            Self::Info => "get_info",
            Self::Status => "server_status",
            Self::Invalidations => "getInvalidations",
            Self::History => "history",
            Self::UndoLog => "undoLog",
            Self::UndoInfo => "undoInfo",
            Self::CurrentRecord => "record_iternext",
            Self::Iterator => "iterator_start",
            Self::NextTransaction => "iterator_next",
            Self::RecordIterator => "iterator_record_start",
            Self::NextRecord => "iterator_record_next",
            Self::SendBlob => "sendBlob",
            Self::Pack => "pack",
            Self::Ping => "ping",
            Self::Vote => "vote",
            Self::Finish => "tpc_finish",
            Self::Abort => "tpc_abort",
        }
    }

    /// Reads the result of such a call; `None` when it has not the right form. The server's way to
    /// say that it knows no such transaction is an error here.
    pub(super) fn read(self, value: &Value<'_>) -> Option<Result<Answer, ServerError>> {
        if let (Self::Finish, Value::None) = (self, value) {
            return Some(Err(ServerError::unknown_transaction()));
        }
        self.answer(value).map(Ok)
    }

    fn answer(self, value: &Value<'_>) -> Option<Answer> {
        Some(match self {
            // Revisions come as loads, so here the server says that there is none.
            Self::Load => match value {
                Value::None => Answer::Revision(None),
                _ => return None,
            },
            // A storage without a transaction may have no last one to tell.
            Self::Register | Self::LastTransaction => {
                Answer::Tid(read::optional(value, read::tid)?.unwrap_or(Tid::ZERO))
            }
            Self::GetTid | Self::Finish => Answer::Tid(read::tid(value)?),
            Self::LoadSerial => Answer::Data(read::data(value)?),
            Self::NewOids => Answer::Oids(read::all(value, read::oid)?),
            Self::NewOid => Answer::Oids(vec![read::oid(value)?]),
            Self::Info => Answer::Info(status::info(value)?),
            Self::Status => Answer::Status(status::status(value)?),
            Self::Invalidations => Answer::Invalidated(read::optional(value, invalidated)?),
            Self::History => Answer::History(read::all(value, history::history_entry)?),
            Self::UndoLog | Self::UndoInfo => Answer::UndoLog(history::undo_log(value)?),
            Self::CurrentRecord => Answer::CurrentRecord(iteration::current_record(value)?),
            Self::Iterator | Self::RecordIterator => Answer::Iterator(read::number(value)?),
            Self::NextTransaction => {
                Answer::TransactionEntry(read::optional(value, iteration::transaction_entry)?)
            }
            Self::NextRecord => {
                Answer::RecordEntry(read::optional(value, iteration::record_entry)?)
            }
            Self::Vote => Answer::Verdict(vote::verdict(value)?),
            Self::SendBlob | Self::Pack | Self::Ping | Self::Abort => Answer::Done,
        })
    }

    /// Reads a result that has the shape of a load's: data, eight bytes, and eight bytes or none.
    /// In msgpack three oids look like that too, so it need not be one.
    pub(super) fn read_load(self, data: &[u8], serial: Tid, end: Option<Tid>) -> Option<Answer> {
        let three_oids = || {
            let first = Oid::from_bytes(data.try_into().ok()?);
            Some(vec![first, Oid(serial.0), Oid(end?.0)])
        };
        match self {
            Self::Load => {
                let data = Bytes::copy_from_slice(data);
                Some(Answer::Revision(Some(Revision { data, serial, end })))
            }
            Self::NewOids => Some(Answer::Oids(three_oids()?)),
            Self::Vote => Some(Answer::Verdict(Verdict::Accepted(three_oids()?))),
            _ => None,
        }
    }

    /// Reads an exception as the result of such a call: a conflict is one, all others are errors.
    pub(super) fn read_error(self, class: &str, args: &Value<'_>) -> Result<Answer, ServerError> {
        let error = ServerError::new(class, args);
        if let (Self::Vote, true, Value::Dict(entries)) = (self, error.is_conflict(), args)
            && let Some(conflict) = vote::conflict(entries)
        {
            return Ok(Answer::Verdict(Verdict::Refused(conflict)));
        }
        Err(error)
    }
}

fn invalidated(value: &Value<'_>) -> Option<(Tid, Vec<Oid>)> {
    let [tid, oids] = read::sequence(value)? else { return None };
    Some((read::tid(tid)?, read::all(oids, read::oid)?))
}

#[cfg(test)]
mod tests;
