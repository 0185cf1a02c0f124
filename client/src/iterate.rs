//! Walks through a whole storage: its transactions, or its current objects.

use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::request::Request;

use crate::client::{Zeo, unexpected};
use crate::driver::local::Local;
use crate::driver::{Driver, Tie};
use crate::error::ClientError;
use crate::facade::{blocking, tasks};
use crate::session::order::{Order, Question, encode_one_way};
use crate::session::{Answer, CurrentRecord, RecordEntry, TransactionEntry};

/// Transactions of a storage, the oldest first, each with what it wrote.
///
/// The server remembers where it is, so the walk ends with its connection.
#[derive(Debug)]
pub struct Transactions<'c, D: Driver> {
    client: &'c Zeo<D>,
    tie: Tie,
    /// The server's name for the walk, and for that through the present transaction; `None` once
    /// they are over.
    iterator: Option<i64>,
    records: Option<i64>,
    present: Option<Tid>,
}

/// The current revision of every object, in the order of oids.
///
/// Objects that are written meanwhile may be seen before or after. A deleted object ends the walk
/// with an error on stock servers, which cannot pass over it.
#[derive(Debug)]
pub struct Records<'c, D: Driver> {
    client: &'c Zeo<D>,
    next: Option<Option<Oid>>,
}

impl<'c, D: Driver> Transactions<'c, D> {
    pub(crate) async fn start(
        client: &'c Zeo<D>,
        tie: Tie,
        start: Option<Tid>,
        stop: Option<Tid>,
    ) -> Result<Self, ClientError> {
        let mut walk = Self { client, tie, iterator: None, records: None, present: None };
        walk.iterator = Some(walk.start_iterator(Request::IteratorStart { start, stop }).await?);
        Ok(walk)
    }

    async fn next_transaction_(&mut self) -> Result<Option<TransactionEntry>, ClientError> {
        if let Some(records) = self.records.take() {
            self.forget(records);
        }
        let Some(iterator) = self.iterator else { return Ok(None) };
        match self.call(Request::IteratorNext { iterator }).await? {
            Answer::TransactionEntry(entry) => {
                if entry.is_none() {
                    self.iterator = None;
                }
                self.present = entry.as_ref().map(|entry| entry.tid);
                Ok(entry)
            }
            other => unexpected("iterator_next", &other),
        }
    }

    async fn next_record_(&mut self) -> Result<Option<RecordEntry>, ClientError> {
        let records = match (self.records, self.present, self.iterator) {
            (Some(records), ..) => records,
            (None, Some(tid), Some(iterator)) => {
                let request = Request::IteratorRecordStart { iterator, tid };
                *self.records.insert(self.start_iterator(request).await?)
            }
            _ => return Ok(None),
        };
        match self.call(Request::IteratorRecordNext { iterator: records }).await? {
            Answer::RecordEntry(entry) => {
                if entry.is_none() {
                    (self.records, self.present) = (None, None);
                }
                Ok(entry)
            }
            other => unexpected("iterator_record_next", &other),
        }
    }

    async fn start_iterator(&self, request: Request<'static>) -> Result<i64, ClientError> {
        let name = request.name();
        match self.call(request).await? {
            Answer::Iterator(iterator) => Ok(iterator),
            other => unexpected(name, &other),
        }
    }

    async fn call(&self, request: Request<'static>) -> Result<Answer, ClientError> {
        let question = Question::Call(request);
        let order = Order { epoch: Some(self.tie.epoch), frames: Vec::new(), question };
        self.client.driver().call(order, Some(self.client.deadline())).await
    }

    /// Lets the server forget an iterator that is not at its end.
    fn forget(&self, iterator: i64) {
        let mut frames = Vec::new();
        let request = Request::IteratorGc { iterators: vec![iterator] };
        encode_one_way(self.tie.codec, request, &mut frames);
        let epoch = Some(self.tie.epoch);
        self.client.driver().tell(Order { epoch, frames, question: Question::Nothing });
    }
}

impl<D: Driver> Drop for Transactions<'_, D> {
    fn drop(&mut self) {
        for iterator in [self.records.take(), self.iterator.take()].into_iter().flatten() {
            self.forget(iterator);
        }
    }
}

impl<'c, D: Driver> Records<'c, D> {
    pub(crate) fn start(client: &'c Zeo<D>) -> Self {
        Self { client, next: Some(None) }
    }

    async fn next_record_(&mut self) -> Result<Option<CurrentRecord>, ClientError> {
        let Some(from) = self.next else { return Ok(None) };
        let question = || Question::Call(Request::RecordIternext { from });
        let record = match self.client.ask(question).await {
            Ok(Answer::CurrentRecord(record)) => record,
            Ok(other) => return unexpected("record_iternext", &other),
            // An empty storage has no first object.
            Err(ClientError::Server(error)) if error.class == "builtins.ValueError" => {
                self.next = None;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        self.next = record.next.map(Some);
        Ok(Some(record))
    }
}

macro_rules! transactions_calls {
    ($kind:ident, $driver:ident) => {
        $kind! {
            impl ['c] Transactions<$driver> {
            /// The next transaction; `None` after the last. What was left of the one before is passed
            /// over.
            fn next_transaction(self: &mut Self) -> Result<Option<TransactionEntry>, ClientError>
                = next_transaction_;

            /// The next object that the present transaction wrote; `None` after the last.
            fn next_record(self: &mut Self) -> Result<Option<RecordEntry>, ClientError>
                = next_record_;
            }
        }
    };
}

transactions_calls!(blocking, D);
transactions_calls!(tasks, Local);

macro_rules! records_calls {
    ($kind:ident, $driver:ident) => {
        $kind! {
            impl ['c] Records<$driver> {
            /// The next object; `None` after the last.
            fn next_record(self: &mut Self) -> Result<Option<CurrentRecord>, ClientError>
                = next_record_;
            }
        }
    };
}

records_calls!(blocking, D);
records_calls!(tasks, Local);
