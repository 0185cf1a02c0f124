//! Saves the index of a storage from time to time while commits go on, so that a start after a
//! crash has little to read.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use zeoring_shared::ring::Doorbell;

use crate::log::{self, Severity, Source};
use crate::storage::Storage;

/// Bytes of new transactions that are worth saving the index for: a start reads them in a moment.
const GROWTH_MIN: u64 = 32 * 1024 * 1024;

/// Bytes of new transactions for each object of the storage: an entry of the index file has about
/// eight bytes, so saving it adds a quarter to what the commits write.
const GROWTH_PER_OBJECT: u64 = 32;

/// The thread that saves the index, and its bell.
#[derive(Debug)]
pub struct Keeper {
    told: Arc<Told>,
    thread: Option<JoinHandle<()>>,
    saved_at: u64,
}

#[derive(Debug)]
struct Told {
    doorbell: Doorbell,
    due: AtomicBool,
    stop: AtomicBool,
}

impl Keeper {
    /// Starts the thread. The index is taken to be saved now.
    ///
    /// # Errors
    ///
    /// The system gives no more threads.
    pub fn start(storage: Arc<dyn Storage>) -> io::Result<Self> {
        let (due, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        let told = Arc::new(Told { doorbell: Doorbell::for_thread(), due, stop });
        let saved_at = storage.size();
        let thread = thread::Builder::new().name("keeper".to_owned()).spawn({
            let told = Arc::clone(&told);
            move || keep(&*storage, &told)
        })?;
        Ok(Self { told, thread: Some(thread), saved_at })
    }

    /// Looks, after a commit, whether the storage has grown enough to save its index.
    pub fn grown(&mut self, size: u64, object_count: u64) {
        let enough = GROWTH_MIN.max(object_count * GROWTH_PER_OBJECT);
        if self.saved_at + enough <= size {
            self.saved_at = size;
            self.told.due.store(true, Ordering::Release);
            self.told.doorbell.ring();
        }
    }

    /// A pack has made the storage smaller, and saved its index.
    pub fn shrunk(&mut self, size: u64) {
        self.saved_at = size;
    }
}

impl Drop for Keeper {
    /// Waits until a save that goes on has ended.
    fn drop(&mut self) {
        self.told.stop.store(true, Ordering::Release);
        self.told.doorbell.ring();
        if let Some(thread) = self.thread.take() {
            // A keeper that panicked has said so on stderr.
            drop(thread.join());
        }
    }
}

fn keep(storage: &dyn Storage, told: &Told) {
    while !told.stop.load(Ordering::Acquire) {
        if told.due.swap(false, Ordering::AcqRel) {
            if let Err(error) = storage.save_index() {
                let text = format_args!("the index could not be saved: {error}");
                log::event(Source::SERVER, Severity::Warning, "", text);
            }
        } else {
            told.doorbell.sleep_unless(|| {
                told.due.load(Ordering::Acquire) || told.stop.load(Ordering::Acquire)
            });
        }
    }
}
