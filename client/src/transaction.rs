//! A transaction as types: what may not happen next does not compile.
//!
//! ```text
//!   begin -> Transaction --store, delete, check, ...--> vote -> Voted -> finish -> tid
//!                 ^                                       |        `----> abort
//!                 `--------- Conflicts, to resolve <------'
//! ```
//!
//! What it writes gathers here, encoded, until the vote or until it is much: a connection has one
//! transaction at a time, and whoever only gathers keeps nobody waiting.

mod upload;

use std::fmt;
use std::path::Path;

use bytes::Bytes;
use rustc_hash::FxHashSet;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::request::{Request, TransactionId};

use self::upload::Blobs;
use crate::blob::BlobError;
use crate::client::{Zeo, unexpected};
use crate::driver::local::Local;
use crate::driver::{Driver, Tie};
use crate::error::ClientError;
use crate::facade::{blocking, tasks};
use crate::session::order::{Finish, Order, Question, encode_one_way};
use crate::session::{Answer, Conflict, Outcome, Verdict};

/// What has gathered leaves before the vote once it is so long, so that a large transaction is not
/// held in memory.
const GATHERED_MAX: usize = 4 * 1024 * 1024;

/// So much data of a transaction is kept, to be remembered when it is committed; what it writes
/// beyond is loaded again when it is needed.
const KEPT_MAX: usize = 16 * 1024 * 1024;

/// The status of a transaction that is not a copy of an old one.
const STATUS_NORMAL: u8 = b' ';

/// Who and what of a transaction, for its entry in the history.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Description {
    /// Who commits.
    pub user: Vec<u8>,
    /// What it is about.
    pub description: Vec<u8>,
    /// More about it: nothing, or the pickle of a dictionary.
    pub extension: Vec<u8>,
}

impl Description {
    /// A record's header has two bytes for each length (`ZODB/FileStorage/format.py`, `TxnHeader`).
    pub(crate) fn check(&self) -> Result<(), ClientError> {
        let parts = [
            ("user", self.user.len()),
            ("description", self.description.len()),
            ("extension", self.extension.len()),
        ];
        let length_max = usize::from(u16::MAX);
        match parts.into_iter().find(|&(_, length)| length_max < length) {
            Some((what, length)) => Err(ClientError::TooLong { what, length, length_max }),
            None => Ok(()),
        }
    }
}

/// What a copy of a transaction keeps of its original.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Restored {
    /// Its tid, which has to be later than the storage's last.
    pub tid: Tid,
    /// Its status: `b' '`, or `b'p'` where it was packed.
    pub status: u8,
}

/// A transaction that has not been voted. Dropping it aborts it.
#[derive(Debug)]
pub struct Transaction<'c, D: Driver> {
    open: Open<'c, D>,
}

/// What a vote came to.
#[derive(Debug)]
pub enum Vote<'c, D: Driver> {
    /// It can be finished, and nobody else can write its objects until then.
    Ready(Voted<'c, D>),
    /// Others wrote some of its objects first. Store each of them again with the state that
    /// resolves the conflict and [`Conflict::committed`] as its serial, and vote again; or abort.
    /// Each conflict has the three states that this takes: read, committed, refused.
    Conflicts {
        /// The objects, with the states that were refused.
        conflicts: Vec<Conflict>,
        /// The transaction, which goes on.
        transaction: Transaction<'c, D>,
    },
    /// The server dropped the transaction over a conflict that it could not resolve, or over a
    /// check.
    Refused(Conflict),
}

/// A transaction that has been voted, and holds locks in the server. Dropping it aborts it.
#[derive(Debug)]
pub struct Voted<'c, D: Driver> {
    open: Open<'c, D>,
    rewritten: Vec<Oid>,
}

/// A transaction, and how much of it the server knows.
struct Open<'c, D: Driver> {
    client: &'c Zeo<D>,
    tie: Tie,
    id: TransactionId,
    /// Encoded calls that have not left.
    gathered: Vec<u8>,
    /// Whether it is this client's turn at the server: from the first bytes to the end.
    has_turn: bool,
    stored: Vec<(Oid, Bytes)>,
    kept: usize,
    others: Vec<Oid>,
    blobs: Blobs,
}

impl<'c, D: Driver> Transaction<'c, D> {
    pub(crate) fn begin(
        client: &'c Zeo<D>,
        tie: Tie,
        id: TransactionId,
        description: &Description,
        restored: Option<Restored>,
    ) -> Self {
        let open = Open {
            client,
            tie,
            id,
            gathered: Vec::new(),
            has_turn: false,
            stored: Vec::new(),
            kept: 0,
            others: Vec::new(),
            blobs: Blobs::default(),
        };
        let mut transaction = Self { open };
        transaction.open.add(Request::TpcBegin {
            id,
            user: description.user.as_slice().into(),
            description: description.description.as_slice().into(),
            extension: description.extension.as_slice().into(),
            tid: restored.map(|restored| restored.tid),
            status: restored.map_or(STATUS_NORMAL, |restored| restored.status),
        });
        transaction
    }

    async fn store_(&mut self, oid: Oid, serial: Tid, data: &[u8]) -> Result<(), ClientError> {
        let id = self.open.id;
        self.open.add(Request::Storea { oid, serial, data: data.into(), id });
        self.open.keep(oid, data);
        self.open.send_if_much().await
    }

    async fn delete_(&mut self, oid: Oid, serial: Tid) -> Result<(), ClientError> {
        let id = self.open.id;
        self.open.add(Request::DeleteObject { oid, serial, id });
        self.open.others.push(oid);
        self.open.send_if_much().await
    }

    async fn check_(&mut self, oid: Oid, serial: Tid) -> Result<(), ClientError> {
        let id = self.open.id;
        self.open.add(Request::CheckCurrentSerial { oid, serial, id });
        self.open.send_if_much().await
    }

    async fn restore_(
        &mut self,
        oid: Oid,
        serial: Tid,
        data: Option<&[u8]>,
        previous: Option<Tid>,
    ) -> Result<(), ClientError> {
        let id = self.open.id;
        let sent = data.map(Into::into);
        self.open.add(Request::Restorea { oid, serial, data: sent, previous, id });
        match data {
            Some(data) => self.open.keep(oid, data),
            None => self.open.others.push(oid),
        }
        self.open.send_if_much().await
    }

    async fn undo_(&mut self, tid: Tid) -> Result<(), ClientError> {
        let id = self.open.id;
        self.open.add(Request::Undoa { tid, id });
        self.open.send_if_much().await
    }

    async fn vote_(mut self) -> Result<Vote<'c, D>, ClientError> {
        if let Some(oid) = self.open.blobs.unfinished() {
            self.open.end().await?;
            return Err(BlobError::NotStored { oid }.into());
        }
        self.open.take_turn().await?;
        let id = self.open.id;
        let verdict = match self.open.call(Request::Vote { id }).await {
            Ok(Answer::Verdict(verdict)) => verdict,
            Ok(other) => return unexpected("vote", &other),
            Err(error) => {
                // The storage let it go; the session of a server ends it only by an abort.
                self.open.end().await?;
                return Err(error);
            }
        };
        match verdict {
            Verdict::Accepted(rewritten) => Ok(Vote::Ready(Voted { open: self.open, rewritten })),
            Verdict::Conflicts(mut conflicts) => {
                let oids: Vec<Oid> = conflicts.iter().map(|conflict| conflict.oid).collect();
                self.open.stored.retain(|(oid, _)| !oids.contains(oid));
                for conflict in &mut conflicts {
                    conflict.read_data = self.open.state(conflict.oid, conflict.read).await?;
                    let committed = self.open.state(conflict.oid, conflict.committed).await?;
                    conflict.committed_data = committed;
                }
                self.open.client.view().cache().forget(&oids);
                Ok(Vote::Conflicts { conflicts, transaction: self })
            }
            Verdict::Refused(conflict) => {
                // What is remembered of the object led to the conflict (`ZEO/ClientStorage.py`,
                // `tpc_vote`).
                self.open.client.view().cache().forget(&[conflict.oid]);
                self.open.end().await?;
                Ok(Vote::Refused(conflict))
            }
        }
    }

    async fn abort_(mut self) -> Result<(), ClientError> {
        self.open.end().await
    }
}

impl<D: Driver> Voted<'_, D> {
    /// Objects for which the server wrote something else than was sent: it resolved a conflict, or
    /// undid a transaction.
    pub fn rewritten(&self) -> &[Oid] {
        &self.rewritten
    }

    async fn finish_(self) -> Result<Tid, ClientError> {
        self.finish_then_(None).await
    }

    async fn finish_then_(
        mut self,
        then: Option<Box<dyn FnOnce(Tid) + Send>>,
    ) -> Result<Tid, ClientError> {
        let mut stored = std::mem::take(&mut self.open.stored);
        let mut others = std::mem::take(&mut self.open.others);
        let rewritten: FxHashSet<Oid> = self.rewritten.iter().copied().collect();
        stored.retain(|(oid, _)| !rewritten.contains(oid));
        keep_last(&mut stored);
        others.append(&mut self.rewritten);
        let finish = Box::new(Finish { id: self.open.id, stored, others, then });
        match self.open.ask(Question::Finish(finish)).await {
            Ok(Answer::Tid(tid)) => {
                self.open.leave_turn();
                self.open.keep_blobs(tid).await;
                Ok(tid)
            }
            Ok(other) => unexpected("tpc_finish", &other),
            Err(error) => {
                self.open.end().await?;
                Err(error)
            }
        }
    }

    async fn abort_(mut self) -> Result<(), ClientError> {
        self.open.end().await
    }
}

macro_rules! transaction_calls {
    ($kind:ident, $driver:ident) => {
        $kind! {
            impl ['c] Transaction<$driver> {
            /// Stores a state of an object, made from its revision `serial`: [`Tid::ZERO`] if it is
            /// new. What is wrong with it is told by the vote.
            fn store(self: &mut Self, oid: Oid, serial: Tid, data: &[u8])
                -> Result<(), ClientError> = store_;

            /// Stores a state of an object and the blob that belongs to it, from a file.
            ///
            /// The file becomes the client's: with a shared blob directory it is moved there now, else
            /// it is moved into the blob cache when the transaction is committed, and must not be
            /// changed before. A file in [`blob_temporary`](crate::client::Zeo::blob_temporary) need
            /// not be copied for that.
            ///
            /// After an error the transaction can only be aborted.
            fn store_blob(self: &mut Self, oid: Oid, serial: Tid, data: &[u8], file: &Path)
                -> Result<(), ClientError> = store_blob_;

            /// Deletes an object whose current revision is `serial`.
            fn delete(self: &mut Self, oid: Oid, serial: Tid) -> Result<(), ClientError> = delete_;

            /// Makes the commit depend on an object that it does not write: its current revision must
            /// still be `serial` at the vote.
            fn check(self: &mut Self, oid: Oid, serial: Tid) -> Result<(), ClientError> = check_;

            /// Writes a revision as another storage has it, whatever is current here; `None` for an
            /// object that ceased to exist. `previous` names a transaction that wrote the same data,
            /// if one is known. For transactions begun by
            /// [`begin_restored`](crate::client::Zeo::begin_restored).
            fn restore(
                self: &mut Self,
                oid: Oid,
                serial: Tid,
                data: Option<&[u8]>,
                previous: Option<Tid>,
            ) -> Result<(), ClientError> = restore_;

            /// Undoes what a transaction wrote: its objects get the states that they had before. The
            /// vote tells which objects those are.
            fn undo(self: &mut Self, tid: Tid) -> Result<(), ClientError> = undo_;

            /// Asks whether it can be committed, and locks its objects if so.
            fn vote(self: Self) -> Result<Vote<'c, $driver>, ClientError> = vote_;

            /// Drops it.
            fn abort(self: Self) -> Result<(), ClientError> = abort_;
            }
        }
    };
}

transaction_calls!(blocking, D);
transaction_calls!(tasks, Local);

macro_rules! voted_calls {
    ($kind:ident, $driver:ident) => {
        $kind! {
            impl ['c] Voted<$driver> {
            /// Commits it. It is on the server's disk when this returns its tid.
            ///
            /// # Errors
            ///
            /// After [`ClientError::Disconnected`] or [`ClientError::Deadline`] it may be committed or
            /// not: load one of its objects to know.
            fn finish(self: Self) -> Result<Tid, ClientError> = finish_;

            /// As [`finish`](Self::finish); `then` runs once it is committed and before anybody can
            /// see that from this client. It must not wait, and must not call the client.
            fn finish_then(self: Self, then: Option<Box<dyn FnOnce(Tid) + Send>>)
                -> Result<Tid, ClientError> = finish_then_;

            /// Drops it, and its locks.
            fn abort(self: Self) -> Result<(), ClientError> = abort_;
            }
        }
    };
}

voted_calls!(blocking, D);
voted_calls!(tasks, Local);

impl<D: Driver> Open<'_, D> {
    fn add(&mut self, request: Request<'_>) {
        encode_one_way(self.tie.codec, request, &mut self.gathered);
    }

    /// Remembers what was stored, until it is committed. The last state of an object counts.
    fn keep(&mut self, oid: Oid, data: &[u8]) {
        self.kept += data.len();
        if self.kept <= KEPT_MAX {
            self.stored.push((oid, Bytes::copy_from_slice(data)));
        } else {
            self.stored.retain(|(stored, _)| *stored != oid);
            self.others.push(oid);
        }
    }

    async fn send_if_much(&mut self) -> Result<(), ClientError> {
        if self.gathered.len() < GATHERED_MAX {
            return Ok(());
        }
        self.take_turn().await?;
        // A question, so that no more is sent than the server takes.
        self.call(Request::LastTransaction).await.map(drop)
    }

    async fn take_turn(&mut self) -> Result<(), ClientError> {
        if self.has_turn {
            return Ok(());
        }
        let deadline = self.client.deadline();
        let take = |is_taken: &mut bool| (!std::mem::replace(is_taken, true)).then_some(());
        let taken = self.client.driver().wait_at(&self.client.turn, deadline, take).await;
        taken.ok_or(ClientError::Busy { deadline })?;
        self.has_turn = true;
        Ok(())
    }

    fn leave_turn(&mut self) {
        if std::mem::take(&mut self.has_turn) {
            self.client.turn.change(|is_taken| *is_taken = false);
        }
    }

    async fn call(&mut self, request: Request<'static>) -> Outcome {
        self.ask(Question::Call(request)).await
    }

    async fn ask(&mut self, question: Question) -> Outcome {
        let frames = std::mem::take(&mut self.gathered);
        self.blobs.tell();
        let order = Order { epoch: Some(self.tie.epoch), frames, question };
        self.client.driver().call(order, Some(self.client.deadline())).await
    }

    /// A revision that has to be known to resolve a conflict; `None` if it is gone.
    async fn state(&self, oid: Oid, serial: Tid) -> Result<Option<Bytes>, ClientError> {
        match self.client.load_serial_(oid, serial).await {
            Ok(data) => Ok(Some(data)),
            Err(ClientError::Server(error)) if error.is_missing_object() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Ends it, and lets the next one have its turn. What the server never heard of, or lost with
    /// its connection, needs no abort.
    async fn end(&mut self) -> Result<(), ClientError> {
        if !self.has_turn {
            return Ok(());
        }
        let id = self.id;
        self.drop_unsent();
        let aborted = self.call(Request::TpcAbort { id }).await;
        self.leave_turn();
        match aborted {
            Ok(_) | Err(ClientError::Disconnected(_) | ClientError::TransactionLost) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Drops what the server has not heard of, but for the end of a blob whose beginning it has: it
    /// takes no other one on this connection before.
    fn drop_unsent(&mut self) {
        self.gathered.clear();
        if let Some(oid) = self.blobs.drop_unsent() {
            let (serial, data) = (Tid::ZERO, (&[][..]).into());
            self.add(Request::StoreBlobEnd { oid, serial, data, id: self.id });
        }
    }
}

/// Of several states of an object, the last is what the server writes.
fn keep_last(stored: &mut Vec<(Oid, Bytes)>) {
    let mut seen = FxHashSet::default();
    stored.reverse();
    stored.retain(|(oid, _)| seen.insert(*oid));
    stored.reverse();
}

impl<D: Driver> Drop for Open<'_, D> {
    fn drop(&mut self) {
        if !self.has_turn {
            return;
        }
        self.drop_unsent();
        let frames = std::mem::take(&mut self.gathered);
        let question = Question::Call(Request::TpcAbort { id: self.id });
        let epoch = Some(self.tie.epoch);
        self.client.driver().tell(Order { epoch, frames, question });
        self.leave_turn();
    }
}

impl<D: Driver> fmt::Debug for Open<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {:?}", self.id, self.tie)
    }
}
