//! The commit thread of one storage: takes all transactions that wait, writes them, syncs once,
//! and lets everybody know.
//!
//! ```text
//!   orders -> tids -> write -> sync -> index -> notes to every reactor -> locks released
//!                                               (the committer's last: its reply is there)
//! ```
//!
//! Clients that commit again and again would fall into two groups that take turns, each waiting
//! for the other's sync: whoever is answered after a sync has missed the start of the next. So the
//! thread waits a part of a sync's time for those who were in the last batch, and only for them: a
//! client alone never waits, and one that has stopped is waited for once.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::io::Clock;

use crate::commit::draft::Draft;
use crate::commit::keeper::Keeper;
use crate::log::{self, Severity, Source};
use crate::note::{Committed, ConnectionId, Note, Post, Ticket};
use crate::service::Service;
use crate::session::refusal;
use crate::storage::error::Verdict;
use crate::storage::pack::Successor;
use crate::storage::space::Reservation;
use crate::storage::{Appender, Change, Commit, StorageError, View};

/// Transactions that one sync may cover. More wait for the next.
const BATCH_MAX: usize = 1024;

/// The part of a sync's usual time that may be spent on waiting for more to write: one in this.
const GATHER_PART: u32 = 3;

/// Waiting for more to write never takes longer, however slow the disk is.
const GATHER_MAX: Duration = Duration::from_millis(1);

/// A voted transaction that is to be finished.
#[derive(Debug)]
pub struct Order {
    /// Which.
    pub ticket: Ticket,
    /// What its client sent.
    pub draft: Draft,
    /// What is to be written.
    pub changes: Vec<Change>,
    /// Space that is set aside for it.
    pub room: Option<Reservation>,
}

/// A packed file that is to be put in place.
#[derive(Debug)]
pub struct Succession {
    /// The file.
    pub successor: Successor,
    /// Who waits to hear how it went.
    pub reply: mpsc::Sender<Result<Arc<dyn View>, StorageError>>,
}

/// The commit thread of one storage.
#[derive(Debug)]
pub struct CommitThread {
    service: Arc<Service>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), StorageError>>>,
}

struct Worker {
    service: Arc<Service>,
    appender: Box<dyn Appender>,
    keeper: Keeper,
    clock: Arc<dyn Clock>,
    post: Post,
    last: Tid,
    /// Whose transactions the last batch had.
    awaited: HashSet<ConnectionId>,
    /// How long writing and syncing takes, smoothed.
    write_time: Duration,
}

/// What one sync covers.
#[derive(Default)]
struct Batch {
    commits: Vec<Commit>,
    tickets: Vec<Ticket>,
    rooms: Vec<Reservation>,
}

impl CommitThread {
    /// Starts the thread, which owns the appender from now on.
    ///
    /// # Errors
    ///
    /// The system gives no more threads.
    pub fn start(
        service: Arc<Service>,
        appender: Box<dyn Appender>,
        clock: Arc<dyn Clock>,
        post: Post,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let last = service.storage.last_tid();
        let keeper = Keeper::start(Arc::clone(&service.storage))?;
        let worker = Worker {
            service: Arc::clone(&service),
            appender,
            keeper,
            clock,
            post,
            last,
            awaited: HashSet::new(),
            write_time: Duration::ZERO,
        };
        let thread = thread::Builder::new().name(format!("commit-{}", service.place)).spawn({
            let stop = Arc::clone(&stop);
            move || worker.work(&stop)
        })?;
        Ok(Self { service, stop, thread: Some(thread) })
    }

    /// The storage.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Finishes what was ordered, closes the storage, and ends the thread.
    ///
    /// # Errors
    ///
    /// The storage could not be left as the next start wants it; what was answered is safe.
    pub fn close(mut self) -> Result<(), StorageError> {
        self.stop.store(true, Ordering::Release);
        self.service.orders.doorbell().ring();
        match self.thread.take().expect("it is closed once").join() {
            Ok(outcome) => outcome,
            // The thread has said on stderr what it panicked for.
            Err(_) => Err(StorageError::Poisoned),
        }
    }
}

impl Worker {
    fn work(mut self, stop: &AtomicBool) -> Result<(), StorageError> {
        let mut batch = Batch::default();
        loop {
            // Between two batches everything that was written is published.
            if let Some(succession) = self.service.successions.take() {
                self.succeed(succession);
            }
            self.take_orders(&mut batch);
            if !batch.commits.is_empty() {
                self.gather(&mut batch);
                self.write(&batch);
                batch.commits.clear();
                batch.tickets.clear();
                batch.rooms.clear();
            } else if stop.load(Ordering::Acquire) {
                return self.appender.close();
            } else {
                let (orders, successions) = (&self.service.orders, &self.service.successions);
                orders.doorbell().sleep_unless(|| {
                    !orders.is_empty() || !successions.is_empty() || stop.load(Ordering::Acquire)
                });
            }
        }
    }

    /// Takes what waits, as much as one sync may cover.
    fn take_orders(&mut self, batch: &mut Batch) {
        while batch.commits.len() < BATCH_MAX {
            let Some(order) = self.service.orders.take() else {
                break;
            };
            let ticket = order.ticket;
            self.awaited.remove(&ticket.connection);
            match self.commit(order) {
                Ok((commit, room)) => {
                    batch.tickets.push(ticket);
                    batch.commits.push(commit);
                    batch.rooms.extend(room);
                }
                Err(error) => self.refuse(&error, ticket),
            }
        }
    }

    /// Waits a little for those who committed last time.
    fn gather(&mut self, batch: &mut Batch) {
        let end = self.clock.monotonic() + (self.write_time / GATHER_PART).min(GATHER_MAX);
        while !self.awaited.is_empty()
            && batch.commits.len() < BATCH_MAX
            && self.clock.monotonic() < end
        {
            thread::yield_now();
            self.take_orders(batch);
        }
        self.awaited = batch.tickets.iter().map(|ticket| ticket.connection).collect();
    }

    fn write(&mut self, batch: &Batch) {
        let start = self.clock.monotonic();
        match self.appender.write(&batch.commits) {
            Ok(()) => {
                let took = self.clock.monotonic().saturating_sub(start);
                self.write_time = (self.write_time * 7 + took) / 8;
                self.publish(&batch.commits, &batch.tickets);
            }
            Err(error) => {
                self.poison(&error);
                batch.tickets.iter().for_each(|ticket| self.refuse(&error, *ticket));
            }
        }
    }

    /// Gives the transaction its tid: the one that it asked for, or the time, but always a later
    /// one than the last.
    ///
    /// # Errors
    ///
    /// A pack has ended since the vote, and what the transaction points back to is not to be had.
    fn commit(&mut self, order: Order) -> Result<(Commit, Option<Reservation>), StorageError> {
        let Order { mut draft, mut changes, mut room, .. } = order;
        if let Some(room) = &mut room {
            room.follow(&mut draft, &mut changes)?;
        }
        let tid = draft.tid.unwrap_or_else(|| self.last.later(self.clock.since_1970()));
        assert!(self.last < tid, "a vote refuses a tid that is not later, and excludes others");
        self.last = tid;
        Ok((Commit { tid, draft, changes }, room))
    }

    fn publish(&mut self, batch: &[Commit], tickets: &[Ticket]) {
        self.appender.publish(batch);
        let service = &self.service;
        service.stats.commits.fetch_add(batch.len() as u64, Ordering::Relaxed);
        let (object_count, size) = (service.storage.object_count(), service.storage.size());
        for (commit, ticket) in batch.iter().zip(tickets) {
            let committed = Arc::new(Committed {
                storage: service.place,
                tid: commit.tid,
                oids: written(&commit.changes),
                ticket: *ticket,
                object_count,
                size,
            });
            let home = ticket.connection.reactor();
            for reactor in (0..self.post.reactor_count()).filter(|reactor| *reactor != home) {
                self.post.tell_in_turn(reactor, Note::Committed(Arc::clone(&committed)));
            }
            self.post.tell_in_turn(home, Note::Committed(committed));
            service.release(*ticket, &self.post);
        }
        self.keeper.grown(size, object_count);
    }

    /// Puts a packed file in place, and lets every reactor know before the next commit.
    fn succeed(&mut self, Succession { successor, reply }: Succession) {
        let outcome = self.appender.succeed(successor);
        match &outcome {
            Ok(view) => {
                self.keeper.shrunk(self.service.storage.size());
                for reactor in 0..self.post.reactor_count() {
                    let (storage, view) = (self.service.place, Arc::clone(view));
                    self.post.tell_in_turn(reactor, Note::Succeeded { storage, view });
                }
            }
            Err(error) if error.verdict() == Verdict::Poison => self.poison(error),
            Err(_) => {}
        }
        // Nobody waits any more if the pack thread has panicked.
        drop(reply.send(outcome));
    }

    fn poison(&self, error: &StorageError) {
        let first = !self.service.poisoned.swap(true, Ordering::AcqRel);
        if first {
            let text = format!(
                "storage {:?} takes no more commits: {error}. Loads go on. Make sure of the disk, \
                 then restart the server",
                self.service.name
            );
            log::event(Source::SERVER, Severity::Critical, "", format_args!("{text}"));
        }
    }

    /// Ends a transaction that was not written.
    fn refuse(&self, error: &StorageError, ticket: Ticket) {
        let error = refusal::of(error);
        self.post.tell(ticket.connection.reactor(), Note::CommitFailed { ticket, error });
        self.service.release(ticket, &self.post);
    }
}

/// The objects of a transaction, each once, in order.
fn written(changes: &[Change]) -> Vec<Oid> {
    let mut seen = HashSet::with_capacity(changes.len());
    changes.iter().map(|change| change.oid).filter(|oid| seen.insert(*oid)).collect()
}
