//! What a pack leaves, by bytes; what goes on meanwhile; and what a crash or a failing disk at any
//! moment leaves. `scripts/python/pack_differential.py` holds the result against Python's.

use std::cell::{Cell, RefCell};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::record::{Builder, COMMITTED, MAGIC, PACKED};

use super::*;
use crate::storage::append::FileAppender;
use crate::storage::error::Verdict;
use crate::storage::mortal::{MortalDisk, REMAINS};
use crate::storage::open::{Options, Packing, open};
use crate::storage::testing::Ask::{self, Delete, Store, Undo};
use crate::storage::testing::{Fault, FaultyDisk, Folder, carry_out, draft, load};
use crate::storage::{Appender, Commit, Storage, history};

/// Pickles that refer to these objects, and say something.
fn data(oids: &[u64], text: &str) -> Vec<u8> {
    let mut data = b"\x80\x03N.\x80\x03(".to_vec();
    for oid in oids {
        data.extend_from_slice(b"C\x08");
        data.extend_from_slice(&oid.to_be_bytes());
        data.push(b'Q');
    }
    data.extend_from_slice(&[b'C', text.len() as u8]);
    data.extend_from_slice(text.as_bytes());
    data.extend_from_slice(b"t.");
    data
}

/// Puts the file in place on this thread, after something else has happened.
struct Direct<'a, F> {
    appender: RefCell<&'a mut FileAppender>,
    before: Cell<Option<F>>,
}

impl<F: FnOnce(&mut FileAppender)> Handover for Direct<'_, F> {
    fn hand_over(&self, successor: Successor) -> Result<Arc<dyn View>, StorageError> {
        let mut appender = self.appender.borrow_mut();
        if let Some(before) = self.before.take() {
            before(&mut appender);
        }
        appender.succeed(successor)
    }
}

fn pack_with(
    storage: &FileStorage,
    appender: &mut FileAppender,
    stop: u64,
    before: impl FnOnce(&mut FileAppender),
) -> Result<Outcome, StorageError> {
    let direct = Direct { appender: RefCell::new(appender), before: Cell::new(Some(before)) };
    storage.pack(Tid(stop), &Progress::default(), &direct)
}

fn pack(
    storage: &FileStorage,
    appender: &mut FileAppender,
    stop: u64,
) -> Result<Outcome, StorageError> {
    pack_with(storage, appender, stop, |_| {})
}

fn commit(storage: &FileStorage, appender: &mut FileAppender, tid: u64, asked: &[Ask<'_>]) {
    carry_out(storage, appender, tid, draft(asked));
}

/// What the object is now: its data and serial, or nothing.
fn current(storage: &FileStorage, oid: u64) -> Option<(Vec<u8>, u64)> {
    let found = load(storage, oid, Tid::MAX, Tid::MAX).ok().flatten();
    found.map(|revision| (revision.data.to_vec(), revision.serial.0))
}

/// The root leads to 1, 1 to 2 until 30. 3 and 4 lead to each other only.
fn past(storage: &FileStorage, appender: &mut FileAppender) {
    let past: [(u64, &[Ask<'_>]); 4] = [
        (10, &[Store(0, 0, &data(&[1], "root")), Store(1, 0, &data(&[2], "one"))]),
        (20, &[Store(2, 0, &data(&[0], "two")), Store(3, 0, &data(&[4], "three"))]),
        (30, &[Store(1, 10, &data(&[], "one alone")), Store(4, 0, &data(&[3], "four"))]),
        (40, &[Store(2, 20, &data(&[], "two again"))]),
    ];
    for (tid, asked) in past {
        commit(storage, appender, tid, asked);
    }
}

#[test]
fn what_is_left_is_what_the_root_leads_to_and_everything_later() {
    let folder = Folder::new();
    let (storage, mut appender) = folder.open().unwrap();
    past(&storage, &mut appender);
    let permissions = fs::Permissions::from_mode(0o664);
    fs::set_permissions(folder.path(), permissions.clone()).unwrap();
    let (before, end) = (fs::read(folder.path()).unwrap(), storage.end());
    let outcome = pack(&storage, &mut appender, 35).unwrap();
    assert_eq!(outcome, Outcome::Packed { before: end, after: storage.end() });

    let mut expected = MAGIC.to_vec();
    type Records<'a> = &'a [(u64, &'a [u8])];
    let transactions: [(u64, u8, Records<'_>); 3] = [
        (10, PACKED, &[(0, &data(&[1], "root"))]),
        (30, PACKED, &[(1, &data(&[], "one alone"))]),
        (40, COMMITTED, &[(2, &data(&[], "two again"))]),
    ];
    for (tid, status, records) in transactions {
        let (at, lengths) = (expected.len() as u64, records.iter().map(|r| r.1.len() as u64));
        let texts = [b"".as_slice(); 3];
        let builder = Builder::start(at, Tid(tid), status, texts, lengths, &mut expected);
        let mut builder = builder.unwrap();
        for (oid, data) in records {
            builder.data(Oid(*oid), Tid(tid), 0, data, &mut expected);
        }
        builder.finish(&mut expected);
    }
    let after = fs::read(folder.path()).unwrap();
    assert_eq!(after[..storage.end() as usize], expected);
    assert_eq!(fs::read(folder.beside(".old")).unwrap(), before[..end as usize]);
    assert!(!folder.beside(".pack").exists());
    let mode = fs::metadata(folder.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, permissions.mode() & 0o777);
    assert_eq!(storage.object_count(), 3);
    assert_eq!(storage.last_tid(), Tid(40));

    commit(&storage, &mut appender, 50, &[Store(2, 40, &data(&[], "more"))]);
    appender.close().unwrap();
    drop((storage, appender));
    for index in [true, false] {
        if !index {
            fs::remove_file(folder.beside(".index")).unwrap();
        }
        let (storage, mut appender) = folder.open().unwrap();
        assert_eq!(current(&storage, 2), Some((data(&[], "more"), 50)));
        assert_eq!(current(&storage, 1), Some((data(&[], "one alone"), 30)));
        assert_eq!(current(&storage, 3), None);
        appender.close().unwrap();
    }
}

#[test]
fn what_began_in_the_old_file_ends_there() {
    let folder = Folder::new();
    let options = Options {
        packing: Packing { keep_old: false, ..Packing::default() },
        ..Options::default()
    };
    let (storage, mut appender) = folder.open_with(&options).unwrap();
    past(&storage, &mut appender);
    let (old, mut cursor) = (storage.current(), storage.transactions(Tid(20), Tid::MAX));
    assert_eq!(cursor.next_transaction().unwrap().unwrap().tid, Tid(20));
    let mut records = cursor.records();
    pack(&storage, &mut appender, 100).unwrap();
    commit(&storage, &mut appender, 50, &[Store(1, 30, &data(&[], "later"))]);
    assert!(!folder.beside(".old").exists());

    assert_eq!(records.next_record().unwrap().unwrap().data.unwrap(), data(&[0], "two"));
    let rest: Vec<_> = std::iter::from_fn(|| cursor.next_transaction().unwrap())
        .map(|found| found.tid.0)
        .collect();
    assert_eq!(rest, [30, 40]);
    let revisions = history::revisions(&old, Oid(1), true).map(|found| found.unwrap().1.serial.0);
    assert_eq!(revisions.collect::<Vec<_>>(), [30, 10]);
    let revisions = storage.history(Oid(1), 10, Tid::MAX).unwrap();
    assert_eq!(revisions.iter().map(|entry| entry.tid.0).collect::<Vec<_>>(), [50, 30]);
}

#[test]
fn transactions_that_are_committed_while_it_goes_on_are_all_there() {
    let folder = Folder::new();
    let (storage, mut appender) = folder.open().unwrap();
    past(&storage, &mut appender);
    commit(&storage, &mut appender, 45, &[Store(0, 10, &data(&[1, 2], "root"))]);
    let late = Arc::clone(&storage);
    pack_with(&storage, &mut appender, 45, |appender| {
        // Back to a record that is not kept, back to that, and on.
        commit(&late, appender, 50, &[Undo(40)]);
        commit(&late, appender, 60, &[Undo(50), Store(7, 0, &data(&[], "seven"))]);
        commit(&late, appender, 70, &[Undo(60)]);
        commit(&late, appender, 80, &[Undo(70), Delete(1, 30)]);
    })
    .unwrap();
    for _ in 0..2 {
        let revision = |before| load(&storage, 2, Tid(before), Tid::MAX).unwrap().unwrap();
        for (tid, text) in [(40, "two again"), (50, "two"), (60, "two again"), (70, "two")] {
            let oids: &[u64] = if text == "two" { &[0] } else { &[] };
            let found = revision(tid + 1);
            assert_eq!((found.serial, &found.data[..]), (Tid(tid), &data(oids, text)[..]));
        }
        assert_eq!(current(&storage, 2), Some((data(&[], "two again"), 80)));
        assert_eq!(current(&storage, 7), Some((data(&[], "seven"), 80)));
        assert_eq!(current(&storage, 1), None);
        assert_eq!(load(&storage, 1, Tid(80), Tid::MAX).unwrap().unwrap().serial, Tid(30));
        // The next pack has to make sense of all that.
        pack(&storage, &mut appender, 45).unwrap();
    }
    appender.close().unwrap();
    drop((storage, appender));
    fs::remove_file(folder.beside(".index")).unwrap();
    let (storage, _appender) = folder.open().unwrap();
    assert_eq!(current(&storage, 2), Some((data(&[], "two again"), 80)));
}

#[test]
fn what_was_voted_for_before_the_switch_is_written_right_after_it() {
    // Undone: back to a record that is kept, and back to one that is not.
    let rows = [(35, 45, 0, data(&[1], "root")), (45, 40, 2, data(&[0], "two"))];
    for (stop, undone, oid, expected) in rows {
        let folder = Folder::new();
        let (storage, mut appender) = folder.open().unwrap();
        past(&storage, &mut appender);
        commit(&storage, &mut appender, 45, &[Store(0, 10, &data(&[1, 2], "root"))]);
        let mut voted = draft(&[Undo(undone)]);
        let mut checked = storage.check(&voted, true).unwrap();
        let old = storage.end();
        pack(&storage, &mut appender, stop).unwrap();
        assert!(storage.end() < old);
        let mut room = checked.room.take().unwrap();
        room.follow(&mut voted, &mut checked.changes).unwrap();
        let batch = [Commit { tid: Tid(90), draft: voted, changes: checked.changes }];
        appender.write(&batch).unwrap();
        appender.publish(&batch);
        assert_eq!(current(&storage, oid), Some((expected, 90)));
        let (_, record) =
            history::revisions(&storage.current(), Oid(oid), true).next().unwrap().unwrap();
        assert_eq!(record.length == 0, stop == 35);
    }
}

#[test]
fn what_is_not_there_and_what_cannot_be_read_end_no_pack_and_lose_nothing() {
    type Row<'a> = (&'a str, &'a [Ask<'a>], &'a [u64]);
    let (missing, whole) = (data(&[1, 99], "root"), data(&[1], "root"));
    let rows: [Row<'_>; 3] = [
        ("a reference into nowhere", &[Store(0, 0, &missing), Store(1, 0, b"N.N.")], &[0, 1]),
        ("an unreadable record", &[Store(0, 0, &whole), Store(1, 0, b"?")], &[0, 1, 5]),
        (
            "an unreadable record that is garbage",
            &[Store(0, 0, &whole), Store(1, 0, b"N.N.")],
            &[0, 1],
        ),
    ];
    for (what, asked, kept) in rows {
        let folder = Folder::new();
        let (storage, mut appender) = folder.open().unwrap();
        commit(&storage, &mut appender, 5, &[Store(5, 0, b"garbage"), Store(1, 0, b"old")]);
        let asked: Vec<_> = asked
            .iter()
            .map(|ask| match *ask {
                Store(1, _, data) => Store(1, 5, data),
                other => other,
            })
            .collect();
        commit(&storage, &mut appender, 10, &asked);
        pack(&storage, &mut appender, 10).unwrap();
        let left: Vec<_> = (0..10).filter(|oid| current(&storage, *oid).is_some()).collect();
        assert_eq!(left, kept, "{what}");
        assert!(load(&storage, 1, Tid(10), Tid::MAX).unwrap().is_none(), "{what}");
    }
}

#[test]
fn a_list_of_blobs_that_a_crash_has_left_takes_only_what_nobody_has() {
    for (layout, of_one, of_nine) in [
        (
            "bushy",
            "0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x01",
            "0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x09",
        ),
        ("lawn", "0x01", "0x09"),
        ("", "0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x01", "0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x09"),
        ("future", "0x01", "0x09"),
    ] {
        let folder = Folder::new();
        let blobs = folder.temporary.path().join("blobs");
        let put = |path: &str| {
            let path = blobs.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, layout).unwrap();
        };
        let (live, dead) = (format!("{of_one}/0x1e.blob"), format!("{of_one}/0x14.blob"));
        // The last is of a transaction that has not ended yet.
        let gone = [format!("{of_nine}/0x0a.blob"), format!("{of_nine}/0x0b.blob")];
        let begun = format!("{of_nine}/0x1000.blob");
        for path in [&live, &dead, &gone[0], &gone[1], &begun, ".layout"] {
            put(path);
        }
        let line = |oid: u64, tid: u64| format!("{}{}\n", Oid(oid), Tid(tid));
        let list = [line(1, 30), line(1, 20), line(9, 10), line(9, 10), "rubbish".to_owned()];
        fs::write(blobs.join(".removed"), list.concat()).unwrap();
        let packing = Packing {
            blobs: Some(Blobs { folder: blobs.clone(), keep_old: false }),
            ..Packing::default()
        };
        let options = Options { packing, ..Options::default() };
        let (storage, mut appender) = folder.open_with(&options).unwrap();
        past(&storage, &mut appender);
        commit(&storage, &mut appender, 45, &[Store(0, 10, &data(&[1], "root"))]);
        assert_eq!(pack(&storage, &mut appender, 5).unwrap(), Outcome::Nothing);
        let there = |path: &String| blobs.join(path).exists();
        assert!(there(&live) && there(&begun), "{layout}");
        let known = layout != "future";
        for path in [&dead, &gone[0], &gone[1]] {
            assert_eq!(there(path), !known, "{layout} {path}");
        }
        assert!(!blobs.join(".removed").exists(), "{layout}");
    }
}

#[test]
fn a_pack_that_would_change_nothing_does_nothing() {
    let folder = Folder::new();
    let (storage, mut appender) = folder.open().unwrap();
    assert_eq!(pack(&storage, &mut appender, 100).unwrap(), Outcome::Nothing, "it is empty");
    commit(&storage, &mut appender, 10, &[Store(1, 0, b"N.N.")]);
    assert!(matches!(pack(&storage, &mut appender, 10), Err(StorageError::NoRoot)));
    commit(&storage, &mut appender, 20, &[Store(0, 0, &data(&[1], "root"))]);
    assert_eq!(pack(&storage, &mut appender, 5).unwrap(), Outcome::Nothing, "before all");
    assert_eq!(pack(&storage, &mut appender, 100).unwrap(), Outcome::Nothing, "all is current");
    commit(&storage, &mut appender, 30, &[Store(1, 10, b"N.N.")]);
    assert!(matches!(pack(&storage, &mut appender, 100), Ok(Outcome::Packed { .. })));
    let old = fs::read(folder.beside(".old")).unwrap();
    for stop in [30, 25, 100] {
        assert_eq!(pack(&storage, &mut appender, stop).unwrap(), Outcome::Redundant, "{stop}");
    }
    assert_eq!(fs::read(folder.beside(".old")).unwrap(), old);
    assert!(!folder.beside(".pack").exists());
}

#[test]
fn a_pack_that_fails_or_is_given_up_leaves_everything_as_it_was() {
    for fault in [Fault::Write, Fault::Sync, Fault::Reserve, Fault::None] {
        let folder = Folder::new();
        let (disk, machine) = FaultyDisk::machine();
        let (storage, mut appender) = open(&machine, &folder.path(), &Options::default()).unwrap();
        past(&storage, &mut appender);
        let old = fs::read(folder.path()).unwrap();
        let progress = Progress::default();
        let failing = disk.clone();
        let before = move |_: &mut FileAppender| failing.set(fault);
        if matches!(fault, Fault::Reserve) {
            // Only the commit thread reserves, at the very end.
            assert!(pack_with(&storage, &mut appender, 35, before).is_err());
        } else {
            disk.set(fault);
            if fault == Fault::None {
                progress.give_up();
            }
            let direct =
                Direct { appender: RefCell::new(&mut appender), before: Cell::new(Some(before)) };
            let error = storage.pack(Tid(35), &progress, &direct).unwrap_err();
            assert_eq!(matches!(error, StorageError::GivenUp), fault == Fault::None, "{error}");
        }
        disk.set(Fault::None);
        assert_eq!(fs::read(folder.path()).unwrap(), old, "{fault:?}");
        assert!(!folder.beside(".pack").exists());
        assert!(!folder.beside(".old").exists());
        commit(&storage, &mut appender, 50, &[Store(1, 30, &data(&[], "more"))]);
        assert!(matches!(pack(&storage, &mut appender, 35), Ok(Outcome::Packed { .. })));
        assert_eq!(current(&storage, 1), Some((data(&[], "more"), 50)));
    }
}

#[test]
fn a_pack_that_fails_before_its_switch_keeps_the_old_file_of_the_last_one() {
    let folder = Folder::new();
    let (disk, machine) = FaultyDisk::machine();
    let (storage, mut appender) = open(&machine, &folder.path(), &Options::default()).unwrap();
    past(&storage, &mut appender);
    pack(&storage, &mut appender, 35).unwrap();
    commit(&storage, &mut appender, 50, &[Store(1, 30, &data(&[], "more"))]);
    let old = fs::read(folder.beside(".old")).unwrap();
    disk.set(Fault::Sync);
    assert!(pack(&storage, &mut appender, 60).is_err());
    disk.set(Fault::None);
    assert_eq!(fs::read(folder.beside(".old")).unwrap(), old);
}

#[test]
fn if_nobody_knows_which_file_a_start_will_find_there_are_no_more_commits() {
    let folder = Folder::new();
    let (disk, machine) = FaultyDisk::machine();
    let (storage, mut appender) = open(&machine, &folder.path(), &Options::default()).unwrap();
    past(&storage, &mut appender);
    let failing = disk.clone();
    let error = pack_with(&storage, &mut appender, 35, move |_| failing.set(Fault::Folder));
    assert_eq!(error.unwrap_err().verdict(), Verdict::Poison);
    disk.set(Fault::None);
    assert_eq!(current(&storage, 1), Some((data(&[], "one alone"), 30)), "loads go on");
    let written = draft(&[Store(1, 30, &data(&[], "more"))]);
    let changes = storage.check(&written, true).unwrap().changes;
    let batch = [Commit { tid: Tid(50), draft: written, changes }];
    assert!(matches!(appender.write(&batch), Err(StorageError::Poisoned)));
    appender.close().unwrap();
    assert!(!folder.beside(".index").exists(), "it could be that of the other file");
    drop((storage, appender));
    // After a power cut it is one of these.
    let old = fs::read(folder.beside(".old")).unwrap();
    for bytes in [fs::read(folder.path()).unwrap(), old] {
        fs::write(folder.path(), bytes).unwrap();
        let (storage, mut appender) = folder.open().unwrap();
        assert_eq!(current(&storage, 1), Some((data(&[], "one alone"), 30)));
        assert_eq!(current(&storage, 2), Some((data(&[], "two again"), 40)));
        appender.close().unwrap();
        fs::remove_file(folder.beside(".index")).unwrap();
    }
}

/// Commits, packs while it commits, and commits. Returns the serial of object 1 that was answered
/// last, and those that were tried after it.
fn life(
    disk: &MortalDisk,
    machine: &zeoring_shared::io::Machine,
    keep_old: bool,
) -> (u64, Vec<u64>) {
    let options =
        Options { packing: Packing { keep_old, ..Packing::default() }, ..Options::default() };
    let (storage, mut appender) = open(machine, Path::new("Data.fs"), &options).unwrap();
    past(&storage, &mut appender);
    storage.save_index().unwrap();
    // A pack of earlier days has left its old file.
    assert!(matches!(
        pack(&storage, &mut appender, 15),
        Ok(Outcome::Packed { .. } | Outcome::Nothing)
    ));
    disk.die_after(usize::MAX);
    let (answered, tried) = (Cell::new(30), RefCell::new(Vec::new()));
    let change = |appender: &mut FileAppender, tid: u64| {
        let written = draft(&[Store(1, answered.get(), &data(&[], &tid.to_string()))]);
        let Ok(checked) = storage.check(&written, true) else { return };
        tried.borrow_mut().push(tid);
        let batch = [Commit { tid: Tid(tid), draft: written, changes: checked.changes }];
        if appender.write(&batch).is_ok() {
            appender.publish(&batch);
            answered.set(tid);
            tried.borrow_mut().clear();
        }
    };
    LIFE.with(|life| disk.die_after(life.get()));
    change(&mut appender, 50);
    drop(pack_with(&storage, &mut appender, 45, |appender| change(appender, 60)));
    change(&mut appender, 70);
    drop(storage.save_index());
    drop(appender.close());
    (answered.get(), tried.take())
}

thread_local! {
    /// Changes that the disk of [`life`] lives for.
    static LIFE: Cell<usize> = const { Cell::new(0) };
}

#[test]
fn a_crash_at_any_change_of_the_disk_leaves_a_whole_file_with_every_answered_commit() {
    for keep_old in [true, false] {
        let mut seen = Vec::new();
        for changes in 0.. {
            let (disk, machine) = MortalDisk::machine();
            LIFE.with(|life| life.set(changes));
            let (answered, tried) = life(&disk, &machine, keep_old);
            let death = disk.death();
            for remains in REMAINS {
                let folder = Folder::new();
                disk.leave(remains, folder.temporary.path());
                let what = format!("dead after {death:?}, {changes}, {remains:?}");
                let opened = folder.open();
                let (storage, mut appender) = opened.unwrap_or_else(|e| panic!("{what}: {e}"));
                let (_, serial) = current(&storage, 1).unwrap_or_else(|| panic!("{what}"));
                let possible = serial == answered || tried.contains(&serial);
                assert!(possible, "{what}: {serial}, answered {answered}");
                assert_eq!(current(&storage, 0), Some((data(&[1], "root"), 10)), "{what}");
                assert!(!folder.beside(".pack").exists(), "{what}");
                commit(&storage, &mut appender, 90, &[Store(1, serial, b"N.N.")]);
                pack(&storage, &mut appender, 90).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_eq!(current(&storage, 1), Some((b"N.N.".to_vec(), 90)), "{what}");
            }
            match death {
                Some(death) => seen.push(death),
                None => break,
            }
        }
        assert!(seen.iter().any(|change| change == "rename to Data.fs"), "{seen:?}");
        assert!(20 < seen.len(), "{seen:?}");
    }
}
