//! How a client connects, waits and remembers: every setting, its default, and why that one.

use std::time::Duration;

use crate::address::Address;
use crate::blob::BlobOptions;
use crate::cache::CacheOptions;
use crate::tls::TlsOptions;

/// The settings of a client, whichever driver it has.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where servers of the storage listen. All are tried together; the first that takes us is it.
    pub addresses: Vec<Address>,
    /// The storage, which `runzeo` calls `"1"`.
    pub storage: String,
    /// What the server's log calls this client, if anything.
    pub label: Option<String>,
    /// Whether a connection that cannot write will do.
    pub access: Access,
    /// How long [`open`](crate::DrivenClient::open), and a call that finds no connection, waits for
    /// one. Zero does not wait: the call fails at once, the client goes on trying behind.
    pub wait: Duration,
    /// How long a server may take to connect, greet and register this client, and then to compare
    /// what the client remembers: 10 s each.
    pub connect_limit: Duration,
    /// How long to wait for the answer to a call: 30 s, as long as a server lets a transaction
    /// hold its locks. A pack that is waited for has no deadline.
    pub deadline: Duration,
    /// How long to spin while nothing comes, before sleeping. Spinning pays while answers come
    /// sooner than a sleeping thread can be woken (30 to 50 us), and burns a processor meanwhile;
    /// zero sleeps at once.
    pub spin: Duration,
    /// Whether a transaction's begin goes to the server and back, so that it sees everything that
    /// was committed anywhere before (`server-sync` of ZEO).
    pub server_sync: bool,
    /// What is remembered.
    pub cache: CacheOptions,
    /// Where blobs are kept; without it, blobs cannot be used.
    pub blobs: Option<BlobOptions>,
    /// Encryption; without it, bytes travel as they are.
    pub tls: Option<TlsOptions>,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Access {
    /// To read and write; a server that is read-only does not do.
    #[default]
    Write,
    /// To read: the server refuses writes of this client.
    Read,
    /// To read and write if there is such a server, else to read. A client that had to content
    /// itself goes on looking for one that takes writes.
    WriteOrRead,
}

impl Options {
    /// The defaults for these servers.
    pub fn new(addresses: impl IntoIterator<Item = Address>) -> Self {
        Self {
            addresses: addresses.into_iter().collect(),
            storage: "1".to_owned(),
            label: None,
            access: Access::Write,
            wait: Duration::from_secs(30),
            connect_limit: Duration::from_secs(10),
            deadline: Duration::from_secs(30),
            spin: Duration::from_micros(200),
            server_sync: false,
            cache: CacheOptions::default(),
            blobs: None,
            tls: None,
        }
    }
}
