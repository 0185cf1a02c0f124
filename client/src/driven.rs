//! A client without a thread of its own: the thread that waits for an answer sends and receives.
//!
//! In a client with an I/O thread each load crosses from the application's thread to that one and
//! back; where threads sleep, a crossing costs more than the network does. Here the caller spins on
//! the socket for a while, because an answer usually comes within microseconds, giving the CPU to
//! whoever else wants it every few probes; then it sleeps until the socket has something.

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use zeoring_shared::ids::{Oid, Tid};

use crate::address::Address;
use crate::error::{ClientError, ServerError};
use crate::session::{
    Answer, Description, Event, Info, Invalidated, Revision, Session, Ticket, TransactionId,
    Verdict,
};
use crate::transaction::Transaction;

/// Between two looks at the clock, after which others get the CPU: a probe takes 0.3 us.
const PROBES_PER_YIELD: u32 = 8;

/// How a [`DrivenClient`] waits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Options {
    /// How long to spin while nothing comes, before sleeping. Spinning pays while answers come
    /// sooner than a sleeping thread can be woken (30 to 50 us), and burns a CPU meanwhile; zero
    /// sleeps at once.
    pub spin: Duration,
    /// How long to wait for the answer to a call, and for a connection.
    pub deadline: Duration,
}

impl Default for Options {
    /// Spin for 200 us, wait for 30 s: as long as a server lets a transaction hold its locks.
    fn default() -> Self {
        Self { spin: Duration::from_micros(200), deadline: Duration::from_secs(30) }
    }
}

/// A connection to a server, driven by whoever calls.
///
/// It belongs to one thread at a time. An error that ends the connection ends it for good: make a
/// new client then.
pub struct DrivenClient {
    socket: OwnedFd,
    session: Session,
    options: Options,
    is_ended: bool,
    last_at_start: Tid,
    next_transaction: u64,
}

impl DrivenClient {
    /// Connects to a server and registers for one of its storages, which `runzeo` calls `"1"`.
    ///
    /// A server or storage that is read-only refuses, with an error of which
    /// [`ServerError::is_read_only`] tells, unless `read_only` is set.
    pub fn connect(
        address: &Address,
        storage: &str,
        read_only: bool,
        options: Options,
    ) -> Result<Self, ClientError> {
        let connected = open(address, options.deadline);
        let socket = connected
            .map_err(|source| ClientError::Connect { address: address.clone(), source })?;
        let mut client = Self {
            socket,
            session: Session::new(storage, read_only),
            options,
            is_ended: false,
            last_at_start: Tid::ZERO,
            next_transaction: 1,
        };
        let registered = client.wait("register", |event| match event {
            Event::Registered(result) => Some(result),
            Event::Answered(..) => None,
        });
        client.last_at_start = registered??;
        Ok(client)
    }

    /// The last transaction of the storage when this client registered. Whatever was committed
    /// later comes as an invalidation.
    pub fn last_transaction_at_start(&self) -> Tid {
        self.last_at_start
    }

    /// The newest revision of an object that is older than `before`; `None` if it has none.
    pub fn load_before(&mut self, oid: Oid, before: Tid) -> Result<Option<Revision>, ClientError> {
        self.ready()?;
        let ticket = self.session.load_before(oid, before);
        revision(self.answer("loadBefore", ticket)?)
    }

    /// The current revision of an object.
    pub fn load(&mut self, oid: Oid) -> Result<Revision, ClientError> {
        self.load_before(oid, Tid::MAX)?.ok_or(ClientError::NoRevision { oid })
    }

    /// Loads many objects as of one moment: all requests leave in one burst.
    ///
    /// Results are in the order of `oids`, each on its own: an object that does not exist does not
    /// stop the others.
    pub fn prefetch(
        &mut self,
        oids: &[Oid],
        before: Tid,
    ) -> Result<Vec<Result<Option<Revision>, ServerError>>, ClientError> {
        self.ready()?;
        let Some((&first_oid, others)) = oids.split_first() else { return Ok(Vec::new()) };
        let Ticket(first) = self.session.load_before(first_oid, before);
        for &oid in others {
            self.session.load_before(oid, before);
        }
        let mut results = Vec::with_capacity(oids.len());
        results.resize(oids.len(), Ok(None));
        let mut missing = oids.len();
        self.wait("loadBefore", |event| {
            let Event::Answered(Ticket(ticket), result) = event else { return None };
            // Older tickets are of calls that were given up.
            let index = ticket.checked_sub(first)?;
            results[index as usize] = result.map(|answer| match answer {
                Answer::Revision(revision) => revision,
                _ => unreachable!("an answer to a load is a revision"),
            });
            missing -= 1;
            (missing == 0).then_some(())
        })?;
        Ok(results)
    }

    /// Fresh oids, at most 100 at once and at least one.
    pub fn new_oids(&mut self, count: u32) -> Result<Vec<Oid>, ClientError> {
        self.ready()?;
        let ticket = self.session.new_oids(count);
        match self.answer("new_oids", ticket)? {
            Answer::Oids(oids) => Ok(oids),
            _ => unreachable!("an answer to new_oids is a list of oids"),
        }
    }

    /// The last transaction that the storage knows.
    pub fn last_transaction(&mut self) -> Result<Tid, ClientError> {
        self.ready()?;
        let ticket = self.session.last_transaction();
        tid(self.answer("lastTransaction", ticket)?)
    }

    /// What the storage is and can do.
    pub fn info(&mut self) -> Result<Info, ClientError> {
        self.ready()?;
        let ticket = self.session.info();
        match self.answer("get_info", ticket)? {
            Answer::Info(info) => Ok(info),
            _ => unreachable!("an answer to get_info is the info"),
        }
    }

    /// Goes to the server and back. Every commit that was answered before, to whomever, is seen
    /// by [`DrivenClient::invalidations`] afterwards.
    pub fn ping(&mut self) -> Result<(), ClientError> {
        self.ready()?;
        let ticket = self.session.ping();
        self.answer("ping", ticket).map(drop)
    }

    /// What other clients committed since the last time one asked, so far as it has arrived.
    pub fn invalidations(&mut self) -> Result<Invalidated, ClientError> {
        self.ready()?;
        while self.turn()? {}
        Ok(self.session.take_invalidations())
    }

    /// Begins a transaction. Nothing is locked before its vote.
    pub fn begin(&mut self, description: &Description) -> Result<Transaction<'_>, ClientError> {
        self.ready()?;
        let id = TransactionId(self.next_transaction);
        self.next_transaction += 1;
        self.session.begin(id, description);
        Ok(Transaction::new(self, id))
    }

    /// The session, for calls without an answer. Nothing is sent until somebody waits.
    pub(crate) fn session(&mut self) -> Result<&mut Session, ClientError> {
        self.ready()?;
        Ok(&mut self.session)
    }

    pub(crate) fn vote(&mut self, id: TransactionId) -> Result<Verdict, ClientError> {
        let ticket = self.session()?.vote(id);
        match self.answer("vote", ticket)? {
            Answer::Verdict(verdict) => Ok(verdict),
            _ => unreachable!("an answer to vote is a verdict"),
        }
    }

    pub(crate) fn finish(&mut self, id: TransactionId) -> Result<Tid, ClientError> {
        let ticket = self.session()?.finish(id);
        let outcome = self.answer("tpc_finish", ticket).and_then(tid);
        // Committed or not, and still locked or not: only the end of the connection settles it.
        self.conclude(outcome)
    }

    pub(crate) fn abort(&mut self, id: TransactionId) -> Result<(), ClientError> {
        let ticket = self.session()?.abort(id);
        self.answer("tpc_abort", ticket).map(drop)
    }

    /// Sends the abort of a transaction that nobody will ask about again.
    pub(crate) fn abandon(&mut self, id: TransactionId) {
        if self.is_ended {
            return;
        }
        self.session.abort(id);
        // What the socket does not take now leaves with the next call.
        let _ = self.flush();
    }

    /// Sends as much as the socket takes now. What has grown large need not wait for the vote.
    pub(crate) fn flush(&mut self) -> Result<(), ClientError> {
        let outcome = flush(&self.socket, &mut self.session);
        self.conclude(outcome)
    }

    fn ready(&self) -> Result<(), ClientError> {
        if self.is_ended { Err(ClientError::Ended) } else { Ok(()) }
    }

    fn answer(&mut self, call: &'static str, ticket: Ticket) -> Result<Answer, ClientError> {
        let result = self.wait(call, |event| match event {
            Event::Answered(answered, result) if answered == ticket => Some(result),
            _ => None,
        })?;
        Ok(result?)
    }

    /// Turns the crank until `pick` takes an event. Those that it leaves are of calls given up.
    fn wait<T>(
        &mut self,
        call: &'static str,
        mut pick: impl FnMut(Event) -> Option<T>,
    ) -> Result<T, ClientError> {
        let mut waiting_since = None;
        let mut quiet_since = None;
        let mut probes: u32 = 0;
        loop {
            if self.turn()? {
                while let Some(event) = self.session.poll() {
                    if let Some(picked) = pick(event) {
                        return Ok(picked);
                    }
                }
                // Something came, so more may come as soon: the spinning begins anew.
                (quiet_since, probes) = (None, 0);
                continue;
            }
            probes = probes.wrapping_add(1);
            if !probes.is_multiple_of(PROBES_PER_YIELD) {
                std::hint::spin_loop();
                continue;
            }
            let now = Instant::now();
            let waited = now - *waiting_since.get_or_insert(now);
            let Some(left) = self.options.deadline.checked_sub(waited) else {
                return Err(ClientError::Deadline { call, deadline: self.options.deadline });
            };
            if now - *quiet_since.get_or_insert(now) < self.options.spin {
                rustix::thread::sched_yield();
            } else {
                let outcome = sleep(&self.socket, !self.session.output().is_empty(), left);
                self.conclude(outcome)?;
            }
        }
    }

    /// Sends and receives what goes at once; true when something came. Both in one turn, so that
    /// two ends that have much to say do not wait for each other.
    fn turn(&mut self) -> Result<bool, ClientError> {
        let outcome = flush(&self.socket, &mut self.session)
            .and_then(|()| receive(&self.socket, &mut self.session));
        self.conclude(outcome)
    }

    /// An error on this way ends the connection, and the server hears of it at once.
    fn conclude<T>(&mut self, outcome: Result<T, ClientError>) -> Result<T, ClientError> {
        if outcome.is_err() && !self.is_ended {
            self.is_ended = true;
            let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        }
        outcome
    }
}

fn revision(answer: Answer) -> Result<Option<Revision>, ClientError> {
    match answer {
        Answer::Revision(revision) => Ok(revision),
        _ => unreachable!("an answer to a load is a revision"),
    }
}

fn tid(answer: Answer) -> Result<Tid, ClientError> {
    match answer {
        Answer::Tid(tid) => Ok(tid),
        _ => unreachable!("the answer to this call is a tid"),
    }
}

fn flush(socket: &OwnedFd, session: &mut Session) -> Result<(), ClientError> {
    while !session.output().is_empty() {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(socket, session.output(), flags) {
            Ok(count) => session.sent(count),
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(ClientError::Broken(e.into())),
        }
    }
    Ok(())
}

fn receive(socket: &OwnedFd, session: &mut Session) -> Result<bool, ClientError> {
    match rustix::net::recv(socket, session.space(), RecvFlags::DONTWAIT) {
        Ok((_, 0)) => Err(ClientError::Broken(io::ErrorKind::UnexpectedEof.into())),
        Ok((_, count)) => {
            session.receive(count)?;
            Ok(true)
        }
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(e) => Err(ClientError::Broken(e.into())),
    }
}

/// Sleeps until the socket has something for us, or takes something where `has_output`.
fn sleep(socket: &OwnedFd, has_output: bool, limit: Duration) -> Result<(), ClientError> {
    let flags = if has_output { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
    match rustix::event::poll(&mut [PollFd::new(socket, flags)], Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(ClientError::Broken(e.into())),
    }
}

/// Connects to the first of the host's addresses that answers.
fn open(address: &Address, deadline: Duration) -> io::Result<OwnedFd> {
    let (host, port) = match address {
        Address::Unix(path) => return Ok(UnixStream::connect(path)?.into()),
        Address::Tcp { host, port } => (host, *port),
    };
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for candidate in std::net::ToSocketAddrs::to_socket_addrs(&(host.as_str(), port))? {
        match TcpStream::connect_timeout(&candidate, deadline) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream.into());
            }
            Err(e) => failure = e,
        }
    }
    Err(failure)
}
