//! How a connection comes about: all servers are tried together, and the first that takes us is
//! verified and handed over. One thread and one poll for all of them; whoever closes the client
//! ends it by a bell.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};
use zeoring_shared::wire::Codec;

use crate::address::Address;
use crate::channel::Channel;
use crate::driver::later;
use crate::error::{Broken, DialError};
use crate::options::Access;
use crate::session::{Hello, Inbound, Session, Stage};
use crate::tls::Tls;
use crate::view::View;

/// How much longer a server that takes writes is waited for once one was found that does not.
const GRACE: Duration = Duration::from_millis(500);

/// The kernel gives a connection up when what was sent is not acknowledged for so long: half of
/// the minute between two signs of life. Without it a cut cable would be noticed after 15 minutes.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);

/// What to look for.
pub(crate) struct Plan<'a> {
    pub(crate) addresses: &'a [Address],
    pub(crate) storage: &'a str,
    pub(crate) label: Option<&'a str>,
    pub(crate) access: Access,
    /// How long a server may take to connect, greet and register us.
    pub(crate) limit: Duration,
    pub(crate) tls: Option<&'a Tls>,
    pub(crate) view: &'a Arc<View>,
    /// Servers that took no msgpack although they speak pickle.
    pub(crate) old: &'a mut Vec<Address>,
}

/// A connection: a socket with a session, and what is between them.
#[derive(Debug)]
pub(crate) struct Link<W> {
    pub(crate) socket: OwnedFd,
    pub(crate) session: Session<W>,
    pub(crate) inbound: Inbound,
    pub(crate) channel: Channel,
    /// What the channel made and the socket has not yet taken.
    pub(crate) unsent: Vec<u8>,
}

/// What may end a wait before its time.
pub(crate) struct Bell<'a> {
    /// Rings for several reasons: also for a connection that has broken, and is replaced already.
    pub(crate) descriptor: &'a OwnedFd,
    /// Whether it rings to end this.
    pub(crate) is_over: &'a dyn Fn() -> bool,
}

/// Why there is no connection.
pub(crate) enum NoLink {
    /// Each server, and what is the matter with it.
    Failed(Vec<(Address, DialError)>),
    /// The bell rang to end it.
    Rung,
}

/// A server that is being tried.
struct Candidate<W> {
    address: Address,
    link: Link<W>,
    is_connecting: bool,
    /// It would take us to read.
    is_fallback: bool,
}

/// Tries all servers. The session of the result is at [`Stage::Registered`].
pub(crate) fn dial<W>(plan: &mut Plan<'_>, bell: &Bell<'_>) -> Result<(Address, Link<W>), NoLink> {
    let mut failures = Vec::new();
    let mut candidates: Vec<Candidate<W>> = Vec::new();
    for address in plan.addresses {
        match candidates_of(plan, address) {
            Ok(more) => candidates.extend(more),
            Err(error) => failures.push((address.clone(), error)),
        }
    }
    let mut until = later(plan.limit);
    loop {
        let mut index = 0;
        while index < candidates.len() {
            match candidates[index].look() {
                Ok(()) => index += 1,
                Err(error) => {
                    let failed = candidates.swap_remove(index);
                    plan.note(&failed, &error);
                    failures.push((failed.address, error));
                }
            }
        }
        let is_taken = |candidate: &Candidate<W>| {
            matches!(candidate.link.session.stage(), Stage::Registered(_))
        };
        if let Some(taken) = candidates.iter().position(is_taken) {
            let taken = candidates.swap_remove(taken);
            return Ok((taken.address, taken.link));
        }
        if candidates.is_empty() {
            return Err(NoLink::Failed(failures));
        }
        let is_only_fallback = candidates.iter().all(|candidate| candidate.is_fallback);
        if candidates.iter().any(|candidate| candidate.is_fallback) {
            until = until.min(Instant::now() + GRACE);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || is_only_fallback {
            let Some(fallback) = candidates.iter().position(|candidate| candidate.is_fallback)
            else {
                let silent = candidates.into_iter().map(|late| (late.address, DialError::Silent));
                failures.extend(silent);
                return Err(NoLink::Failed(failures));
            };
            // Nobody takes writes: this one is asked again.
            let mut chosen = candidates.swap_remove(fallback);
            (chosen.is_fallback, until) = (false, later(plan.limit));
            chosen.link.session.register_read_only();
            candidates = vec![chosen];
            continue;
        }
        if wait(candidates.iter().map(Candidate::interest), bell, left) {
            return Err(NoLink::Rung);
        }
    }
}

/// Compares what is remembered with what the chosen server knows, which may take so long. Nothing
/// else may change the view meanwhile.
pub(crate) fn verify<W>(
    link: &mut Link<W>,
    limit: Duration,
    bell: &Bell<'_>,
) -> Result<(), Option<DialError>> {
    let broken = |broken: Broken| Some(DialError::Broken(Arc::new(broken)));
    link.session.verify().map_err(|error| broken(error.into()))?;
    let until = later(limit);
    loop {
        link.pump().map_err(broken)?;
        match link.session.stage() {
            Stage::Ready => return Ok(()),
            Stage::Refused(error) => return Err(Some(DialError::Refused(error.clone()))),
            _ => {}
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Some(DialError::Silent));
        }
        if wait([(&link.socket, link.interest())].into_iter(), bell, left) {
            return Err(None);
        }
    }
}

impl Plan<'_> {
    /// A server before ZEO 5.2 hangs up on an answer that it does not know.
    fn note<W>(&mut self, failed: &Candidate<W>, error: &DialError) {
        let session = &failed.link.session;
        let hung_up =
            matches!(error, DialError::Broken(broken) if matches!(**broken, Broken::Socket(_)));
        let is_old = hung_up
            && *session.stage() == Stage::Registering
            && session.announced() == Some(Codec::Pickle)
            && session.codec() == Codec::Msgpack;
        if is_old {
            self.old.push(failed.address.clone());
        }
    }
}

impl<W> Candidate<W> {
    /// Does what can be done without waiting.
    fn look(&mut self) -> Result<(), DialError> {
        let connect = |error: io::Error| DialError::Connect(Arc::new(error));
        if self.is_connecting {
            // A socket that is not writable yet is still connecting.
            let mut poll = [PollFd::new(&self.link.socket, PollFlags::OUT)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            match rustix::event::poll(&mut poll, Some(&now)) {
                Ok(0) | Err(Errno::INTR) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(connect(error.into())),
            }
            match sockopt::socket_error(&self.link.socket) {
                Ok(Ok(())) => self.is_connecting = false,
                Ok(Err(error)) | Err(error) => return Err(connect(error.into())),
            }
        }
        self.link.pump().map_err(|broken| DialError::Broken(Arc::new(broken)))?;
        if let Stage::Refused(error) = self.link.session.stage() {
            self.is_fallback = error.is_read_only() && self.link.session.may_read();
            if !self.is_fallback {
                return Err(DialError::Refused(error.clone()));
            }
        }
        Ok(())
    }

    fn interest(&self) -> (&OwnedFd, PollFlags) {
        let flags = if self.is_connecting { PollFlags::OUT } else { self.link.interest() };
        (&self.link.socket, flags)
    }
}

impl<W> Link<W> {
    /// Sends and receives what goes without waiting.
    pub(crate) fn pump(&mut self) -> Result<(), Broken> {
        loop {
            let mut has_moved = self.send()?;
            has_moved |= self.receive()?;
            if !has_moved {
                return Ok(());
            }
        }
    }

    fn send(&mut self) -> Result<bool, Broken> {
        if !self.session.output().is_empty() {
            self.channel.send(self.session.output())?;
            let length = self.session.output().len();
            self.session.sent(length);
        }
        self.channel.take_output(&mut self.unsent)?;
        let mut has_moved = false;
        while !self.unsent.is_empty() {
            match rustix::net::send(
                &self.socket,
                &self.unsent,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(count) => {
                    self.unsent.drain(..count);
                    has_moved = true;
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(Broken::Socket(error.into())),
            }
        }
        Ok(has_moved)
    }

    fn receive(&mut self) -> Result<bool, Broken> {
        let mut bytes = [0; 16 * 1024];
        let count = match rustix::net::recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((_, 0)) if self.channel.is_plain() => {
                return Err(Broken::Socket(io::ErrorKind::UnexpectedEof.into()));
            }
            // Why a server hangs up on a handshake, the channel knows best.
            Ok((_, 0)) => return Err(self.channel.end().into()),
            Ok((_, count)) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(Errno::CONNRESET) if !self.channel.is_plain() => {
                return Err(self.channel.end().into());
            }
            Err(error) => return Err(Broken::Socket(error.into())),
        };
        let inbound = &mut self.inbound;
        let received = self.channel.receive(&bytes[..count], &mut |clear| inbound.add(clear));
        if let Err(error) = received {
            // The server is told what is wrong with it.
            let _ = self.send();
            return Err(error.into());
        }
        self.session.receive(&mut self.inbound)?;
        Ok(true)
    }

    fn interest(&self) -> PollFlags {
        if self.unsent.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }
}

/// Waits until a socket has something to do, or the time is over. Returns whether all is over.
fn wait<'a>(
    sockets: impl Iterator<Item = (&'a OwnedFd, PollFlags)>,
    bell: &Bell<'_>,
    limit: Duration,
) -> bool {
    let mut polls = vec![PollFd::new(bell.descriptor, PollFlags::IN)];
    polls.extend(sockets.map(|(socket, flags)| PollFd::new(socket, flags)));
    // Whatever poll says, the sockets are looked at again.
    let _ = rustix::event::poll(&mut polls, Some(&timespec(limit)));
    if !polls[0].revents().contains(PollFlags::IN) {
        return false;
    }
    let _ = rustix::io::read(bell.descriptor, &mut [0; 8]);
    (bell.is_over)()
}

/// A duration as system calls take it.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    Timespec { tv_sec: seconds, tv_nsec: duration.subsec_nanos().into() }
}

/// Begins to connect to all addresses that a host has.
fn candidates_of<W>(plan: &Plan<'_>, address: &Address) -> Result<Vec<Candidate<W>>, DialError> {
    let connect = |error: io::Error| DialError::Connect(Arc::new(error));
    let targets = match address {
        Address::Unix(_) => vec![None],
        Address::Tcp { host, port } => {
            let found = (host.as_str(), *port).to_socket_addrs().map_err(connect)?;
            found.map(Some).collect()
        }
    };
    let mut candidates = Vec::new();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for target in targets {
        match begin(address, target) {
            Ok((socket, is_connecting)) => {
                let link = link(plan, address, socket)?;
                let address = address.clone();
                candidates.push(Candidate { address, link, is_connecting, is_fallback: false });
            }
            Err(error) => failure = error,
        }
    }
    if candidates.is_empty() { Err(connect(failure)) } else { Ok(candidates) }
}

fn link<W>(plan: &Plan<'_>, address: &Address, socket: OwnedFd) -> Result<Link<W>, DialError> {
    let hello = Hello {
        storage: plan.storage.to_owned(),
        access: plan.access,
        label: plan.label.map(str::to_owned),
        codec: plan.old.contains(address).then_some(Codec::Pickle),
    };
    let host = match address {
        Address::Tcp { host, .. } => host.as_str(),
        Address::Unix(_) => "localhost",
    };
    let channel = plan.tls.map_or_else(|| Ok(Channel::plain()), |tls| tls.channel(host));
    let channel = channel.map_err(|error| DialError::Tls(Arc::new(error)))?;
    Ok(Link {
        socket,
        session: Session::new(hello, Arc::clone(plan.view)),
        inbound: Inbound::new(),
        channel,
        unsent: Vec::new(),
    })
}

/// Begins to connect. Returns whether that is still going on.
fn begin(address: &Address, target: Option<SocketAddr>) -> io::Result<(OwnedFd, bool)> {
    let family = match target {
        None => AddressFamily::UNIX,
        Some(SocketAddr::V4(_)) => AddressFamily::INET,
        Some(SocketAddr::V6(_)) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    let connected = match (target, address) {
        (Some(target), _) => {
            sockopt::set_tcp_nodelay(&socket, true)?;
            sockopt::set_socket_keepalive(&socket, true)?;
            let limit = UNACKNOWLEDGED_MAX.as_millis() as u32;
            sockopt::set_tcp_user_timeout(&socket, limit)?;
            rustix::net::connect(&socket, &target)
        }
        (None, Address::Unix(path)) => rustix::net::connect(&socket, &SocketAddrUnix::new(path)?),
        (None, Address::Tcp { .. }) => unreachable!("a TCP address has targets"),
    };
    // Drivers ask for no waiting call by call; a ring gives up on sockets that never wait.
    let is_connecting = match connected {
        Ok(()) => false,
        Err(Errno::INPROGRESS) => true,
        Err(error) => return Err(error.into()),
    };
    rustix::io::ioctl_fionbio(&socket, false)?;
    Ok((socket, is_connecting))
}
