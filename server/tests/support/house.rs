//! A server with one client that behaves well, for others that do not.

use std::path::Path;
use std::time::Duration;

use zeoring_server::config::Settings;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::io::Machine;
use zeoring_shared::wire::Codec;
use zeoring_shared::wire::frame::frame;
use zeoring_shared::wire::request::{Request, TransactionId};
use zeoring_shared::wire::value::Value;

use super::{Client, Heard, Neighbour, Running, settings};

/// Long enough for a client that is not hostile, on a slow machine, to register.
pub const SHORT: Duration = Duration::from_millis(300);

/// A server, and a client that is to go on whatever happens.
pub struct House {
    /// Where its files are.
    pub folder: tempfile::TempDir,
    /// The server.
    pub server: Running,
    /// The client that goes on.
    pub neighbour: Neighbour,
}

impl House {
    /// A server with the usual settings.
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// A server with other settings.
    pub fn with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::on(&Machine::real(), change)
    }

    /// A server with other settings on a machine that is not the real one.
    pub fn on(machine: &Machine, change: impl FnOnce(&mut Settings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = settings(folder.path());
        change(&mut settings);
        let server = Running::start(&settings, machine);
        let neighbour = server.neighbour(Codec::Msgpack);
        Self { folder, server, neighbour }
    }

    /// A registered client.
    pub fn client(&self, codec: Codec) -> Client {
        self.server.client(codec)
    }

    /// A client that has shaken hands.
    pub fn greeted(&self, codec: Codec) -> Client {
        Client::greet(self.server.socket(), codec)
    }

    /// Where the data file is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// A message in its frame.
pub fn framed(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame(&mut bytes, |out| out.extend_from_slice(body));
    bytes
}

/// A message with this method and these arguments, given as they are encoded.
pub fn message(codec: Codec, oneway: bool, name: &str, arguments: &[u8]) -> Vec<u8> {
    let length = name.len() as u8;
    framed(&match codec {
        Codec::Msgpack => {
            let start = [0x94, 1, 0xc2 | u8::from(oneway), 0xd9, length];
            [&start[..], name.as_bytes(), arguments].concat()
        }
        Codec::Pickle => {
            let start = [0x80, 3, b'(', b'K', 1, 0x89 - u8::from(oneway), 0x8c, length];
            [&start[..], name.as_bytes(), arguments, b"t."].concat()
        }
    })
}

/// The one that is encoded so.
pub fn pick(codec: Codec, packed: &'static [u8], pickled: &'static [u8]) -> &'static [u8] {
    match codec {
        Codec::Msgpack => packed,
        Codec::Pickle => pickled,
    }
}

/// The class of an error, which must not tell of the server's files.
pub fn refused(heard: Heard, folder: &Path) -> String {
    let Heard::Error(_, class, args) = heard else {
        panic!("{heard:?} is no error");
    };
    let text = format!("{args:?}");
    assert!(!text.contains(&*folder.to_string_lossy()), "{text} has a path");
    assert!(!text.contains("Data.fs"), "{text} has a path");
    class.rsplit('.').next().unwrap().to_owned()
}

/// Whether the answer is `None`.
pub fn is_nothing(heard: &Heard) -> bool {
    matches!(heard, Heard::Reply(_, Value::None))
}

/// `vote`
pub fn vote(id: u64) -> Request<'static> {
    Request::Vote { id: TransactionId(id) }
}

/// `tpc_finish`
pub fn finish(id: u64) -> Request<'static> {
    Request::TpcFinish { id: TransactionId(id) }
}

/// `tpc_abort`
pub fn abort(id: u64) -> Request<'static> {
    Request::TpcAbort { id: TransactionId(id) }
}

/// `storea`
pub fn storea(oid: u64, serial: Tid, data: &[u8], id: u64) -> Request<'_> {
    Request::Storea { oid: Oid(oid), serial, data: data.into(), id: TransactionId(id) }
}

/// An object that nobody else uses.
pub const MINE: u64 = 1000;

/// Begins a transaction that writes an object, and votes for it.
pub fn voted(client: &mut Client, id: u64) {
    client.store(id, &[(Oid(MINE), Tid::ZERO, b"mine")]);
    let heard = client.call(vote(id));
    assert!(matches!(heard, Heard::Reply(..)), "{heard:?}");
}
