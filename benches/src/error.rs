//! What can stop a measurement, and what it was doing.

use std::io;

use zeoring_client::ClientError;
use zeoring_shared::wire::WireError;

/// Why a measurement stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// The machine refused something.
    #[error("{doing}")]
    Io {
        /// What was being done, as a phrase.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A call of the client failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A peer sent what is not ZEO.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A peer answered in ZEO, but not what was asked.
    #[error("{peer}: {fact}")]
    WrongAnswer {
        /// Who answered.
        peer: &'static str,
        /// What is wrong with it.
        fact: &'static str,
    },
    /// A server of ours did not come up, or went away.
    #[error("{name} {fact}; its log ends:\n{log}")]
    Server {
        /// Which server.
        name: &'static str,
        /// What it did.
        fact: &'static str,
        /// The end of what it printed.
        log: String,
    },
}

/// Turns an I/O error into a sentence that says what was being done.
pub(crate) fn doing(doing: &'static str) -> impl FnOnce(io::Error) -> BenchError {
    move |source| BenchError::Io { doing, source }
}
