//! The client of zeoring: ZEO, ZODB's network storage, from Rust.
//!
//! A [`Session`] is the protocol of one connection without any I/O: calls in, bytes out; bytes in,
//! results out. A driver puts a socket under it. [`DrivenClient`] is the driver without a thread of
//! its own: the thread that waits for an answer sends and receives by itself, so that nothing is
//! handed from one thread to another.
//!
//! ```no_run
//! use zeoring_client::{Address, ClientError, DrivenClient, Description, Options, Vote};
//! use zeoring_shared::ids::{Oid, Tid};
//!
//! # fn main() -> Result<(), ClientError> {
//! let address: Address = "127.0.0.1:8100".parse().expect("a port is an address");
//! let mut client = DrivenClient::connect(&address, "1", false, Options::default())?;
//! let root = client.load(Oid::ROOT)?;
//! let mut transaction = client.begin(&Description::default())?;
//! transaction.store(Oid::ROOT, root.serial, &root.data)?;
//! match transaction.vote()? {
//!     Vote::Ready(voted) => println!("committed as {}", voted.finish()?),
//!     Vote::Conflicts { conflicts, transaction } => {
//!         println!("{} objects changed meanwhile", conflicts.len());
//!         transaction.abort()?;
//!     }
//!     Vote::Refused(conflict) => println!("{} changed meanwhile", conflict.oid),
//! }
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod address;
mod driven;
mod error;
pub mod session;
mod transaction;

pub use address::{Address, AddressError};
pub use driven::{DrivenClient, Options};
pub use error::{ClientError, ServerError};
pub use session::{Conflict, Description, Info, Invalidated, Invalidation, Revision, Session};
pub use transaction::{Transaction, Vote, Voted};
