//! A socket with its session: cuts what comes into messages, and sends what the session writes.
//!
//! ```text
//!   chunk --> [inbound: the start of a message] --> session --> outbox --> socket
//!                                                                 |          ^
//!                                                    socket full  +--> ring -+   one send at a time
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown};
use zeoring_shared::uring::{Reactor, Receiving, Token};
use zeoring_shared::wire::frame::split_frame;

use crate::limits::Limits;
use crate::session::desk::Desk;
use crate::session::{Farewell, Session};

/// Bytes that wait in the outbox before they are sent although more requests are at hand: the peer
/// can work on them meanwhile.
const OUTBOX_FLUSH: usize = 256 * 1024;

/// Buffers that are empty keep at most this much memory.
const IDLE_CAPACITY_MAX: usize = 512 * 1024;

/// One connection.
#[derive(Debug)]
pub struct Connection {
    /// The protocol's side.
    pub session: Session,
    socket: Rc<OwnedFd>,
    token: Token,
    /// The start of a message whose rest has not come, or messages that have to wait.
    inbound: Vec<u8>,
    receipt: Receipt,
    /// Bytes that the ring is sending.
    sending: Option<usize>,
    /// When the peer must have made the next step that is expected of it.
    step_due: Option<(Duration, &'static str)>,
    /// Bytes of the unfinished message that were there when that was last put off.
    step_from: usize,
    /// When the peer must have read something.
    read_due: Option<Duration>,
    /// The time for which the reactor has set an alarm.
    pub alarm: Option<Duration>,
    /// Whether the reactor knows that there is something to send.
    pub noted: bool,
}

/// What the ring does about bytes for a connection. A stopped receive may still bring some, so no
/// other is started before its last word: two at a time could bring a stream out of order.
#[derive(Debug)]
enum Receipt {
    /// Nothing.
    Idle,
    /// It receives.
    Going(Receiving),
    /// It was asked to stop.
    Stopping,
}

/// Buffers that connections of a reactor share, because most of them are idle.
#[derive(Debug, Default)]
pub struct Spares(Vec<Vec<u8>>);

impl Spares {
    /// Spare buffers that are kept.
    const COUNT_MAX: usize = 32;

    /// An empty buffer.
    fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_default()
    }

    /// Takes a buffer's memory back.
    fn give(&mut self, mut buffer: Vec<u8>) {
        if self.0.len() < Self::COUNT_MAX && 0 < buffer.capacity() {
            buffer.clear();
            buffer.shrink_to(IDLE_CAPACITY_MAX);
            self.0.push(buffer);
        }
    }
}

impl Connection {
    /// A connection that was just accepted. Nothing is received before [`Connection::receive_more`].
    pub fn new(session: Session, socket: OwnedFd, token: Token, desk: &Desk) -> Self {
        let due = desk.now + desk.limits.handshake_timeout;
        Self {
            session,
            socket: Rc::new(socket),
            token,
            inbound: Vec::new(),
            receipt: Receipt::Idle,
            sending: None,
            step_due: Some((due, "handshake and registration")),
            step_from: 0,
            read_due: None,
            alarm: None,
            noted: false,
        }
    }

    /// Receives, unless that goes on already or the session has enough to do.
    pub fn receive_more(&mut self, reactor: &mut Reactor) {
        if matches!(self.receipt, Receipt::Idle) && !self.session.is_busy() {
            let receiving = reactor.receive(self.token, Rc::clone(&self.socket));
            self.receipt = Receipt::Going(receiving);
        }
    }

    /// The ring receives no more for this connection.
    pub fn receiving_ended(&mut self) {
        self.receipt = Receipt::Idle;
    }

    fn stop_receiving(&mut self, reactor: &mut Reactor) {
        if let Receipt::Going(receiving) = self.receipt {
            reactor.stop_receiving(receiving);
            self.receipt = Receipt::Stopping;
        }
    }

    /// Takes bytes that have come.
    ///
    /// # Errors
    ///
    /// The connection is to be closed.
    pub fn received(
        &mut self,
        bytes: &[u8],
        desk: &mut Desk,
        reactor: &mut Reactor,
        spares: &mut Spares,
    ) -> Result<(), Farewell> {
        let parsed = if self.inbound.is_empty() {
            let parsed = self.parse(bytes, desk, reactor, spares)?;
            if parsed < bytes.len() {
                self.inbound = spares.take();
                self.inbound.extend_from_slice(&bytes[parsed..]);
            }
            parsed
        } else {
            self.inbound.extend_from_slice(bytes);
            self.parse_inbound(desk, reactor, spares)?
        };
        self.expect_step(parsed, desk);
        if self.session.is_busy() {
            self.stop_receiving(reactor);
        }
        Ok(())
    }

    /// Goes on with messages that had to wait, if the session can take them now.
    ///
    /// # Errors
    ///
    /// The connection is to be closed.
    pub fn go_on(
        &mut self,
        desk: &mut Desk,
        reactor: &mut Reactor,
        spares: &mut Spares,
    ) -> Result<(), Farewell> {
        if !self.inbound.is_empty() && !self.session.is_busy() {
            let parsed = self.parse_inbound(desk, reactor, spares)?;
            self.expect_step(parsed, desk);
        }
        self.receive_more(reactor);
        Ok(())
    }

    fn parse_inbound(
        &mut self,
        desk: &mut Desk,
        reactor: &mut Reactor,
        spares: &mut Spares,
    ) -> Result<usize, Farewell> {
        let mut inbound = std::mem::take(&mut self.inbound);
        let parsed = self.parse(&inbound, desk, reactor, spares);
        if let Ok(parsed) = parsed {
            inbound.drain(..parsed);
        }
        if inbound.is_empty() {
            spares.give(inbound);
        } else {
            self.inbound = inbound;
        }
        parsed
    }

    /// Gives whole messages to the session while it takes them. Returns how many bytes they had.
    fn parse(
        &mut self,
        bytes: &[u8],
        desk: &mut Desk,
        reactor: &mut Reactor,
        spares: &mut Spares,
    ) -> Result<usize, Farewell> {
        let mut rest = bytes;
        while !rest.is_empty() && !self.session.is_busy() {
            let frame_max = self.session.frame_max(desk);
            let Some(frame) = split_frame(rest, frame_max).map_err(Farewell::Wire)? else {
                break;
            };
            if self.session.outbox.capacity() == 0 {
                self.session.outbox = spares.take();
            }
            self.session.receive(frame.body, desk)?;
            rest = frame.rest;
            if OUTBOX_FLUSH <= self.session.outbox.len() {
                self.flush(desk, reactor, spares)?;
            }
        }
        Ok(bytes.len() - rest.len())
    }

    /// Notes what the peer owes us next: its registration, or the rest of a message. A message's
    /// time is put off when many of its bytes have come, and not when a few have.
    fn expect_step(&mut self, parsed: usize, desk: &Desk) {
        if !self.session.is_open() {
            return;
        }
        let here = self.inbound.len();
        if here == 0 || self.session.is_busy() {
            self.step_due = None;
        } else if self.step_due.is_none()
            || 0 < parsed
            || Limits::PROGRESS_LEAST <= here.saturating_sub(self.step_from)
        {
            let due = desk.now + desk.limits.progress_timeout;
            self.step_due = Some((due, "the rest of a message"));
            self.step_from = here;
        }
    }

    /// Sends what the session has written.
    ///
    /// # Errors
    ///
    /// The connection is to be closed.
    pub fn flush(
        &mut self,
        desk: &Desk,
        reactor: &mut Reactor,
        spares: &mut Spares,
    ) -> Result<(), Farewell> {
        if let Some(sending) = self.sending {
            if desk.limits.output_max < sending + self.session.outbox.len() {
                return Err(Farewell::Unread);
            }
            return Ok(());
        }
        if self.session.outbox.is_empty() {
            return Ok(());
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = match rustix::net::send(&*self.socket, &self.session.outbox, flags) {
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(error) => return Err(Farewell::Socket(error.into())),
        };
        let outbox = std::mem::take(&mut self.session.outbox);
        if sent == outbox.len() {
            self.read_due = None;
            spares.give(outbox);
        } else {
            self.start_sending(outbox, sent, desk, reactor);
        }
        Ok(())
    }

    fn start_sending(&mut self, outbox: Vec<u8>, start: usize, desk: &Desk, reactor: &mut Reactor) {
        self.sending = Some(outbox.len() - start);
        self.read_due = Some(desk.now + desk.limits.progress_timeout);
        reactor.send(self.token, Rc::clone(&self.socket), outbox, start);
    }

    /// The ring has sent something.
    ///
    /// # Errors
    ///
    /// The connection is to be closed.
    pub fn sent(
        &mut self,
        count: io::Result<usize>,
        mut bytes: Vec<u8>,
        desk: &mut Desk,
        reactor: &mut Reactor,
        spares: &mut Spares,
    ) -> Result<(), Farewell> {
        let count = count.map_err(Farewell::Socket)?;
        let wanted = self.sending.take().expect("a send ends that was started");
        self.read_due = None;
        if count < wanted {
            let start = bytes.len() - wanted + count;
            self.start_sending(bytes, start, desk, reactor);
            return Ok(());
        }
        bytes.clear();
        spares.give(bytes);
        self.flush(desk, reactor, spares)?;
        self.go_on(desk, reactor, spares)
    }

    /// When the next thing is due, if anything is.
    pub fn deadline(&self) -> Option<Duration> {
        let step = self.step_due.map(|(due, _)| due);
        [step, self.read_due, self.session.deadline()].into_iter().flatten().min()
    }

    /// What is overdue, if anything is.
    pub fn overdue(&self, desk: &Desk) -> Option<Farewell> {
        if let Some((due, what)) = self.step_due
            && due <= desk.now
        {
            return Some(Farewell::Slow(what));
        }
        if self.read_due.is_some_and(|due| due <= desk.now) {
            return Some(Farewell::Unread);
        }
        let voted = self.session.deadline().is_some_and(|due| due <= desk.now);
        voted.then(|| {
            Farewell::TransactionTimeout(desk.limits.transaction_timeout.unwrap_or_default())
        })
    }

    /// Ends the connection: both directions are shut, and the socket is closed once the ring is
    /// done with it.
    pub fn close(mut self, farewell: &Farewell, desk: &mut Desk, reactor: &mut Reactor) {
        self.session.end(farewell, desk);
        // What is left is said if it can be said at once: an error reply before the end helps.
        if self.sending.is_none() && !self.session.outbox.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let _ = rustix::net::send(&*self.socket, &self.session.outbox, flags);
        }
        // A socket whose peer has gone is shut already.
        let _ = rustix::net::shutdown(&*self.socket, Shutdown::Both);
        self.stop_receiving(reactor);
    }
}
