//! A bounded queue that any thread fills, with the bell of the threads that empty it.

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

use super::doorbell::Doorbell;

/// The queue was full: here is what did not fit.
#[derive(Debug, Eq, PartialEq)]
pub struct Full<T>(pub T);

/// Things for a thread, in the order in which each giver left them.
#[derive(Debug)]
pub struct Mailbox<T> {
    queue: ArrayQueue<T>,
    doorbell: Arc<Doorbell>,
}

impl<T> Mailbox<T> {
    /// A queue of `slots` places.
    pub fn new(slots: usize, doorbell: Arc<Doorbell>) -> Self {
        Self { queue: ArrayQueue::new(slots), doorbell }
    }

    /// Leaves something, and wakes the owner if it sleeps.
    ///
    /// # Errors
    ///
    /// [`Full`] gives it back. Where the number of places is the number of things that can be
    /// under way at once, that is a bug and not a load.
    pub fn leave(&self, thing: T) -> Result<(), Full<T>> {
        self.queue.push(thing).map_err(Full)?;
        self.doorbell.ring();
        Ok(())
    }

    /// Takes the oldest thing out.
    pub fn take(&self) -> Option<T> {
        self.queue.pop()
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// How many things are there.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// The bell of whoever empties this.
    pub fn doorbell(&self) -> &Arc<Doorbell> {
        &self.doorbell
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_sleeper_finds_everything_that_several_givers_leave_in_each_givers_order() {
        const GIVERS: usize = 3;
        const EACH: usize = if cfg!(miri) { 60 } else { 20_000 };
        let mailbox = Arc::new(Mailbox::new(64, Arc::new(Doorbell::for_thread())));
        let givers: Vec<_> = (0..GIVERS)
            .map(|giver| {
                let mailbox = Arc::clone(&mailbox);
                thread::spawn(move || {
                    for number in 0..EACH {
                        let mut thing = (giver, number);
                        while let Err(Full(back)) = mailbox.leave(thing) {
                            thing = back;
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut next = [0; GIVERS];
        for _ in 0..GIVERS * EACH {
            let (giver, number) = loop {
                match mailbox.take() {
                    Some(thing) => break thing,
                    None => mailbox.doorbell().sleep_unless(|| !mailbox.is_empty()),
                }
            };
            assert_eq!(number, next[giver]);
            next[giver] += 1;
        }
        givers.into_iter().for_each(|giver| giver.join().unwrap());
        assert!(mailbox.is_empty());
    }
}
