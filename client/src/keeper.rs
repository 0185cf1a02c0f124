//! The thread that keeps a client connected: it dials, verifies and hands over, and does it again
//! when a connection breaks. While all is well it sleeps, and wakes now and then to let the driver
//! take in what nobody waits for and to give a sign of life.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use zeoring_shared::io::Machine;

use crate::address::Address;
use crate::dial::{self, Bell, Link, NoLink, Plan};
use crate::driver::standing::Standing;
use crate::error::{ClientError, DialError};
use crate::options::{Access, Options};
use crate::session::Epoch;
use crate::tls::Tls;
use crate::view::View;

/// How often the driver may take in what has arrived while nobody asks.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// Between two signs of life (`ZEO/asyncio/client.py`, `heartbeat_interval`).
const HEARTBEAT: Duration = Duration::from_secs(60);

/// The first pause after a failure; it doubles up to the last. To each, chance adds up to as much
/// again, so that the clients of a server that restarts do not all come at once.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LAST: Duration = Duration::from_secs(10);

/// Whoever takes connections over.
pub(crate) trait Adopter: Send + Sync + 'static {
    /// What tells a caller of its answer.
    type Waiter: Send + 'static;

    /// Takes over a connection that is ready.
    fn adopt(&self, epoch: Epoch, link: Link<Self::Waiter>);

    /// Ends the connection there is, because a better one was found. When this returns, it changes
    /// the view no more.
    fn release(&self);

    /// Time has passed.
    fn tick(&self, is_heartbeat: bool);
}

/// The thread, and how to end it.
#[derive(Debug)]
pub(crate) struct Keeper {
    bell: Arc<OwnedFd>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread works with.
struct Work<A: Adopter> {
    adopter: Arc<A>,
    standing: Arc<Standing>,
    view: Arc<View>,
    options: Options,
    tls: Option<Tls>,
    bell: Arc<OwnedFd>,
    machine: Machine,
    old: Vec<Address>,
    epoch: u32,
    pause: Duration,
}

impl Keeper {
    /// Makes the bell that ends waits of the keeper.
    pub(crate) fn bell() -> Result<Arc<OwnedFd>, ClientError> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Arc::new(bell.map_err(|error| crate::error::Broken::Socket(error.into()))?))
    }

    /// Starts the thread.
    pub(crate) fn start<A: Adopter>(
        adopter: Arc<A>,
        standing: Arc<Standing>,
        view: Arc<View>,
        options: &Options,
        bell: Arc<OwnedFd>,
    ) -> Result<Self, ClientError> {
        let tls = options.tls.as_ref().map(Tls::prepare).transpose()?;
        let mut work = Work {
            adopter,
            standing,
            view,
            options: options.clone(),
            tls,
            bell: Arc::clone(&bell),
            machine: Machine::real(),
            old: Vec::new(),
            epoch: 0,
            pause: PAUSE_FIRST,
        };
        let thread = std::thread::Builder::new().name("zeoring-keeper".to_owned());
        let thread = thread.spawn(move || work.run());
        let thread = thread.map_err(crate::error::Broken::Socket)?;
        Ok(Self { bell, thread: Mutex::new(Some(thread)) })
    }

    /// Waits until the thread has ended; [`Standing::close`] comes first.
    pub(crate) fn join(&self) {
        ring(&self.bell);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

/// Ends the keeper's wait: a connection has broken, or the client is closed.
pub(crate) fn ring(bell: &OwnedFd) {
    // Whatever number this is on this machine, it wakes; adding it fails only when it was rung so
    // often and not heard that it rings anyway.
    let _ = rustix::io::write(bell, &[0, 0, 0, 1, 1, 0, 0, 0]);
}

impl<A: Adopter> Work<A> {
    fn run(&mut self) {
        let mut beat = Instant::now();
        let mut upgrade = None;
        while !self.standing.is_closed() {
            if !self.standing.is_connected() {
                self.connect(self.options.access);
                (beat, upgrade) = (Instant::now(), None);
                continue;
            }
            self.sleep(TICK);
            let now = Instant::now();
            let is_heartbeat = HEARTBEAT <= now - beat;
            if is_heartbeat {
                beat = now;
            }
            self.adopter.tick(is_heartbeat);
            if self.options.access == Access::WriteOrRead && self.standing.is_read_only() {
                let due = *upgrade.get_or_insert(now + self.pause);
                if due <= now {
                    self.connect(Access::Write);
                    upgrade = None;
                }
            }
        }
    }

    /// Tries all servers once, and pauses if none will do.
    fn connect(&mut self, access: Access) {
        let mut plan = Plan {
            addresses: &self.options.addresses,
            storage: &self.options.storage,
            label: self.options.label.as_deref(),
            access,
            limit: self.options.connect_limit,
            tls: self.tls.as_ref(),
            view: &self.view,
            old: &mut self.old,
        };
        // While one looks for something better, what there is may break.
        let (standing, is_upgrade) = (&self.standing, self.standing.is_connected());
        let is_over = || standing.is_closed() || (is_upgrade && !standing.is_connected());
        let bell = Bell { descriptor: &self.bell, is_over: &is_over };
        let reasons = match dial::dial(&mut plan, &bell) {
            Ok((address, link)) => match self.take(link) {
                Ok(()) => {
                    self.pause = PAUSE_FIRST;
                    return;
                }
                Err(None) => return,
                Err(Some(error)) => vec![(address, error)],
            },
            Err(NoLink::Rung) => return,
            Err(NoLink::Failed(reasons)) => reasons,
        };
        let jitter = self.machine.chance.bits() % (self.pause.as_millis() as u64 + 1);
        let pause = self.pause + Duration::from_millis(jitter);
        self.pause = (self.pause * 2).min(PAUSE_LAST);
        if !self.standing.is_connected() {
            self.standing.fail(reasons);
            self.sleep(pause);
        }
    }

    fn take(&mut self, mut link: Link<A::Waiter>) -> Result<(), Option<DialError>> {
        if self.standing.is_connected() {
            self.adopter.release();
        }
        let standing = &self.standing;
        let bell = Bell { descriptor: &self.bell, is_over: &|| standing.is_closed() };
        dial::verify(&mut link, self.options.connect_limit, &bell)?;
        self.epoch += 1;
        self.adopter.adopt(Epoch(self.epoch), link);
        Ok(())
    }

    /// Sleeps until the bell rings or the time is over.
    fn sleep(&self, limit: Duration) {
        let mut polls = [PollFd::new(&*self.bell, PollFlags::IN)];
        let _ = rustix::event::poll(&mut polls, Some(&dial::timespec(limit)));
        self.clear_bell();
    }

    fn clear_bell(&self) {
        let _ = rustix::io::read(&*self.bell, &mut [0; 8]);
    }
}
