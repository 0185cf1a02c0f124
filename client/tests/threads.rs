//! Many threads at one client, and what is left of a client that was closed: for the two drivers
//! that threads may share.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "the suite needs more of it")]
#[path = "suite/house.rs"]
mod house;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use zeoring_client::cache::CacheOptions;
use zeoring_client::{Address, ClientError, Description, Options, Vote};
use zeoring_shared::ids::{Oid, Tid};

use crate::house::House;

/// One test at a time: threads are counted by their names.
static ALONE: Mutex<()> = Mutex::new(());

/// The threads of clients in this process.
fn client_threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| {
        let name = std::fs::read_to_string(task.ok()?.path().join("comm")).ok()?;
        Some(name.trim().to_owned())
    });
    let ours = ["zeoring-mover", "zeoring-keeper", "zeoring-blobs", "zeoring-cache"];
    names.filter(|name| ours.contains(&&**name)).collect()
}

fn number(data: &[u8]) -> u64 {
    u64::from_be_bytes(data.try_into().unwrap())
}

/// Carries the bytes of one connection to a server, and back unless it is to hold them.
fn relay(server: SocketAddr, holds: &Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let holds = Arc::clone(holds);
    std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let server = TcpStream::connect(server).unwrap();
        let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
        let (mut from, mut to) = (server, client);
        let mut bytes = vec![0; 64 * 1024];
        loop {
            let count = from.read(&mut bytes).unwrap_or(0);
            while holds.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            if count == 0 || to.write_all(&bytes[..count]).is_err() {
                let _ = to.shutdown(Shutdown::Both);
                return;
            }
        }
    });
    address
}

macro_rules! for_threads {
    ($module:ident, $client:ident) => {
        mod $module {
            use zeoring_client::$client as Zeo;

            use super::*;

            #[test]
            fn threads_that_load_and_commit_through_one_client_see_one_history() {
                let _alone = ALONE.lock().unwrap_or_else(|failed| failed.into_inner());
                let house = House::new();
                for memory_max in [0, 20 << 20] {
                    let cache = CacheOptions { memory_max, ..CacheOptions::default() };
                    let client = Zeo::open(Options { cache, ..house.options() }).unwrap();
                    let oids = client.new_oids(8).unwrap();
                    let sums = Arc::new(AtomicU64::new(0));
                    let is_over = AtomicBool::new(false);
                    std::thread::scope(|scope| {
                        // Each adds one to both of two counters, whatever it takes.
                        let writers: Vec<_> = (0..4)
                            .map(|writer: usize| {
                                let (client, oids, sums) = (&client, &oids, &sums);
                                scope.spawn(move || {
                                    for turn in 0..25 {
                                        let pair = [oids[(writer + turn) % 4], oids[4 + turn % 4]];
                                        while !add_one(client, &pair) {}
                                        sums.fetch_add(2, Ordering::Relaxed);
                                    }
                                })
                            })
                            .collect();
                        for _ in 0..2 {
                            let (client, oids, is_over) = (&client, &oids, &is_over);
                            scope.spawn(move || {
                                while !is_over.load(Ordering::Relaxed) {
                                    let before = Tid(client.last_transaction().0 + 1);
                                    let total: u64 = oids
                                        .iter()
                                        .map(|&oid| value_before(client, oid, before))
                                        .sum();
                                    assert_eq!(total % 2, 0, "half a transaction was seen");
                                }
                            });
                        }
                        writers.into_iter().for_each(|writer| writer.join().unwrap());
                        is_over.store(true, Ordering::Relaxed);
                    });
                    let total: u64 =
                        oids.iter().map(|&oid| value_before(&client, oid, Tid::MAX)).sum();
                    assert_eq!(total, sums.load(Ordering::Relaxed));
                }
            }

            /// Adds one to each of two objects; false if others came first.
            fn add_one(client: &Zeo, oids: &[Oid; 2]) -> bool {
                let mut transaction = client.begin(&Description::default()).unwrap();
                for &oid in oids {
                    let (serial, value) = match client.load(oid) {
                        Ok(revision) => (revision.serial, number(&revision.data)),
                        Err(ClientError::Server(error)) if error.is_missing_object() => {
                            (Tid::ZERO, 0)
                        }
                        Err(other) => panic!("{other}"),
                    };
                    transaction.store(oid, serial, &(value + 1).to_be_bytes()).unwrap();
                }
                match transaction.vote().unwrap() {
                    Vote::Ready(voted) => {
                        voted.finish().unwrap();
                        true
                    }
                    Vote::Conflicts { transaction, .. } => {
                        transaction.abort().unwrap();
                        false
                    }
                    Vote::Refused(_) => false,
                }
            }

            fn value_before(client: &Zeo, oid: Oid, before: Tid) -> u64 {
                match client.load_before(oid, before) {
                    Ok(revision) => revision.map_or(0, |revision| number(&revision.data)),
                    Err(ClientError::Server(error)) if error.is_missing_object() => 0,
                    Err(other) => panic!("{other}"),
                }
            }

            #[test]
            fn who_waits_when_the_client_is_closed_is_told_and_no_thread_stays() {
                let _alone = ALONE.lock().unwrap_or_else(|failed| failed.into_inner());
                let house = House::new();
                let holder = Zeo::open(house.options()).unwrap();
                let mut transaction = holder.begin(&Description::default()).unwrap();
                transaction.store(Oid(0), Tid::ZERO, b"locked").unwrap();
                let Vote::Ready(voted) = transaction.vote().unwrap() else { panic!() };
                let client = Zeo::open(house.options()).unwrap();
                std::thread::scope(|scope| {
                    let waiting = scope.spawn(|| {
                        let mut transaction = client.begin(&Description::default()).unwrap();
                        transaction.store(Oid(0), Tid::ZERO, b"mine").unwrap();
                        transaction.vote().map(drop)
                    });
                    // The vote waits for the lock once the server says that somebody does.
                    while holder.status().unwrap().waiting == 0 {
                        std::thread::yield_now();
                    }
                    client.close().unwrap();
                    let error = waiting.join().unwrap().unwrap_err();
                    assert!(matches!(error, ClientError::Closed), "{error}");
                });
                voted.finish().unwrap();
                holder.close().unwrap();
                assert_eq!(client_threads(), [String::new(); 0]);
            }

            #[test]
            fn clients_that_come_and_go_leave_no_thread_and_no_descriptor() {
                let _alone = ALONE.lock().unwrap_or_else(|failed| failed.into_inner());
                let house = House::new();
                let folder = tempfile::tempdir().unwrap();
                let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
                let mut after = Vec::new();
                for round in 0..12 {
                    let mut options = house.options();
                    options.cache.file = Some(zeoring_client::cache::CacheFile {
                        path: folder.path().join("cache"),
                        size_max: 1 << 20,
                    });
                    let client = Zeo::open(options).unwrap();
                    client.ping().unwrap();
                    // Closed, or only dropped.
                    if round % 2 == 0 {
                        client.close().unwrap();
                    }
                    drop(client);
                    assert_eq!(client_threads(), [String::new(); 0]);
                    // The server's end of it goes a moment later.
                    let watch = Zeo::open(house.options()).unwrap();
                    while watch.status().unwrap().connections != 1 {
                        std::thread::yield_now();
                    }
                    after.push(descriptors());
                }
                assert!(after[11] <= after[1], "{after:?}");
            }

            #[test]
            fn a_server_that_says_nothing_more_costs_no_more_than_the_deadline() {
                let _alone = ALONE.lock().unwrap_or_else(|failed| failed.into_inner());
                let house = House::new();
                let holds = Arc::new(AtomicBool::new(false));
                let Address::Tcp { port, .. } = house.address() else { panic!() };
                let relay = relay(([127, 0, 0, 1], port).into(), &holds);
                let options = Options::new([relay.into()]);
                let options = Options { deadline: Duration::from_millis(100), ..options };
                let client = Zeo::open(options).unwrap();
                holds.store(true, Ordering::Relaxed);
                let results: Vec<_> = std::thread::scope(|scope| {
                    let client = &client;
                    let callers: Vec<_> = (0..4)
                        .map(|number| scope.spawn(move || client.load(Oid(number)).map(drop)))
                        .collect();
                    callers.into_iter().map(|caller| caller.join().unwrap()).collect()
                });
                for result in results {
                    let error = result.unwrap_err();
                    assert!(
                        matches!(error, ClientError::Deadline { call: "loadBefore", .. }),
                        "{error}"
                    );
                }
                holds.store(false, Ordering::Relaxed);
                // The late answers are nobody's, and the connection goes on.
                client.ping().unwrap();
                assert!(client.is_connected());
            }
        }
    };
}

for_threads!(driven, DrivenClient);
for_threads!(threaded, Client);

#[test]
fn an_address_that_takes_connections_and_never_greets_does_not_hinder_one_that_does() {
    let _alone = ALONE.lock().unwrap_or_else(|failed| failed.into_inner());
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let house = House::new();
    let options = Options::new([silent.local_addr().unwrap().into(), house.address()]);
    let client = zeoring_client::DrivenClient::open(options).unwrap();
    client.ping().unwrap();
}
