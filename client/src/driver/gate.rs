//! A value that threads and tasks wait for to change.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// State behind a lock, with a bell for those who wait until it is as they want it.
#[derive(Debug, Default)]
pub struct Gate<T> {
    state: Mutex<T>,
    threads: Condvar,
    tasks: Notify,
}

impl<T> Gate<T> {
    pub(crate) fn new(state: T) -> Self {
        Self { state: Mutex::new(state), threads: Condvar::new(), tasks: Notify::new() }
    }

    /// Changes the state, and lets all who wait look at it.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.lock());
        self.threads.notify_all();
        self.tasks.notify_waiters();
        result
    }

    /// Looks at the state.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.lock())
    }

    /// Blocks the thread until `ready` takes the state as it is, or the limit has passed. It is
    /// asked at least once.
    pub(crate) fn wait<R>(
        &self,
        limit: Duration,
        mut ready: impl FnMut(&mut T) -> Option<R>,
    ) -> Option<R> {
        let begin = Instant::now();
        let mut state = self.lock();
        loop {
            if let Some(result) = ready(&mut state) {
                return Some(result);
            }
            let left = limit.checked_sub(begin.elapsed())?;
            let waited = self.threads.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The same for a task.
    pub(crate) async fn wait_as_task<R>(
        &self,
        limit: Duration,
        mut ready: impl FnMut(&mut T) -> Option<R>,
    ) -> Option<R> {
        if limit.is_zero() {
            return ready(&mut self.lock());
        }
        let wait = async {
            loop {
                // Before the look, so that a change after it is not missed.
                let mut changed = std::pin::pin!(self.tasks.notified());
                changed.as_mut().enable();
                if let Some(result) = ready(&mut self.lock()) {
                    return result;
                }
                changed.await;
            }
        };
        tokio::time::timeout(limit, wait).await.ok()
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
