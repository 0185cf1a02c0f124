//! The driver with a thread of its own: any number of threads leave their calls in a lock-free
//! ring, one thread moves them through an io_uring, and each caller waits at its own slot.
//!
//! ```text
//!   callers --Note--> Mailbox --> [ mover: ring, session ] --> server
//!      ^---- Slot <----------------------'
//! ```
//!
//! Calls that come together leave in one send. Nobody is woken who is awake: the mover is rung only
//! when it sleeps in its ring, a caller only when it sleeps at its slot.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown};
use zeoring_shared::ring::{Doorbell, Full, Mailbox, Slot};
use zeoring_shared::uring::{Event, Options as RingOptions, Reactor, SpinBudget, Token};

use super::gate::Gate;
use super::standing::Standing;
use super::{Blocking, Driver, farewell, later, not_connected, now, unsent};
use crate::channel::Channel;
use crate::client::Zeo;
use crate::dial::Link;
use crate::error::{Broken, ClientError};
use crate::keeper::{self, Adopter, Keeper};
use crate::options::Options;
use crate::session::order::{Order, Question};
use crate::session::{Epoch, Inbound, Outcome, Session};
use crate::view::View;

/// Notes that may wait for the mover. Each thread has one call at a time, so a full mailbox is a
/// thousand threads that call faster than one thread can send; they take turns then.
const INBOX_SLOTS: usize = 1024;

/// A caller's place to wait at.
type Waiter = Arc<Slot<Outcome>>;

/// Moves bytes on a thread with a ring.
#[derive(Debug)]
pub struct Threaded {
    desk: Arc<Desk>,
    keeper: Keeper,
    mover: Mutex<Option<JoinHandle<()>>>,
}

/// What callers, the keeper and the mover share.
#[derive(Debug)]
struct Desk {
    standing: Arc<Standing>,
    spin: Duration,
    inbox: Mailbox<Note>,
    /// Whether the mover has ended: nobody reads the inbox any more.
    is_over: AtomicBool,
    /// The keeper's.
    bell: Arc<OwnedFd>,
}

/// Everything that the mover may be told.
#[derive(Debug)]
enum Note {
    /// An order, and who waits for its outcome.
    Call { order: Order, waiter: Option<Waiter> },
    /// A connection that is ready; drop the last once it is known.
    Adopt { epoch: Epoch, link: Box<Link<Waiter>>, done: SyncSender<()> },
    /// End the connection, say so, and drop this when the view is changed no more.
    End { epoch: Option<Epoch>, broken: Broken, done: Option<SyncSender<()>> },
    /// Give a sign of life.
    Heartbeat,
    /// End everything.
    Close,
}

/// The thread's state.
struct Mover {
    reactor: Reactor,
    desk: Arc<Desk>,
    connection: Option<Connection>,
    tokens: u64,
    is_closing: bool,
}

struct Connection {
    epoch: Epoch,
    token: Token,
    socket: Rc<OwnedFd>,
    session: Session<Waiter>,
    inbound: Inbound,
    channel: Channel,
    /// What is to be sent, from `sent` on. With the ring while it is sending.
    bytes: Vec<u8>,
    sent: usize,
    is_sending: bool,
    /// The memory of session output that a channel encrypts.
    clear: Vec<u8>,
}

impl Threaded {
    pub(crate) fn start(options: &Options, view: &Arc<View>) -> Result<Self, ClientError> {
        let bell = Keeper::bell()?;
        let doorbell = Arc::new(Doorbell::for_ring().map_err(Broken::Socket)?);
        let standing = Arc::new(Standing::new());
        let desk = Arc::new(Desk {
            standing: Arc::clone(&standing),
            spin: options.spin,
            inbox: Mailbox::new(INBOX_SLOTS, doorbell),
            is_over: AtomicBool::new(false),
            bell: Arc::clone(&bell),
        });
        let (told, is_ready) = sync_channel(1);
        let thread = std::thread::Builder::new().name("zeoring-mover".to_owned());
        let shared = Arc::clone(&desk);
        let mover = thread.spawn(move || Mover::work(shared, &told)).map_err(Broken::Socket)?;
        let mover = Mutex::new(Some(mover));
        ring_is_there(&is_ready)?;
        let keeper = Keeper::start(Arc::clone(&desk), standing, Arc::clone(view), options, bell);
        match keeper {
            Ok(keeper) => Ok(Self { desk, keeper, mover }),
            Err(error) => {
                desk.leave(Note::Close);
                join(&mover);
                Err(error)
            }
        }
    }
}

fn ring_is_there(is_ready: &Receiver<Result<(), String>>) -> Result<(), ClientError> {
    let told = is_ready.recv().unwrap_or_else(|_| Err("its thread ended".to_owned()));
    told.map_err(ClientError::NoRing)
}

impl Driver for Threaded {
    async fn call(&self, order: Order, patience: Option<Duration>) -> Outcome {
        let standing = &self.desk.standing;
        if standing.is_forked() {
            return Err(ClientError::Forked);
        }
        if !standing.is_connected() {
            let is_closed = standing.is_closed();
            let error = if is_closed { ClientError::Closed } else { not_connected() };
            return Err(unsent(&order, error));
        }
        let (name, epoch) = (order.question.name(), order.epoch);
        let is_commit = matches!(order.question, Question::Finish(_));
        let slot = Arc::new(Slot::new());
        self.desk.leave(Note::Call { order, waiter: Some(Arc::clone(&slot)) });
        let until = patience.map(later);
        if let Some(outcome) = slot.wait(self.desk.spin, until) {
            return outcome;
        }
        if is_commit {
            // Committed or not, and still locked or not: only the connection's end settles it.
            self.desk.leave(Note::End { epoch, broken: Broken::CommitInDoubt, done: None });
        }
        Err(ClientError::Deadline { call: name, deadline: patience.unwrap_or_default() })
    }

    fn tell(&self, order: Order) {
        if !self.desk.standing.is_forked() && self.desk.standing.is_connected() {
            self.desk.leave(Note::Call { order, waiter: None });
        }
    }

    /// The mover does that by itself, as soon as something comes.
    fn take_in(&self) {}

    async fn wait_at<T, R>(
        &self,
        gate: &Gate<T>,
        limit: Duration,
        ready: impl FnMut(&mut T) -> Option<R>,
    ) -> Option<R> {
        gate.wait(limit, ready)
    }

    fn standing(&self) -> &Standing {
        &self.desk.standing
    }

    fn close(&self) {
        if self.desk.standing.is_forked() {
            return;
        }
        self.desk.standing.close();
        self.keeper.join();
        self.desk.leave(Note::Close);
        join(&self.mover);
    }
}

impl Blocking for Threaded {}

impl Zeo<Threaded> {
    /// Makes a client, and waits for its first connection as long as [`Options::wait`] says.
    ///
    /// # Errors
    ///
    /// [`ClientError::NotConnected`] tells what is the matter with each address; where every
    /// server has answered that it does not take us, at once. [`ClientError::NoRing`] if the
    /// system gives no io_uring: a [`DrivenClient`](crate::DrivenClient) needs none.
    pub fn open(options: Options) -> Result<Self, ClientError> {
        now(Self::start(options, Threaded::start))
    }
}

impl Drop for Threaded {
    fn drop(&mut self) {
        self.close();
    }
}

fn join(thread: &Mutex<Option<JoinHandle<()>>>) {
    let thread = thread.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(thread) = thread {
        let _ = thread.join();
    }
}

impl Desk {
    /// Leaves a note for the mover. One that has ended reads it no more: then this thread answers.
    fn leave(&self, note: Note) {
        let mut note = note;
        while let Err(Full(back)) = self.inbox.leave(note) {
            note = back;
            if self.is_over.load(Ordering::Relaxed) {
                self.answer_for_the_mover();
            }
            std::thread::yield_now();
        }
        // Either the mover's last look finds the note, or this one finds that it has ended.
        fence(Ordering::SeqCst);
        if self.is_over.load(Ordering::Relaxed) {
            self.answer_for_the_mover();
        }
    }

    fn answer_for_the_mover(&self) {
        while let Some(note) = self.inbox.take() {
            if let Note::Call { waiter: Some(waiter), .. } = note {
                waiter.fill(Err(ClientError::Closed));
            }
        }
    }
}

impl Adopter for Desk {
    type Waiter = Waiter;

    fn adopt(&self, epoch: Epoch, link: Link<Waiter>) {
        let (done, is_done) = sync_channel(1);
        // The mover says that there is a connection, and that there is none any more: if this
        // thread did, it could come after that.
        self.leave(Note::Adopt { epoch, link: Box::new(link), done });
        let _ = is_done.recv();
    }

    fn release(&self) {
        let (done, is_done) = sync_channel(1);
        self.leave(Note::End { epoch: None, broken: Broken::Upgraded, done: Some(done) });
        // The note goes away once it is done, or with the mover.
        let _ = is_done.recv();
    }

    fn tick(&self, is_heartbeat: bool) {
        if is_heartbeat {
            self.leave(Note::Heartbeat);
        }
    }
}

impl Mover {
    /// The thread.
    fn work(desk: Arc<Desk>, told: &SyncSender<Result<(), String>>) {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let options = RingOptions { spin: SpinBudget::Fixed(desk.spin), processors };
        match Reactor::new(options, Arc::clone(desk.inbox.doorbell())) {
            Ok(reactor) => {
                let _ = told.send(Ok(()));
                let shared = Arc::clone(&desk);
                let mut mover =
                    Self { reactor, desk: shared, connection: None, tokens: 0, is_closing: false };
                if mover.run().is_err() {
                    // Without its ring the client can do nothing any more.
                    desk.standing.close();
                }
                mover.end(&ClientError::Closed);
            }
            Err(error) => {
                let _ = told.send(Err(error.to_string()));
            }
        }
        desk.is_over.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        desk.answer_for_the_mover();
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Vec::new();
        let desk = Arc::clone(&self.desk);
        while !self.is_closing {
            self.reactor.turn(&mut events, None, || !desk.inbox.is_empty())?;
            for event in events.drain(..) {
                self.act(event);
            }
            while let Some(note) = desk.inbox.take() {
                self.read(note);
            }
            self.flush();
        }
        Ok(())
    }

    fn read(&mut self, note: Note) {
        match note {
            Note::Call { order, waiter } => self.call(order, waiter),
            Note::Adopt { epoch, link, done } => {
                self.adopt(epoch, *link);
                drop(done);
            }
            Note::End { epoch, broken, done } => {
                let present = self.connection.as_ref().map(|connection| connection.epoch);
                if epoch.is_none() || epoch == present {
                    self.fail(broken);
                }
                drop(done);
            }
            Note::Heartbeat => {
                if let Some(connection) = &mut self.connection {
                    connection.session.keep_alive();
                }
            }
            Note::Close => self.is_closing = true,
        }
    }

    fn call(&mut self, order: Order, waiter: Option<Waiter>) {
        let refusal = match &mut self.connection {
            Some(connection) if order.epoch.is_none_or(|epoch| epoch == connection.epoch) => {
                connection.session.put(order, waiter);
                // A question may have its answer at once.
                return connection.deliver();
            }
            Some(_) => ClientError::TransactionLost,
            None => unsent(&order, not_connected()),
        };
        if let Some(waiter) = waiter {
            waiter.fill(Err(refusal));
        }
    }

    fn adopt(&mut self, epoch: Epoch, link: Link<Waiter>) {
        self.end(&Broken::Upgraded.into());
        self.tokens += 1;
        let (codec, is_read_only) = (link.session.codec(), link.session.is_read_only());
        let (token, socket) = (Token(self.tokens), Rc::new(link.socket));
        self.reactor.receive(token, Rc::clone(&socket));
        self.connection = Some(Connection {
            epoch,
            token,
            socket,
            session: link.session,
            inbound: link.inbound,
            channel: link.channel,
            bytes: link.unsent,
            sent: 0,
            is_sending: false,
            clear: Vec::new(),
        });
        self.desk.standing.connect(epoch, codec, is_read_only);
    }

    fn act(&mut self, event: Event) {
        let token = match &event {
            Event::Received { token, .. } | Event::Sent { token, .. } => *token,
            Event::Accepted { .. } | Event::Read { .. } => return,
        };
        // What comes for a connection that has ended is nobody's.
        let Some(connection) = self.connection.as_mut().filter(|kept| kept.token == token) else {
            return;
        };
        let outcome = match event {
            Event::Received { bytes, more, .. } => match bytes {
                Ok(Some(chunk)) => {
                    let received = connection.receive(&chunk);
                    drop(chunk);
                    if received.is_ok() && !more {
                        self.reactor.receive(token, Rc::clone(&connection.socket));
                    }
                    received
                }
                Ok(None) => Err(Broken::Socket(io::ErrorKind::UnexpectedEof.into())),
                // The ring lacked buffers for a moment: nothing is lost.
                Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
                    self.reactor.receive(token, Rc::clone(&connection.socket));
                    Ok(())
                }
                Err(error) => Err(Broken::Socket(error)),
            },
            Event::Sent { count, bytes, .. } => {
                connection.is_sending = false;
                connection.bytes = bytes;
                count.map(|count| connection.sent += count).map_err(Broken::Socket)
            }
            Event::Accepted { .. } | Event::Read { .. } => Ok(()),
        };
        connection.deliver();
        if let Err(broken) = outcome {
            self.fail(broken);
        }
    }

    /// Sends all that has gathered, at once.
    fn flush(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        if let Err(broken) = connection.flush(&mut self.reactor) {
            self.fail(broken);
        }
    }

    /// The connection has broken: the keeper makes a new one.
    fn fail(&mut self, broken: Broken) {
        let Some(connection) = &self.connection else { return };
        self.desk.standing.disconnect(connection.epoch);
        self.end(&broken.into());
        keeper::ring(&self.desk.bell);
    }

    /// Gives up what there is. The server hears of it at once.
    fn end(&mut self, error: &ClientError) {
        let Some(mut connection) = self.connection.take() else { return };
        connection.session.abandon(error);
        connection.deliver();
        if !connection.is_sending && connection.sent == connection.bytes.len() {
            farewell(&mut connection.channel, &connection.socket);
        }
        let _ = rustix::net::shutdown(&*connection.socket, Shutdown::Both);
    }
}

impl Connection {
    fn receive(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        if self.channel.is_plain() {
            self.session.receive_from(&mut self.inbound, bytes)?;
            return Ok(());
        }
        let inbound = &mut self.inbound;
        self.channel.receive(bytes, &mut |clear| inbound.add(clear))?;
        self.session.receive(&mut self.inbound)?;
        Ok(())
    }

    /// Tells callers of their answers.
    fn deliver(&mut self) {
        while let Some((waiter, outcome)) = self.session.poll() {
            waiter.fill(outcome);
        }
    }

    fn flush(&mut self, reactor: &mut Reactor) -> Result<(), Broken> {
        while !self.is_sending {
            if self.sent == self.bytes.len() {
                self.bytes.clear();
                self.sent = 0;
                self.fill()?;
            }
            if self.bytes.is_empty() {
                return Ok(());
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&*self.socket, &self.bytes[self.sent..], flags) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => {
                    let bytes = std::mem::take(&mut self.bytes);
                    reactor.send(self.token, Rc::clone(&self.socket), bytes, self.sent);
                    self.is_sending = true;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(Broken::Socket(error.into())),
            }
        }
        Ok(())
    }

    /// Takes from the session what is to be sent.
    fn fill(&mut self) -> Result<(), Broken> {
        if self.channel.is_plain() {
            self.session.take_output(&mut self.bytes);
            return Ok(());
        }
        self.clear.clear();
        self.session.take_output(&mut self.clear);
        if !self.clear.is_empty() {
            self.channel.send(&self.clear)?;
        }
        self.channel.take_output(&mut self.bytes)?;
        Ok(())
    }
}
