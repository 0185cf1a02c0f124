// Included once a driver by main.rs, which says what `Zeo`, `go!` and `scenario!` are.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use zeoring_client::blob::{BlobError, BlobOptions, CHUNK_LENGTH};
use zeoring_client::{ClientError, Description, Vote};
use zeoring_shared::ids::{Oid, Tid};

use crate::house::House;
use crate::{RECORD, bytes};

/// Stores a revision of a blob, and tells its tid.
macro_rules! commit {
    ($client:expr, $oid:expr, $serial:expr, $file:expr) => {{
        let mut transaction = go!($client.begin(&Description::default())).unwrap();
        go!(transaction.store_blob($oid, $serial, RECORD, $file)).unwrap();
        let Vote::Ready(voted) = go!(transaction.vote()).unwrap() else {
            panic!("nobody else writes")
        };
        go!(voted.finish()).unwrap()
    }};
}

/// The lengths at which something changes.
const LENGTHS: [usize; 6] =
    [0, 1, CHUNK_LENGTH - 1, CHUNK_LENGTH, CHUNK_LENGTH + 1, 5 * 1024 * 1024];

/// What is beside the blobs in a folder of them.
fn others(file: &Path) -> Vec<String> {
    let entries = fs::read_dir(file.parent().unwrap()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.ends_with(".blob") && name != ".lock").collect()
}

scenario!(a_blob_is_the_same_for_everybody {
    let server = server!();
    let client = go!(Zeo::open(server.cached("writer"))).unwrap();
    let other = go!(Zeo::open(server.cached("reader"))).unwrap();
    for length in LENGTHS {
        let oid = go!(client.new_oid()).unwrap();
        let mut serials = vec![Tid::ZERO];
        for seed in [1, 2] {
            let file = client.blob_temporary().unwrap().join("blob");
            fs::write(&file, bytes(seed, length)).unwrap();
            let inode = fs::metadata(&file).unwrap().ino();
            serials.push(commit!(client, oid, *serials.last().unwrap(), &file));
            assert!(!file.exists(), "it is the client's now");
            let kept = go!(client.load_blob(oid, *serials.last().unwrap())).unwrap();
            assert_eq!(fs::metadata(kept).unwrap().ino(), inode, "it is that file, moved");
        }
        for (serial, seed) in serials[1..].iter().zip([1, 2]) {
            for reader in [&client, &other, &other] {
                let path = go!(reader.load_blob(oid, *serial)).unwrap();
                assert!(fs::read(&path).unwrap() == bytes(seed, length), "{length} of {seed}");
                assert_eq!(others(&path), [""; 0]);
            }
        }
        assert_eq!(go!(other.load(oid)).unwrap().serial, serials[2]);
    }
});

scenario!(a_blob_in_a_shared_directory_is_the_same_for_everybody {
    let server = server!();
    let client = go!(Zeo::open(server.shared())).unwrap();
    let other = go!(Zeo::open(server.shared())).unwrap();
    let third = go!(Zeo::open(server.cached("third"))).unwrap();
    for length in LENGTHS {
        let oid = go!(client.new_oid()).unwrap();
        let mut serials = vec![Tid::ZERO];
        for seed in [1, 2] {
            let file = server.folder.path().join("blob");
            fs::write(&file, bytes(seed, length)).unwrap();
            serials.push(commit!(client, oid, *serials.last().unwrap(), &file));
            assert!(!file.exists(), "it is the server's now");
        }
        for (serial, seed) in serials[1..].iter().zip([1, 2]) {
            for reader in [&client, &other, &third] {
                let path = go!(reader.load_blob(oid, *serial)).unwrap();
                assert!(fs::read(&path).unwrap() == bytes(seed, length), "{length} of {seed}");
                assert_eq!(others(&path), [""; 0]);
            }
        }
    }
});

scenario!(a_shared_transaction_that_is_dropped_leaves_no_file {
    let server = server!();
    let client = go!(Zeo::open(server.shared())).unwrap();
    let oid = go!(client.new_oid()).unwrap();
    let store = || {
        let file = server.folder.path().join("blob");
        fs::write(&file, "bytes").unwrap();
        file
    };
    let mut transaction = go!(client.begin(&Description::default())).unwrap();
    go!(transaction.store_blob(oid, Tid::ZERO, RECORD, &store())).unwrap();
    drop(transaction);
    for is_aborted in [true, false] {
        // So much that the server hears of the beginning, and not of the blob.
        let mut transaction = go!(client.begin(&Description::default())).unwrap();
        let other = go!(client.new_oid()).unwrap();
        go!(transaction.store(other, Tid::ZERO, &vec![b'.'; 5_000_000])).unwrap();
        go!(transaction.store_blob(oid, Tid::ZERO, RECORD, &store())).unwrap();
        if is_aborted {
            go!(transaction.abort()).unwrap();
        }
    }
    let mut transaction = go!(client.begin(&Description::default())).unwrap();
    go!(transaction.store_blob(oid, Tid::ZERO, RECORD, &store())).unwrap();
    let Vote::Ready(voted) = go!(transaction.vote()).unwrap() else { panic!("nobody else writes") };
    go!(voted.abort()).unwrap();
    let tid = commit!(client, oid, Tid::ZERO, &store());
    let path = go!(client.load_blob(oid, tid)).unwrap();
    let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
});

scenario!(a_blob_that_is_not_there_is_an_error_of_its_own {
    let server = server!();
    let client = go!(Zeo::open(server.cached("cache"))).unwrap();
    let error = go!(client.load_blob(Oid(77), Tid(78))).unwrap_err();
    let ClientError::Server(error) = error else { panic!("{error}") };
    assert!(error.is_missing_object(), "{error}");
    go!(client.ping()).unwrap();
    let shared = go!(Zeo::open(server.shared())).unwrap();
    let error = go!(shared.load_blob(Oid(77), Tid(78))).unwrap_err();
    let ClientError::Blob(error) = error else { panic!("{error}") };
    assert!(matches!(&*error, BlobError::Missing { oid: Oid(77), serial: Tid(78), .. }), "{error}");
    go!(shared.ping()).unwrap();
});

scenario!(a_server_without_blobs_says_so_and_the_client_goes_on {
    let house = House::new();
    for is_shared in [false, true] {
        let mut options = house.options();
        let directory = tempfile::tempdir().unwrap();
        options.blobs = Some(BlobOptions { is_shared, ..BlobOptions::new(directory.path()) });
        let client = go!(Zeo::open(options)).unwrap();
        let file = house.folder.path().join("file");
        fs::write(&file, "bytes").unwrap();
        let oid = go!(client.new_oid()).unwrap();
        let mut transaction = go!(client.begin(&Description::default())).unwrap();
        let error = go!(transaction.store_blob(oid, Tid::ZERO, RECORD, &file)).unwrap_err();
        let expected = "this storage keeps no blobs: its server has to be given a blob directory";
        assert_eq!(error.to_string(), expected);
        go!(transaction.abort()).unwrap();
        if !is_shared {
            let error = go!(client.load_blob(oid, Tid(1))).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
        assert_eq!(fs::read(&file).unwrap(), b"bytes");
        let mut transaction = go!(client.begin(&Description::default())).unwrap();
        go!(transaction.store(oid, Tid::ZERO, b"state")).unwrap();
        let Vote::Ready(voted) = go!(transaction.vote()).unwrap() else { panic!("nobody writes") };
        go!(voted.finish()).unwrap();
    }
    let client = go!(Zeo::open(house.options())).unwrap();
    let error = go!(client.load_blob(Oid(1), Tid(1))).unwrap_err();
    assert!(matches!(error, ClientError::NotConfigured(_)), "{error}");
});
