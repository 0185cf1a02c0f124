//! A client: what an application asks of a storage, over whichever driver.
//!
//! What is remembered is answered from memory; the rest becomes one question to the server. Loads
//! and queries that a broken connection interrupted are asked once more on the next; what belongs
//! to a transaction never is.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::request::{Request, TransactionId};
use zeoring_shared::wire::value::Value;

use crate::blob::BlobDirectory;
use crate::cache::{Cache, Opened, Statistics};
use crate::driver::gate::Gate;
use crate::driver::local::Local;
use crate::driver::{Driver, Tie};
use crate::error::{ClientError, ServerError};
use crate::facade::{blocking, tasks};
use crate::iterate::{Records, Transactions};
use crate::options::Options;
use crate::session::order::{Order, Question};
use crate::session::{
    Answer, HistoryEntry, Info, Invalidated, Outcome, Revision, Status, UndoEntry,
};
use crate::transaction::{Description, Restored, Transaction};
use crate::view::{View, Watcher};

/// So many oids are fetched at once: what a server gives at most (`ZEO/StorageServer.py`,
/// `new_oids`).
const OIDS_AT_ONCE: u32 = 100;

/// How often a load or a query is asked: once more after the connection broke under it.
pub(crate) const TRIES_MAX: u32 = 2;

/// A client of a storage. Which one depends on the driver: [`Client`](crate::Client),
/// [`DrivenClient`](crate::DrivenClient) or [`AsyncClient`](crate::AsyncClient); their methods are
/// the same, but for the `.await`.
///
/// Any number of threads may use a client whose driver lets them; one transaction at a time is on
/// its way to the server.
#[derive(Debug)]
pub struct Zeo<D: Driver> {
    driver: D,
    view: Arc<View>,
    options: Options,
    blobs: Option<BlobDirectory>,
    opened: Opened,
    /// Oids that the server gave and nobody has used.
    fresh: Mutex<Vec<Oid>>,
    /// Whether a transaction is on its way to the server.
    pub(crate) turn: Gate<bool>,
    transactions: AtomicU64,
}

impl<D: Driver> Zeo<D> {
    /// Opens the cache and the blobs, starts a driver, and waits for the first connection.
    pub(crate) async fn start(
        options: Options,
        start: impl FnOnce(&Options, &Arc<View>) -> Result<D, ClientError>,
    ) -> Result<Self, ClientError> {
        if options.addresses.is_empty() {
            return Err(ClientError::NotConfigured(
                "there is no address of a server to connect to",
            ));
        }
        let (cache, opened) = Cache::open(&options.cache)?;
        let view = Arc::new(View::new(cache));
        let blobs = options.blobs.as_ref().map(BlobDirectory::open).transpose()?;
        let driver = start(&options, &view)?;
        let client = Self {
            driver,
            view,
            options,
            blobs,
            opened,
            fresh: Mutex::default(),
            turn: Gate::new(false),
            transactions: AtomicU64::new(0),
        };
        if !client.options.wait.is_zero() {
            let wait = client.options.wait;
            client.driver.standing().first_connected(&client.driver, wait).await?;
        }
        Ok(client)
    }

    /// What the cache's file held when this client was made.
    pub fn cache_opened(&self) -> &Opened {
        &self.opened
    }

    /// How much is remembered, and how often that helped.
    pub fn cache_statistics(&self) -> Statistics {
        self.view.cache().statistics()
    }

    /// The last transaction that this client has been told of. What it and its forerunners wrote
    /// has been told to whoever [watches](Self::watch), and a load sees it.
    pub fn last_transaction(&self) -> Tid {
        self.view.last_tid()
    }

    /// What the storage is and can do; `None` before the first connection.
    pub fn info(&self) -> Option<Arc<Info>> {
        self.view.info()
    }

    /// Whether there is a connection now.
    pub fn is_connected(&self) -> bool {
        self.driver.standing().is_connected()
    }

    /// Whether the connection there is takes no writes.
    pub fn is_read_only(&self) -> bool {
        self.driver.standing().is_read_only()
    }

    /// The settings that this client was made with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Tells `watcher` of every change from now on, as it is heard of.
    pub fn watch(&self, watcher: Arc<dyn Watcher>) {
        self.view.watch(watcher);
    }

    /// What other clients committed since the last time one asked, so far as it has arrived.
    /// Those who ask share one list.
    pub fn invalidations(&self) -> Invalidated {
        self.driver.take_in();
        self.view.take_invalidations()
    }

    /// Ends the connection, and all threads and tasks that run for it. Whoever waits gets
    /// [`ClientError::Closed`]. What is remembered is written to the cache's file, if there is one.
    pub fn close(&self) -> Result<(), ClientError> {
        if self.driver.standing().is_forked() {
            // The file, like the connection, is the other process's.
            return Err(ClientError::Forked);
        }
        self.driver.close();
        if let Some(blobs) = &self.blobs {
            blobs.close();
        }
        self.view.cache().close()?;
        Ok(())
    }

    pub(crate) fn driver(&self) -> &D {
        &self.driver
    }

    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    pub(crate) fn blobs(&self) -> Result<&BlobDirectory, ClientError> {
        let error = ClientError::NotConfigured("this client has no blob directory; set one");
        self.blobs.as_ref().ok_or(error)
    }

    /// A place for files that are going to be stored as blobs, on the file system where blobs are
    /// kept.
    ///
    /// # Errors
    ///
    /// [`ClientError::NotConfigured`] without a blob directory.
    pub fn blob_temporary(&self) -> Result<PathBuf, ClientError> {
        self.blobs().map(BlobDirectory::temporary)
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.options.deadline
    }

    /// A connection, waited for as long as the options say.
    pub(crate) async fn tie(&self) -> Result<Tie, ClientError> {
        self.driver.standing().connected(&self.driver, self.options.wait).await
    }

    /// Asks, and asks again if the connection breaks. Only for what changes nothing.
    pub(crate) async fn ask(&self, question: impl Fn() -> Question) -> Outcome {
        self.ask_within(Some(self.options.deadline), question).await
    }

    async fn ask_within(
        &self,
        patience: Option<Duration>,
        question: impl Fn() -> Question,
    ) -> Outcome {
        let mut tries = 0;
        loop {
            if !self.driver.standing().is_connected() {
                self.tie().await?;
            }
            tries += 1;
            match self.driver.call(Order::any(question()), patience).await {
                Err(ClientError::Disconnected(_)) if tries < TRIES_MAX => {}
                outcome => return outcome,
            }
        }
    }

    async fn call(&self, request: Request<'static>) -> Outcome {
        self.ask(|| Question::Call(request.clone())).await
    }

    async fn load_before_(&self, oid: Oid, before: Tid) -> Result<Option<Revision>, ClientError> {
        if let Some(revision) = self.view.cache().load_before(oid, before) {
            return Ok(Some(revision));
        }
        match self.ask(|| Question::Load { oid, before }).await? {
            Answer::Revision(revision) => Ok(revision),
            other => unexpected("loadBefore", &other),
        }
    }

    async fn load_(&self, oid: Oid) -> Result<Revision, ClientError> {
        let revision = self.load_before_(oid, Tid::MAX).await?;
        revision.ok_or(ClientError::NoRevision { oid })
    }

    pub(crate) async fn load_serial_(&self, oid: Oid, serial: Tid) -> Result<Bytes, ClientError> {
        if let Some(data) = self.view.cache().load_serial(oid, serial) {
            return Ok(data);
        }
        match self.call(Request::LoadSerial { oid, serial }).await? {
            Answer::Data(data) => Ok(data),
            other => unexpected("loadSerial", &other),
        }
    }

    async fn prefetch_(
        &self,
        oids: &[Oid],
        before: Tid,
    ) -> Result<Vec<Result<Option<Revision>, ServerError>>, ClientError> {
        let mut results: Vec<Option<Result<Option<Revision>, ServerError>>> = oids
            .iter()
            .map(|&oid| self.view.cache().load_before(oid, before).map(|hit| Ok(Some(hit))))
            .collect();
        let is_missing = |(oid, result): (&Oid, &Option<_>)| result.is_none().then_some(*oid);
        let missing: Vec<Oid> = oids.iter().zip(&results).filter_map(is_missing).collect();
        if !missing.is_empty() {
            let question = || Question::Loads { oids: missing.clone(), before };
            let loaded = match self.ask(question).await? {
                Answer::Revisions(loaded) => loaded,
                other => return unexpected("loadBefore", &other),
            };
            let gaps = results.iter_mut().filter(|result| result.is_none());
            gaps.zip(loaded).for_each(|(gap, result)| *gap = Some(result));
        }
        Ok(results.into_iter().map(|result| result.expect("each gap was filled")).collect())
    }

    async fn new_oid_(&self) -> Result<Oid, ClientError> {
        loop {
            if let Some(oid) = self.fresh.lock().unwrap_or_else(PoisonError::into_inner).pop() {
                return Ok(oid);
            }
            let more = self.fetch_oids().await?;
            self.fresh.lock().unwrap_or_else(PoisonError::into_inner).extend(more);
        }
    }

    async fn new_oids_(&self, count: usize) -> Result<Vec<Oid>, ClientError> {
        let mut oids = Vec::new();
        while oids.len() < count {
            self.take_oids(count - oids.len(), &mut oids);
            if oids.len() < count {
                let more = self.fetch_oids().await?;
                self.fresh.lock().unwrap_or_else(PoisonError::into_inner).extend(more);
            }
        }
        Ok(oids)
    }

    /// Takes up to `count` of the oids that are there, the smallest first.
    fn take_oids(&self, count: usize, oids: &mut Vec<Oid>) {
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = fresh.len().saturating_sub(count);
        oids.extend(fresh.drain(rest..).rev());
    }

    /// Fresh oids, the smallest last, where they are taken.
    async fn fetch_oids(&self) -> Result<Vec<Oid>, ClientError> {
        match self.call(Request::NewOids { count: i64::from(OIDS_AT_ONCE) }).await? {
            Answer::Oids(mut oids) if !oids.is_empty() => {
                oids.reverse();
                Ok(oids)
            }
            other => unexpected("new_oids", &other),
        }
    }

    async fn ping_(&self) -> Result<(), ClientError> {
        self.call(Request::Ping).await.map(drop)
    }

    async fn sync_(&self) -> Result<(), ClientError> {
        if self.options.server_sync {
            return self.ping_().await;
        }
        self.driver.take_in();
        Ok(())
    }

    async fn status_(&self) -> Result<Status, ClientError> {
        match self.call(Request::ServerStatus).await? {
            Answer::Status(status) => Ok(status),
            other => unexpected("server_status", &other),
        }
    }

    async fn server_info_(&self) -> Result<Info, ClientError> {
        match self.call(Request::GetInfo).await? {
            Answer::Info(info) => Ok(info),
            other => unexpected("get_info", &other),
        }
    }

    async fn server_last_transaction_(&self) -> Result<Tid, ClientError> {
        match self.call(Request::LastTransaction).await? {
            Answer::Tid(tid) => Ok(tid),
            other => unexpected("lastTransaction", &other),
        }
    }

    async fn current_serial_(&self, oid: Oid) -> Result<Tid, ClientError> {
        match self.call(Request::GetTid { oid }).await? {
            Answer::Tid(tid) => Ok(tid),
            other => unexpected("getTid", &other),
        }
    }

    async fn history_(&self, oid: Oid, count: u32) -> Result<Vec<HistoryEntry>, ClientError> {
        match self.call(Request::History { oid, count: i64::from(count) }).await? {
            Answer::History(entries) => Ok(entries),
            other => unexpected("history", &other),
        }
    }

    async fn undo_log_(&self, first: i64, last: i64) -> Result<Vec<UndoEntry>, ClientError> {
        match self.call(Request::UndoLog { first, last }).await? {
            Answer::UndoLog(entries) => Ok(entries),
            other => unexpected("undoLog", &other),
        }
    }

    async fn undo_info_(
        &self,
        first: i64,
        last: i64,
        filter: Option<Value<'static>>,
    ) -> Result<Vec<UndoEntry>, ClientError> {
        match self.call(Request::UndoInfo { first, last, filter }).await? {
            Answer::UndoLog(entries) => Ok(entries),
            other => unexpected("undoInfo", &other),
        }
    }

    async fn pack_(&self, time_s: f64, wait: bool) -> Result<(), ClientError> {
        let patience = (!wait).then_some(self.options.deadline);
        self.tie().await?;
        let order = Order::any(Question::Call(Request::Pack { time: time_s, wait }));
        self.driver.call(order, patience).await.map(drop)
    }

    async fn begin_(&self, description: &Description) -> Result<Transaction<'_, D>, ClientError> {
        self.begin_restored_(description, None).await
    }

    async fn begin_restored_(
        &self,
        description: &Description,
        restored: Option<Restored>,
    ) -> Result<Transaction<'_, D>, ClientError> {
        description.check()?;
        let tie = self.tie().await?;
        if self.driver.standing().is_read_only() {
            // A server ends a connection that begins to write and may not.
            return Err(ClientError::ReadOnly);
        }
        let id = TransactionId(self.transactions.fetch_add(1, Ordering::Relaxed) + 1);
        Ok(Transaction::begin(self, tie, id, description, restored))
    }

    async fn iterate_(
        &self,
        start: Option<Tid>,
        stop: Option<Tid>,
    ) -> Result<Transactions<'_, D>, ClientError> {
        let tie = self.tie().await?;
        Transactions::start(self, tie, start, stop).await
    }

    async fn records_(&self) -> Result<Records<'_, D>, ClientError> {
        Ok(Records::start(self))
    }
}

macro_rules! zeo_calls {
    ($kind:ident, $driver:ident) => {
        $kind! {
            impl [] Zeo<$driver> {
            /// The newest revision of an object that is older than `before`; `None` if it has none.
            ///
            /// # Errors
            ///
            /// [`ServerError::is_missing_object`] if there is no such object, or it was deleted.
            fn load_before(self: &Self, oid: Oid, before: Tid)
                -> Result<Option<Revision>, ClientError> = load_before_;

            /// The current revision of an object, as of the last transaction that was told of.
            fn load(self: &Self, oid: Oid) -> Result<Revision, ClientError> = load_;

            /// The data that one transaction wrote for an object.
            fn load_serial(self: &Self, oid: Oid, serial: Tid) -> Result<Bytes, ClientError>
                = load_serial_;

            /// Loads many objects as of one moment: what is not remembered leaves in one burst.
            ///
            /// Results are in the order of `oids`, each on its own: an object that does not exist does
            /// not stop the others.
            fn prefetch(self: &Self, oids: &[Oid], before: Tid)
                -> Result<Vec<Result<Option<Revision>, ServerError>>, ClientError> = prefetch_;

            /// An oid that nobody else has or will get. A hundred are fetched at a time.
            fn new_oid(self: &Self) -> Result<Oid, ClientError> = new_oid_;

            /// So many oids that nobody else has or will get.
            fn new_oids(self: &Self, count: usize) -> Result<Vec<Oid>, ClientError> = new_oids_;

            /// Goes to the server and back. Every commit that was answered before, to whomever, is
            /// known to this client afterwards.
            fn ping(self: &Self) -> Result<(), ClientError> = ping_;

            /// What an application calls before it begins to read: takes in what has arrived, or goes
            /// to the server and back where [`Options::server_sync`] says so.
            fn sync(self: &Self) -> Result<(), ClientError> = sync_;

            /// What the server counts and who is there.
            fn status(self: &Self) -> Result<Status, ClientError> = status_;

            /// What the storage is and can do, asked now.
            fn server_info(self: &Self) -> Result<Info, ClientError> = server_info_;

            /// The last transaction that the server knows, asked now.
            fn server_last_transaction(self: &Self) -> Result<Tid, ClientError>
                = server_last_transaction_;

            /// The transaction that wrote the current revision of an object.
            fn current_serial(self: &Self, oid: Oid) -> Result<Tid, ClientError> = current_serial_;

            /// The last `count` revisions of an object, the newest first, without their data.
            fn history(self: &Self, oid: Oid, count: u32) -> Result<Vec<HistoryEntry>, ClientError>
                = history_;

            /// Transactions that can be undone, the newest first: those from number `first` up to, but
            /// not including, `last`; a negative `last` means so many.
            fn undo_log(self: &Self, first: i64, last: i64) -> Result<Vec<UndoEntry>, ClientError>
                = undo_log_;

            /// As [`undo_log`](Self::undo_log), but only transactions for which every entry of the
            /// dictionary `filter` is equal.
            fn undo_info(self: &Self, first: i64, last: i64, filter: Option<Value<'static>>)
                -> Result<Vec<UndoEntry>, ClientError> = undo_info_;

            /// Lets the server drop revisions that were not current at a time, in seconds since 1970.
            /// With `wait`, returns when that is done, however long it takes.
            fn pack(self: &Self, time_s: f64, wait: bool) -> Result<(), ClientError> = pack_;

            /// The file of a blob's revision, which the client keeps: read it, do not change it.
            ///
            /// In a cache of limited size it may go when it was not used for long, or is larger than
            /// the limit; [`open_blob`](Self::open_blob) gives what stays readable.
            ///
            /// # Errors
            ///
            /// Where there is no such blob, [`ServerError::is_missing_object`] or, with a shared
            /// directory, [`BlobError::Missing`](crate::blob::BlobError::Missing).
            fn load_blob(self: &Self, oid: Oid, serial: Tid) -> Result<PathBuf, ClientError>
                = load_blob_;

            /// A blob's revision, opened for reading, as long as one likes.
            ///
            /// # Errors
            ///
            /// As [`load_blob`](Self::load_blob).
            fn open_blob(self: &Self, oid: Oid, serial: Tid) -> Result<File, ClientError>
                = open_blob_;

            /// Begins a transaction. Nothing is locked before its vote.
            fn begin(self: &Self, description: &Description)
                -> Result<Transaction<'_, $driver>, ClientError> = begin_;

            /// Begins a transaction that is a copy of one of another storage, with its tid.
            fn begin_restored(self: &Self, description: &Description, restored: Option<Restored>)
                -> Result<Transaction<'_, $driver>, ClientError> = begin_restored_;

            /// The transactions from `start` to `stop`, both included, the oldest first.
            fn iterate(self: &Self, start: Option<Tid>, stop: Option<Tid>)
                -> Result<Transactions<'_, $driver>, ClientError> = iterate_;

            /// The current revision of every object, in the order of oids.
            fn records(self: &Self) -> Result<Records<'_, $driver>, ClientError> = records_;
            }
        }
    };
}

zeo_calls!(blocking, D);
zeo_calls!(tasks, Local);

/// Which answer a call has depends on the call alone: the session has seen to it.
pub(crate) fn unexpected<T>(call: &'static str, answer: &Answer) -> Result<T, ClientError> {
    unreachable!("{call} is not answered by {answer:?}")
}
