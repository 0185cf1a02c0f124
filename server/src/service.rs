//! One storage as the server offers it: the storage, its locks, its way to the commit thread, and
//! its counters. Shared by all threads.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zeoring_shared::ring::Mailbox;
use zeoring_shared::wire::value::Value;

use crate::commit::locks::Locks;
use crate::commit::thread::{Order, Succession};
use crate::note::{Note, Post, Ticket};
use crate::packing::Packer;
use crate::storage::Storage;

/// A storage, and what serving it needs.
#[derive(Debug)]
pub struct Service {
    /// Its place in the configuration.
    pub place: usize,
    /// The name that clients register with.
    pub name: String,
    /// What answers.
    pub storage: Arc<dyn Storage>,
    /// Transactions on their way to the commit thread.
    pub orders: Mailbox<Order>,
    /// A packed file on its way to the commit thread. It rings the same bell.
    pub successions: Mailbox<Succession>,
    /// Packs the storage, one pack at a time.
    pub packer: Packer,
    /// Whether a write has failed, so that no more commits are taken.
    pub poisoned: AtomicBool,
    /// What its status tells.
    pub stats: Stats,
    locks: Mutex<Locks>,
}

/// Counters of one storage (`ZEO/monitor.py`).
#[derive(Debug, Default)]
pub struct Stats {
    /// Connections registered with it now.
    pub connections: AtomicI64,
    /// Objects loaded.
    pub loads: AtomicU64,
    /// Objects stored.
    pub stores: AtomicU64,
    /// Transactions committed.
    pub commits: AtomicU64,
    /// Transactions aborted.
    pub aborts: AtomicU64,
    /// Transactions begun and not ended.
    pub active: AtomicI64,
    /// Votes that found conflicts.
    pub conflicts: AtomicU64,
    /// When the server started, as `time.ctime()` says it.
    pub start: String,
    /// When locks were last granted, in milliseconds since 1970.
    pub locked_ms: AtomicU64,
    /// Whether transactions time out.
    pub has_timeout: bool,
}

impl Service {
    /// A storage that nobody uses yet.
    pub fn new(
        place: usize,
        name: String,
        storage: Arc<dyn Storage>,
        orders: Mailbox<Order>,
        stats: Stats,
    ) -> Self {
        Self {
            place,
            name,
            storage,
            successions: Mailbox::new(1, Arc::clone(orders.doorbell())),
            orders,
            packer: Packer::default(),
            poisoned: AtomicBool::new(false),
            stats,
            locks: Mutex::new(Locks::default()),
        }
    }

    /// The lines of the objects. Held for as long as it takes to join or leave them.
    pub fn locks(&self) -> MutexGuard<'_, Locks> {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves all lines of a transaction, and tells those that may go now.
    pub fn release(&self, ticket: Ticket, post: &Post) {
        let granted = self.locks().release(ticket);
        for ticket in granted {
            post.tell(ticket.connection.reactor(), Note::Granted(ticket));
        }
    }

    /// What `server_status` tells (`StorageServer.server_status`), and how far a pack has come
    /// while one is under way.
    pub fn status(&self) -> Value<'static> {
        let count = |counter: &AtomicU64| Value::Int(counter.load(Ordering::Relaxed) as i64);
        let (waiting, holding) = {
            let locks = self.locks();
            (locks.waiting(), locks.holding())
        };
        let stats = &self.stats;
        let lock_time = match holding {
            0 => Value::None,
            _ => Value::Float(stats.locked_ms.load(Ordering::Relaxed) as f64 / 1000.0),
        };
        let timeout = if stats.has_timeout { Value::Bool(true) } else { text("stub") };
        let mut entries = vec![
            ("connections", Value::Int(stats.connections.load(Ordering::Relaxed))),
            ("loads", count(&stats.loads)),
            ("stores", count(&stats.stores)),
            ("commits", count(&stats.commits)),
            ("aborts", count(&stats.aborts)),
            ("active_txns", Value::Int(stats.active.load(Ordering::Relaxed))),
            ("lock_time", lock_time),
            ("conflicts", count(&stats.conflicts)),
            ("conflicts_resolved", Value::Int(0)),
            ("start", text(&stats.start)),
            ("waiting", Value::Int(waiting as i64)),
            ("timeout-thread-is-alive", timeout),
            ("last-transaction", text(&self.storage.last_tid().to_string())),
        ];
        if let Some((phase, done, total)) = self.packer.progress() {
            let progress = [
                ("phase", text(phase.name())),
                ("done", Value::Int(done as i64)),
                ("total", Value::Int(total as i64)),
            ];
            let progress = progress.map(|(key, value)| (text(key), value));
            entries.push(("pack", Value::Dict(progress.into())));
        }
        Value::Dict(entries.into_iter().map(|(key, value)| (text(key), value)).collect())
    }
}

fn text(text: &str) -> Value<'static> {
    Value::Str(text.to_owned().into())
}
