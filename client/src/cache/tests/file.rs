//! What the file of a cache promises: across restarts, kills, power cuts and failing disks.

use std::fs;
use std::path::{Path, PathBuf};

use zeoring_shared::ids::{Oid, Tid};

use super::disk::SimDisk;
use super::{hits, revision};
use crate::cache::{Cache, CacheError, CacheFile, CacheOptions, Dropped, Opened};

const SIZE: u64 = 20 * 1024;

fn options(path: impl Into<PathBuf>, memory_max: usize, size_max: u64) -> CacheOptions {
    CacheOptions { memory_max, file: Some(CacheFile { path: path.into(), size_max }) }
}

fn open_with(disk: &SimDisk, boot: &str, memory_max: usize, size_max: u64) -> (Cache, Opened) {
    Cache::open_on(&disk.machine(), boot, &options("cache", memory_max, size_max)).unwrap()
}

fn open(disk: &SimDisk, boot: &str) -> (Cache, Opened) {
    open_with(disk, boot, 0, SIZE)
}

/// A cache with an ended, a current and a forgotten revision.
fn filled(disk: &SimDisk) -> Cache {
    let (cache, opened) = open(disk, "first");
    assert_eq!(opened, Opened::Fresh);
    cache.advance(Tid(100));
    for oid in 1..=3 {
        cache.insert(Oid(oid), &revision(b"data", 5, None));
    }
    cache.insert(Oid(1), &revision(b"older", 3, Some(5)));
    cache.invalidate(Tid(200), &[Oid(2)]);
    cache.forget(&[Oid(3)]);
    cache.advance(Tid(300));
    cache.settle();
    cache
}

/// Whether the cache is as it was filled.
fn check(cache: &Cache) {
    assert_eq!(cache.last_tid(), Some(Tid(300)));
    assert_eq!(cache.load_before(Oid(1), Tid(301)), Some(revision(b"data", 5, None)));
    assert_eq!(cache.load_before(Oid(1), Tid(5)), Some(revision(b"older", 3, Some(5))));
    assert_eq!(cache.load_before(Oid(2), Tid(200)), Some(revision(b"data", 5, Some(200))));
    assert_eq!(hits(cache, 2, 201), None);
    assert_eq!(hits(cache, 3, 6), None);
}

#[test]
fn a_closed_file_is_warm_whatever_happens_to_the_machine() {
    let disk = SimDisk::default();
    let cache = filled(&disk);
    check(&cache);
    cache.close().unwrap();
    drop(cache);
    for boot in ["first", "second", "third"] {
        let (cache, opened) = open(&disk, boot);
        assert_eq!(opened, Opened::Warm { revisions: 3, damaged: 0 });
        check(&cache);
        cache.close().unwrap();
    }
}

#[test]
fn a_file_that_was_not_closed_is_warm_until_the_machine_stops() {
    let disk = SimDisk::default();
    let cache = filled(&disk);
    // Something is current later than what was told last: this makes the log say so.
    cache.insert(Oid(4), &revision(b"data", 5, None));
    cache.settle();
    drop(cache);
    let (cache, opened) = open(&disk, "first");
    assert_eq!(opened, Opened::Warm { revisions: 4, damaged: 0 });
    check(&cache);
    drop(cache);
    let (cache, opened) = open(&disk, "second");
    assert_eq!(opened, Opened::Dropped(Dropped::PowerCut));
    assert_eq!((cache.last_tid(), cache.statistics().revisions), (None, 0));
}

#[test]
fn a_power_cut_right_after_a_closed_file_was_opened_again_is_noticed() {
    let disk = SimDisk::default();
    filled(&disk).close().unwrap();
    drop(open(&disk, "first"));
    disk.kill(Path::new("cache"), usize::MAX, 0);
    let (_, opened) = open(&disk, "second");
    assert_eq!(opened, Opened::Dropped(Dropped::PowerCut));
}

#[test]
fn many_short_runs_do_not_use_the_file_up() {
    let disk = SimDisk::default();
    filled(&disk).close().unwrap();
    for run in 0..50 {
        let (cache, _) = open(&disk, &run.to_string());
        cache.insert(Oid(1000 + run), &revision(b"x", 5, None));
        cache.close().unwrap();
    }
    let (cache, opened) = open(&disk, "last");
    assert_eq!(opened, Opened::Warm { revisions: 53, damaged: 0 });
    check(&cache);
}

#[test]
fn what_memory_has_no_room_for_comes_from_the_file() {
    let disk = SimDisk::default();
    let (cache, _) = open_with(&disk, "boot", 10_000, 1 << 20);
    cache.advance(Tid(100));
    for oid in 0..500 {
        cache.insert(Oid(oid), &revision(&[oid as u8; 1000], 5, None));
    }
    cache.settle();
    for oid in 0..500 {
        let hit = cache.load_before(Oid(oid), Tid(101));
        assert_eq!(hit, Some(revision(&[oid as u8; 1000], 5, None)), "{oid}");
    }
    let statistics = cache.statistics();
    assert_eq!(statistics.hits + statistics.file_hits, 500);
    assert!(490 <= statistics.file_hits);
    assert!(statistics.memory_bytes <= 10_000);
}

#[test]
fn what_is_used_stays_in_the_file_when_much_else_passes_through() {
    let disk = SimDisk::default();
    let (cache, _) = open_with(&disk, "boot", 0, 1 << 20);
    cache.advance(Tid(100));
    let data = [0; 900];
    let hot = 0..200;
    let ask = || hot.clone().filter(|oid| hits(&cache, *oid, 101).is_some()).count();
    for oid in hot.clone() {
        cache.insert(Oid(oid), &revision(&data, 5, None));
    }
    cache.settle();
    for oid in 1000..11_000 {
        cache.insert(Oid(oid), &revision(&data, 5, None));
        if oid % 200 == 0 {
            cache.settle();
            // One that just does not fit may be lost where a segment ends.
            let kept = ask();
            assert!(190 <= kept, "{kept} at {oid}");
        }
    }
    cache.settle();
    // And what has passed through is gone.
    assert_eq!(hits(&cache, 1000, 101), None);
    assert!(cache.statistics().revisions < 1200);
    assert_eq!(cache.statistics().damaged, 0);
}

#[test]
fn what_was_cleared_does_not_come_back() {
    let disk = SimDisk::default();
    let cache = filled(&disk);
    cache.clear();
    cache.settle();
    drop(cache);
    let (cache, opened) = open(&disk, "first");
    assert_eq!(opened, Opened::Warm { revisions: 0, damaged: 0 });
    assert_eq!(cache.last_tid(), None);
}

#[test]
fn more_invalidations_than_can_wait_cost_the_file_but_not_the_truth() {
    let disk = SimDisk::default();
    let (cache, _) = open_with(&disk, "boot", 100_000, SIZE);
    cache.advance(Tid(100));
    for oid in 0..3 {
        cache.insert(Oid(oid), &revision(b"x", 5, None));
    }
    cache.settle();
    let mut oids = vec![Oid(u64::MAX); 9_000_000];
    oids[0] = Oid(0);
    cache.invalidate(Tid(200), &oids);
    assert_eq!((hits(&cache, 0, 201), hits(&cache, 1, 201)), (None, Some(5)));
    cache.settle();
    cache.insert(Oid(9), &revision(b"x", 5, None));
    cache.settle();
    drop(cache);
    let (cache, _) = open(&disk, "boot");
    assert_eq!(cache.last_tid(), Some(Tid(200)));
    assert_eq!([0, 1, 9].map(|oid| hits(&cache, oid, 201)), [None, None, Some(5)]);
}

#[test]
fn an_invalidation_of_more_objects_than_a_segment_has_room_for_holds_for_all() {
    let disk = SimDisk::default();
    let (cache, _) = open_with(&disk, "boot", 0, 100 * 1024);
    cache.advance(Tid(100));
    let oids: Vec<Oid> = (0..1200).map(Oid).collect();
    for oid in &oids {
        cache.insert(*oid, &revision(b"", 5, None));
    }
    cache.settle();
    assert_eq!(cache.statistics().revisions, 1200);
    cache.invalidate(Tid(200), &oids);
    cache.settle();
    drop(cache);
    let (cache, _) = open_with(&disk, "boot", 0, 100 * 1024);
    assert_eq!(cache.last_tid(), Some(Tid(200)));
    assert!(oids.iter().all(|oid| hits(&cache, oid.0, 201).is_none()));
    assert!(oids.iter().any(|oid| hits(&cache, oid.0, 200).is_some()));
}

#[test]
fn a_disk_that_fails_turns_the_file_off_and_memory_goes_on() {
    let disk = SimDisk::default();
    let (cache, _) = open_with(&disk, "boot", 100_000, SIZE);
    cache.advance(Tid(100));
    cache.insert(Oid(1), &revision(b"x", 5, None));
    cache.settle();
    assert_eq!(cache.statistics().file_failure, None);
    disk.break_file(Path::new("cache"));
    cache.insert(Oid(2), &revision(b"x", 5, None));
    cache.settle();
    assert!(cache.statistics().file_failure.is_some());
    cache.insert(Oid(3), &revision(b"x", 5, None));
    cache.invalidate(Tid(200), &[Oid(1)]);
    assert_eq!([1, 2, 3].map(|oid| hits(&cache, oid, 201)), [None, Some(5), Some(5)]);
    assert!(matches!(cache.close(), Err(CacheError::Io { .. })));
}

#[test]
fn nothing_is_taken_in_after_close() {
    let disk = SimDisk::default();
    let (cache, _) = open_with(&disk, "boot", 100_000, SIZE);
    cache.advance(Tid(100));
    cache.insert(Oid(1), &revision(b"x", 5, None));
    cache.close().unwrap();
    cache.close().unwrap();
    cache.insert(Oid(2), &revision(b"x", 5, None));
    cache.invalidate(Tid(200), &[Oid(1)]);
    assert_eq!([1, 2].map(|oid| hits(&cache, oid, 201)), [None, None]);
}

#[test]
fn a_file_of_another_size_is_begun_anew() {
    let disk = SimDisk::default();
    filled(&disk).close().unwrap();
    let (cache, opened) = open_with(&disk, "first", 0, 1 << 20);
    assert_eq!(opened, Opened::Dropped(Dropped::Resized));
    assert_eq!(cache.last_tid(), None);
}

#[test]
fn a_file_that_is_no_cache_is_kept_beside_the_new_one() {
    let disk = SimDisk::default();
    for foreign in [&b"ZEC3 something"[..], &[7; 30_000], b"x"] {
        disk.put(Path::new("cache"), foreign);
        let (cache, opened) = open(&disk, "first");
        assert_eq!(opened, Opened::Dropped(Dropped::Foreign));
        assert_eq!(disk.read(Path::new("cache.bad")).unwrap(), foreign);
        cache.advance(Tid(100));
        cache.insert(Oid(1), &revision(b"x", 5, None));
        cache.settle();
        assert_eq!(hits(&cache, 1, 101), Some(5));
    }
}

#[test]
fn a_real_file_has_one_user_at_a_time_and_is_warm_for_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path().join("cache"), 1 << 20, 1 << 20);
    let (cache, opened) = Cache::open(&options).unwrap();
    assert_eq!(opened, Opened::Fresh);
    let Err(error @ CacheError::InUse { .. }) = Cache::open(&options) else {
        panic!("a second one has it, too");
    };
    assert!(error.to_string().contains("give each process a file of its own"), "{error}");
    cache.advance(Tid(100));
    cache.insert(Oid(1), &revision(b"x", 5, None));
    cache.close().unwrap();
    drop(cache);
    let (cache, opened) = Cache::open(&options).unwrap();
    assert_eq!(opened, Opened::Warm { revisions: 1, damaged: 0 });
    assert_eq!(hits(&cache, 1, 101), Some(5));
    let length = fs::metadata(folder.path().join("cache")).unwrap().len();
    assert!(length <= 1 << 20, "{length}");
}

#[test]
fn a_file_that_may_not_be_large_enough_is_an_error_that_says_how_large() {
    let disk = SimDisk::default();
    let options = options("cache", 0, SIZE - 1);
    let Err(error) = Cache::open_on(&disk.machine(), "boot", &options) else {
        panic!("it is too small");
    };
    assert!(error.to_string().contains("20480"), "{error}");
}
