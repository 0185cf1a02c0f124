//! This client and Python's on the same blobs, and in the same directories at the same time.

use std::collections::BTreeMap;
use std::fs::{self, DirEntry, File, FileTimes};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant, SystemTime};

use zeoring_client::{AsyncClient, Client, Description, DrivenClient, Vote};
use zeoring_shared::ids::{Oid, Tid};

use crate::stock::Server;
use crate::{RECORD, bytes};

/// Prints the sum and the length of blobs, as `sum` does here.
const READ: &str = "
for oid, tid in zip(args[::2], args[1::2]):
    print(told(load(oid, tid)))
";

/// Stores a file as a blob, twice: prints the oid and both tids.
const WRITE: &str = "
oid, tids = storage.new_oid(), [z64]
for file in args:
    transaction = TransactionMetaData()
    storage.tpc_begin(transaction)
    record = b'\\x80\\x03cZODB.blob\\nBlob\\nq\\x01.\\x80\\x03N.'
    storage.storeBlob(oid, tids[-1], record, file, '', transaction)
    storage.tpc_vote(transaction)
    tids.append(storage.tpc_finish(transaction))
print(*[binascii.hexlify(name).decode() for name in [oid] + tids[1:]])
";

fn commit(client: &DrivenClient, oid: Oid, serial: Tid, file: &Path) -> Tid {
    let mut transaction = client.begin(&Description::default()).unwrap();
    transaction.store_blob(oid, serial, RECORD, file).unwrap();
    let Vote::Ready(voted) = transaction.vote().unwrap() else { panic!("nobody else writes") };
    voted.finish().unwrap()
}

/// Commits so many blobs of one client, and tells their names. All of one folder, if so wanted.
fn many(server: &Server, count: u64, length: usize, is_one_folder: bool) -> Vec<(Oid, Tid)> {
    let client = DrivenClient::open(server.cached("writer")).unwrap();
    let mut blobs = Vec::new();
    for seed in 0..count {
        let oid =
            if is_one_folder { Oid(5 + 997 * (1_000 + seed)) } else { client.new_oid().unwrap() };
        let file = server.folder.path().join("file");
        fs::write(&file, bytes(seed, length)).unwrap();
        blobs.push((oid, commit(&client, oid, Tid::ZERO, &file)));
    }
    client.close().unwrap();
    blobs
}

/// The blobs in a cache by their names, with their lengths.
fn cached(cache: &Path) -> BTreeMap<PathBuf, u64> {
    let folders = fs::read_dir(cache).unwrap().flatten().filter(|entry| entry.path().is_dir());
    let files = folders.flat_map(|folder| fs::read_dir(folder.path()).unwrap().flatten());
    let blobs = files.filter(|file| file.path().extension().is_some_and(|end| end == "blob"));
    let name = |file: &DirEntry| file.path().strip_prefix(cache).unwrap().to_owned();
    let length = |file: &DirEntry| file.metadata().map_or(0, |metadata| metadata.len());
    blobs.map(|file| (name(&file), length(&file))).collect()
}

fn names(blobs: &[(Oid, Tid)]) -> Vec<String> {
    blobs.iter().flat_map(|(oid, tid)| [oid.to_string(), tid.to_string()]).collect()
}

fn texts(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

#[test]
fn python_reads_what_was_stored_here() {
    let server = server!();
    let writers = [(server.cached("ours"), 1), (server.shared(), 2)];
    for (options, seed) in writers {
        let client = DrivenClient::open(options).unwrap();
        let oid = client.new_oid().unwrap();
        let mut blobs = Vec::new();
        for length in [70_000, 5_000_000] {
            let file = server.folder.path().join("file");
            fs::write(&file, bytes(seed, length)).unwrap();
            let serial = blobs.last().map_or(Tid::ZERO, |(_, tid)| *tid);
            blobs.push((oid, commit(&client, oid, serial, &file)));
        }
        let names = names(&blobs);
        let expected = server.folder.path().join("expected");
        let mut sums = Vec::new();
        for length in [70_000, 5_000_000] {
            fs::write(&expected, bytes(seed, length)).unwrap();
            let program = "print(told(open(args[0], 'rb').read()))";
            let path = expected.to_str().unwrap();
            sums.push(server.python(Some("sums"), program, &[path]).printed());
        }
        // From a cache of its own, from the one of ours, and from the server's directory.
        for cache in [Some("theirs"), Some("ours"), None] {
            let printed = server.python(cache, READ, &texts(&names)).printed();
            assert_eq!(printed.lines().collect::<Vec<_>>(), sums, "{cache:?}");
        }
    }
}

#[test]
fn what_python_stored_is_read_here() {
    let server = server!();
    for cache in [Some("theirs"), None] {
        let lengths = [70_000, 5_000_000];
        let files = lengths.map(|length| {
            let path = server.folder.path().join(format!("file{length}"));
            fs::write(&path, bytes(9, length)).unwrap();
            path.to_str().unwrap().to_owned()
        });
        let printed = server.python(cache, WRITE, &texts(&files)).printed();
        let ids: Vec<u64> =
            printed.split(' ').map(|name| u64::from_str_radix(name, 16).unwrap()).collect();
        for options in [server.cached("ours"), server.cached("theirs"), server.shared()] {
            let client = DrivenClient::open(options).unwrap();
            for (tid, length) in ids[1..].iter().zip(lengths) {
                let path = client.load_blob(Oid(ids[0]), Tid(*tid)).unwrap();
                assert!(fs::read(path).unwrap() == bytes(9, length), "{length}");
            }
        }
    }
}

#[test]
fn python_and_this_client_download_into_one_cache_at_once() {
    let server = server!();
    for is_one_folder in [false, true] {
        let blobs = many(&server, 30, 100_000, is_one_folder);
        let names = names(&blobs);
        let python: Vec<_> =
            (0..2).map(|_| server.python(Some("common"), READ, &texts(&names))).collect();
        let options = server.cached("common");
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let client = Client::open(options.clone()).unwrap();
                    for (seed, (oid, tid)) in blobs.iter().enumerate() {
                        let path = client.load_blob(*oid, *tid).unwrap();
                        assert!(fs::read(path).unwrap() == bytes(seed as u64, 100_000));
                    }
                });
            }
        });
        let printed: Vec<String> = python.into_iter().map(|python| python.printed()).collect();
        assert_eq!(printed[0].lines().count(), 30);
        assert_eq!(printed[0], printed[1]);
        fs::remove_dir_all(server.cache("common")).unwrap();
    }
}

#[test]
fn a_folder_that_python_has_locked_is_waited_for() {
    let server = server!();
    let blobs = many(&server, 1, 1_000, true);
    let program = "
path = storage.fshelper.getBlobFilename(oid_of(args[0]), oid_of(args[1]))
storage.fshelper.createPathForOID(oid_of(args[0]))
lock = _lock_blob(path)
print('locked', flush=True)
sys.stdin.readline()
open(path, 'wb').write(b'what python downloads')
lock.close()
";
    let names = names(&blobs);
    let mut python = server.python(Some("common"), program, &texts(&names));
    let mut line = String::new();
    BufReader::new(python.child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "locked\n");
    let client = DrivenClient::open(server.cached("common")).unwrap();
    let (oid, tid) = blobs[0];
    let (began, loaded) = (Barrier::new(2), std::sync::Mutex::new(None));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            began.wait();
            *loaded.lock().unwrap() = Some(client.load_blob(oid, tid).unwrap());
        });
        began.wait();
        assert!(loaded.lock().unwrap().is_none(), "it is locked");
        python.child.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    });
    // Not what the server has: so it was not fetched from there.
    let path = loaded.into_inner().unwrap().unwrap();
    assert_eq!(fs::read(path).unwrap(), b"what python downloads");
    python.printed();
}

#[test]
fn threads_and_tasks_of_one_client_share_a_download() {
    let server = server!();
    let blobs = many(&server, 10, 300_000, true);
    let client = Client::open(server.cached("threads")).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for (seed, (oid, tid)) in blobs.iter().enumerate() {
                    let path = client.load_blob(*oid, *tid).unwrap();
                    assert!(fs::read(path).unwrap() == bytes(seed as u64, 300_000));
                }
            });
        }
    });
    tokio_uring::start(async {
        let client = std::rc::Rc::new(AsyncClient::open(server.cached("tasks")).await.unwrap());
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let (client, blobs) = (client.clone(), blobs.clone());
                tokio_uring::spawn(async move {
                    for (seed, (oid, tid)) in blobs.into_iter().enumerate() {
                        let path = client.load_blob(oid, tid).await.unwrap();
                        assert!(fs::read(path).unwrap() == bytes(seed as u64, 300_000));
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

#[test]
fn a_cache_of_limited_size_gives_every_blob_and_stays_small() {
    let server = server!();
    let blobs = many(&server, 20, 50_000, false);
    let mut options = server.cached("small");
    options.blobs.as_mut().unwrap().cache_size = Some(200_000);
    let client = DrivenClient::open(options).unwrap();
    for (oid, tid) in blobs.iter().chain(&blobs) {
        client.load_blob(*oid, *tid).unwrap();
    }
    let size = || cached(&server.cache("small")).values().sum::<u64>();
    let begin = Instant::now();
    while 180_000 < size() {
        assert!(begin.elapsed().as_secs() < 30, "{} bytes are left", size());
        std::thread::yield_now();
    }
    client.close().unwrap();
    // Python's clients agree on what is left.
    let names = names(&blobs);
    assert_eq!(server.python(Some("small"), READ, &texts(&names)).printed().lines().count(), 20);
}

#[test]
fn python_drops_the_same_blobs_from_a_cache_that_is_too_large() {
    let server = server!();
    let sizes = [50_000, 10_000, 70_000, 1, 30_000];
    // Two caches alike: the blobs of which were used last in an order that is not that of their
    // names.
    for cache in ["ours", "theirs"] {
        for number in 0..30_u64 {
            let folder = server.cache(cache).join((number % 7).to_string());
            fs::create_dir_all(&folder).unwrap();
            let path = folder.join(format!("{number}.{number:016x}.blob"));
            fs::write(&path, bytes(number, sizes[number as usize % 5])).unwrap();
            let used = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000 + number * 7 % 30);
            File::open(path).unwrap().set_times(FileTimes::new().set_accessed(used)).unwrap();
        }
    }
    let program = "
from ZEO.ClientStorage import _check_blob_cache_size
_check_blob_cache_size(directory, 450000)
";
    server.python(Some("theirs"), program, &[]).printed();
    let expected = cached(&server.cache("theirs"));
    let mut options = server.cached("ours");
    options.blobs.as_mut().unwrap().cache_size = Some(500_000);
    let client = DrivenClient::open(options).unwrap();
    let begin = Instant::now();
    while 450_000 < cached(&server.cache("ours")).values().sum::<u64>() {
        assert!(begin.elapsed().as_secs() < 30, "the cache stays too large");
        std::thread::yield_now();
    }
    client.close().unwrap();
    assert!(10 < expected.len() && expected.len() < 30, "{expected:?}");
    assert_eq!(cached(&server.cache("ours")), expected);
}
