//! Blobs over connections that break, crawl or stop, and from callers that change their minds.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use zeoring_client::blob::BlobError;
use zeoring_client::{AsyncClient, Client, ClientError, Description, DrivenClient, Options, Vote};
use zeoring_shared::ids::{Oid, Tid};

use crate::stock::Server;
use crate::{RECORD, bytes};

const LENGTH: usize = 5_000_000;

/// A way to the server on which what comes from there is limited.
struct Way {
    address: SocketAddr,
    limit: Arc<Limit>,
}

#[derive(Default)]
struct Limit {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// So many bytes may still come; `None` for any number.
    left: Option<usize>,
    /// Whether the connection is cut when no more may come, and then none any more.
    cuts: bool,
    cuts_done: usize,
}

impl Way {
    fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let way = Self { address: listener.local_addr().unwrap(), limit: Arc::default() };
        let limit = way.limit.clone();
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let server = TcpStream::connect(server).unwrap();
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || carry(from, to, &Limit::default()));
                let limit = limit.clone();
                std::thread::spawn(move || carry(server, client, &limit));
            }
        });
        way
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.limit.state.lock().unwrap());
        self.limit.changed.notify_all();
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, limit: &Limit) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let state = limit.state.lock().unwrap();
        let holds = |state: &mut State| !state.cuts && state.left.is_some_and(|left| left < count);
        let mut state = limit.changed.wait_while(state, holds).unwrap();
        match state.left {
            Some(left) if left < count => {
                *state = State { cuts_done: state.cuts_done + 1, ..State::default() };
                break;
            }
            left => state.left = left.map(|left| left - count),
        }
        drop(state);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// The server, with a blob, and a limited way to it.
fn blob_behind() -> Option<(Server, Way, Oid, Tid)> {
    let server = Server::start()?;
    let client = DrivenClient::open(server.cached("writer")).unwrap();
    let oid = client.new_oid().unwrap();
    let file = server.folder.path().join("file");
    fs::write(&file, bytes(1, LENGTH)).unwrap();
    let tid = commit(&client, oid, &file);
    let way = Way::to(server.address);
    Some((server, way, oid, tid))
}

fn commit(client: &DrivenClient, oid: Oid, file: &Path) -> Tid {
    let mut transaction = client.begin(&Description::default()).unwrap();
    transaction.store_blob(oid, Tid::ZERO, RECORD, file).unwrap();
    let Vote::Ready(voted) = transaction.vote().unwrap() else { panic!("nobody else writes") };
    voted.finish().unwrap()
}

fn options(server: &Server, way: &Way) -> Options {
    Options { addresses: vec![way.address.into()], ..server.cached("reader") }
}

/// What is on its way in a cache.
fn on_their_way(cache: &Path) -> usize {
    let folders = fs::read_dir(cache).unwrap().flatten().filter(|entry| entry.path().is_dir());
    let files = folders.flat_map(|folder| fs::read_dir(folder.path()).unwrap().flatten());
    files.filter(|file| file.path().extension().is_some_and(|end| end == "part")).count()
}

macro_rules! behind {
    () => {
        match blob_behind() {
            Some(behind) => behind,
            None => {
                return println!("ZEORING_STOCK_SERVER does not say which server to try this with")
            }
        }
    };
}

#[test]
fn a_download_that_is_cut_off_is_begun_again() {
    let (server, way, oid, tid) = behind!();
    let client = Client::open(options(&server, &way)).unwrap();
    way.change(|state| *state = State { left: Some(1_000_000), cuts: true, cuts_done: 0 });
    let path = client.load_blob(oid, tid).unwrap();
    assert!(fs::read(path).unwrap() == bytes(1, LENGTH));
    assert_eq!(way.limit.state.lock().unwrap().cuts_done, 1);
    assert_eq!(on_their_way(&server.cache("reader")), 0);
}

#[test]
fn a_large_blob_may_take_longer_than_a_call_may() {
    let (server, way, oid, tid) = behind!();
    let deadline = Duration::from_secs(2);
    let client = Client::open(Options { deadline, ..options(&server, &way) }).unwrap();
    way.change(|state| state.left = Some(500_000));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Twice the deadline in all; a fifth of it from one part to the next.
            for _ in 0..10 {
                std::thread::sleep(deadline / 5);
                way.change(|state| state.left = state.left.map(|left| left + 500_000));
            }
            way.change(|state| state.left = None);
        });
        let path = client.load_blob(oid, tid).unwrap();
        assert!(fs::read(path).unwrap() == bytes(1, LENGTH));
    });
    client.ping().unwrap();
}

#[test]
fn a_blob_that_stops_coming_is_given_up() {
    let (server, way, oid, tid) = behind!();
    let deadline = Duration::from_millis(300);
    let client = Client::open(Options { deadline, ..options(&server, &way) }).unwrap();
    way.change(|state| state.left = Some(1_000_000));
    let error = client.load_blob(oid, tid).unwrap_err();
    let ClientError::Blob(error) = error else { panic!("{error}") };
    assert!(matches!(&*error, BlobError::Stalled { oid: told, .. } if *told == oid), "{error}");
    client.close().unwrap();
    assert_eq!(on_their_way(&server.cache("reader")), 0);
    let client = DrivenClient::open(server.cached("reader")).unwrap();
    assert!(fs::read(client.load_blob(oid, tid).unwrap()).unwrap() == bytes(1, LENGTH));
}

#[test]
fn a_blob_that_was_not_stored_to_its_end_is_not_committed_and_in_nobodys_way() {
    let Some(server) = Server::start() else {
        return println!("ZEORING_STOCK_SERVER does not say which server to try this with");
    };
    tokio_uring::start(async {
        let client = AsyncClient::open(server.cached("cache")).await.unwrap();
        let (oid, file) = (client.new_oid().await.unwrap(), server.folder.path().join("file"));
        fs::write(&file, bytes(1, 20_000_000)).unwrap();
        for is_voted in [true, false] {
            let mut transaction = client.begin(&Description::default()).await.unwrap();
            {
                // It has to wait for the server after some of it: looked at once, it is given up.
                let storing = transaction.store_blob(oid, Tid::ZERO, RECORD, &file);
                let mut storing = std::pin::pin!(storing);
                let once = std::future::poll_fn(|context| {
                    std::task::Poll::Ready(storing.as_mut().poll(context).is_pending())
                });
                assert!(once.await);
            }
            if is_voted {
                let ClientError::Blob(error) = transaction.vote().await.unwrap_err() else {
                    panic!("it cannot be voted")
                };
                assert!(matches!(&*error, BlobError::NotStored { .. }), "{error}");
            } else {
                drop(transaction);
            }
        }
        let mut transaction = client.begin(&Description::default()).await.unwrap();
        transaction.store_blob(oid, Tid::ZERO, RECORD, &file).await.unwrap();
        let Vote::Ready(voted) = transaction.vote().await.unwrap() else { panic!("nobody writes") };
        let tid = voted.finish().await.unwrap();
        let other = AsyncClient::open(server.cached("other")).await.unwrap();
        let path = other.load_blob(oid, tid).await.unwrap();
        assert!(fs::read(path).unwrap() == bytes(1, 20_000_000));
    });
}

#[test]
fn a_blob_that_cannot_be_read_is_told_and_not_committed() {
    let Some(server) = Server::start() else {
        return println!("ZEORING_STOCK_SERVER does not say which server to try this with");
    };
    let client = DrivenClient::open(server.cached("cache")).unwrap();
    let oid = client.new_oid().unwrap();
    let (missing, folder) = (server.folder.path().join("not there"), server.folder.path());
    for file in [&*missing, folder] {
        let mut transaction = client.begin(&Description::default()).unwrap();
        let error = transaction.store_blob(oid, Tid::ZERO, RECORD, file).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot read {}: ", file.display())), "{error}");
        transaction.abort().unwrap();
    }
    let file = server.folder.path().join("file");
    fs::write(&file, "bytes").unwrap();
    let tid = commit(&client, oid, &file);
    assert_eq!(fs::read(client.load_blob(oid, tid).unwrap()).unwrap(), b"bytes");
}

#[test]
fn a_blob_that_is_larger_than_its_cache_can_be_opened() {
    let (server, _way, oid, tid) = behind!();
    let mut options = server.cached("tiny");
    options.blobs.as_mut().unwrap().cache_size = Some(10);
    let client = DrivenClient::open(options).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let mut read = Vec::new();
                    client.open_blob(oid, tid).unwrap().read_to_end(&mut read).unwrap();
                    assert!(read == bytes(1, LENGTH));
                }
            });
        }
    });
}
