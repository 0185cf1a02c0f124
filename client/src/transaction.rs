//! A transaction as types: what may not happen next does not compile.
//!
//! ```text
//!   begin -> Transaction --store, delete, check--> vote -> Voted -> finish -> tid
//!                 ^                                 |        `----> abort
//!                 `---- Conflicts, to resolve <-----'
//! ```

use zeoring_shared::ids::{Oid, Tid};

use crate::driven::DrivenClient;
use crate::error::ClientError;
use crate::session::{Conflict, TransactionId, Verdict};

/// Stores leave for the server once so much has gathered, so that a large transaction is under way
/// before its vote and is not held twice.
const GATHERED_MAX: usize = 64 * 1024;

/// A transaction that has not been voted. Dropping it aborts it.
pub struct Transaction<'c> {
    open: Open<'c>,
}

/// What a vote came to.
pub enum Vote<'c> {
    /// It can be finished, and nobody else can write its objects until then.
    Ready(Voted<'c>),
    /// Others wrote some of its objects first. Store each of them again with the state that
    /// resolves the conflict and [`Conflict::committed`] as its serial, and vote again; or abort.
    Conflicts {
        /// The objects, with the states that were refused.
        conflicts: Vec<Conflict>,
        /// The transaction, which goes on.
        transaction: Transaction<'c>,
    },
    /// The server dropped the transaction over a conflict that it could not resolve, or over a
    /// check.
    Refused(Conflict),
}

/// A transaction that has been voted, and holds locks in the server. Dropping it aborts it.
pub struct Voted<'c> {
    open: Open<'c>,
    rewritten: Vec<Oid>,
}

/// A transaction that the server knows of.
struct Open<'c> {
    client: &'c mut DrivenClient,
    id: TransactionId,
    /// Whether the server has ended it, so that there is nothing left to abort.
    is_over: bool,
}

impl<'c> Transaction<'c> {
    pub(crate) fn new(client: &'c mut DrivenClient, id: TransactionId) -> Self {
        Self { open: Open { client, id, is_over: false } }
    }

    /// Stores a state of an object, made from its revision `serial`: [`Tid::ZERO`] if it is new.
    /// Errors come with the vote, but for a broken connection.
    pub fn store(&mut self, oid: Oid, serial: Tid, data: &[u8]) -> Result<(), ClientError> {
        let id = self.open.id;
        let session = self.open.client.session()?;
        session.store(id, oid, serial, data);
        if GATHERED_MAX < session.output().len() {
            self.open.client.flush()?;
        }
        Ok(())
    }

    /// Deletes an object whose current revision is `serial`.
    pub fn delete(&mut self, oid: Oid, serial: Tid) -> Result<(), ClientError> {
        let id = self.open.id;
        self.open.client.session()?.delete(id, oid, serial);
        Ok(())
    }

    /// Makes the commit depend on an object that it does not write: its current revision must
    /// still be `serial` at the vote.
    pub fn check(&mut self, oid: Oid, serial: Tid) -> Result<(), ClientError> {
        let id = self.open.id;
        self.open.client.session()?.check(id, oid, serial);
        Ok(())
    }

    /// Asks whether it can be committed, and locks its objects if so.
    pub fn vote(mut self) -> Result<Vote<'c>, ClientError> {
        let id = self.open.id;
        match self.open.client.vote(id)? {
            Verdict::Accepted(rewritten) => Ok(Vote::Ready(Voted { open: self.open, rewritten })),
            Verdict::Conflicts(conflicts) => Ok(Vote::Conflicts { conflicts, transaction: self }),
            Verdict::Refused(conflict) => {
                // The storage let it go; the session of a stock server ends it only by an abort.
                self.open.abort()?;
                Ok(Vote::Refused(conflict))
            }
        }
    }

    /// Drops it.
    pub fn abort(mut self) -> Result<(), ClientError> {
        self.open.abort()
    }
}

impl Voted<'_> {
    /// Objects for which the server wrote something else than was sent: it resolved a conflict.
    pub fn rewritten(&self) -> &[Oid] {
        &self.rewritten
    }

    /// Commits it. It is on the server's disk when this returns its tid.
    ///
    /// After an error it may be committed or not: load one of its objects to know.
    pub fn finish(mut self) -> Result<Tid, ClientError> {
        self.open.is_over = true;
        self.open.client.finish(self.open.id)
    }

    /// Drops it, and its locks.
    pub fn abort(mut self) -> Result<(), ClientError> {
        self.open.abort()
    }
}

impl Open<'_> {
    fn abort(&mut self) -> Result<(), ClientError> {
        self.is_over = true;
        self.client.abort(self.id)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.client.abandon(self.id);
        }
    }
}
