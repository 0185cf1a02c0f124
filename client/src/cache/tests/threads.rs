//! Readers beside the thread that follows the server.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use zeoring_shared::ids::{Oid, Tid};

use super::disk::SimDisk;
use super::revision;
use crate::cache::{Cache, CacheFile, CacheOptions};

const TRANSACTIONS: u64 = 5000;

/// Object `oid` is written by each transaction that is a multiple of `oid`. So whoever knows the
/// last transaction knows which revision is the right one.
fn serial(oid: u64, last: u64) -> u64 {
    last / oid * oid
}

#[test]
fn whoever_sees_a_last_tid_never_sees_what_ended_by_then() {
    let file = CacheFile { path: "cache".into(), size_max: 20 * 1024 };
    for (memory_max, file) in [(100_000, None), (0, Some(file.clone())), (2000, Some(file))] {
        let disk = SimDisk::default();
        let options = CacheOptions { memory_max, file };
        let (cache, _) = Cache::open_on(&disk.machine(), "boot", &options).unwrap();
        let is_over = AtomicBool::new(false);
        let hits = AtomicU64::new(0);
        let read = || {
            while !is_over.load(Ordering::Relaxed) {
                for oid in 1..=20 {
                    let Some(Tid(last)) = cache.last_tid() else { continue };
                    let Some(hit) = cache.load_before(Oid(oid), Tid(last + 1)) else { continue };
                    assert_eq!(hit.serial, Tid(serial(oid, last)), "{oid} at {last}");
                    assert_eq!(hit.data, format!("{oid} {}", hit.serial));
                    hits.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        thread::scope(|scope| {
            let readers = [scope.spawn(read), scope.spawn(read)];
            for tid in 1..=TRANSACTIONS {
                let written = || (1..=20).filter(|oid| tid % oid == 0);
                cache.invalidate(Tid(tid), &written().map(Oid).collect::<Vec<_>>());
                for oid in written() {
                    let data = format!("{oid} {}", Tid(tid));
                    cache.insert(Oid(oid), &revision(data.as_bytes(), tid, None));
                }
                if tid % 100 == 0 {
                    cache.settle();
                }
            }
            // Until somebody has read something, or has failed to.
            while hits.load(Ordering::Relaxed) == 0 && readers.iter().any(|r| !r.is_finished()) {
                thread::yield_now();
            }
            is_over.store(true, Ordering::Relaxed);
        });
        assert_eq!(cache.statistics().file_failure, None);
        assert_eq!(cache.statistics().damaged, 0);
    }
}
