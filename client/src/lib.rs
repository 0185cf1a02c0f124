//! The client of zeoring: ZEO, ZODB's network storage, from Rust.
//!
//! Three clients with the same methods; they differ in who moves the bytes:
//!
//! | | who sends and receives | for |
//! |---|---|---|
//! | [`DrivenClient`] | the thread that waits, itself | the least time from call to answer |
//! | [`Client`] | a thread with an io_uring, fed by lock-free rings | many threads that call at once |
//! | [`AsyncClient`] | tasks of a `tokio-uring` runtime | programs that live in one |
//!
//! All remember what they loaded, stay connected, and never answer with what is stale.
//!
//! ```no_run
//! use zeoring_client::{ClientError, Description, DrivenClient, Options, Vote};
//! use zeoring_shared::ids::Oid;
//!
//! # fn main() -> Result<(), ClientError> {
//! let address = "127.0.0.1:8100".parse().expect("host and port are an address");
//! let client = DrivenClient::open(Options::new([address]))?;
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
pub mod blob;
pub mod cache;
mod channel;
pub mod client;
mod dial;
mod driver;
mod error;
mod facade;
mod iterate;
mod keeper;
mod options;
pub mod session;
pub mod tls;
mod transaction;
mod view;

pub use address::{Address, AddressError};
pub use driver::driven::Driven;
pub use driver::local::Local;
pub use driver::threaded::Threaded;
pub use error::{Broken, ClientError, DialError, ServerError};
pub use iterate::{Records, Transactions};
pub use options::{Access, Options};
pub use session::{
    Conflict, CurrentRecord, HistoryEntry, Info, Invalidated, Invalidation, RecordEntry, Revision,
    Session, Status, TransactionEntry, UndoEntry,
};
pub use transaction::{Description, Restored, Transaction, Vote, Voted};
pub use view::{View, Watcher};

/// A client whose calling threads send and receive by themselves.
pub type DrivenClient = client::Zeo<Driven>;

/// A client with a thread of its own, which the calling threads feed through lock-free rings.
pub type Client = client::Zeo<Threaded>;

/// A client that lives in a `tokio-uring` runtime; its methods are futures.
pub type AsyncClient = client::Zeo<Local>;
