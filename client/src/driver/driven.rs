//! The driver without a thread on the way of a load: who waits for an answer sends and receives by
//! itself. One of those who wait has the helm and moves everybody's bytes; the others look at their
//! slots. When the one at the helm has its answer, the next takes it.
//!
//! ```text
//!   put (short lock) -> send -> [helm?] -- yes --> recv, fill slots, until one's own is full
//!                                  `------ no ---> look at the slot, then sleep on it
//! ```
//!
//! No thread stays blocked on the socket while another drives: it would be woken by every answer.
//! What nobody waits for is taken in at a transaction's begin, and by the keeper's timer.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use zeoring_shared::ring::{Helm, Lead, Slot, Turn};

use super::gate::Gate;
use super::standing::Standing;
use super::{Blocking, Driver, farewell, later, not_connected, now, unsent};
use crate::channel::Channel;
use crate::client::Zeo;
use crate::dial::{self, Link};
use crate::error::{Broken, ClientError};
use crate::keeper::{self, Adopter, Keeper};
use crate::options::Options;
use crate::session::order::{Order, Question};
use crate::session::{Epoch, Inbound, Outcome, Session};
use crate::view::View;

/// Between two looks at the clock, after which others get the processor: a probe takes 0.3 us.
const PROBES_PER_YIELD: u32 = 8;

/// A caller's place to wait at.
type Waiter = Arc<Slot<Outcome>>;

/// Lets whoever waits drive.
#[derive(Debug)]
pub struct Driven {
    wheel: Arc<Wheel>,
    keeper: Keeper,
}

/// What callers and the keeper share.
#[derive(Debug)]
struct Wheel {
    standing: Arc<Standing>,
    spin: Duration,
    /// The keeper's.
    bell: Arc<OwnedFd>,
    /// Of whoever sleeps on the socket of the connection there is.
    sleeper: Arc<OwnedFd>,
    connection: RwLock<Option<Arc<Connection>>>,
}

/// One connection.
#[derive(Debug)]
struct Connection {
    epoch: Epoch,
    socket: OwnedFd,
    is_plain: bool,
    /// Never held over a system call.
    dialogue: Mutex<Dialogue>,
    /// Who receives has the helm; the lock only says so to the compiler.
    incoming: Mutex<Incoming>,
    helm: Helm,
    /// Whether there may be something to send: set after it was added.
    has_more: AtomicBool,
    /// Whether somebody sends: what others add meanwhile goes along.
    is_sending: AtomicBool,
    outgoing: Mutex<Outgoing>,
    /// Whether the socket takes no more at the moment; who has the helm then waits for that too.
    is_blocked: AtomicBool,
    /// Ends the sleep of who has the helm, to let it look at `is_blocked`.
    bell: Arc<OwnedFd>,
    channel: Mutex<Channel>,
}

#[derive(Debug)]
struct Dialogue {
    session: Session<Waiter>,
    ended: Option<ClientError>,
}

#[derive(Debug)]
struct Incoming {
    inbound: Inbound,
    /// The bytes of a channel that is not plain.
    cipher: Vec<u8>,
    answered: Vec<(Waiter, Outcome)>,
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

impl Driven {
    pub(crate) fn start(options: &Options, view: &Arc<View>) -> Result<Self, ClientError> {
        let bell = Keeper::bell()?;
        let sleeper = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let sleeper = sleeper.map_err(|error| Broken::Socket(error.into()))?;
        let standing = Arc::new(Standing::new());
        let wheel = Arc::new(Wheel {
            standing: Arc::clone(&standing),
            spin: options.spin,
            bell: Arc::clone(&bell),
            sleeper: Arc::new(sleeper),
            connection: RwLock::default(),
        });
        let keeper = Keeper::start(Arc::clone(&wheel), standing, Arc::clone(view), options, bell)?;
        Ok(Self { wheel, keeper })
    }
}

impl Driver for Driven {
    async fn call(&self, order: Order, patience: Option<Duration>) -> Outcome {
        let connection = self.wheel.connection().map_err(|error| unsent(&order, error))?;
        let name = order.question.name();
        let is_commit = matches!(order.question, Question::Finish(_));
        let slot = Arc::new(Slot::new());
        connection.put(order, Some(Arc::clone(&slot)))?;
        self.wheel.flush(&connection);
        if let Some(outcome) = self.wheel.wait(&connection, &slot, patience) {
            return outcome;
        }
        if is_commit {
            // Committed or not, and still locked or not: only the connection's end settles it.
            self.wheel.end(&connection, Broken::CommitInDoubt);
        }
        Err(ClientError::Deadline { call: name, deadline: patience.unwrap_or_default() })
    }

    fn tell(&self, order: Order) {
        if let Ok(connection) = self.wheel.connection()
            && connection.put(order, None).is_ok()
        {
            self.wheel.flush(&connection);
        }
    }

    fn take_in(&self) {
        self.wheel.take_in();
    }

    async fn wait_at<T, R>(
        &self,
        gate: &Gate<T>,
        limit: Duration,
        ready: impl FnMut(&mut T) -> Option<R>,
    ) -> Option<R> {
        gate.wait(limit, ready)
    }

    fn standing(&self) -> &Standing {
        &self.wheel.standing
    }

    fn close(&self) {
        if self.wheel.standing.is_forked() {
            return;
        }
        self.wheel.standing.close();
        self.keeper.join();
        if let Some(connection) = self.wheel.take_connection() {
            tell(connection.end(&ClientError::Closed));
        }
    }
}

impl Blocking for Driven {}

impl Zeo<Driven> {
    /// Makes a client, and waits for its first connection as long as [`Options::wait`] says.
    ///
    /// # Errors
    ///
    /// [`ClientError::NotConnected`] tells what is the matter with each address; where every
    /// server has answered that it does not take us, at once.
    pub fn open(options: Options) -> Result<Self, ClientError> {
        now(Self::start(options, Driven::start))
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        self.close();
    }
}

impl Adopter for Wheel {
    type Waiter = Waiter;

    fn adopt(&self, epoch: Epoch, link: Link<Waiter>) {
        let (codec, is_read_only) = (link.session.codec(), link.session.is_read_only());
        let connection = Connection {
            epoch,
            socket: link.socket,
            is_plain: link.channel.is_plain(),
            dialogue: Mutex::new(Dialogue { session: link.session, ended: None }),
            incoming: Mutex::new(Incoming {
                inbound: link.inbound,
                cipher: Vec::new(),
                answered: Vec::new(),
            }),
            helm: Helm::new(),
            has_more: AtomicBool::new(true),
            is_sending: AtomicBool::new(false),
            outgoing: Mutex::new(Outgoing { bytes: link.unsent, sent: 0 }),
            is_blocked: AtomicBool::new(false),
            bell: Arc::clone(&self.sleeper),
            channel: Mutex::new(link.channel),
        };
        *self.connection.write().unwrap_or_else(PoisonError::into_inner) =
            Some(Arc::new(connection));
        self.standing.connect(epoch, codec, is_read_only);
    }

    fn release(&self) {
        if let Ok(connection) = self.connection() {
            self.end(&connection, Broken::Upgraded);
        }
    }

    fn tick(&self, is_heartbeat: bool) {
        if is_heartbeat && let Ok(connection) = self.connection() {
            lock(&connection.dialogue).session.keep_alive();
            connection.has_more.store(true, Ordering::SeqCst);
            self.flush(&connection);
        }
        self.take_in();
    }
}

impl Wheel {
    fn connection(&self) -> Result<Arc<Connection>, ClientError> {
        if self.standing.is_forked() {
            return Err(ClientError::Forked);
        }
        let connection = self.connection.read().unwrap_or_else(PoisonError::into_inner);
        connection.clone().ok_or_else(not_connected)
    }

    fn take_connection(&self) -> Option<Arc<Connection>> {
        self.connection.write().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Ends a connection: callers that wait get the error, and the keeper makes a new one.
    fn end(&self, connection: &Arc<Connection>, broken: Broken) {
        let mut current = self.connection.write().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection)) {
            *current = None;
        }
        drop(current);
        // In this order: the view is changed no more when the keeper looks at it for the next
        // connection, and who is told may ask again and find that this one is gone.
        let given_up = connection.end(&broken.into());
        self.standing.disconnect(connection.epoch);
        tell(given_up);
        keeper::ring(&self.bell);
    }

    /// Sends what the socket takes now.
    fn flush(&self, connection: &Arc<Connection>) {
        if let Err(broken) = connection.flush() {
            self.end(connection, broken);
        }
    }

    /// Sends and receives what goes at once; true when something came. Both in one turn, so that
    /// two ends that have much to say do not wait for each other.
    fn turn(&self, connection: &Arc<Connection>, incoming: &mut Incoming) -> bool {
        let outcome = if connection.is_blocked.load(Ordering::Relaxed) {
            connection.flush().and_then(|()| connection.receive(incoming))
        } else {
            connection.receive(incoming)
        };
        outcome.unwrap_or_else(|broken| {
            self.end(connection, broken);
            true
        })
    }

    fn take_in(&self) {
        if let Ok(connection) = self.connection()
            && let Some(lead) = connection.helm.try_lead()
        {
            let mut incoming = lock(&connection.incoming);
            while self.turn(&connection, &mut incoming) && !connection.has_ended() {}
            drop(incoming);
            drop(lead);
        }
    }

    fn wait(
        &self,
        connection: &Arc<Connection>,
        slot: &Waiter,
        patience: Option<Duration>,
    ) -> Option<Outcome> {
        // The clock is read once on the way of a load that finds the helm taken, else not at all.
        if let Some(lead) = connection.helm.try_lead() {
            return self.lead(connection, slot, patience, None, lead);
        }
        let until = patience.map(later);
        match connection.helm.wait(slot, self.spin, until) {
            Turn::Answer(outcome) => Some(outcome),
            Turn::Late => None,
            Turn::Lead(lead) => self.lead(connection, slot, patience, until, lead),
        }
    }

    /// Drives for all until one's own slot is full or the time is over.
    fn lead(
        &self,
        connection: &Arc<Connection>,
        slot: &Waiter,
        patience: Option<Duration>,
        mut until: Option<Instant>,
        lead: Lead<'_>,
    ) -> Option<Outcome> {
        let mut incoming = lock(&connection.incoming);
        let mut quiet_since = None;
        let mut probes: u32 = 0;
        let outcome = loop {
            if slot.is_full() {
                break slot.take();
            }
            if self.turn(connection, &mut incoming) {
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
            if let Some(patience) = patience
                && *until.get_or_insert_with(|| later(patience)) <= now
            {
                break None;
            }
            if now - *quiet_since.get_or_insert(now) < self.spin {
                rustix::thread::sched_yield();
            } else {
                connection.sleep(until.map(|until| until - now));
            }
        };
        drop(incoming);
        drop(lead);
        outcome
    }
}

impl Connection {
    /// Adds an order to what is to be sent.
    fn put(&self, order: Order, waiter: Option<Waiter>) -> Result<(), ClientError> {
        if order.epoch.is_some_and(|epoch| epoch != self.epoch) {
            return Err(ClientError::TransactionLost);
        }
        let mut dialogue = lock(&self.dialogue);
        if let Some(error) = &dialogue.ended {
            return Err(unsent(&order, error.clone()));
        }
        dialogue.session.put(order, waiter);
        self.has_more.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn has_ended(&self) -> bool {
        lock(&self.dialogue).ended.is_some()
    }

    /// Sends what the socket takes now, unless somebody else is at it: that one takes it along.
    fn flush(&self) -> Result<(), Broken> {
        loop {
            if self.is_sending.swap(true, Ordering::SeqCst) {
                return Ok(());
            }
            let sent = self.send();
            self.is_sending.store(false, Ordering::SeqCst);
            // Whoever added something while this thread was sending has left it to this thread:
            // its addition came before its look at the flag, so it is seen here.
            if !sent? || !self.has_more.load(Ordering::SeqCst) {
                return Ok(());
            }
        }
    }

    /// Sends until there is nothing more, or the socket takes nothing: then false.
    fn send(&self) -> Result<bool, Broken> {
        let mut outgoing = lock(&self.outgoing);
        loop {
            if outgoing.sent == outgoing.bytes.len() {
                (outgoing.sent, _) = (0, outgoing.bytes.clear());
                self.fill(&mut outgoing.bytes)?;
            }
            if outgoing.bytes.is_empty() {
                self.is_blocked.store(false, Ordering::Relaxed);
                return Ok(true);
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.socket, &outgoing.bytes[outgoing.sent..], flags) {
                Ok(count) => outgoing.sent += count,
                Err(Errno::AGAIN) => {
                    self.is_blocked.store(true, Ordering::Relaxed);
                    keeper::ring(&self.bell);
                    return Ok(false);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(Broken::Socket(error.into())),
            }
        }
    }

    /// Takes from the session what is to be sent.
    fn fill(&self, bytes: &mut Vec<u8>) -> Result<(), Broken> {
        if !self.has_more.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        if self.is_plain {
            self.take_output(bytes);
            return Ok(());
        }
        let mut clear = Vec::new();
        self.take_output(&mut clear);
        let mut channel = lock(&self.channel);
        channel.send(&clear)?;
        channel.take_output(bytes)?;
        Ok(())
    }

    fn take_output(&self, bytes: &mut Vec<u8>) {
        let mut dialogue = lock(&self.dialogue);
        dialogue.session.take_output(bytes);
        if dialogue.session.has_output() {
            self.has_more.store(true, Ordering::SeqCst);
        }
    }

    /// Receives what is there, and tells those whose answers it has. Only who has the helm.
    fn receive(&self, incoming: &mut Incoming) -> Result<bool, Broken> {
        let Incoming { inbound, cipher, answered } = incoming;
        let mut has_output = false;
        if self.is_plain {
            let Some(count) = self.recv(inbound.space())? else { return Ok(false) };
            inbound.fill(count);
        } else {
            cipher.resize(32 * 1024, 0);
            let Some(count) = self.recv(cipher)? else { return Ok(false) };
            let mut channel = lock(&self.channel);
            channel.receive(&cipher[..count], &mut |clear| inbound.add(clear))?;
            // A new key or an alert may have to be told, whether or not the session has output.
            has_output = true;
        }
        let mut dialogue = lock(&self.dialogue);
        if dialogue.ended.is_some() {
            return Ok(true);
        }
        let received = dialogue.session.receive(inbound);
        answered.extend(std::iter::from_fn(|| dialogue.session.poll()));
        has_output |= dialogue.session.has_output();
        drop(dialogue);
        for (waiter, outcome) in answered.drain(..) {
            waiter.fill(outcome);
        }
        received?;
        if has_output {
            self.has_more.store(true, Ordering::SeqCst);
            self.flush()?;
        }
        Ok(true)
    }

    fn recv(&self, space: &mut [u8]) -> Result<Option<usize>, Broken> {
        match rustix::net::recv(&self.socket, space, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => Err(Broken::Socket(io::ErrorKind::UnexpectedEof.into())),
            Ok((_, count)) => Ok(Some(count)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(Broken::Socket(error.into())),
        }
    }

    /// Sleeps until the socket has something, or takes something where it was blocked.
    fn sleep(&self, limit: Option<Duration>) {
        let is_blocked = self.is_blocked.load(Ordering::Relaxed);
        let flags = if is_blocked { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let bell = PollFd::new(&self.bell, PollFlags::IN);
        let mut polls = [PollFd::new(&self.socket, flags), bell];
        let limit = limit.map(dial::timespec);
        // Whatever poll says, the socket is looked at again.
        let _ = rustix::event::poll(&mut polls, limit.as_ref());
        if polls[1].revents().contains(PollFlags::IN) {
            let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        }
    }

    /// Gives everything up, and names those who have to be told. The server hears of it at once.
    fn end(&self, error: &ClientError) -> Vec<(Waiter, Outcome)> {
        let mut dialogue = lock(&self.dialogue);
        if dialogue.ended.is_some() {
            return Vec::new();
        }
        dialogue.ended = Some(error.clone());
        dialogue.session.abandon(error);
        let given_up = std::iter::from_fn(|| dialogue.session.poll()).collect();
        drop(dialogue);
        if !self.is_plain
            && let Ok(outgoing) = self.outgoing.try_lock()
            && outgoing.sent == outgoing.bytes.len()
        {
            farewell(&mut lock(&self.channel), &self.socket);
        }
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        given_up
    }
}

fn tell(answered: Vec<(Waiter, Outcome)>) {
    for (waiter, outcome) in answered {
        waiter.fill(outcome);
    }
}

/// What a thread that panicked left is still whole: no lock is held over foreign code but a
/// watcher's.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
