//! Drivers: what moves the bytes of a session, and lets callers wait for their answers.
//!
//! A driver decides only who does it: a thread with a ring ([`threaded`]), whoever waits
//! ([`driven`]), or a task ([`local`]). What the bytes mean is the session's business, how a
//! connection comes about the keeper's.
//!
//! All operations are written once, as futures over [`Driver`]. With a driver that blocks, they are
//! ready when they are first looked at: [`now`] makes plain functions of them.

pub(crate) mod driven;
pub(crate) mod gate;
pub(crate) mod local;
pub(crate) mod standing;
pub(crate) mod threaded;

use std::os::fd::OwnedFd;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::net::SendFlags;
use zeoring_shared::wire::Codec;

use crate::channel::Channel;
use crate::error::ClientError;
use crate::session::order::Order;
use crate::session::{Epoch, Outcome};

use self::gate::Gate;
use self::standing::Standing;

/// What moves bytes and lets callers wait.
pub trait Driver {
    /// Hands an order to the connection there is, and waits for its outcome.
    ///
    /// Does not wait for a connection: without one the outcome is
    /// [`ClientError::Disconnected`]. An order of an epoch that is not the present one is
    /// [`ClientError::TransactionLost`]: it was not sent.
    fn call(&self, order: Order, patience: Option<Duration>) -> impl Future<Output = Outcome>;

    /// Hands over an order about whose outcome nobody asks. Without a connection it is dropped.
    fn tell(&self, order: Order);

    /// Takes in what has arrived, so that [`View`](crate::view::View) knows it. Does not wait.
    fn take_in(&self);

    /// Waits at a gate in the way of this driver's callers.
    fn wait_at<T, R>(
        &self,
        gate: &Gate<T>,
        limit: Duration,
        ready: impl FnMut(&mut T) -> Option<R>,
    ) -> impl Future<Output = Option<R>>;

    /// Whether there is a connection, and which.
    fn standing(&self) -> &Standing;

    /// Ends the connection and everything that runs for it. Callers that wait get
    /// [`ClientError::Closed`].
    fn close(&self);
}

/// A driver whose futures are ready at once, because it waits inside.
pub trait Blocking: Driver {}

/// A connection as those see it who prepare what it is to send.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Tie {
    pub(crate) epoch: Epoch,
    pub(crate) codec: Codec,
}

/// The result of an operation over a driver that blocks.
pub(crate) fn now<R>(operation: impl Future<Output = R>) -> R {
    match pin!(operation).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => unreachable!("an operation over a blocking driver waits inside"),
    }
}

/// Tells a server with TLS that nothing more comes, so that it need not suspect that somebody cut
/// the connection. Nothing else may be half sent.
pub(crate) fn farewell(channel: &mut Channel, socket: &OwnedFd) {
    let mut bytes = Vec::new();
    channel.close();
    if channel.take_output(&mut bytes).is_ok() && !bytes.is_empty() {
        let _ = rustix::net::send(socket, &bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}

/// The moment that comes after so long; a time too long for a clock ends in a century.
pub(crate) fn later(time: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    let now = Instant::now();
    now.checked_add(time).unwrap_or_else(|| now + CENTURY)
}

/// The error of calls for which there is no connection.
pub(crate) fn not_connected() -> ClientError {
    ClientError::from(crate::error::Broken::Socket(std::io::ErrorKind::NotConnected.into()))
}

/// The error of an order that is not sent, because its connection has ended or there is none.
/// Nothing of it took effect.
pub(crate) fn unsent(order: &Order, error: ClientError) -> ClientError {
    match order.epoch {
        Some(_) if matches!(error, ClientError::Disconnected(_)) => ClientError::TransactionLost,
        _ => error,
    }
}
