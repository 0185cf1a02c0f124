//! What a cache promises, from outside.

mod damage;
mod disk;
mod file;
mod model;
mod threads;

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};

use super::{Cache, CacheOptions, Opened};
use crate::session::Revision;

fn revision(data: &[u8], serial: u64, end: Option<u64>) -> Revision {
    Revision { data: Bytes::copy_from_slice(data), serial: Tid(serial), end: end.map(Tid) }
}

fn cache(memory_max: usize) -> Cache {
    let (cache, opened) = Cache::open(&CacheOptions { memory_max, file: None }).unwrap();
    assert_eq!(opened, Opened::MemoryOnly);
    cache.advance(Tid(100));
    cache
}

fn hits(cache: &Cache, oid: u64, before: u64) -> Option<u64> {
    cache.load_before(Oid(oid), Tid(before)).map(|revision| revision.serial.0)
}

#[test]
fn a_current_revision_answers_every_time_after_it_until_it_is_invalidated() {
    let cache = cache(100_000);
    let current = revision(b"a", 5, None);
    cache.insert(Oid(1), &current);
    for (before, hits) in [(0, false), (5, false), (6, true), (101, true), (Tid::MAX.0, true)] {
        let expected = hits.then(|| current.clone());
        assert_eq!(cache.load_before(Oid(1), Tid(before)), expected, "before {before}");
    }
    cache.invalidate(Tid(200), &[Oid(1), Oid(2)]);
    assert_eq!(cache.last_tid(), Some(Tid(200)));
    let ended = revision(b"a", 5, Some(200));
    for (before, hits) in [(5, false), (6, true), (200, true), (201, false)] {
        let expected = hits.then(|| ended.clone());
        assert_eq!(cache.load_before(Oid(1), Tid(before)), expected, "before {before}");
    }
}

#[test]
fn what_is_inserted_is_taken_only_where_it_agrees_with_what_is_known() {
    let data = b"x";
    // What is there, what is inserted, and the serials that answer for each time up to 10.
    type Span = (u64, Option<u64>);
    let table: &[(&[Span], Span, [u64; 10])] = &[
        (&[], (3, None), [0, 0, 0, 3, 3, 3, 3, 3, 3, 3]),
        (&[], (3, Some(5)), [0, 0, 0, 3, 3, 0, 0, 0, 0, 0]),
        // Nothing is known of what comes.
        (&[], (101, None), [0; 10]),
        (&[], (3, Some(101)), [0; 10]),
        (&[], (3, Some(100)), [0, 0, 0, 3, 3, 3, 3, 3, 3, 3]),
        // Nonsense.
        (&[], (5, Some(5)), [0; 10]),
        (&[], (5, Some(3)), [0; 10]),
        // Again, and with its end.
        (&[(3, None)], (3, None), [0, 0, 0, 3, 3, 3, 3, 3, 3, 3]),
        (&[(3, None)], (3, Some(5)), [0, 0, 0, 3, 3, 0, 0, 0, 0, 0]),
        (&[(3, Some(5))], (3, None), [0, 0, 0, 3, 3, 0, 0, 0, 0, 0]),
        // Beside another.
        (&[(5, None)], (3, Some(5)), [0, 0, 0, 3, 3, 5, 5, 5, 5, 5]),
        (&[(1, Some(3)), (5, None)], (3, Some(5)), [0, 1, 1, 3, 3, 5, 5, 5, 5, 5]),
        // Something was written that we were not told of.
        (&[(3, None)], (5, None), [0, 0, 0, 0, 0, 5, 5, 5, 5, 5]),
        (&[(3, None)], (5, Some(7)), [0, 0, 0, 0, 0, 5, 5, 0, 0, 0]),
        // Contradictions.
        (&[(3, Some(5))], (2, None), [0, 0, 0, 3, 3, 0, 0, 0, 0, 0]),
        (&[(3, Some(7))], (5, None), [0, 0, 0, 3, 3, 3, 3, 0, 0, 0]),
        (&[(3, Some(7))], (2, Some(4)), [0, 0, 0, 3, 3, 3, 3, 0, 0, 0]),
    ];
    for (there, (serial, end), expected) in table {
        let cache = cache(100_000);
        for (serial, end) in *there {
            cache.insert(Oid(1), &revision(data, *serial, *end));
        }
        cache.insert(Oid(1), &revision(data, *serial, *end));
        for (before, expected) in (1..).zip(expected) {
            let expected = (*expected != 0).then_some(*expected);
            assert_eq!(hits(&cache, 1, before), expected, "{there:?}, {serial}, {before}");
        }
    }
}

#[test]
fn an_answer_that_comes_after_the_invalidation_is_not_taken_as_current() {
    let cache = cache(100_000);
    cache.invalidate(Tid(200), &[Oid(1)]);
    cache.insert(Oid(1), &revision(b"old", 5, None));
    assert_eq!(hits(&cache, 1, 201), None);
    cache.insert(Oid(1), &revision(b"new", 200, None));
    assert_eq!(hits(&cache, 1, 201), Some(200));
}

#[test]
fn nothing_is_taken_in_before_it_is_known_what_it_is_true_for() {
    let cache = cache(100_000);
    cache.clear();
    assert_eq!(cache.last_tid(), None);
    cache.insert(Oid(1), &revision(b"x", 5, None));
    cache.insert(Oid(1), &revision(b"x", 3, Some(5)));
    assert_eq!(cache.statistics().revisions, 0);
}

#[test]
fn what_is_forgotten_is_only_what_is_current() {
    let cache = cache(100_000);
    cache.insert(Oid(1), &revision(b"old", 3, Some(5)));
    cache.insert(Oid(1), &revision(b"new", 5, None));
    cache.forget(&[Oid(1), Oid(2)]);
    assert_eq!((hits(&cache, 1, 5), hits(&cache, 1, 6)), (Some(3), None));
    assert_eq!(cache.load_serial(Oid(1), Tid(3)).unwrap(), "old");
    assert_eq!(cache.load_serial(Oid(1), Tid(5)), None);
}

#[test]
fn a_tid_that_goes_back_ends_nothing_and_trusts_nothing() {
    let cache = cache(100_000);
    cache.insert(Oid(1), &revision(b"x", 3, None));
    cache.insert(Oid(2), &revision(b"x", 3, None));
    cache.invalidate(Tid(50), &[Oid(1)]);
    cache.advance(Tid(60));
    assert_eq!(cache.last_tid(), Some(Tid(100)));
    assert_eq!((hits(&cache, 1, 40), hits(&cache, 2, 101)), (None, Some(3)));
}

#[test]
fn a_hit_gives_the_bytes_that_were_inserted_and_no_copy() {
    let cache = cache(100_000);
    let inserted = revision(b"data", 3, None);
    cache.insert(Oid(1), &inserted);
    let hit = cache.load_before(Oid(1), Tid(101)).unwrap();
    assert_eq!(hit.data.as_ptr(), inserted.data.as_ptr());
}

#[test]
fn memory_stays_within_its_budget_and_is_given_back() {
    let cache = cache(50_000);
    for oid in 0..1000 {
        cache.insert(Oid(oid), &revision(&vec![0; oid as usize], 3, None));
        assert!(cache.statistics().memory_bytes <= 50_000);
    }
    let statistics = cache.statistics();
    assert!(25_000 < statistics.memory_bytes);
    assert_eq!(statistics.revisions, statistics.memory_revisions);
    // An object that is loaded and forgotten over and over leaves nothing behind.
    for _ in 0..10_000 {
        cache.forget(&[Oid(0)]);
        cache.insert(Oid(0), &revision(b"x", 3, None));
    }
    let oids: Vec<Oid> = (0..1000).map(Oid).collect();
    cache.forget(&oids);
    let statistics = cache.statistics();
    assert_eq!((statistics.revisions, statistics.memory_bytes), (0, 0));
}

#[test]
fn what_is_larger_than_the_budget_pushes_nothing_out() {
    let cache = cache(10_000);
    cache.insert(Oid(1), &revision(b"x", 3, None));
    cache.insert(Oid(2), &revision(&[0; 10_000], 3, None));
    assert_eq!((hits(&cache, 1, 101), hits(&cache, 2, 101)), (Some(3), None));
}

#[test]
fn a_hot_set_survives_a_scan_of_ten_times_the_budget() {
    let cache = cache(1_000_000);
    let data = [b'x'; 800];
    let hot = 0..500;
    for oid in hot.clone() {
        cache.insert(Oid(oid), &revision(&data, 1, None));
        assert!(cache.load_before(Oid(oid), Tid(101)).is_some());
    }
    for oid in 1000..11_000 {
        cache.insert(Oid(oid), &revision(&data, 1, None));
    }
    let kept = hot.filter(|&oid| cache.load_before(Oid(oid), Tid(101)).is_some()).count();
    assert_eq!(kept, 500);
}

#[test]
fn what_comes_back_soon_after_it_was_pushed_out_stays_longer() {
    let cache = cache(100_000);
    let data = [0; 800];
    cache.insert(Oid(0), &revision(&data, 3, None));
    for oid in 1..=100 {
        cache.insert(Oid(oid), &revision(&data, 3, None));
    }
    assert_eq!(hits(&cache, 0, 101), None);
    cache.insert(Oid(0), &revision(&data, 3, None));
    for oid in 1000..1500 {
        cache.insert(Oid(oid), &revision(&data, 3, None));
    }
    assert_eq!(hits(&cache, 0, 101), Some(3));
}

#[test]
fn statistics_count_hits_and_misses() {
    let cache = cache(100_000);
    cache.insert(Oid(1), &revision(b"x", 3, None));
    for (oid, before) in [(1, 101), (1, 4), (1, 3), (2, 101), (1, 5)] {
        hits(&cache, oid, before);
    }
    let statistics = cache.statistics();
    assert_eq!((statistics.hits, statistics.misses, statistics.file_hits), (3, 2, 0));
}
