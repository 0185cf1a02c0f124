//! Removes from a cache what processes left that did not end in order: downloads that were cut off,
//! and files of transactions that never came to an end.
//!
//! A download belongs to who has the lock of its folder, so under the lock every one is a left one.
//! The files of transactions belong to nobody that one could ask; they go when they are so old that
//! no transaction can still want them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::directory::{LOCK, TEMPORARY, ends, remove};
use super::eviction::folders;
use super::lock::Lock;
use super::receiving::PARTIAL;

/// Files of transactions go when nothing has changed about them for a week, in seconds.
const AGE_MIN_S: i64 = 7 * 24 * 60 * 60;

/// Sweeps a cache; `now_s` is in seconds since 1970. What cannot be read or removed is left; it is
/// in nobody's way.
pub(super) fn sweep(root: &Path, now_s: i64, is_ending: impl Fn() -> bool) {
    for folder in folders(root).unwrap_or_default() {
        if is_ending() {
            return;
        }
        let names = files(&folder);
        let cut_off: Vec<_> = names.iter().filter(|path| ends(path, &PARTIAL)).collect();
        if !cut_off.is_empty()
            && let Ok(Some(_lock)) = Lock::take(&folder.join(LOCK))
        {
            cut_off.into_iter().for_each(|path| remove(path));
        }
        // Python's clients put a blob's file here when it is stored (`blob_mkstemp`).
        let staged = names.iter().filter(|path| ends(path, &[".tmp", ".tmp-"]));
        staged.filter(|path| is_old(path, now_s)).for_each(|path| remove(path));
    }
    let temporary = files(&root.join(TEMPORARY));
    temporary.iter().filter(|path| is_old(path, now_s)).for_each(|path| remove(path));
}

fn files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Whether neither its bytes nor its name have changed lately.
fn is_old(path: &Path, now_s: i64) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| {
        let changed = metadata.mtime().max(metadata.ctime());
        metadata.is_file() && AGE_MIN_S <= now_s.saturating_sub(changed)
    })
}
