//! Damage to a cache file: each byte of it, wherever it is. Never a wrong answer, never a panic.

use std::path::Path;

use zeoring_shared::ids::{Oid, Tid};

use super::disk::SimDisk;
use super::revision;
use crate::cache::{Cache, CacheFile, CacheOptions};
use crate::session::Revision;

const OIDS: u64 = 12;

/// Object `oid` was written by each transaction that is a multiple of `oid`.
fn truth(oid: u64, before: u64, last: u64) -> Option<Revision> {
    let serial = (before - 1).min(last) / oid * oid;
    let end = (serial + oid <= last).then_some(serial + oid);
    (serial != 0).then(|| revision(format!("{oid} {serial}").repeat(20).as_bytes(), serial, end))
}

fn open(disk: &SimDisk) -> Cache {
    let file = CacheFile { path: "cache".into(), size_max: 20 * 1024 };
    let options = CacheOptions { memory_max: 0, file: Some(file) };
    Cache::open_on(&disk.machine(), "boot", &options).unwrap().0
}

/// A file whose log has gone around.
fn filled() -> Vec<u8> {
    let disk = SimDisk::default();
    let cache = open(&disk);
    for tid in 1..100 {
        let oids: Vec<u64> = (1..=OIDS).filter(|oid| tid % oid == 0).collect();
        cache.invalidate(Tid(tid), &oids.iter().copied().map(Oid).collect::<Vec<_>>());
        for oid in oids {
            let revision = truth(oid, tid + 1, tid).unwrap();
            cache.insert(Oid(oid), &revision);
        }
        cache.settle();
        cache.load_before(Oid(tid % OIDS + 1), Tid(tid));
    }
    cache.close().unwrap();
    drop(cache);
    disk.read(Path::new("cache")).unwrap()
}

/// Opens a damaged file, and asks for everything. Returns how many answers there were.
fn ask(file: &[u8]) -> usize {
    let disk = SimDisk::default();
    disk.put(Path::new("cache"), file);
    let cache = open(&disk);
    let Some(Tid(last)) = cache.last_tid() else { return 0 };
    let mut answers = 0;
    for oid in 1..=OIDS {
        for before in [last + 1, last.saturating_sub(7).max(1), last.saturating_sub(20).max(1)] {
            if let Some(answer) = cache.load_before(Oid(oid), Tid(before)) {
                let truth = truth(oid, before, last);
                assert_eq!(Some(answer), truth, "{oid} before {before}, last {last}");
                answers += 1;
            }
        }
    }
    answers
}

#[test]
fn no_flipped_byte_makes_a_wrong_answer() {
    let whole = filled();
    let answers = ask(&whole);
    assert!(OIDS as usize <= answers, "{answers}");
    let mut survivors = 0;
    for place in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[place] ^= 1 << (place % 8);
        survivors += usize::from(answers - 1 <= ask(&damaged));
    }
    // Most of the file are data, and damage to these costs one revision.
    assert!(whole.len() / 2 < survivors, "{survivors} of {}", whole.len());
}

#[test]
fn no_lost_page_and_no_page_of_another_place_makes_a_wrong_answer() {
    let whole = filled();
    for size in [512, 4096] {
        for place in (0..whole.len() - size).step_by(size) {
            let mut damaged = whole.clone();
            damaged[place..place + size].fill(0);
            ask(&damaged);
            for other in (0..whole.len() - size).step_by(size) {
                damaged[place..place + size].copy_from_slice(&whole[other..other + size]);
                ask(&damaged);
            }
        }
    }
}

#[test]
fn no_end_cut_off_makes_a_wrong_answer() {
    let whole = filled();
    for length in (0..whole.len()).step_by(37) {
        ask(&whole[..length]);
    }
}
