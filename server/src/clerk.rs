//! Threads that may wait for the disk, so that reactors need not.
//!
//! A clerk takes an errand, does it, and tells the reactor that sent it. A connection has at most
//! one question and one transaction with the clerks at a time. Some clerks only read, so that a
//! slow read of one object holds up no transaction.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use zeoring_shared::ids::Tid;
use zeoring_shared::io::DiskFile;
use zeoring_shared::ring::{Doorbell, Full, Mailbox};
use zeoring_shared::uring::Token;
use zeoring_shared::wire::MessageId;

use crate::commit::draft::Draft;
use crate::note::{ConnectionId, Note, Post, Ticket};
use crate::service::Service;
use crate::session::query::{Iterators, Question};
use crate::storage::StorageError;

/// Something to do for a reactor.
#[derive(Debug)]
pub enum Errand {
    /// Answer a client's question.
    Answer {
        /// Who asks.
        connection: ConnectionId,
        /// Which of its calls; `None` if it expects no reply.
        id: Option<MessageId>,
        /// What is asked.
        question: Question,
        /// Of which storage.
        service: Arc<Service>,
        /// The last transaction that the connection may know of.
        visible: Tid,
        /// The connection's iterators.
        iterators: Box<Iterators>,
    },
    /// Find what undoing these transactions would write.
    FindUndoOids {
        /// Who wants to undo.
        ticket: Ticket,
        /// The transactions.
        tids: Vec<Tid>,
        /// Of which storage.
        service: Arc<Service>,
    },
    /// Check a transaction whose objects are locked.
    Check {
        /// Which.
        ticket: Ticket,
        /// What the client sent.
        draft: Box<Draft>,
        /// To which storage.
        service: Arc<Service>,
    },
    /// Read from a file that no ring can read.
    Read {
        /// The reader's token.
        token: Token,
        /// The reactor that waits.
        reactor: usize,
        /// The file.
        file: Arc<dyn DiskFile>,
        /// Where.
        position: u64,
        /// How much.
        length: usize,
    },
}

/// Clerks for questions and transactions, and clerks that only read.
const CLERKS: usize = 2;
const READERS: usize = 4;

/// The clerks of a server, and the errands that wait for one.
#[derive(Debug)]
pub struct Clerks {
    desks: Vec<Desk>,
    readers: Vec<Desk>,
    reads: AtomicUsize,
}

/// A clerk, with the errands of some connections: always the same ones, so they stay in order.
#[derive(Debug)]
struct Desk {
    errands: Arc<Mailbox<Errand>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Clerks {
    /// Starts the clerks. Each has room for `errands_max` errands.
    ///
    /// # Errors
    ///
    /// The system gives no more threads.
    pub fn start(errands_max: usize, post: &Post) -> io::Result<Self> {
        let desks = |kind: &str, count: usize| {
            (0..count)
                .map(|number| Desk::start(format!("{kind}-{number}"), errands_max, post.clone()))
                .collect::<io::Result<_>>()
        };
        let (desks, readers) = (desks("clerk", CLERKS)?, desks("reader", READERS)?);
        Ok(Self { desks, readers, reads: AtomicUsize::new(0) })
    }

    /// Sends an errand. `key` chooses the clerk: errands of one key are done in order. Reads are
    /// dealt out to their clerks one by one.
    ///
    /// Waits while the clerk's queue is full; the queue has a place for all that can be under way.
    pub fn send(&self, key: u64, mut errand: Errand) {
        let desk = match errand {
            Errand::Read { .. } => {
                &self.readers[self.reads.fetch_add(1, Ordering::Relaxed) % READERS]
            }
            _ => &self.desks[key as usize % CLERKS],
        };
        while let Err(Full(back)) = desk.errands.leave(errand) {
            errand = back;
            thread::yield_now();
        }
    }
}

impl Desk {
    fn start(name: String, errands_max: usize, post: Post) -> io::Result<Self> {
        let errands = Arc::new(Mailbox::new(errands_max, Arc::new(Doorbell::for_thread())));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name(name).spawn({
            let (errands, stop) = (Arc::clone(&errands), Arc::clone(&stop));
            move || work(&errands, &stop, &post)
        })?;
        Ok(Self { errands, stop, thread: Some(thread) })
    }
}

impl Drop for Desk {
    /// Lets the clerk finish what it has, and waits for it.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.errands.doorbell().ring();
        if let Some(thread) = self.thread.take() {
            // A clerk that panicked has said so on stderr.
            drop(thread.join());
        }
    }
}

fn work(errands: &Mailbox<Errand>, stop: &AtomicBool, post: &Post) {
    loop {
        match errands.take() {
            Some(errand) => run(errand, post),
            None if stop.load(Ordering::Acquire) => return,
            None => errands
                .doorbell()
                .sleep_unless(|| !errands.is_empty() || stop.load(Ordering::Acquire)),
        }
    }
}

fn run(errand: Errand, post: &Post) {
    match errand {
        Errand::Answer { connection, id, question, service, visible, mut iterators } => {
            let outcome = question.answer(&service, visible, &mut iterators);
            let note = Note::Answered { connection, id, outcome, iterators };
            post.tell(connection.reactor(), note);
        }
        Errand::FindUndoOids { ticket, tids, service } => {
            let oids = tids.into_iter().map(|tid| match service.storage.undo_oids(tid) {
                // The check says so in its turn: an operation before it may fail first.
                Err(StorageError::Undo { .. }) => Ok(Vec::new()),
                oids => oids,
            });
            let oids = oids.collect::<Result<Vec<_>, _>>().map(|oids| oids.concat());
            post.tell(ticket.connection.reactor(), Note::FoundUndoOids { ticket, oids });
        }
        Errand::Check { ticket, draft, service } => {
            let outcome = service.storage.check(&draft, true);
            post.tell(ticket.connection.reactor(), Note::Checked { ticket, draft, outcome });
        }
        Errand::Read { token, reactor, file, position, length } => {
            let mut bytes = vec![0; length];
            let bytes = file.read_at(&mut bytes, position).map(|count| {
                bytes.truncate(count);
                bytes
            });
            post.tell(reactor, Note::WasRead { token, bytes });
        }
    }
}
