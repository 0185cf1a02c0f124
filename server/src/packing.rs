//! The thread that packs a storage: started by a client's call, at most one for each storage.
//!
//! Does nothing on a reactor and nothing on the commit thread but to hand over what it has written:
//! see [`crate::storage::pack`].

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use zeoring_shared::ids::Tid;
use zeoring_shared::ring::Full;
use zeoring_shared::wire::MessageId;
use zeoring_shared::wire::reply::ErrorReply;

use crate::commit::thread::Succession;
use crate::log::{self, Severity, Source};
use crate::note::{ConnectionId, Note, Packed, Post};
use crate::service::Service;
use crate::session::refusal;
use crate::storage::pack::{Handover, Outcome, Phase, Progress, Successor};
use crate::storage::{StorageError, View};

/// How much a pack gives way to those who are served: a tenth of a processor that all want.
const NICENESS: i32 = 10;

/// What is known about the pack of one storage.
#[derive(Debug, Default)]
pub struct Packer {
    under_way: Mutex<Option<UnderWay>>,
    stopping: AtomicBool,
}

#[derive(Debug)]
struct UnderWay {
    progress: Arc<Progress>,
    /// `None` while the thread is being started.
    thread: Option<JoinHandle<()>>,
    ended: Arc<AtomicBool>,
}

/// A pack that a client asks for.
#[derive(Debug)]
pub struct Errand {
    /// The pack time, in seconds since 1970, for the log.
    pub time: f64,
    /// The same as an id: what was current then is kept.
    pub stop: Tid,
    /// Who waits for the end, and the id of the call.
    pub asker: Option<(ConnectionId, MessageId)>,
    /// How the log names the client.
    pub label: String,
}

impl Packer {
    /// How far a pack has come, if one is under way.
    pub fn progress(&self) -> Option<(Phase, u64, u64)> {
        let under_way = self.under_way();
        let current = under_way.as_ref().filter(|pack| !pack.ended.load(Ordering::Acquire))?;
        Some(current.progress.now())
    }

    /// Makes a pack that is under way give up, waits for its end, and lets no other begin.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        let Some(UnderWay { progress, thread, .. }) = self.under_way().take() else { return };
        progress.give_up();
        if let Some(thread) = thread {
            // A thread that panicked has said so on stderr.
            drop(thread.join());
        }
    }

    fn under_way(&self) -> MutexGuard<'_, Option<UnderWay>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts to pack a storage. Its end is told to every reactor.
///
/// # Errors
///
/// A pack is under way already, or there is no thread to be had: what the client is told.
pub fn start(service: &Arc<Service>, post: &Post, errand: Errand) -> Result<(), ErrorReply> {
    if service.poisoned.load(Ordering::Acquire) {
        return Err(refusal::of(&StorageError::Poisoned));
    }
    let mut under_way = service.packer.under_way();
    let busy = under_way.as_ref().is_some_and(|pack| !pack.ended.load(Ordering::Acquire));
    if busy || service.packer.stopping.load(Ordering::Acquire) {
        return Err(ErrorReply::file_storage_error("Already packing"));
    }
    let (progress, ended) = (Arc::new(Progress::default()), Arc::new(AtomicBool::new(false)));
    let thread = thread::Builder::new().name(format!("pack-{}", service.place)).spawn({
        let (service, post) = (Arc::clone(service), post.clone());
        let (progress, ended) = (Arc::clone(&progress), Arc::clone(&ended));
        move || pack(&service, &post, errand, &progress, &ended)
    });
    let thread = thread.map_err(|error| {
        let text = format_args!("no thread to pack: {error}");
        log::event(Source::SERVER, Severity::Error, "", text);
        ErrorReply::storage_error("no thread to pack")
    })?;
    *under_way = Some(UnderWay { progress, thread: Some(thread), ended });
    Ok(())
}

fn pack(
    service: &Arc<Service>,
    post: &Post,
    errand: Errand,
    progress: &Progress,
    ended: &AtomicBool,
) {
    let Errand { time, stop, asker, label } = errand;
    let say = |severity, text: &str| {
        log::event(Source::SERVER, severity, &label, format_args!("pack(time={time:?}) {text}"));
    };
    say(Severity::Info, "started...");
    if service.storage.view().data_file().is_some() {
        // Whoever is served comes first: the pack of a file can wait, and holds nothing that others
        // wait for. On Linux this is the niceness of the thread.
        let _ = rustix::process::nice(NICENESS);
    }
    // Whoever waits is answered, whatever happens; what it was is on stderr.
    let packing = || service.storage.pack(stop, progress, service);
    let outcome = panic::catch_unwind(AssertUnwindSafe(packing))
        .unwrap_or_else(|_| Err(StorageError::Refused("the pack has failed".to_owned())));
    match &outcome {
        Ok(Outcome::Packed { before, after }) => {
            say(Severity::Info, &format!("complete: {before} bytes before, {after} after"));
        }
        Ok(Outcome::Nothing) => say(Severity::Info, "complete: nothing to remove"),
        Ok(Outcome::Redundant) => say(
            Severity::Info,
            "complete: the database was packed to a later time, or nothing has changed since",
        ),
        Err(error) => say(Severity::Error, &format!("failed: {error}")),
    }
    let sizes = || (service.storage.object_count(), service.storage.size());
    let outcome = outcome.map(|_| sizes()).map_err(|error| refusal::of(&error));
    let packed = Arc::new(Packed { storage: service.place, asker, outcome });
    // A client that hears of the end may ask for the next pack at once.
    ended.store(true, Ordering::Release);
    for reactor in 0..post.reactor_count() {
        post.tell(reactor, Note::Packed(Arc::clone(&packed)));
    }
}

impl Handover for Arc<Service> {
    fn hand_over(&self, successor: Successor) -> Result<Arc<dyn View>, StorageError> {
        let (reply, outcome) = mpsc::channel();
        let mut succession = Succession { successor, reply };
        while let Err(Full(back)) = self.successions.leave(succession) {
            debug_assert!(false, "there is one pack at a time");
            succession = back;
            thread::yield_now();
        }
        // The commit thread ends after all packs have.
        outcome.recv().unwrap_or(Err(StorageError::Poisoned))
    }
}
