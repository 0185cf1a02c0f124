//! A client's transaction, from `tpc_begin` to its end.
//!
//! ```text
//!   Open --vote--> FindingUndo --> InLine --> Checking --> Voted --tpc_finish--> Finishing --> over
//!                  (only if it     (only if   (only if                             (commit
//!                   undoes)         others     the disk                             thread)
//!                                   were       is needed)
//!                                   first)      |     ^
//!                                      conflicts|     |vote
//!                                               v     |
//!                                              Resolving
//! ```
//!
//! While its client resolves conflicts a transaction keeps its locks: clients give up after nine
//! votes, and under contention somebody else would always be first. The time that it may take is
//! the time that a voted transaction may take.
//!
//! Whatever ends it early (tpc_abort, an error, the end of the connection, silence after the vote)
//! leaves all lines of the lock table at once. Notes about it that come later find another ticket,
//! or none, and are dropped.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::MessageId;
use zeoring_shared::wire::reply::{self, ErrorReply};
use zeoring_shared::wire::request::{Request, TransactionId};
use zeoring_shared::wire::value::Value;

use super::desk::Desk;
use super::{Farewell, Outcome, Session, State, query, refusal, register};
use crate::clerk::Errand;
use crate::commit::draft::{Draft, Operation, Span};
use crate::commit::thread::Order;
use crate::limits::Limits;
use crate::log::Severity;
use crate::note::{Committed, Ticket};
use crate::storage::space::Reservation;
use crate::storage::{Change, Checked, Conflict, StorageError};

/// A transaction that has begun and not ended.
#[derive(Debug)]
pub(super) struct Transaction {
    id: TransactionId,
    ticket: Ticket,
    phase: Phase,
    /// When it must have been finished: counted from when its locks were granted, so that a client
    /// that votes again and again does not keep them for ever.
    deadline: Option<Duration>,
}

#[derive(Debug)]
enum Phase {
    /// The client says what it wants.
    Open(Box<Draft>),
    /// A clerk looks for what undoing would write.
    FindingUndo(Box<Draft>, MessageId),
    /// Others have objects of it locked.
    InLine(Box<Draft>, MessageId),
    /// Its objects are locked, and a clerk checks it.
    Checking(MessageId),
    /// Its objects are locked, and the client resolves conflicts.
    Resolving(Resolving),
    /// It can be finished, and nothing may go wrong any more.
    Voted(Box<Voted>),
    /// The commit thread has it.
    Finishing(MessageId),
}

/// A transaction whose client resolves conflicts.
#[derive(Debug)]
struct Resolving {
    draft: Box<Draft>,
    /// How many of the draft's operations the locks were taken for.
    locked_for: usize,
}

impl Resolving {
    /// Whether what the client has added needs no other locks.
    fn is_covered(&self) -> bool {
        let (before, added) = self.draft.operations.split_at(self.locked_for);
        let locked: HashSet<Oid> = before.iter().filter_map(Operation::written).collect();
        added.iter().all(|operation| operation.written().is_some_and(|oid| locked.contains(&oid)))
    }
}

/// A transaction that only waits for its client to finish it.
#[derive(Debug)]
struct Voted {
    draft: Draft,
    changes: Vec<Change>,
    room: Option<Reservation>,
}

impl Transaction {
    /// When it must have been finished.
    pub(super) fn deadline(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Voted(_) | Phase::Resolving(_) => self.deadline,
            _ => None,
        }
    }

    /// Whether it has been voted for, and others may wait for it.
    pub(super) fn is_locked(&self) -> bool {
        matches!(
            self.phase,
            Phase::Voted(_) | Phase::Checking(_) | Phase::Resolving(_) | Phase::Finishing(_)
        )
    }

    /// Ends it, unless the commit thread has it: what was ordered is carried out.
    pub(super) fn abandon(self, storage: usize, desk: &Desk) {
        let stats = &desk.halls[storage].service.stats;
        stats.active.fetch_sub(1, Ordering::Relaxed);
        if !matches!(self.phase, Phase::Finishing(_)) {
            stats.aborts.fetch_add(1, Ordering::Relaxed);
            desk.release(storage, self.ticket);
        }
    }
}

impl Session {
    /// Takes a call that belongs to a transaction.
    pub(super) fn change(
        &mut self,
        request: Request<'_>,
        id: Option<&MessageId>,
        desk: &mut Desk,
    ) -> Outcome {
        let method = request.name();
        let State::Open(open) = &mut self.state else {
            unreachable!("only an open session is called");
        };
        if open.read_only {
            return Err(ErrorReply::read_only().into());
        }
        let none = Ok(Some(Value::None));
        match request {
            Request::TpcBegin { .. } => self.begin(request, desk),
            Request::Vote { id: transaction } => {
                self.in_transaction(transaction)?;
                let id = reply_wanted(method, id)?;
                self.vote(id, desk)
            }
            Request::TpcFinish { id: transaction } => {
                self.in_transaction(transaction)?;
                let id = reply_wanted(method, id)?;
                self.finish(transaction, id, desk)
            }
            Request::TpcAbort { id: transaction } => {
                let storage = open.storage;
                let ours = |begun: &mut Transaction| {
                    begun.id == transaction && !matches!(begun.phase, Phase::Finishing(_))
                };
                if let Some(transaction) = open.transaction.take_if(ours) {
                    self.pending -= usize::from(transaction.is_pending());
                    transaction.abandon(storage, desk);
                }
                none
            }
            Request::Storea { oid, serial, data, id } => {
                let data = self.spool(id, method, &data, desk)?;
                self.note(method, Operation::Store { oid, serial, data }, desk)
            }
            Request::Restorea { oid, serial, data, previous, id } => {
                let data = match data {
                    Some(data) => Some(self.spool(id, method, &data, desk)?),
                    None => None,
                };
                self.note(method, Operation::Restore { oid, serial, data, previous }, desk)
            }
            Request::DeleteObject { oid, serial, id } => {
                self.in_transaction(id)?;
                self.note(method, Operation::Delete { oid, serial }, desk)
            }
            Request::CheckCurrentSerial { oid, serial, id } => {
                self.in_transaction(id)?;
                self.note(method, Operation::Check { oid, serial }, desk)
            }
            Request::Undoa { tid, id } => {
                self.in_transaction(id)?;
                self.note(method, Operation::Undo { tid }, desk)
            }
            _ => Err(Farewell::Call(format!("`{method}` is not to be called")).into()),
        }
    }

    fn begin(&mut self, request: Request<'_>, desk: &Desk) -> Outcome {
        let Request::TpcBegin { id, user, description, extension, tid, status } = request else {
            unreachable!("the caller has looked");
        };
        let State::Open(open) = &mut self.state else {
            unreachable!("only an open session is called");
        };
        match &open.transaction {
            Some(begun) if begun.id == id => {
                self.log(Severity::Info, &format!("duplicate tpc_begin({})", id.0));
                return Ok(Some(Value::None));
            }
            Some(_) => {
                let text = "Multiple simultaneous tpc_begin requests from one client.";
                return Err(ErrorReply::transaction_text(text).into());
            }
            None => {}
        }
        open.transactions_begun = open.transactions_begun.wrapping_add(1);
        let ticket = Ticket { connection: self.id, number: open.transactions_begun };
        let draft = Draft {
            user: Bytes::copy_from_slice(&user),
            description: Bytes::copy_from_slice(&description),
            extension: Bytes::copy_from_slice(&extension),
            tid,
            packed: status == b'p',
            ..Draft::default()
        };
        let phase = Phase::Open(Box::new(draft));
        open.transaction = Some(Transaction { id, ticket, phase, deadline: None });
        desk.halls[open.storage].service.stats.active.fetch_add(1, Ordering::Relaxed);
        Ok(Some(Value::None))
    }

    /// Makes sure that a call names the transaction that has begun.
    fn in_transaction(&self, id: TransactionId) -> Result<(), ErrorReply> {
        let State::Open(open) = &self.state else {
            unreachable!("only an open session is called");
        };
        match &open.transaction {
            Some(begun) if begun.id == id => Ok(()),
            begun => Err(ErrorReply::transaction_error(begun.as_ref().map(|begun| begun.id), id)),
        }
    }

    /// Keeps a pickle of the open transaction.
    fn spool(
        &mut self,
        id: TransactionId,
        method: &str,
        data: &[u8],
        desk: &Desk,
    ) -> Result<Span, super::Refusal> {
        self.in_transaction(id)?;
        let draft = self.draft(method)?;
        fits(draft, data.len(), desk)?;
        let span = draft.spool.push(data).map_err(|error| {
            self.log(Severity::Error, &format!("temporary file of a transaction: {error}"));
            ErrorReply::storage_error("no temporary space for the transaction")
        })?;
        let State::Open(open) = &self.state else {
            unreachable!("only an open session is called");
        };
        desk.halls[open.storage].service.stats.stores.fetch_add(1, Ordering::Relaxed);
        Ok(span)
    }

    fn note(&mut self, method: &str, operation: Operation, desk: &Desk) -> Outcome {
        let draft = self.draft(method)?;
        fits(draft, 0, desk)?;
        draft.operations.push(operation);
        Ok(Some(Value::None))
    }

    /// The draft of the transaction while it may still grow.
    fn draft(&mut self, method: &str) -> Result<&mut Draft, Farewell> {
        let State::Open(open) = &mut self.state else {
            unreachable!("only an open session is called");
        };
        match open.transaction.as_mut().map(|begun| &mut begun.phase) {
            Some(Phase::Open(draft) | Phase::Resolving(Resolving { draft, .. })) => Ok(draft),
            _ => Err(Farewell::Call(format!("`{method}` was called after vote"))),
        }
    }

    fn vote(&mut self, id: &MessageId, desk: &mut Desk) -> Outcome {
        let State::Open(open) = &mut self.state else {
            unreachable!("only an open session is called");
        };
        let service = desk.halls[open.storage].service.clone();
        let transaction = open.transaction.as_mut().expect("the caller has looked");
        let ticket = transaction.ticket;
        let phase = std::mem::replace(&mut transaction.phase, Phase::Open(Box::default()));
        let (phase, answer) = match phase {
            Phase::Open(draft) if service.poisoned.load(Ordering::Acquire) => {
                drop(draft);
                open.transaction = None;
                service.stats.active.fetch_sub(1, Ordering::Relaxed);
                return Err(refusal::of(&StorageError::Poisoned).into());
            }
            Phase::Open(draft) => {
                self.pending += 1;
                let tids = draft.undone();
                if tids.is_empty() {
                    transaction.phase = Phase::InLine(draft, id.clone());
                    self.join(Vec::new(), desk);
                    return Ok(None);
                }
                desk.send(self.id, Errand::FindUndoOids { ticket, tids, service });
                (Phase::FindingUndo(draft, id.clone()), Ok(None))
            }
            Phase::Resolving(resolving) if resolving.is_covered() => {
                self.pending += 1;
                transaction.phase = Phase::InLine(resolving.draft, id.clone());
                self.granted(ticket, desk);
                return Ok(None);
            }
            Phase::Resolving(Resolving { draft, .. }) => {
                service.release(ticket, &desk.post);
                transaction.deadline = None;
                transaction.phase = Phase::Open(draft);
                return self.vote(id, desk);
            }
            phase @ Phase::Voted(_) => {
                (phase, Err(ErrorReply::transaction_text("Already voting (locked)").into()))
            }
            phase => (phase, Err(ErrorReply::transaction_text("Already voting (waiting)").into())),
        };
        transaction.phase = phase;
        answer
    }

    /// A clerk has found what undoing would write: gets in line.
    pub fn found_undo_oids(
        &mut self,
        ticket: Ticket,
        oids: Result<Vec<Oid>, StorageError>,
        desk: &mut Desk,
    ) {
        let Some(begun) = self.current(ticket) else {
            return;
        };
        let phase = std::mem::replace(&mut begun.phase, Phase::Open(Box::default()));
        let Phase::FindingUndo(draft, id) = phase else {
            unreachable!("a clerk reports once");
        };
        match oids {
            Ok(oids) => {
                begun.phase = Phase::InLine(draft, id);
                self.join(oids, desk);
            }
            Err(error) => self.vote_failed(&id, &error, desk),
        }
    }

    /// Joins the lines of all objects, and goes on at once if nobody is before.
    fn join(&mut self, undone: Vec<Oid>, desk: &mut Desk) {
        let State::Open(open) = &self.state else {
            unreachable!("only an open session votes");
        };
        let Some(Transaction { ticket, phase: Phase::InLine(draft, _), .. }) = &open.transaction
        else {
            unreachable!("the caller has put it in line");
        };
        let ticket = *ticket;
        let service = desk.halls[open.storage].service.clone();
        let (granted, waiting) = {
            let mut locks = service.locks();
            let writes = draft.written().chain(undone);
            let granted = locks.claim(ticket, draft.tid.is_some(), writes, draft.read());
            (granted, locks.waiting())
        };
        if granted {
            self.granted(ticket, desk);
        } else {
            let severity = match waiting {
                10.. => Severity::Critical,
                4.. => Severity::Warning,
                _ => Severity::Debug,
            };
            let name = &service.name;
            self.log(severity, &format!("({name:?}) queue lock: transactions waiting: {waiting}"));
        }
    }

    /// Nobody is before this transaction any more: checks it.
    pub fn granted(&mut self, ticket: Ticket, desk: &mut Desk) {
        let State::Open(open) = &self.state else {
            return;
        };
        let service = desk.halls[open.storage].service.clone();
        let now_ms = desk.since_1970.as_millis() as u64;
        let deadline = desk.limits.transaction_timeout.map(|timeout| desk.now + timeout);
        let Some(begun) = self.current(ticket) else {
            return;
        };
        service.stats.locked_ms.store(now_ms, Ordering::Relaxed);
        let phase = std::mem::replace(&mut begun.phase, Phase::Open(Box::default()));
        let Phase::InLine(draft, id) = phase else {
            unreachable!("locks are granted once");
        };
        begun.phase = Phase::Checking(id);
        begun.deadline = begun.deadline.or(deadline);
        let last = service.storage.last_tid();
        let outcome = match timely(&draft, last, desk.since_1970) {
            Err(error) => Err(error),
            Ok(()) if !draft.undone().is_empty() => Err(StorageError::WouldWait),
            Ok(()) => service.storage.check(&draft, false),
        };
        if matches!(outcome, Err(StorageError::WouldWait)) {
            desk.send(self.id, Errand::Check { ticket, draft, service });
        } else {
            self.checked(ticket, draft, outcome, desk);
        }
    }

    /// The transaction was checked: it is voted for, or goes back to the client, or ends.
    pub fn checked(
        &mut self,
        ticket: Ticket,
        draft: Box<Draft>,
        outcome: Result<Checked, StorageError>,
        desk: &mut Desk,
    ) {
        let State::Open(open) = &self.state else {
            return;
        };
        let (codec, storage) = (open.codec, open.storage);
        let service = desk.halls[storage].service.clone();
        let Some(begun) = self.current(ticket) else {
            return;
        };
        let Phase::Checking(id) = &begun.phase else {
            unreachable!("a transaction is checked once a vote");
        };
        let id = id.clone();
        match outcome {
            Ok(Checked { changes, conflicts, chosen, room }) if conflicts.is_empty() => {
                let voted = Voted { draft: *draft, changes, room };
                begun.phase = Phase::Voted(Box::new(voted));
                self.pending -= 1;
                let chosen = Value::List(chosen.into_iter().map(query::oid_value).collect());
                reply::reply(codec, &id, &chosen, &mut self.outbox);
            }
            Ok(Checked { conflicts, .. }) if desk.limits.output_max < data_length(&conflicts) => {
                // More than may wait for a client: it has to do without a resolution.
                let Conflict { oid, committed, read, .. } = conflicts[0];
                let error = StorageError::DeleteConflict { oid, committed, read };
                self.vote_failed(&id, &error, desk);
            }
            Ok(Checked { conflicts, .. }) => match conflict_values(&draft, &conflicts) {
                Ok(values) => {
                    let locked_for = draft.operations.len();
                    begun.phase = Phase::Resolving(Resolving { draft, locked_for });
                    self.pending -= 1;
                    service.stats.conflicts.fetch_add(1, Ordering::Relaxed);
                    reply::reply(codec, &id, &values, &mut self.outbox);
                }
                Err(source) => {
                    let error = StorageError::NoSpace { source };
                    self.vote_failed(&id, &error, desk);
                }
            },
            Err(error) => self.vote_failed(&id, &error, desk),
        }
    }

    /// The vote ends the transaction.
    fn vote_failed(&mut self, id: &MessageId, error: &StorageError, desk: &mut Desk) {
        let State::Open(open) = &mut self.state else {
            return;
        };
        let storage = open.storage;
        let transaction = open.transaction.take().expect("a vote that fails has a transaction");
        transaction.abandon(storage, desk);
        self.pending -= 1;
        if matches!(error, StorageError::ReadConflict { .. } | StorageError::DeleteConflict { .. })
        {
            let service = &desk.halls[storage].service;
            service.stats.conflicts.fetch_add(1, Ordering::Relaxed);
        }
        self.refuse("vote", id, &refusal::of(error));
    }

    fn finish(&mut self, name: TransactionId, id: &MessageId, desk: &mut Desk) -> Outcome {
        let State::Open(open) = &mut self.state else {
            unreachable!("only an open session is called");
        };
        let transaction = open.transaction.as_mut().expect("the caller has looked");
        let phase = std::mem::replace(&mut transaction.phase, Phase::Finishing(id.clone()));
        let Phase::Voted(voted) = phase else {
            transaction.phase = phase;
            return Err(ErrorReply::transaction_error(Some(name), name).into());
        };
        let Voted { draft, changes, room, .. } = *voted;
        let order = Order { ticket: transaction.ticket, draft, changes, room };
        self.pending += 1;
        desk.order(open.storage, order);
        Ok(None)
    }

    /// A commit of this connection is published: answers `tpc_finish`. Returns whether it did.
    pub(super) fn finished(&mut self, committed: &Committed, desk: &Desk) -> bool {
        let State::Open(open) = &mut self.state else {
            return false;
        };
        let ours = |begun: &mut Transaction| begun.ticket == committed.ticket;
        let Some(transaction) = open.transaction.take_if(ours) else {
            return false;
        };
        let Phase::Finishing(id) = transaction.phase else {
            unreachable!("only what was finished is committed");
        };
        self.pending -= 1;
        let service = &desk.halls[open.storage].service;
        service.stats.active.fetch_sub(1, Ordering::Relaxed);
        let sizes = Value::Tuple(vec![register::sizes(committed.object_count, committed.size)]);
        reply::notice(open.codec, "info", &sizes, &mut self.outbox);
        reply::reply(open.codec, &id, &query::tid_value(committed.tid), &mut self.outbox);
        true
    }

    /// A commit of this connection could not be written.
    pub fn commit_failed(&mut self, ticket: Ticket, error: &ErrorReply, desk: &Desk) {
        let State::Open(open) = &mut self.state else {
            return;
        };
        let Some(transaction) = open.transaction.take_if(|begun| begun.ticket == ticket) else {
            return;
        };
        let Phase::Finishing(id) = transaction.phase else {
            unreachable!("only what was finished can fail to be written");
        };
        self.pending -= 1;
        let service = &desk.halls[open.storage].service;
        service.stats.active.fetch_sub(1, Ordering::Relaxed);
        self.refuse("tpc_finish", &id, error);
    }

    /// The transaction that a note is about, unless it has ended meanwhile.
    fn current(&mut self, ticket: Ticket) -> Option<&mut Transaction> {
        let State::Open(open) = &mut self.state else {
            return None;
        };
        open.transaction.as_mut().filter(|begun| begun.ticket == ticket)
    }
}

impl Transaction {
    /// Whether a reply to its vote or finish is due.
    fn is_pending(&self) -> bool {
        !matches!(self.phase, Phase::Open(_) | Phase::Resolving(_) | Phase::Voted(_))
    }
}

/// Whether a transaction has room for one more operation with so many bytes of data.
fn fits(draft: &Draft, data: usize, desk: &Desk) -> Result<(), ErrorReply> {
    let limit = desk.limits.transaction_max;
    let operations = (draft.operations.len() + 1) * size_of::<Operation>();
    if draft.spool.length() + (operations + data) as u64 <= limit {
        return Ok(());
    }
    let text = format!("a transaction may have {limit} bytes (transaction-bytes-max)");
    Err(ErrorReply::storage_error(&text))
}

/// Checks the tids that a copy of another storage brings: later than the last, so that they rise,
/// and not far in the future, because every later one has to be later still.
fn timely(draft: &Draft, last: Tid, since_1970: Duration) -> Result<(), StorageError> {
    let refuse = |text: String| Err(StorageError::Refused(text));
    let latest = Tid::at(since_1970 + Limits::TID_AHEAD_MAX);
    match draft.tid {
        Some(tid) if tid <= last => {
            return refuse(format!(
                "the transaction is to have tid {tid}, which is not later than the last, {last}"
            ));
        }
        Some(tid) if latest < tid => {
            return refuse(format!("the transaction is to have tid {tid}, which is in the future"));
        }
        _ => {}
    }
    // A record that is later than its transaction could be seen by nobody until then.
    let latest = draft.tid.unwrap_or_else(|| last.later(since_1970));
    let late = |operation: &&Operation| matches!(operation, Operation::Restore { serial, .. } if latest < *serial);
    if let Some(Operation::Restore { oid, serial, .. }) = draft.operations.iter().find(late) {
        return refuse(format!(
            "object {oid} is to have serial {serial}, which is later than its transaction"
        ));
    }
    Ok(())
}

fn reply_wanted<'a>(method: &str, id: Option<&'a MessageId>) -> Result<&'a MessageId, Farewell> {
    id.ok_or_else(|| Farewell::Call(format!("`{method}` was called without a reply wanted")))
}

/// Bytes of data that the answer to a vote with these conflicts has.
fn data_length(conflicts: &[Conflict]) -> usize {
    conflicts.iter().map(|conflict| conflict.data.length as usize).sum()
}

/// Conflicts as the client's resolution wants them (`ZEO/StorageServer.py`, `_store`).
fn conflict_values(draft: &Draft, conflicts: &[Conflict]) -> std::io::Result<Value<'static>> {
    let value = |conflict: &Conflict| {
        let mut data = Vec::new();
        draft.spool.read(conflict.data, &mut data)?;
        let serials = vec![query::tid_value(conflict.committed), query::tid_value(conflict.read)];
        let entries = [
            ("oid", query::oid_value(conflict.oid)),
            ("serials", Value::Tuple(serials)),
            ("data", Value::Bytes(data.into())),
        ];
        let entries = entries.into_iter().map(|(key, value)| (Value::Str(key.into()), value));
        Ok(Value::Dict(entries.collect()))
    };
    Ok(Value::List(conflicts.iter().map(value).collect::<std::io::Result<_>>()?))
}
