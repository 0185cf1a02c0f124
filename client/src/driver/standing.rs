//! Whether a client has a connection, as its callers need to know it before they ask.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use zeoring_shared::fork::Process;
use zeoring_shared::wire::Codec;

use super::gate::Gate;
use super::{Driver, Tie};
use crate::address::Address;
use crate::error::{ClientError, DialError};
use crate::session::Epoch;

/// Connected or not, and why not.
#[derive(Debug)]
pub struct Standing {
    /// The epoch of the connection there is, or zero: what callers look at on their way.
    epoch: AtomicU32,
    gate: Gate<State>,
    /// The process that made the client.
    process: Process,
}

#[derive(Debug, Default)]
struct State {
    tie: Option<Tie>,
    is_read_only: bool,
    is_closed: bool,
    /// What was last in the way.
    reasons: Vec<(Address, DialError)>,
    /// Whether every server that was tried answered that it does not take us.
    is_refused: bool,
}

impl Standing {
    pub(crate) fn new() -> Self {
        Self { epoch: AtomicU32::new(0), gate: Gate::default(), process: Process::this() }
    }

    /// Whether there is a connection, at the cost of a look at memory.
    pub(crate) fn is_connected(&self) -> bool {
        self.epoch.load(Ordering::Acquire) != 0
    }

    /// Whether the connection there is cannot write.
    pub(crate) fn is_read_only(&self) -> bool {
        self.gate.look(|state| state.is_read_only)
    }

    /// Whether this process is not the one that made the client, but a fork of it.
    pub(crate) fn is_forked(&self) -> bool {
        self.process.was_forked()
    }

    /// Waits until there is a connection.
    pub(crate) async fn connected<D: Driver>(
        &self,
        driver: &D,
        wait: Duration,
    ) -> Result<Tie, ClientError> {
        if self.is_forked() {
            return Err(ClientError::Forked);
        }
        let ready = |state: &mut State| match state.tie {
            _ if state.is_closed => Some(Err(ClientError::Closed)),
            Some(tie) => Some(Ok(tie)),
            None => None,
        };
        match driver.wait_at(&self.gate, wait, ready).await {
            Some(result) => result,
            None => Err(self.not_connected(wait)),
        }
    }

    /// Waits for the first connection, but not for servers that have said no.
    pub(crate) async fn first_connected<D: Driver>(
        &self,
        driver: &D,
        wait: Duration,
    ) -> Result<(), ClientError> {
        let ready = |state: &mut State| (state.tie.is_some() || state.is_refused).then_some(());
        driver.wait_at(&self.gate, wait, ready).await;
        if self.is_connected() { Ok(()) } else { Err(self.not_connected(wait)) }
    }

    fn not_connected(&self, wait: Duration) -> ClientError {
        let reasons = self.gate.look(|state| state.reasons.clone());
        ClientError::NotConnected { wait, reasons }
    }

    pub(crate) fn connect(&self, epoch: Epoch, codec: Codec, is_read_only: bool) {
        self.gate.change(|state| {
            state.tie = Some(Tie { epoch, codec });
            state.is_read_only = is_read_only;
            state.reasons.clear();
            self.epoch.store(epoch.0, Ordering::Release);
        });
    }

    /// That connection has ended.
    pub(crate) fn disconnect(&self, epoch: Epoch) {
        self.gate.change(|state| {
            if state.tie.is_some_and(|tie| tie.epoch == epoch) {
                state.tie = None;
                self.epoch.store(0, Ordering::Release);
            }
        });
    }

    /// No server that was tried can be used.
    pub(crate) fn fail(&self, reasons: Vec<(Address, DialError)>) {
        let is_refusal = |reason: &DialError| matches!(reason, DialError::Refused(_));
        self.gate.change(|state| {
            state.is_refused =
                !reasons.is_empty() && reasons.iter().all(|(_, reason)| is_refusal(reason));
            state.reasons = reasons;
        });
    }

    pub(crate) fn close(&self) {
        self.gate.change(|state| {
            state.is_closed = true;
            state.tie = None;
            self.epoch.store(0, Ordering::Release);
        });
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.gate.look(|state| state.is_closed)
    }
}
