//! Directories of blobs from outside: which files are there when.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use tempfile::{TempDir, tempdir};
use zeoring_shared::ids::{Oid, Tid};

use super::eviction::{ATTEMPT, CHECK_LOCK, Usage, shrink};
use super::layout::Layout;
use super::lock::Lock;
use super::sweep::sweep;
use super::{BlobDirectory, BlobError, BlobOptions, Download, Received, Receiving, Stamp};

/// What `getBlobFilePath` of ZODB 6.4 (bushy, lawn) and ZEO 6.2 (zeocache) returns.
#[rustfmt::skip]
const NAMES: [(u64, u64, [&str; 3]); 7] = [
    (0, 1, [
        "0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x01.blob",
        "0x00/0x01.blob",
        "0/0.0000000000000001.blob",
    ]),
    (1, 0, [
        "0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x01/0x00.blob",
        "0x01/0x00.blob",
        "1/0.0000000000000000.blob",
    ]),
    (0x3e7, 0x3f2, [
        "0x00/0x00/0x00/0x00/0x00/0x00/0x03/0xe7/0x03f2.blob",
        "0x03e7/0x03f2.blob",
        "2/1.00000000000003f2.blob",
    ]),
    (0x0100, 0x03e7_a2b4_c5d6_e7f8, [
        "0x00/0x00/0x00/0x00/0x00/0x00/0x01/0x00/0x03e7a2b4c5d6e7f8.blob",
        "0x0100/0x03e7a2b4c5d6e7f8.blob",
        "256/0.03e7a2b4c5d6e7f8.blob",
    ]),
    (u64::MAX, 0x0a00_0000_0000, [
        "0xff/0xff/0xff/0xff/0xff/0xff/0xff/0xff/0x0a0000000000.blob",
        "0xffffffffffffffff/0x0a0000000000.blob",
        "960/18502250826188115.00000a0000000000.blob",
    ]),
    (996, 0x7fff_ffff_ffff_ffff, [
        "0x00/0x00/0x00/0x00/0x00/0x00/0x03/0xe4/0x7fffffffffffffff.blob",
        "0x03e4/0x7fffffffffffffff.blob",
        "996/0.7fffffffffffffff.blob",
    ]),
    (997, 0x03e7_a2b4_c5d6_e7f8, [
        "0x00/0x00/0x00/0x00/0x00/0x00/0x03/0xe5/0x03e7a2b4c5d6e7f8.blob",
        "0x03e5/0x03e7a2b4c5d6e7f8.blob",
        "0/1.03e7a2b4c5d6e7f8.blob",
    ]),
];

fn cache() -> (TempDir, BlobDirectory) {
    let folder = tempdir().unwrap();
    let blobs = BlobDirectory::open(&BlobOptions::new(folder.path())).unwrap();
    (folder, blobs)
}

fn wanted(blobs: &BlobDirectory, oid: Oid, serial: Tid) -> Receiving {
    loop {
        match blobs.download(oid, serial).unwrap() {
            Download::Wanted(into) => break into,
            // The thread of the directory looks at what is there.
            Download::Busy { .. } => std::thread::yield_now(),
            Download::Here(path) => panic!("{path:?} is there"),
        }
    }
}

fn kept(blobs: &BlobDirectory, oid: Oid, serial: Tid, file: &Path, stamp: &Stamp) -> PathBuf {
    loop {
        match blobs.keep(oid, serial, file, stamp).unwrap() {
            Some(path) => break path,
            None => std::thread::yield_now(),
        }
    }
}

fn here(blobs: &BlobDirectory, oid: Oid, serial: Tid) -> PathBuf {
    match blobs.download(oid, serial).unwrap() {
        Download::Here(path) => path,
        other => panic!("{other:?}"),
    }
}

fn received(mut into: Receiving, bytes: &[u8]) -> Received {
    bytes.chunks(3).for_each(|chunk| into.write(chunk));
    into.end();
    into.finish().unwrap()
}

/// The files in a folder that are no locks, by name.
fn files(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.retain(|name| name != ".lock");
    names.sort();
    names
}

fn stored(path: &Path, bytes: &[u8]) -> Stamp {
    fs::write(path, bytes).unwrap();
    Stamp::of(&fs::metadata(path).unwrap())
}

/// A file in a cache that was last used at a time, in seconds since 1970.
fn used_at(path: &Path, length: usize, time_s: i64) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, vec![0; length]).unwrap();
    let time = Timespec { tv_sec: time_s, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::empty()).unwrap();
}

#[test]
fn files_are_called_as_zodb_and_zeo_call_them() {
    for (oid, serial, names) in NAMES {
        for (layout, name) in [Layout::Bushy, Layout::Lawn, Layout::Cache].into_iter().zip(names) {
            assert_eq!(layout.file(Oid(oid), Tid(serial)).to_str().unwrap(), name);
        }
    }
}

#[test]
fn the_layout_of_a_shared_directory_is_found_as_zodb_finds_it() {
    let layout = |files: &[(&str, &str)]| {
        let folder = tempdir().unwrap();
        files.iter().for_each(|(name, text)| fs::write(folder.path().join(name), text).unwrap());
        Layout::of_server(folder.path()).unwrap()
    };
    assert_eq!(layout(&[]), Ok(Layout::Bushy));
    assert_eq!(layout(&[(".hidden", "")]), Ok(Layout::Bushy));
    assert_eq!(layout(&[("visible", "")]), Ok(Layout::Lawn));
    assert_eq!(layout(&[(".layout", "bushy\n"), ("visible", "")]), Ok(Layout::Bushy));
    assert_eq!(layout(&[(".layout", " lawn")]), Ok(Layout::Lawn));
    assert_eq!(layout(&[(".layout", "zeocache")]), Err("zeocache".to_owned()));
    assert_eq!(Layout::of_server(Path::new("/nowhere/at/all")).unwrap(), Ok(Layout::Bushy));
}

#[test]
fn a_cache_is_made_where_there_is_none_and_opened_again() {
    let folder = tempdir().unwrap();
    let root = folder.path().join("deep/blobs");
    for _ in 0..2 {
        let blobs = BlobDirectory::open(&BlobOptions::new(&root)).unwrap();
        assert!(!blobs.is_shared());
        assert_eq!(fs::read(root.join(".layout")).unwrap(), b"zeocache");
        assert_eq!((blobs.temporary(), files(&root.join("tmp"))), (root.join("tmp"), vec![]));
    }
}

#[test]
fn a_directory_of_another_layout_is_refused() {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join(".layout"), "bushy").unwrap();
    let error = BlobDirectory::open(&BlobOptions::new(folder.path())).unwrap_err();
    assert!(matches!(&error, BlobError::Layout { found, .. } if found == "bushy"), "{error}");
    fs::write(folder.path().join(".layout"), "zeocache").unwrap();
    let error = BlobDirectory::open(&BlobOptions::shared(folder.path())).unwrap_err();
    assert!(matches!(&error, BlobError::Layout { found, .. } if found == "zeocache"), "{error}");
    let all = BlobOptions { cache_size_check_percent: 100, ..BlobOptions::new(folder.path()) };
    assert!(matches!(BlobDirectory::open(&all), Err(BlobError::Percent { percent: 100 })));
}

#[test]
fn a_blob_that_has_come_is_there_for_reading() {
    let (folder, blobs) = cache();
    for bytes in [&b""[..], b"some bytes"] {
        let (oid, serial) = (Oid(998), Tid(bytes.len() as u64 + 1));
        let path = received(wanted(&blobs, oid, serial), bytes).publish().unwrap();
        assert_eq!(path, folder.path().join(format!("1/1.{serial}.blob")));
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o400);
        assert_eq!(here(&blobs, oid, serial), path);
    }
    let names = ["1.0000000000000001.blob", "1.000000000000000b.blob"];
    assert_eq!(files(&folder.path().join("1")), names);
}

#[test]
fn a_blob_that_nobody_waited_for_is_there_all_the_same() {
    let (_folder, blobs) = cache();
    drop(received(wanted(&blobs, Oid(1), Tid(1)), b"late"));
    assert_eq!(fs::read(here(&blobs, Oid(1), Tid(1))).unwrap(), b"late");
}

#[test]
fn of_a_download_that_breaks_nothing_is_left() {
    let (folder, blobs) = cache();
    let mut into = wanted(&blobs, Oid(1), Tid(1));
    into.write(b"half");
    drop(into);
    assert_eq!(files(&folder.path().join("1")), [""; 0]);
    let mut into = wanted(&blobs, Oid(1), Tid(1));
    into.write(b"half");
    let error = into.finish().unwrap_err();
    assert!(matches!(error, BlobError::CutShort { oid: Oid(1), serial: Tid(1) }), "{error}");
    assert_eq!(files(&folder.path().join("1")), [""; 0]);
}

#[test]
fn who_comes_second_is_told_how_far_the_first_is() {
    let (folder, blobs) = cache();
    let other = BlobDirectory::open(&BlobOptions::new(folder.path())).unwrap();
    let mut into = wanted(&blobs, Oid(1), Tid(1));
    for arrived in [0, 3, 6] {
        // As well for another object's blob in the same folder.
        for oid in [Oid(1), Oid(998)] {
            let second = other.download(oid, Tid(1)).unwrap();
            assert!(matches!(second, Download::Busy { arrived: told } if told == arrived));
        }
        into.write(b"abc");
    }
    drop(wanted(&other, Oid(2), Tid(1)));
    into.end();
    into.finish().unwrap().publish().unwrap();
    assert_eq!(fs::read(here(&other, Oid(1), Tid(1))).unwrap(), b"abcabcabc");
    drop(wanted(&other, Oid(998), Tid(1)));
}

#[test]
fn of_many_threads_one_downloads() {
    let (folder, blobs) = cache();
    let (downloads, begin) = (AtomicUsize::new(0), Barrier::new(8));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let other = BlobDirectory::open(&BlobOptions::new(folder.path())).unwrap();
                begin.wait();
                let path = loop {
                    match other.download(Oid(5), Tid(7)).unwrap() {
                        Download::Here(path) => break path,
                        Download::Wanted(into) => {
                            downloads.fetch_add(1, Ordering::Relaxed);
                            received(into, b"once").publish().unwrap();
                        }
                        Download::Busy { .. } => std::thread::yield_now(),
                    }
                };
                assert_eq!(fs::read(path).unwrap(), b"once");
            });
        }
    });
    assert_eq!(downloads.load(Ordering::Relaxed), 1);
    drop(blobs);
}

#[test]
fn what_a_dead_process_left_is_no_obstacle() {
    let (folder, blobs) = cache();
    fs::create_dir(folder.path().join("1")).unwrap();
    for suffix in ["part", "dl"] {
        let left = folder.path().join(format!("1/0.0000000000000001.blob.{suffix}"));
        fs::write(&left, "of somebody who died").unwrap();
        fs::set_permissions(&left, fs::Permissions::from_mode(0o400)).unwrap();
    }
    let path = received(wanted(&blobs, Oid(1), Tid(1)), b"new").publish().unwrap();
    assert_eq!(fs::read(path).unwrap(), b"new");
    assert_eq!(files(&folder.path().join("1")), ["0.0000000000000001.blob"]);
}

#[test]
fn a_folder_that_vanished_is_made_again_or_told() {
    let (folder, blobs) = cache();
    let into = wanted(&blobs, Oid(1), Tid(1));
    fs::remove_dir_all(folder.path().join("1")).unwrap();
    let error = received(into, b"bytes").publish().unwrap_err().to_string();
    assert!(error.contains("1/0.0000000000000001.blob: No such file"), "{error}");
    received(wanted(&blobs, Oid(1), Tid(1)), b"bytes").publish().unwrap();
}

#[test]
fn a_blob_that_was_committed_is_moved_into_the_cache() {
    let (_folder, blobs) = cache();
    let file = blobs.temporary().join("mine");
    let stamp = stored(&file, b"mine");
    let path = kept(&blobs, Oid(1), Tid(1), &file, &stamp);
    assert_eq!((fs::read(&path).unwrap(), file.exists()), (b"mine".to_vec(), false));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o222, 0);
    assert_eq!(here(&blobs, Oid(1), Tid(1)), path);
}

#[test]
fn a_committed_blob_waits_for_the_lock_of_its_folder() {
    let (folder, blobs) = cache();
    let file = folder.path().join("mine");
    let stamp = stored(&file, b"mine");
    let into = wanted(&blobs, Oid(998), Tid(1));
    assert_eq!(blobs.keep(Oid(1), Tid(1), &file, &stamp).unwrap(), None);
    drop(into);
    assert!(kept(&blobs, Oid(1), Tid(1), &file, &stamp).exists());
}

#[test]
fn a_file_that_was_changed_after_it_was_stored_is_not_kept() {
    let (folder, blobs) = cache();
    let file = folder.path().join("mine");
    let stamp = stored(&file, b"mine");
    fs::write(&file, "other bytes").unwrap();
    let error = blobs.keep(Oid(1), Tid(1), &file, &stamp).unwrap_err();
    assert!(matches!(&error, BlobError::Changed { path } if *path == file), "{error}");
    blobs.give_up(&file, &stamp);
    assert!(file.exists());
    blobs.give_up(&file, &Stamp::of(&fs::metadata(&file).unwrap()));
    assert!(!file.exists());
}

#[test]
fn a_file_of_another_file_system_is_copied() {
    let (folder, blobs) = cache();
    let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else {
        return println!("there is no /dev/shm to try it with");
    };
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    if device(elsewhere.path()) == device(folder.path()) {
        return println!("temporary files are in /dev/shm: there is no other file system");
    }
    let file = elsewhere.path().join("mine");
    let stamp = stored(&file, b"from afar");
    let path = kept(&blobs, Oid(1), Tid(1), &file, &stamp);
    assert_eq!((fs::read(&path).unwrap(), file.exists()), (b"from afar".to_vec(), false));
    assert_eq!(files(&folder.path().join("1")), ["0.0000000000000001.blob"]);

    let server = tempdir().unwrap();
    let shared = BlobDirectory::open(&BlobOptions::shared(server.path())).unwrap();
    stored(&file, b"from afar");
    let staged = shared.stage_shared(Oid(1), &file).unwrap();
    let path = server.path().join(Layout::Bushy.folder(Oid(1))).join(staged.name());
    assert_eq!((fs::read(&path).unwrap(), file.exists()), (b"from afar".to_vec(), false));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o222, 0);
}

#[test]
fn a_file_is_staged_where_the_server_looks_for_it_and_goes_if_it_is_not_told() {
    for (marker, layout) in [("bushy", Layout::Bushy), ("lawn", Layout::Lawn)] {
        let folder = tempdir().unwrap();
        fs::write(folder.path().join(".layout"), marker).unwrap();
        let blobs = BlobDirectory::open(&BlobOptions::shared(folder.path())).unwrap();
        assert!(blobs.is_shared());
        let place = folder.path().join(layout.folder(Oid(0x3e7)));
        for is_told in [true, false] {
            let file = folder.path().join("mine");
            fs::write(&file, "mine").unwrap();
            let staged = blobs.stage_shared(Oid(0x3e7), &file).unwrap();
            let name = staged.name();
            assert!(name.ends_with(".tmp") && !name.contains('/') && !file.exists(), "{name}");
            assert_eq!(fs::read(place.join(&name)).unwrap(), b"mine");
            if is_told {
                staged.tell()
            } else {
                drop(staged)
            }
            assert_eq!(place.join(&name).exists(), is_told);
        }
    }
}

#[test]
fn a_shared_directory_that_is_not_mounted_is_not_made() {
    let folder = tempdir().unwrap();
    let blobs = BlobDirectory::open(&BlobOptions::shared(folder.path().join("not"))).unwrap();
    let file = folder.path().join("mine");
    fs::write(&file, "mine").unwrap();
    let error = blobs.stage_shared(Oid(1), &file).unwrap_err();
    assert!(matches!(error, BlobError::NotMounted { .. }), "{error}");
    assert_eq!(files(folder.path()), ["mine"]);
}

#[test]
fn a_blob_that_the_server_does_not_have_is_named() {
    let folder = tempdir().unwrap();
    let blobs = BlobDirectory::open(&BlobOptions::shared(folder.path())).unwrap();
    let error = blobs.download(Oid(0x3e7), Tid(0x3f2)).unwrap_err().to_string();
    let path = folder.path().join(NAMES[2].2[0]);
    let expected = format!(
        "object 00000000000003e7 has no blob of transaction 00000000000003f2: there is no {}",
        path.display()
    );
    assert_eq!(error, expected);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "the server's").unwrap();
    assert_eq!(here(&blobs, Oid(0x3e7), Tid(0x3f2)), path);
}

#[test]
fn what_was_not_used_for_longest_goes_first() {
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let blobs = ["3/0.aa.blob", "1/0.aa.blob", "2/5.aa.blob", "1/0.bb.blob", "996/0.aa.blob"];
    for (name, time_s) in blobs.into_iter().zip(1_000..) {
        used_at(&path(name), 10, time_s);
    }
    // None of these counts, or goes.
    for other in ["1/0.aa.blob.dl", "tmp/BUC", "other/0.aa.blob", "5/readme"] {
        used_at(&path(other), 100, 1);
    }
    let left = || blobs.map(|name| path(name).exists());
    let usage = Usage::new(None);
    let _busy = Lock::take(&path("1/.lock")).unwrap().unwrap();
    shrink(folder.path(), 50, &usage).unwrap();
    assert_eq!(left(), [true, true, true, true, true]);
    shrink(folder.path(), 35, &usage).unwrap();
    assert_eq!(left(), [false, true, false, true, true]);
    shrink(folder.path(), 0, &usage).unwrap();
    assert_eq!(left(), [false, true, false, true, false]);
    drop(_busy);
    shrink(folder.path(), 10, &usage).unwrap();
    assert_eq!(left(), [false, false, false, true, false]);
    for other in ["1/0.aa.blob.dl", "tmp/BUC", "other/0.aa.blob", "5/readme"] {
        assert!(path(other).exists(), "{other}");
    }
}

#[test]
fn who_finds_the_cache_being_made_smaller_asks_for_another_look() {
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    used_at(&path("1/0.aa.blob"), 10, 1_000);
    let usage = Usage::new(None);
    let taken = Lock::take(&path(CHECK_LOCK)).unwrap().unwrap();
    shrink(folder.path(), 0, &usage).unwrap();
    assert!(path(ATTEMPT).exists() && path("1/0.aa.blob").exists());
    drop(taken);
    shrink(folder.path(), 0, &usage).unwrap();
    assert!(!path(ATTEMPT).exists() && !path("1/0.aa.blob").exists());
}

#[test]
fn a_cache_is_looked_at_when_it_is_opened_and_when_much_has_come() {
    let folder = tempdir().unwrap();
    let old = folder.path().join("1/0.aa.blob");
    used_at(&old, 91, 1_000);
    let options = BlobOptions { cache_size: Some(100), ..BlobOptions::new(folder.path()) };
    let blobs = BlobDirectory::open(&options).unwrap();
    until(|| !old.exists());
    let first = received(wanted(&blobs, Oid(2), Tid(1)), &[1; 9]).publish().unwrap();
    let oldest = Timespec { tv_sec: 1_000, tv_nsec: 0 };
    let times = Timestamps { last_access: oldest, last_modification: oldest };
    utimensat(CWD, &first, &times, AtFlags::empty()).unwrap();
    // Using it makes it the last to go.
    assert_eq!(here(&blobs, Oid(2), Tid(1)), first);
    let second = folder.path().join("3/0.aa.blob");
    used_at(&second, 90, 2_000);
    let third = received(wanted(&blobs, Oid(4), Tid(1)), &[1; 80]).publish().unwrap();
    until(|| !second.exists());
    assert!(first.exists() && third.exists());
    blobs.close();
    blobs.close();
    used_at(&second, 90, 2_000);
    received(wanted(&blobs, Oid(5), Tid(1)), &[1; 80]).publish().unwrap();
    drop(blobs);
    assert!(second.exists(), "nobody looks after it any more");
}

#[test]
fn only_what_is_certainly_left_is_swept() {
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let names = [
        "1/0.aa.blob",
        "1/0.bb.blob.part",
        "1/0.cc.blob.dl",
        "1/0x01.tmp",
        "1/0x01.tmp-",
        "tmp/BUC",
        "2/0.dd.blob.dl",
    ];
    for name in names {
        fs::create_dir_all(path(name).parent().unwrap()).unwrap();
        File::create(path(name)).unwrap();
    }
    let left = || names.map(|name| path(name).exists());
    let _busy = Lock::take(&path("2/.lock")).unwrap().unwrap();
    let now_s = fs::metadata(path("tmp/BUC")).unwrap().ctime();
    sweep(folder.path(), now_s + 1_000, || true);
    assert_eq!(left(), [true; 7]);
    sweep(folder.path(), now_s + 1_000, || false);
    assert_eq!(left(), [true, false, false, true, true, true, true]);
    sweep(folder.path(), now_s + 8 * 24 * 60 * 60, || false);
    assert_eq!(left(), [true, false, false, false, false, false, true]);
}

/// Waits for what another thread does.
fn until(is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(30), "it does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}
