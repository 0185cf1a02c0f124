//! The driver of tasks: futures inside a `tokio-uring` runtime, on one thread. A call is put into
//! the session and sent by the task that makes it; a task of the connection reads through the ring
//! and wakes whoever has an answer.
//!
//! Nothing here moves while the runtime's thread is blocked by something else. What has arrived is
//! known once the reading task had its turn; a ping has it certainly.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::TcpStream as StdTcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::task::Poll;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, Shutdown, sockopt};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio_uring::net::{TcpStream, UnixStream};

use super::gate::Gate;
use super::standing::Standing;
use super::{Driver, farewell, not_connected, unsent};
use crate::channel::Channel;
use crate::client::Zeo;
use crate::dial::Link;
use crate::error::{Broken, ClientError};
use crate::keeper::{self, Adopter, Keeper, TICK};
use crate::options::Options;
use crate::session::order::{Order, Question};
use crate::session::{Epoch, Inbound, Outcome, Session};
use crate::view::View;

/// A read takes up to so much: sixty loads of 1 kB.
const READ_LENGTH: usize = 64 * 1024;

/// Where a task waits for its answer.
type Waiter = oneshot::Sender<Outcome>;

/// Moves bytes in tasks of the runtime it was made in.
#[derive(Debug)]
pub struct Local {
    cabin: Rc<Cabin>,
    keeper: Keeper,
    notes: JoinHandle<()>,
}

/// What the tasks of a client share.
#[derive(Debug)]
struct Cabin {
    standing: Arc<Standing>,
    /// The keeper's.
    bell: Arc<OwnedFd>,
    connection: RefCell<Option<Rc<Connection>>>,
    /// Ticks of the keeper: the clock of deadlines, which costs nothing to read.
    ticks: Cell<u64>,
    ticked: Notify,
}

/// The keeper's side.
#[derive(Debug)]
struct Post {
    standing: Arc<Standing>,
    notes: UnboundedSender<Note>,
    /// Whether a tick waits to be heard: a runtime that is busy hears one, not all.
    is_ticking: AtomicBool,
}

/// Everything that the keeper may tell the tasks.
#[derive(Debug)]
enum Note {
    /// A connection that is ready; drop the last once it is known.
    Adopt { epoch: Epoch, link: Box<Link<Waiter>>, done: SyncSender<()> },
    /// End the connection, and drop this when the view is changed no more.
    Release(SyncSender<()>),
    /// Time has passed.
    Tick { is_heartbeat: bool },
}

#[derive(Debug)]
struct Connection {
    epoch: Epoch,
    /// The socket once more: to send what it takes at once without the ring.
    socket: OwnedFd,
    talk: RefCell<Talk>,
}

#[derive(Debug)]
struct Talk {
    session: Session<Waiter>,
    inbound: Inbound,
    channel: Channel,
    /// What is to be sent, from `sent` on. With the ring while `is_sending`.
    bytes: Vec<u8>,
    sent: usize,
    is_sending: bool,
    has_ended: bool,
}

/// The socket as the runtime has it.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Local {
    pub(crate) fn start(options: &Options, view: &Arc<View>) -> Result<Self, ClientError> {
        let bell = Keeper::bell()?;
        let standing = Arc::new(Standing::new());
        let (sender, notes) = unbounded_channel();
        let post = Arc::new(Post {
            standing: Arc::clone(&standing),
            notes: sender,
            is_ticking: AtomicBool::new(false),
        });
        let cabin = Rc::new(Cabin {
            standing: Arc::clone(&standing),
            bell: Arc::clone(&bell),
            connection: RefCell::default(),
            ticks: Cell::new(0),
            ticked: Notify::new(),
        });
        let keeper = Keeper::start(Arc::clone(&post), standing, Arc::clone(view), options, bell)?;
        let notes = tokio_uring::spawn(read_notes(Rc::clone(&cabin), post, notes));
        Ok(Self { cabin, keeper, notes })
    }
}

impl Driver for Local {
    async fn call(&self, order: Order, patience: Option<Duration>) -> Outcome {
        let connection = self.cabin.connection().map_err(|error| unsent(&order, error))?;
        let name = order.question.name();
        let is_commit = matches!(order.question, Question::Finish(_));
        let (sender, receiver) = oneshot::channel();
        connection.put(order, Some(sender))?;
        self.cabin.flush(&connection);
        let mut receiver = pin!(receiver);
        // One more than whole ticks: the present one has partly passed.
        let last = patience.map(|patience| self.cabin.ticks.get() + ticks(patience) + 1);
        loop {
            let mut ticked = pin!(self.cabin.ticked.notified());
            let answered = poll_fn(|context| {
                if let Poll::Ready(outcome) = receiver.as_mut().poll(context) {
                    return Poll::Ready(Some(outcome));
                }
                if last.is_none() {
                    return Poll::Pending;
                }
                ticked.as_mut().poll(context).map(|()| None)
            });
            match answered.await {
                Some(outcome) => return outcome.unwrap_or(Err(ClientError::Closed)),
                None if last.is_some_and(|last| last <= self.cabin.ticks.get()) => break,
                None => {}
            }
        }
        if is_commit {
            // Committed or not, and still locked or not: only the connection's end settles it.
            self.cabin.fail(&connection, Broken::CommitInDoubt);
        }
        Err(ClientError::Deadline { call: name, deadline: patience.unwrap_or_default() })
    }

    fn tell(&self, order: Order) {
        if let Ok(connection) = self.cabin.connection()
            && connection.put(order, None).is_ok()
        {
            self.cabin.flush(&connection);
        }
    }

    /// The reading task does that, as soon as it has its turn.
    fn take_in(&self) {}

    async fn wait_at<T, R>(
        &self,
        gate: &Gate<T>,
        limit: Duration,
        ready: impl FnMut(&mut T) -> Option<R>,
    ) -> Option<R> {
        gate.wait_as_task(limit, ready).await
    }

    fn standing(&self) -> &Standing {
        &self.cabin.standing
    }

    fn close(&self) {
        if self.cabin.standing.is_forked() {
            return;
        }
        self.cabin.standing.close();
        self.keeper.join();
        self.notes.abort();
        if let Some(connection) = self.cabin.connection.take() {
            connection.end(&ClientError::Closed);
        }
    }
}

impl Zeo<Local> {
    /// Makes a client in the `tokio-uring` runtime that runs this, and waits for its first
    /// connection as long as [`Options::wait`] says.
    ///
    /// # Errors
    ///
    /// [`ClientError::NotConnected`] tells what is the matter with each address; where every
    /// server has answered that it does not take us, at once.
    pub async fn open(options: Options) -> Result<Self, ClientError> {
        Self::start(options, Local::start).await
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.close();
    }
}

impl Adopter for Post {
    type Waiter = Waiter;

    fn adopt(&self, epoch: Epoch, link: Link<Waiter>) {
        let (done, is_done) = sync_channel(1);
        // Without a runtime there is nobody to adopt it. It may also have broken by the time that
        // it is known, so whether there is a connection does not tell.
        if self.notes.send(Note::Adopt { epoch, link: Box::new(link), done }).is_ok() {
            self.wait_until(&is_done);
        }
    }

    fn release(&self) {
        let (done, is_done) = sync_channel(1);
        if self.notes.send(Note::Release(done)).is_ok() {
            self.wait_until(&is_done);
        }
    }

    fn tick(&self, is_heartbeat: bool) {
        if is_heartbeat || !self.is_ticking.swap(true, Ordering::AcqRel) {
            let _ = self.notes.send(Note::Tick { is_heartbeat });
        }
    }
}

impl Post {
    /// Waits until the runtime has acted on a note. One that is closing the client waits for this
    /// thread, and will not.
    fn wait_until(&self, is_done: &Receiver<()>) {
        while is_done.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout)
            && !self.standing.is_closed()
        {}
    }
}

/// The task that hears the keeper.
async fn read_notes(cabin: Rc<Cabin>, post: Arc<Post>, mut notes: UnboundedReceiver<Note>) {
    while let Some(note) = notes.recv().await {
        match note {
            Note::Adopt { epoch, link, done } => {
                cabin.adopt(epoch, *link);
                drop(done);
            }
            Note::Release(done) => {
                if let Ok(connection) = cabin.connection() {
                    cabin.fail(&connection, Broken::Upgraded);
                }
                drop(done);
            }
            Note::Tick { is_heartbeat } => {
                post.is_ticking.store(false, Ordering::Release);
                cabin.ticks.set(cabin.ticks.get() + 1);
                cabin.ticked.notify_waiters();
                if is_heartbeat && let Ok(connection) = cabin.connection() {
                    connection.talk.borrow_mut().session.keep_alive();
                    cabin.flush(&connection);
                }
            }
        }
    }
}

impl Cabin {
    fn connection(&self) -> Result<Rc<Connection>, ClientError> {
        if self.standing.is_forked() {
            return Err(ClientError::Forked);
        }
        self.connection.borrow().clone().ok_or_else(|| match self.standing.is_closed() {
            true => ClientError::Closed,
            false => not_connected(),
        })
    }

    fn adopt(self: &Rc<Self>, epoch: Epoch, link: Link<Waiter>) {
        let (codec, is_read_only) = (link.session.codec(), link.session.is_read_only());
        let Ok((stream, socket)) = Stream::of(link.socket) else {
            // Out of descriptors: the keeper tries again a little later.
            return keeper::ring(&self.bell);
        };
        let connection = Rc::new(Connection {
            epoch,
            socket,
            talk: RefCell::new(Talk {
                session: link.session,
                inbound: link.inbound,
                channel: link.channel,
                bytes: link.unsent,
                sent: 0,
                is_sending: false,
                has_ended: false,
            }),
        });
        *self.connection.borrow_mut() = Some(Rc::clone(&connection));
        self.standing.connect(epoch, codec, is_read_only);
        let stream = Rc::new(stream);
        let writer = tokio_uring::spawn(read(Rc::clone(self), connection, stream));
        drop(writer);
    }

    /// Sends what the socket takes now; a task sends the rest.
    fn flush(self: &Rc<Self>, connection: &Rc<Connection>) {
        match connection.send() {
            Ok(true) => {}
            Ok(false) => drop(tokio_uring::spawn(write(Rc::clone(self), Rc::clone(connection)))),
            Err(broken) => self.fail(connection, broken),
        }
    }

    /// The connection has broken: the keeper makes a new one.
    fn fail(&self, connection: &Rc<Connection>, broken: Broken) {
        let mut current = self.connection.borrow_mut();
        if current.as_ref().is_some_and(|current| Rc::ptr_eq(current, connection)) {
            *current = None;
        }
        drop(current);
        self.standing.disconnect(connection.epoch);
        connection.end(&broken.into());
        keeper::ring(&self.bell);
    }
}

/// The task that reads.
async fn read(cabin: Rc<Cabin>, connection: Rc<Connection>, stream: Rc<Stream>) {
    let mut buffer = vec![0; READ_LENGTH];
    loop {
        let (count, back) = stream.read(buffer).await;
        buffer = back;
        let received = match count {
            Ok(0) => Err(Broken::Socket(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => connection.receive(&buffer[..count]),
            Err(error) => Err(Broken::Socket(error)),
        };
        if let Err(broken) = received {
            return cabin.fail(&connection, broken);
        }
        cabin.flush(&connection);
    }
}

/// The task that waits until the socket takes the rest.
async fn write(cabin: Rc<Cabin>, connection: Rc<Connection>) {
    let Ok((stream, _)) = connection.socket.try_clone().and_then(Stream::of) else {
        return cabin.fail(&connection, Broken::Socket(io::ErrorKind::Other.into()));
    };
    let (bytes, start) = {
        let mut talk = connection.talk.borrow_mut();
        (std::mem::take(&mut talk.bytes), talk.sent)
    };
    let (count, bytes) = stream.write(bytes, start).await;
    {
        let mut talk = connection.talk.borrow_mut();
        talk.is_sending = false;
        talk.bytes = bytes;
        match count {
            Ok(count) => talk.sent += count,
            Err(error) => {
                drop(talk);
                return cabin.fail(&connection, Broken::Socket(error));
            }
        }
    }
    cabin.flush(&connection);
}

impl Connection {
    fn put(&self, order: Order, waiter: Option<Waiter>) -> Result<(), ClientError> {
        if order.epoch.is_some_and(|epoch| epoch != self.epoch) {
            return Err(ClientError::TransactionLost);
        }
        let mut talk = self.talk.borrow_mut();
        if talk.has_ended {
            return Err(unsent(&order, not_connected()));
        }
        talk.session.put(order, waiter);
        // A question may have its answer at once.
        talk.deliver();
        Ok(())
    }

    fn receive(&self, bytes: &[u8]) -> Result<(), Broken> {
        let mut talk = self.talk.borrow_mut();
        let Talk { session, inbound, channel, has_ended, .. } = &mut *talk;
        if *has_ended {
            return Ok(());
        }
        let received = if channel.is_plain() {
            session.receive_from(inbound, bytes).map_err(Broken::from)
        } else {
            let decrypted = channel.receive(bytes, &mut |clear| inbound.add(clear));
            decrypted.map_err(Broken::from).and_then(|()| Ok(session.receive(inbound)?))
        };
        talk.deliver();
        received
    }

    /// Sends until there is nothing more, or the socket takes nothing: then false, and a task has
    /// to write.
    fn send(&self) -> Result<bool, Broken> {
        let mut talk = self.talk.borrow_mut();
        while !talk.is_sending {
            if talk.sent == talk.bytes.len() {
                talk.fill()?;
            }
            if talk.bytes.is_empty() {
                break;
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.socket, &talk.bytes[talk.sent..], flags) {
                Ok(count) => talk.sent += count,
                Err(Errno::AGAIN) => {
                    talk.is_sending = true;
                    return Ok(false);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(Broken::Socket(error.into())),
            }
        }
        Ok(true)
    }

    /// Gives everything up. The server hears of it at once.
    fn end(&self, error: &ClientError) {
        let mut talk = self.talk.borrow_mut();
        if !std::mem::replace(&mut talk.has_ended, true) {
            talk.session.abandon(error);
            talk.deliver();
            if !talk.is_sending && talk.sent == talk.bytes.len() {
                farewell(&mut talk.channel, &self.socket);
            }
            let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        }
    }
}

impl Talk {
    /// Tells tasks of their answers. One that gave up is not there any more.
    fn deliver(&mut self) {
        while let Some((waiter, outcome)) = self.session.poll() {
            let _ = waiter.send(outcome);
        }
    }

    /// Takes from the session what is to be sent.
    fn fill(&mut self) -> Result<(), Broken> {
        self.bytes.clear();
        self.sent = 0;
        if self.channel.is_plain() {
            self.session.take_output(&mut self.bytes);
            return Ok(());
        }
        let mut clear = Vec::new();
        self.session.take_output(&mut clear);
        if !clear.is_empty() {
            self.channel.send(&clear)?;
        }
        self.channel.take_output(&mut self.bytes)?;
        Ok(())
    }
}

impl Stream {
    /// The socket for the ring, and once more to send.
    fn of(socket: OwnedFd) -> io::Result<(Self, OwnedFd)> {
        let again = socket.try_clone()?;
        let is_unix = sockopt::socket_domain(&socket)? == AddressFamily::UNIX;
        let stream = match is_unix {
            true => Self::Unix(UnixStream::from_std(StdUnixStream::from(socket))),
            false => Self::Tcp(TcpStream::from_std(StdTcpStream::from(socket))),
        };
        Ok((stream, again))
    }

    async fn read(&self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        match self {
            Self::Tcp(stream) => stream.read(buffer).await,
            Self::Unix(stream) => stream.read(buffer).await,
        }
    }

    /// Writes what is from `start` on, or the beginning of it.
    async fn write(&self, bytes: Vec<u8>, start: usize) -> (io::Result<usize>, Vec<u8>) {
        use tokio_uring::buf::{BoundedBuf, Slice};
        let part: Slice<Vec<u8>> = bytes.slice(start..);
        let (count, part) = match self {
            Self::Tcp(stream) => stream.write(part).submit().await,
            Self::Unix(stream) => stream.write(part).submit().await,
        };
        (count, part.into_inner())
    }
}

/// Whole ticks in a time, and one for the rest.
fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u64::MAX - 1)
}
