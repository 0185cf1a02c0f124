//! A reactor thread: what its ring and other threads bring goes to sessions, what sessions leave
//! goes out.
//!
//! One turn: completions are taken out of the ring, *then* notes are read, then completions are
//! acted on. A commit is told to every reactor before anybody can have heard of it, so a message
//! that was sent by someone who had heard of it finds its note read.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use zeoring_shared::io::Machine;
use zeoring_shared::uring::{Event, Reactor, Token};

use crate::clerk::Errand;
use crate::connection::{Connection, Spares};
use crate::log::{self, Severity, Source};
use crate::note::{ConnectionId, Note, Peer};
use crate::session::desk::{ColdLoad, Desk};
use crate::session::{Farewell, Session};

/// Cold reads of one reactor that are under way at once; more wait their turn.
pub const READS_MAX: usize = 256;

/// How long to wait before accepting again when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long to wait before offering transactions again that a commit thread had no place for.
const ORDER_PAUSE: Duration = Duration::from_millis(1);

/// Whom an event is for. The lowest two bits of a token are the kind, the rest is the number.
#[derive(Clone, Copy, Debug)]
enum Addressee {
    Listener(usize),
    Connection(ConnectionId),
    Read(u64),
}

/// How many connections every reactor has, so that new ones go where fewest are.
pub type Loads = Arc<Vec<AtomicUsize>>;

/// A reactor thread's state.
#[derive(Debug)]
pub struct Turner {
    number: usize,
    reactor: Reactor,
    desk: Desk,
    machine: Machine,
    listeners: Vec<Rc<OwnedFd>>,
    /// Listeners that wait for descriptors, and until when.
    paused: Vec<(Duration, usize)>,
    loads: Loads,
    places: Vec<Place>,
    free: Vec<usize>,
    /// Connections whose outboxes may have something.
    noted: Vec<ConnectionId>,
    alarms: BTreeSet<(Duration, ConnectionId)>,
    reads: HashMap<u64, ColdLoad>,
    reads_started: u64,
    reads_waiting: VecDeque<ColdLoad>,
    spares: Spares,
    spare_reads: Vec<Vec<u8>>,
    stopping: bool,
}

#[derive(Debug, Default)]
struct Place {
    generation: u32,
    connection: Option<Box<Connection>>,
}

impl Addressee {
    fn token(self) -> Token {
        match self {
            Self::Listener(number) => Token((number as u64) << 2),
            // The reactor's number, in the top eight bits, is known and gives way to the kind.
            Self::Connection(id) => Token(id.0 << 2 | 1),
            Self::Read(number) => Token(number << 2 | 2),
        }
    }

    fn of(token: Token, reactor: usize) -> Self {
        let number = token.0 >> 2;
        match token.0 & 3 {
            0 => Self::Listener(number as usize),
            1 => {
                let parts = ConnectionId(number);
                let generation = (number >> 24) as u32;
                Self::Connection(ConnectionId::new(reactor, generation, parts.slot()))
            }
            _ => Self::Read(number),
        }
    }
}

impl Turner {
    /// A reactor that starts to work with [`Turner::run`], on the thread that made its ring.
    pub fn new(
        number: usize,
        reactor: Reactor,
        desk: Desk,
        machine: Machine,
        listeners: Vec<OwnedFd>,
        loads: Loads,
    ) -> Self {
        Self {
            number,
            reactor,
            desk,
            machine,
            listeners: listeners.into_iter().map(Rc::new).collect(),
            paused: Vec::new(),
            loads,
            places: Vec::new(),
            free: Vec::new(),
            noted: Vec::new(),
            alarms: BTreeSet::new(),
            reads: HashMap::new(),
            reads_started: 0,
            reads_waiting: VecDeque::new(),
            spares: Spares::default(),
            spare_reads: Vec::new(),
            stopping: false,
        }
    }

    /// Works until it is told to stop.
    ///
    /// # Errors
    ///
    /// The ring is broken.
    pub fn run(mut self) -> io::Result<()> {
        for listener in 0..self.listeners.len() {
            self.accept(listener);
        }
        let post = self.desk.post.clone();
        let inbox = post.inbox(self.number);
        let mut events = Vec::new();
        while !self.stopping {
            let patience = self.patience();
            self.reactor.turn(&mut events, patience, || !inbox.is_empty())?;
            self.desk.now = self.machine.clock.monotonic();
            self.desk.since_1970 = self.machine.clock.since_1970();
            while let Some(note) = inbox.take() {
                self.read_note(note);
            }
            for event in events.drain(..) {
                self.act(event);
            }
            self.ring_alarms();
            self.send_out();
            self.desk.send_orders();
            self.desk.halls.iter_mut().for_each(|hall| hall.settle());
        }
        for place in 0..self.places.len() {
            if let Some(connection) = self.places[place].connection.take() {
                connection.close(&Farewell::Stop, &mut self.desk, &mut self.reactor);
            }
        }
        Ok(())
    }

    fn patience(&self) -> Option<Duration> {
        let alarm = self.alarms.first().map(|(due, _)| *due);
        let accept = self.paused.iter().map(|(due, _)| *due).min();
        let order = (!self.desk.orders_waiting.is_empty()).then(|| self.desk.now + ORDER_PAUSE);
        let due = [alarm, accept, order].into_iter().flatten().min()?;
        Some(due.saturating_sub(self.machine.clock.monotonic()))
    }

    fn act(&mut self, event: Event) {
        match event {
            Event::Accepted { token, socket, more } => {
                let Addressee::Listener(listener) = Addressee::of(token, self.number) else {
                    unreachable!("only listeners accept");
                };
                self.accepted(listener, socket, more);
            }
            Event::Received { token, bytes, more } => {
                let Addressee::Connection(id) = Addressee::of(token, self.number) else {
                    unreachable!("only connections receive");
                };
                self.with(id, |connection, turner| {
                    if !more {
                        connection.receiving_ended();
                    }
                    let taken = match bytes {
                        Ok(Some(bytes)) => connection.received(
                            &bytes,
                            &mut turner.desk,
                            &mut turner.reactor,
                            &mut turner.spares,
                        ),
                        Ok(None) => Err(Farewell::Gone),
                        Err(error) => match Errno::from_io_error(&error) {
                            // It was stopped because the session is busy.
                            Some(Errno::CANCELED) => Ok(()),
                            _ if error.kind() == io::ErrorKind::OutOfMemory => Ok(()),
                            _ => Err(Farewell::Socket(error)),
                        },
                    };
                    taken?;
                    if !more {
                        connection.receive_more(&mut turner.reactor);
                    }
                    Ok(())
                });
            }
            Event::Sent { token, count, bytes } => {
                let Addressee::Connection(id) = Addressee::of(token, self.number) else {
                    unreachable!("only connections send");
                };
                self.with(id, |connection, turner| {
                    let (desk, reactor) = (&mut turner.desk, &mut turner.reactor);
                    connection.sent(count, bytes, desk, reactor, &mut turner.spares)
                });
            }
            Event::Read { token, bytes } => self.was_read(token, bytes),
        }
    }

    fn read_note(&mut self, note: Note) {
        match note {
            Note::Accepted { socket, peer } => self.welcome(socket, peer),
            Note::Committed(committed) => {
                self.desk.halls[committed.storage].committed(&committed);
                for id in self.members(committed.storage) {
                    self.with(id, |connection, turner| {
                        connection.session.committed(&committed, &turner.desk);
                        Ok(())
                    });
                }
            }
            Note::Granted(ticket) => self.with(ticket.connection, |connection, turner| {
                connection.session.granted(ticket, &mut turner.desk);
                Ok(())
            }),
            Note::CommitFailed { ticket, error } => {
                self.with(ticket.connection, |connection, turner| {
                    connection.session.commit_failed(ticket, &error, &turner.desk);
                    Ok(())
                });
            }
            Note::FoundUndoOids { ticket, oids } => {
                self.with(ticket.connection, |connection, turner| {
                    connection.session.found_undo_oids(ticket, oids, &mut turner.desk);
                    Ok(())
                });
            }
            Note::Checked { ticket, draft, outcome } => {
                self.with(ticket.connection, |connection, turner| {
                    connection.session.checked(ticket, draft, outcome, &mut turner.desk);
                    Ok(())
                });
            }
            Note::Answered { connection, id, outcome, iterators } => {
                self.with(connection, |connection, turner| {
                    connection.session.answered(id, outcome, iterators, &turner.desk);
                    Ok(())
                });
            }
            Note::WasRead { token, bytes } => self.was_read(token, bytes),
            Note::Succeeded { storage, view } => {
                self.desk.halls[storage].succeeded(view);
                self.desk.reader.forget(storage);
            }
            Note::Packed(packed) => {
                for id in self.members(packed.storage) {
                    self.with(id, |connection, _| {
                        connection.session.packed(&packed);
                        Ok(())
                    });
                }
            }
            Note::Stop => self.stopping = true,
        }
    }

    /// The connections of a storage, as they are now.
    fn members(&self, storage: usize) -> Vec<ConnectionId> {
        self.desk.halls[storage].members.iter().copied().collect()
    }

    /// Lets something happen to a connection, and sees to what follows from it.
    fn with(
        &mut self,
        id: ConnectionId,
        happen: impl FnOnce(&mut Connection, &mut Self) -> Result<(), Farewell>,
    ) {
        let Some(place) = self.places.get_mut(id.slot()) else {
            return;
        };
        let Some(mut connection) = place.connection.take_if(|open| open.session.id() == id) else {
            return;
        };
        match happen(&mut connection, self) {
            Ok(()) => {
                self.start_reads();
                self.set_alarm(id, &mut connection);
                if !std::mem::replace(&mut connection.noted, true) {
                    self.noted.push(id);
                }
                self.places[id.slot()].connection = Some(connection);
            }
            Err(farewell) => self.close(id, connection, &farewell),
        }
    }

    fn close(&mut self, id: ConnectionId, connection: Box<Connection>, farewell: &Farewell) {
        if let Some(alarm) = connection.alarm {
            self.alarms.remove(&(alarm, id));
        }
        connection.close(farewell, &mut self.desk, &mut self.reactor);
        let place = &mut self.places[id.slot()];
        place.generation = place.generation.wrapping_add(1);
        self.free.push(id.slot());
        self.loads[self.number].fetch_sub(1, Ordering::Relaxed);
    }

    fn set_alarm(&mut self, id: ConnectionId, connection: &mut Connection) {
        let due = connection.deadline();
        if due != connection.alarm {
            if let Some(old) = connection.alarm {
                self.alarms.remove(&(old, id));
            }
            if let Some(due) = due {
                self.alarms.insert((due, id));
            }
            connection.alarm = due;
        }
    }

    fn ring_alarms(&mut self) {
        while let Some((due, id)) = self.alarms.first().copied()
            && due <= self.desk.now
        {
            self.alarms.pop_first();
            self.with(id, |connection, turner| {
                connection.alarm = None;
                connection.overdue(&turner.desk).map_or(Ok(()), Err)
            });
        }
        while let Some(place) = self.paused.iter().position(|(due, _)| *due <= self.desk.now) {
            let (_, listener) = self.paused.swap_remove(place);
            self.accept(listener);
        }
    }

    /// Sends what sessions have written, and goes on with what had to wait for that.
    fn send_out(&mut self) {
        let mut noted = std::mem::take(&mut self.noted);
        for id in noted.drain(..) {
            self.with(id, |connection, turner| {
                let (desk, reactor) = (&mut turner.desk, &mut turner.reactor);
                connection.flush(desk, reactor, &mut turner.spares)?;
                connection.go_on(desk, reactor, &mut turner.spares)?;
                connection.flush(desk, reactor, &mut turner.spares)
            });
            if let Some(connection) = self.places[id.slot()].connection.as_mut() {
                connection.noted = false;
            }
        }
        std::mem::swap(&mut self.noted, &mut noted);
        self.noted.clear();
    }

    fn accept(&mut self, listener: usize) {
        let socket = Rc::clone(&self.listeners[listener]);
        self.reactor.accept(Addressee::Listener(listener).token(), socket);
    }

    fn accepted(&mut self, listener: usize, socket: io::Result<OwnedFd>, more: bool) {
        match socket {
            Ok(socket) => self.place_connection(socket),
            Err(error) => {
                let text = format!("accept: {error}; trying again in {ACCEPT_PAUSE:?}");
                log::event(Source::SERVER, Severity::Error, "", format_args!("{text}"));
            }
        }
        if !more {
            self.paused.push((self.desk.now + ACCEPT_PAUSE, listener));
        }
    }

    /// Gives a new connection to the reactor that has the fewest.
    fn place_connection(&mut self, socket: OwnedFd) {
        let counts = self.loads.iter().map(|count| count.load(Ordering::Relaxed));
        let (total, fewest) =
            counts.enumerate().fold((0, (usize::MAX, 0)), |(total, best), load| {
                let (number, count) = load;
                (total + count, best.min((count, number)))
            });
        let peer = match peer_of(&socket) {
            Ok(peer) => peer,
            Err(error) => {
                // It came and went before we looked.
                log::event(
                    Source::SERVER,
                    Severity::Debug,
                    "",
                    format_args!("accepted connection: {error}"),
                );
                return;
            }
        };
        let limit = self.desk.limits.connections_max;
        if limit <= total {
            let text = format!("refused connection {peer}: there are {limit} (connections-max)");
            log::event(Source::SERVER, Severity::Warning, "", format_args!("{text}"));
            return;
        }
        let (_, reactor) = fewest;
        self.loads[reactor].fetch_add(1, Ordering::Relaxed);
        if reactor == self.number {
            self.welcome(socket, peer);
        } else {
            self.desk.post.tell(reactor, Note::Accepted { socket, peer });
        }
    }

    fn welcome(&mut self, socket: OwnedFd, peer: Peer) {
        if let Err(error) = tune(&socket, &peer) {
            log::event(
                Source::SERVER,
                Severity::Debug,
                "",
                format_args!("connection {peer}: {error}"),
            );
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            self.places.len() - 1
        });
        let id = ConnectionId::new(self.number, self.places[slot].generation, slot);
        let session = Session::new(id, peer, self.desk.limits.codec);
        let token = Addressee::Connection(id).token();
        let connection = Connection::new(session, socket, token, &self.desk);
        self.places[slot].connection = Some(Box::new(connection));
        self.with(id, |connection, turner| {
            connection.receive_more(&mut turner.reactor);
            Ok(())
        });
    }

    /// Starts reads for loads that have to wait for the disk, as many as may be under way.
    fn start_reads(&mut self) {
        self.reads_waiting.extend(self.desk.cold.drain(..));
        while self.reads.len() < READS_MAX
            && let Some(load) = self.reads_waiting.pop_front()
        {
            self.reads_started += 1;
            let token = Addressee::Read(self.reads_started).token();
            let (position, length) = (load.want.position, load.want.length);
            let file = self.desk.halls[load.storage].file.clone();
            let file = file.expect("a storage that walks has a file");
            if file.descriptor().is_some() {
                let buffer = self.spare_reads.pop().unwrap_or_default();
                self.reactor.read(token, file, position, length, buffer);
            } else {
                let reactor = self.number;
                let errand = Errand::Read { token, reactor, file, position, length };
                self.desk.clerks.send(self.reads_started, errand);
            }
            self.reads.insert(self.reads_started, load);
        }
    }

    fn was_read(&mut self, token: Token, bytes: io::Result<Vec<u8>>) {
        let Addressee::Read(number) = Addressee::of(token, self.number) else {
            unreachable!("only reads end as reads");
        };
        let load = self.reads.remove(&number).expect("a read ends once");
        self.with(load.connection, |connection, turner| {
            let spare = connection.session.resume(load, bytes, &mut turner.desk);
            turner.spare_reads.extend(spare);
            turner.spare_reads.truncate(SPARE_READS_MAX);
            Ok(())
        });
        self.start_reads();
    }
}

/// Buffers of finished cold reads that are kept for the next.
const SPARE_READS_MAX: usize = 64;

fn peer_of(socket: &OwnedFd) -> io::Result<Peer> {
    let address = rustix::net::getpeername(socket)?;
    Ok(address.and_then(|address| address.try_into().ok()).map_or(Peer::Unix, Peer::Tcp))
}

/// Small messages leave at once, and a peer that vanishes is noticed.
fn tune(socket: &OwnedFd, peer: &Peer) -> io::Result<()> {
    if matches!(peer, Peer::Tcp(_)) {
        rustix::net::sockopt::set_tcp_nodelay(socket, true)?;
        rustix::net::sockopt::set_socket_keepalive(socket, true)?;
        rustix::net::sockopt::set_tcp_keepidle(socket, KEEPALIVE_AFTER)?;
        rustix::net::sockopt::set_tcp_keepintvl(socket, KEEPALIVE_AFTER / 4)?;
    }
    Ok(())
}

/// Silence after which the kernel asks a TCP peer whether it is still there: ZEO clients speak
/// every minute.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(120);
