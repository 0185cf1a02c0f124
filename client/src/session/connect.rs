//! How a session comes up: greeting, register, and then, if it is chosen, the comparison of what
//! the client remembers with what the server knows (`ZEO/asyncio/client.py`, `verify_cache`).
//!
//! ```text
//!   Greeting --Z5/M5--> Registering --tid--> Registered --verify()--> History --> Catching up
//!                            `--> Refused                 `-------------------------> Info --> Ready
//! ```
//!
//! Only a session that was chosen among several is verified, because that changes the cache.

use zeoring_shared::ids::Tid;
use zeoring_shared::wire::request::Request;
use zeoring_shared::wire::{self};

use super::answer::{Answer, Kind};
use super::pending::{Call, UseOfAnswer, Waiter};
use super::{Invalidation, Session, SessionError};
use crate::error::ServerError;
use crate::options::Access;

/// So many oids may be invalidated while a session comes up, which takes a few round trips: 8 MiB.
const EARLY_OIDS_MAX: usize = 1024 * 1024;

/// The status of a transaction where a pack has been (`ZODB/FileStorage/fspack.py`).
const STATUS_PACKED: u8 = b'p';

/// How far a session has come.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// The server has not greeted.
    Greeting,
    /// The answer to `register` is due.
    Registering,
    /// The server took us; its last transaction then. [`Session::verify`] comes next.
    Registered(Tid),
    /// The server does not take us, or not for writing.
    Refused(ServerError),
    /// What is remembered is compared with what the server knows.
    Verifying,
    /// Calls may be made.
    Ready,
}

/// What the answer that is due while verifying is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verifying {
    /// Whether the server's history has our last transaction: an iterator from it on.
    HistoryStart,
    /// The same: the first transaction of this iterator.
    HistoryNext(i64),
    /// What was written since.
    CatchingUp,
    /// What the storage is.
    Info,
}

impl<W> Session<W> {
    /// Takes the server's greeting and registers.
    pub(super) fn greeted(&mut self, body: &[u8]) -> Result<(), SessionError> {
        let announced = wire::handshake::read_announcement(body)?;
        self.announced = Some(announced);
        if self.hello.codec == Some(announced) {
            self.codec = announced;
        }
        wire::handshake::answer(self.codec, &mut self.output);
        self.register();
        Ok(())
    }

    /// Registers again, to read only, after a server refused to take writes.
    pub fn register_read_only(&mut self) {
        self.hello.access = Access::Read;
        self.register();
    }

    fn register(&mut self) {
        self.stage = Stage::Registering;
        let read_only = self.is_read_only();
        self.ask_own(Request::Register { storage: self.hello.storage.clone().into(), read_only });
    }

    /// Compares what is remembered with what the server knows. Call it once, at
    /// [`Stage::Registered`].
    pub fn verify(&mut self) -> Result<(), SessionError> {
        let Stage::Registered(theirs) = self.stage else {
            panic!("only a registered session is verified");
        };
        self.stage = Stage::Verifying;
        if let Some(label) = &self.hello.label {
            let label = label.clone().into();
            self.tell(&Request::SetClientLabel { label });
        }
        match self.view.remembered() {
            // Before the first transaction, all histories are the same.
            Some(Tid::ZERO) if Tid::ZERO < theirs => self.ask_what_changed(),
            Some(ours) if ours < theirs => {
                self.verifying = Verifying::HistoryStart;
                self.ask_own(Request::IteratorStart { start: Some(ours), stop: None });
            }
            Some(ours) if theirs < ours => {
                // Whoever has seen a transaction must not be told that it never was.
                if self.view.is_live() {
                    return Err(SessionError::BackInTime { ours, theirs });
                }
                self.view.start_anew(theirs);
                self.ask_info();
            }
            Some(_) => self.ask_info(),
            None => {
                self.view.start_anew(theirs);
                self.ask_info();
            }
        }
        Ok(())
    }

    /// Goes on with an answer that the session itself waited for.
    pub(super) fn advance(
        &mut self,
        result: Result<Answer, ServerError>,
    ) -> Result<(), SessionError> {
        match (&self.stage, self.verifying, result) {
            (Stage::Registering, _, Ok(Answer::Tid(last))) => self.stage = Stage::Registered(last),
            (Stage::Registering, _, Err(error)) => self.stage = Stage::Refused(error),
            (Stage::Verifying, Verifying::HistoryStart, Ok(Answer::Iterator(iterator))) => {
                self.verifying = Verifying::HistoryNext(iterator);
                self.ask_own(Request::IteratorNext { iterator });
            }
            // A storage without iteration cannot be asked.
            (Stage::Verifying, Verifying::HistoryStart, Err(_)) => self.ask_what_changed(),
            (
                Stage::Verifying,
                Verifying::HistoryNext(iterator),
                Ok(Answer::TransactionEntry(entry)),
            ) => {
                self.tell(&Request::IteratorGc { iterators: vec![iterator] });
                let ours = self.view.last_tid();
                match entry {
                    Some(entry) if entry.tid == ours => self.ask_what_changed(),
                    // A pack drops transactions of which nothing is current: it may have been one.
                    Some(entry) if entry.status == STATUS_PACKED => self.begin_anew(),
                    _ => self.forget_history()?,
                }
            }
            (Stage::Verifying, Verifying::HistoryNext(_), Err(_)) => self.ask_what_changed(),
            (Stage::Verifying, Verifying::CatchingUp, Ok(Answer::Invalidated(changes))) => {
                match changes {
                    Some((theirs, _)) if theirs < self.view.last_tid() => {
                        let ours = self.view.last_tid();
                        return Err(SessionError::BackInTime { ours, theirs });
                    }
                    // What came between is neither in the list nor told. A stock server that was
                    // stopped between a vote and its end is like that: what it names as its last
                    // is the transaction that it has cut off (`ZODB/FileStorage/FileStorage.py`,
                    // `read_index`).
                    Some((theirs, _)) if theirs < self.registered_at => {
                        self.view.start_anew(theirs);
                    }
                    Some((until, oids)) => self.view.caught_up(until, &oids),
                    None => self.view.start_anew(self.newest_heard()),
                }
                self.ask_info();
            }
            (Stage::Verifying, Verifying::CatchingUp, Err(_)) => self.begin_anew(),
            (Stage::Verifying, Verifying::Info, Ok(Answer::Info(info))) => {
                self.view.be_informed(info);
                self.stage = Stage::Ready;
                for invalidation in std::mem::take(&mut self.early) {
                    if self.view.last_tid() < invalidation.tid {
                        self.invalidated(&invalidation)?;
                    }
                }
            }
            (Stage::Verifying, Verifying::Info, Err(error)) => self.stage = Stage::Refused(error),
            _ => return Err(SessionError::WrongForm { call: "register" }),
        }
        Ok(())
    }

    /// The server's history is not the one that we remember: it was restored from a backup, or is
    /// another database.
    fn forget_history(&mut self) -> Result<(), SessionError> {
        if self.view.is_live() {
            let ours = self.view.last_tid();
            return Err(SessionError::AnotherHistory { ours });
        }
        self.begin_anew();
        Ok(())
    }

    /// What is remembered cannot be compared.
    fn begin_anew(&mut self) {
        self.view.start_anew(self.newest_heard());
        self.ask_info();
    }

    /// The last transaction that the server is known to have: an empty cache is true as of it.
    fn newest_heard(&self) -> Tid {
        self.registered_at
    }

    fn ask_what_changed(&mut self) {
        self.verifying = Verifying::CatchingUp;
        self.ask_own(Request::GetInvalidations { tid: self.view.last_tid() });
    }

    fn ask_info(&mut self) {
        self.verifying = Verifying::Info;
        self.ask_own(Request::GetInfo);
    }

    fn ask_own(&mut self, request: Request<'_>) {
        let kind = Kind::of(&request);
        let call = Call { kind, waiter: Waiter::Session, use_of_answer: UseOfAnswer::Plain };
        self.send_call(call, request);
    }

    /// Keeps what comes before the comparison is done: it may be part of it.
    pub(super) fn keep_early(&mut self, invalidation: Invalidation) -> Result<(), SessionError> {
        if let Some(last) = self.early.last()
            && invalidation.tid <= last.tid
        {
            // Those that the comparison covers are passed over, so nobody else would notice.
            return Err(SessionError::BackInTime { ours: last.tid, theirs: invalidation.tid });
        }
        self.early_oids += invalidation.oids.len() + 1;
        if EARLY_OIDS_MAX < self.early_oids {
            return Err(SessionError::TooMuchEarly { oids: self.early_oids });
        }
        self.early.push(invalidation);
        Ok(())
    }
}
