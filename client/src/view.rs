//! What a client has seen of its storage: the last transaction, the revisions that it remembers,
//! and who wants to hear of changes. Shared by all its connections, one after the other, and by all
//! threads that read.
//!
//! Only a session changes it, in the order in which its server told. A transaction becomes visible
//! as [`View::last_tid`] after the cache and the watchers know what it wrote, so that nobody can
//! read as of it and be answered from before (`ZODB/mvccadapter.py`, `poll_invalidations`).

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::value::Value;

use crate::cache::Cache;
use crate::session::answer::{Info, Revision, read};
use crate::session::order::Finish;
use crate::session::{Invalidated, Invalidation, Invalidations};

/// Whoever wants to hear what happens to the storage, as it happens.
///
/// Called by the thread that received the news, in the order of the server's history, and before
/// the transaction can be seen by anybody else. It must not wait, and must not call the client.
pub trait Watcher: Send + Sync {
    /// Another client committed a transaction that wrote these objects.
    fn invalidated(&self, tid: Tid, oids: &[Oid]);

    /// What changed is not known, or is too much: no revision that is held as current may be
    /// trusted. The last transaction is now `until`.
    fn everything_invalidated(&self, until: Tid);
}

/// What has been seen.
pub struct View {
    cache: Cache,
    last: AtomicU64,
    /// Whether a caller may have seen anything: then history cannot be exchanged silently.
    is_live: AtomicBool,
    invalidations: Mutex<Invalidations>,
    watchers: RwLock<Vec<Arc<dyn Watcher>>>,
    info: RwLock<Option<Arc<Info>>>,
}

impl View {
    /// Nothing but what the cache remembers.
    pub fn new(cache: Cache) -> Self {
        let last = cache.last_tid().unwrap_or(Tid::ZERO);
        Self {
            cache,
            last: AtomicU64::new(last.0),
            is_live: AtomicBool::new(false),
            invalidations: Mutex::default(),
            watchers: RwLock::default(),
            info: RwLock::default(),
        }
    }

    /// The cache, to read.
    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The last transaction that was told of. Everything that it and its forerunners wrote is
    /// known to cache and watchers.
    pub(crate) fn last_tid(&self) -> Tid {
        Tid(self.last.load(Ordering::Acquire))
    }

    /// What the storage is; `None` before the first connection.
    pub(crate) fn info(&self) -> Option<Arc<Info>> {
        self.info.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds somebody who wants to hear of changes.
    pub(crate) fn watch(&self, watcher: Arc<dyn Watcher>) {
        self.watchers.write().unwrap_or_else(PoisonError::into_inner).push(watcher);
    }

    /// What changed since the last time one asked.
    pub(crate) fn take_invalidations(&self) -> Invalidated {
        self.invalidations().take()
    }

    /// Whether anything has been served in this process.
    pub(crate) fn is_live(&self) -> bool {
        self.is_live.load(Ordering::Relaxed)
    }

    /// The last transaction of what is remembered, if anything is.
    pub(crate) fn remembered(&self) -> Option<Tid> {
        let last = self.last_tid();
        (self.is_live() || self.cache.last_tid().is_some()).then_some(last)
    }

    /// What was remembered is worth nothing; the storage is at `until`.
    pub(crate) fn start_anew(&self, until: Tid) {
        if self.cache.last_tid().is_some() {
            // Its file begins anew, and takes nothing meanwhile.
            self.cache.clear();
        }
        self.cache.advance(until);
        if self.is_live() {
            self.each_watcher(|watcher| watcher.everything_invalidated(until));
            self.invalidations().lose(until);
        }
        self.see(until);
    }

    /// These objects changed while there was no connection.
    pub(crate) fn caught_up(&self, until: Tid, oids: &[Oid]) {
        self.cache.forget(oids);
        self.cache.advance(until);
        if self.is_live() && !oids.is_empty() {
            self.each_watcher(|watcher| watcher.invalidated(until, oids));
            self.invalidations().push(Invalidation { tid: until, oids: oids.to_vec() });
        }
        self.see(until);
    }

    /// What the storage is; from now on, callers are served.
    pub(crate) fn be_informed(&self, info: Info) {
        *self.info.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(info));
        self.is_live.store(true, Ordering::Relaxed);
    }

    /// Some of what the storage is has changed (`info` of ZEO): its length and its size.
    pub(crate) fn be_informed_of(&self, changed: &[(Value<'_>, Value<'_>)]) {
        let mut info = self.info.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(info) = info.as_mut() {
            let info = Arc::make_mut(info);
            if let Some(Value::Int(length)) = read::find(changed, "length") {
                info.length = *length;
            }
            if let Some(Value::Int(size)) = read::find(changed, "size") {
                info.size = *size;
            }
        }
    }

    /// The server answered a load.
    pub(crate) fn loaded(&self, oid: Oid, revision: &Revision) {
        // Newer than what was told of is true, but the cache stands for one moment.
        if revision.serial <= self.last_tid() {
            self.cache.insert(oid, revision);
        }
    }

    /// Another client committed.
    pub(crate) fn committed(&self, invalidation: &Invalidation) {
        self.cache.invalidate(invalidation.tid, &invalidation.oids);
        self.each_watcher(|watcher| watcher.invalidated(invalidation.tid, &invalidation.oids));
        self.invalidations().push(invalidation.clone());
        self.see(invalidation.tid);
    }

    /// This client committed: `oids` are all that it wrote.
    pub(crate) fn committed_own(&self, tid: Tid, oids: &[Oid], finish: Finish) {
        self.cache.invalidate(tid, oids);
        for (oid, data) in finish.stored {
            self.cache.insert(oid, &Revision { data, serial: tid, end: None });
        }
        if let Some(then) = finish.then {
            then(tid);
        }
        self.see(tid);
    }

    fn see(&self, tid: Tid) {
        self.last.store(tid.0, Ordering::Release);
    }

    fn each_watcher(&self, tell: impl Fn(&dyn Watcher)) {
        let watchers = self.watchers.read().unwrap_or_else(PoisonError::into_inner);
        watchers.iter().for_each(|watcher| tell(&**watcher));
    }

    fn invalidations(&self) -> MutexGuard<'_, Invalidations> {
        self.invalidations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View(until {})", self.last_tid())
    }
}
