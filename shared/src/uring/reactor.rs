//! One thread's ring: operations in, events out.

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::types::Fd;
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::io::Errno;

use crate::io::DiskFile;
use crate::ring::Doorbell;

use super::flight::{Flight, Flights};
use super::pool::{Chunk, GROUP, Pool};
use super::probe::{Kernel, NoRing, open_ring};
use super::spin::{Spin, SpinBudget};

/// Completions taken out of the ring in one turn, so that notes and timers get theirs.
const EVENTS_A_TURN_MAX: usize = 256;

/// `IORING_ENTER_GETEVENTS`, `_EXT_ARG` and `_NO_IOWAIT` of `linux/io_uring.h`.
const ENTER_GETEVENTS: u32 = 1;
const ENTER_EXT_ARG: u32 = 1 << 3;
const ENTER_NO_IOWAIT: u32 = 1 << 7;

/// Whose operation it is: the caller's number, given back with every event of the operation.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Token(pub u64);

/// A receive that was started, to name it when it is to stop.
#[derive(Clone, Copy, Debug)]
pub struct Receiving(u64);

/// How a reactor waits.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long it looks for work before it sleeps.
    pub spin: SpinBudget,
    /// Processors that this process may run on.
    pub processors: usize,
}

/// Something that has finished, or gone on.
#[derive(Debug)]
pub enum Event {
    /// A connection has come.
    Accepted {
        /// The listener's token.
        token: Token,
        /// The connected socket, or why there is none.
        socket: io::Result<OwnedFd>,
        /// Whether more will come; if not, accept again.
        more: bool,
    },
    /// Bytes have come.
    Received {
        /// The connection's token.
        token: Token,
        /// The bytes; `None` at the end of the stream. [`io::ErrorKind::OutOfMemory`] stands for
        /// a lack of buffers: receive again, nothing is lost.
        bytes: io::Result<Option<Chunk>>,
        /// Whether more will come; if not, receive again.
        more: bool,
    },
    /// A send has ended.
    Sent {
        /// The connection's token.
        token: Token,
        /// How many of the bytes went out.
        count: io::Result<usize>,
        /// The buffer.
        bytes: Vec<u8>,
    },
    /// A read has ended.
    Read {
        /// The reader's token.
        token: Token,
        /// The bytes that were read: fewer than wanted at the end of the file.
        bytes: io::Result<Vec<u8>>,
    },
}

/// The ring of one thread, and everything that the kernel works on for it.
pub struct Reactor {
    ring: IoUring,
    kernel: Kernel,
    flights: Flights,
    pool: Rc<Pool>,
    doorbell: Arc<Doorbell>,
    spin: Spin,
    no_iowait: u32,
}

/// The argument of `io_uring_enter` with `IORING_ENTER_EXT_ARG` (`struct io_uring_getevents_arg`).
#[repr(C)]
struct WaitArgument {
    signal_mask: u64,
    signal_mask_length: u32,
    wait_us_min: u32,
    timespec: u64,
}

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

impl Reactor {
    /// Opens a ring for the calling thread, which must be the one to drive it.
    ///
    /// `doorbell` is the bell of this thread; ringing it ends [`Reactor::turn`]'s sleep.
    ///
    /// # Errors
    ///
    /// [`NoRing`] says why there is none, and what to do about it.
    pub fn new(options: Options, doorbell: Arc<Doorbell>) -> Result<Self, NoRing> {
        let (ring, kernel) = open_ring()?;
        let pool = Pool::new(&ring).map_err(NoRing::from_setup)?;
        let spin = Spin::new(options.spin, options.processors);
        let mut reactor = Self {
            ring,
            kernel,
            flights: Flights::default(),
            pool,
            doorbell,
            spin,
            no_iowait: ENTER_NO_IOWAIT,
        };
        reactor.read_bell();
        Ok(reactor)
    }

    /// What the kernel gives this ring.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Takes connections from a listening socket, until an event says that no more come.
    pub fn accept(&mut self, token: Token, listener: Rc<OwnedFd>) {
        let descriptor = Fd(listener.as_raw_fd());
        let flags = (rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC).bits();
        let entry = opcode::AcceptMulti::new(descriptor).flags(flags as i32).build();
        self.start(entry, Flight::Accept { token, listener });
    }

    /// Takes bytes from a socket, until an event says that no more come.
    pub fn receive(&mut self, token: Token, socket: Rc<OwnedFd>) -> Receiving {
        let entry = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), GROUP).build();
        Receiving(self.start(entry, Flight::Receive { token, socket }))
    }

    /// Asks for the end of [`Reactor::receive`]. Bytes may come until an event says that no more do.
    pub fn stop_receiving(&mut self, receiving: Receiving) {
        self.start(opcode::AsyncCancel::new(receiving.0).build(), Flight::Cancel);
    }

    /// Sends the bytes from `start` on. One send a socket at a time, or their order is anyone's.
    pub fn send(&mut self, token: Token, socket: Rc<OwnedFd>, bytes: Vec<u8>, start: usize) {
        let rest = &bytes[start..];
        let flags = rustix::net::SendFlags::NOSIGNAL.bits() as i32;
        let length = rest.len().min(i32::MAX as usize) as u32;
        let descriptor = Fd(socket.as_raw_fd());
        let entry = opcode::Send::new(descriptor, rest.as_ptr(), length).flags(flags).build();
        self.start(entry, Flight::Send { token, socket, bytes });
    }

    /// Reads up to `length` bytes of a file that has a descriptor. `buffer` is used for its memory.
    ///
    /// # Panics
    ///
    /// If the file has no descriptor.
    pub fn read(
        &mut self,
        token: Token,
        file: Arc<dyn DiskFile>,
        position: u64,
        length: usize,
        mut buffer: Vec<u8>,
    ) {
        buffer.clear();
        buffer.resize(length, 0);
        let descriptor =
            file.descriptor().expect("a ring reads files with descriptors").as_raw_fd();
        let (start, length) = (buffer.as_mut_ptr(), length as u32);
        let entry = opcode::Read::new(Fd(descriptor), start, length).offset(position).build();
        self.start(entry, Flight::Read { token, file, bytes: buffer });
    }

    /// One turn: gives the kernel what was started, and adds what has finished to `events`.
    ///
    /// If nothing has, looks for more for the spin budget and then sleeps: until something
    /// finishes, the bell rings, or `patience` is over. `ready` tells of work outside the ring; it
    /// is asked again after the thread has said that it is going to sleep.
    ///
    /// # Errors
    ///
    /// The ring is broken. Nothing can be done but to stop.
    pub fn turn(
        &mut self,
        events: &mut Vec<Event>,
        patience: Option<Duration>,
        ready: impl Fn() -> bool,
    ) -> io::Result<()> {
        self.submit()?;
        if self.take_events(events)? || ready() {
            return Ok(());
        }
        let budget = self.spin.budget();
        if !budget.is_zero() {
            let start = Instant::now();
            loop {
                if self.something_finished() || ready() {
                    self.spin.found();
                    self.take_events(events)?;
                    return Ok(());
                }
                if self.spin.look() {
                    if patience.map_or(budget, |patience| budget.min(patience)) <= start.elapsed() {
                        break;
                    }
                    rustix::thread::sched_yield();
                }
                std::hint::spin_loop();
            }
        }
        self.spin.missed();
        self.doorbell.doze();
        let slept = if ready() { Ok(()) } else { self.sleep(patience) };
        self.doorbell.wake();
        slept?;
        self.take_events(events)?;
        Ok(())
    }

    /// Whether completions wait in the ring, or the kernel has work whose completions would.
    fn something_finished(&mut self) -> bool {
        let submission = self.ring.submission();
        let work = submission.taskrun() || submission.cq_overflow();
        drop(submission);
        work || !self.ring.completion().is_empty()
    }

    /// Hands started operations to the kernel, and lets it do deferred work.
    fn submit(&mut self) -> io::Result<()> {
        loop {
            let submission = self.ring.submission();
            let idle = submission.is_empty() && !submission.taskrun() && !submission.cq_overflow();
            drop(submission);
            if idle {
                return Ok(());
            }
            match self.ring.submit() {
                Ok(_) => return Ok(()),
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::INTR) => {}
                    // The completion queue is full: take from it first, submit next turn.
                    Some(Errno::BUSY | Errno::AGAIN) => return Ok(()),
                    _ => return Err(error),
                },
            }
        }
    }

    fn sleep(&mut self, patience: Option<Duration>) -> io::Result<()> {
        let timespec = patience.map(|patience| Timespec {
            seconds: patience.as_secs().min(i64::MAX as u64) as i64,
            nanoseconds: i64::from(patience.subsec_nanos()),
        });
        let address = timespec.as_ref().map_or(0, |timespec| std::ptr::from_ref(timespec) as u64);
        let argument = WaitArgument {
            signal_mask: 0,
            signal_mask_length: 0,
            wait_us_min: 0,
            timespec: address,
        };
        let submissions = self.ring.submission().len() as u32;
        let flags = ENTER_GETEVENTS | ENTER_EXT_ARG | self.no_iowait;
        // SAFETY: the argument has the layout that EXT_ARG says, and it and the timespec it points
        // to outlive the call; what the submitted operations point to is kept in `flights`.
        let entered =
            unsafe { self.ring.submitter().enter(submissions, 1, flags, Some(&argument)) };
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN) => Ok(()),
                // Kernels before 6.15 do not know the flag: an idle ring then shows as iowait.
                Some(Errno::INVAL) if self.no_iowait != 0 => {
                    self.no_iowait = 0;
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }

    /// Takes completions out. Returns whether there were any.
    fn take_events(&mut self, events: &mut Vec<Event>) -> io::Result<bool> {
        self.submit_deferred()?;
        let mut any = false;
        while events.len() < EVENTS_A_TURN_MAX {
            let Some(completion) = self.ring.completion().next() else {
                break;
            };
            any = true;
            if let Some(event) = self.event(&completion) {
                events.push(event);
            }
        }
        Ok(any)
    }

    /// Deferred work becomes completions only in a call that asks for them.
    fn submit_deferred(&mut self) -> io::Result<()> {
        if self.ring.submission().taskrun() { self.submit() } else { Ok(()) }
    }

    fn event(&mut self, completion: &cqueue::Entry) -> Option<Event> {
        let name = completion.user_data();
        let result = completion.result();
        let more = cqueue::more(completion.flags());
        let buffer = cqueue::buffer_select(completion.flags());
        let outcome = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        if more {
            return match self.flights.find(name)? {
                Flight::Accept { token, .. } => Some(accepted(*token, outcome, true)),
                Flight::Receive { token, .. } => {
                    let token = *token;
                    Some(self.received(token, outcome, buffer, true))
                }
                Flight::Send { .. }
                | Flight::Read { .. }
                | Flight::Bell { .. }
                | Flight::Cancel => None,
            };
        }
        match self.flights.remove(name)? {
            Flight::Accept { token, .. } => Some(accepted(token, outcome, false)),
            Flight::Receive { token, .. } => Some(self.received(token, outcome, buffer, false)),
            Flight::Send { token, bytes, .. } => Some(Event::Sent { token, count: outcome, bytes }),
            Flight::Read { token, mut bytes, .. } => {
                let bytes = outcome.map(|count| {
                    bytes.truncate(count);
                    bytes
                });
                Some(Event::Read { token, bytes })
            }
            Flight::Bell { .. } => {
                self.read_bell();
                None
            }
            Flight::Cancel => None,
        }
    }

    fn received(
        &self,
        token: Token,
        outcome: io::Result<usize>,
        buffer: Option<u16>,
        more: bool,
    ) -> Event {
        let chunk = buffer.map(|id| self.pool.chunk(id, *outcome.as_ref().unwrap_or(&0)));
        let bytes = match (outcome, chunk) {
            (Ok(count), Some(chunk)) if 0 < count => Ok(Some(chunk)),
            (Ok(_), _) => Ok(None),
            (Err(error), _) if Errno::from_io_error(&error) == Some(Errno::NOBUFS) => {
                Err(io::ErrorKind::OutOfMemory.into())
            }
            (Err(error), _) => Err(error),
        };
        Event::Received { token, bytes, more }
    }

    fn read_bell(&mut self) {
        let doorbell = Arc::clone(&self.doorbell);
        let Some(event) = doorbell.event().map(|event| Fd(event.as_fd().as_raw_fd())) else {
            panic!("a reactor's bell is one for rings");
        };
        let mut count = Box::new([0; 8]);
        let entry = opcode::Read::new(event, count.as_mut_ptr(), 8).build();
        self.start(entry, Flight::Bell { doorbell, count });
    }

    fn start(&mut self, entry: squeue::Entry, flight: Flight) -> u64 {
        while self.ring.submission().is_full() {
            self.ring.submit().expect("a ring takes what its queue holds");
        }
        let name = self.flights.insert(flight);
        let entry = entry.user_data(name);
        // SAFETY: what the entry points to is on the heap of what `flights` now owns: it stays there
        // until `event` has seen the last completion, and `Drop` waits for those.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("submitting made room");
        name
    }

    fn cancel_all(&mut self) -> io::Result<()> {
        let all = io_uring::types::CancelBuilder::any();
        match self.ring.submitter().register_sync_cancel(None, all) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => Ok(()),
            result => result,
        }
    }
}

impl Drop for Reactor {
    /// Takes every buffer back before it is freed. One that the kernel keeps is leaked: to leak is
    /// a pity, to free it would be a write into somebody else's memory.
    fn drop(&mut self) {
        let mut going = self.submit().and_then(|()| self.cancel_all());
        let tries = 100;
        for _ in 0..tries {
            while let Some(completion) = self.ring.completion().next() {
                if !cqueue::more(completion.flags()) {
                    self.flights.remove(completion.user_data());
                }
            }
            if self.flights.count() == 0 || going.is_err() {
                break;
            }
            going = self.sleep(Some(Duration::from_millis(10)));
        }
        if self.flights.count() != 0 {
            mem::forget(mem::take(&mut self.flights));
            mem::forget(Rc::clone(&self.pool));
        }
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reactor({} in flight)", self.flights.count())
    }
}

fn accepted(token: Token, outcome: io::Result<usize>, more: bool) -> Event {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    let socket = outcome.map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor as i32) });
    Event::Accepted { token, socket, more }
}
