//! What a client does about blobs: looks for one, asks the server for it where it is missing, and
//! waits while somebody else is at it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use zeoring_shared::ids::{Oid, Tid};

use super::{BlobDirectory, BlobError, Download, Stamp};
use crate::client::{TRIES_MAX, Zeo, unexpected};
use crate::driver::Driver;
use crate::error::ClientError;
use crate::session::Answer;
use crate::session::order::{Order, Question};

/// How often a lock of a blob folder is looked at that somebody else has: as often as Python's
/// clients look (`ZEO/ClientStorage.py`, `_lock_blob`).
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// How often that is done for a blob that was committed: it is in the server, and can be fetched.
const KEEP_TRIES: u32 = 100;

/// What a storage with blobs says that it provides.
const INTERFACE: &str = "IBlobStorage";

impl<D: Driver> Zeo<D> {
    pub(crate) async fn load_blob_(&self, oid: Oid, serial: Tid) -> Result<PathBuf, ClientError> {
        self.find_blob(oid, serial, |path| Ok(path.to_owned())).await
    }

    pub(crate) async fn open_blob_(&self, oid: Oid, serial: Tid) -> Result<File, ClientError> {
        self.find_blob(oid, serial, |path| File::open(path)).await
    }

    /// Finds the file of a blob, or fetches it, and uses it. What was just fetched cannot be dropped
    /// from the cache meanwhile.
    async fn find_blob<R>(
        &self,
        oid: Oid,
        serial: Tid,
        take: fn(&Path) -> io::Result<R>,
    ) -> Result<R, ClientError> {
        let blobs = self.blobs()?;
        let mut tries = 0;
        let (mut arrived_before, mut moved) = (None, Instant::now());
        loop {
            let into = match blobs.download(oid, serial)? {
                Download::Here(path) => match take(&path) {
                    // Dropped since it was found: looked for again.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    taken => return taken.map_err(|error| BlobError::reading(&path, error).into()),
                },
                Download::Wanted(into) => into,
                Download::Busy { arrived } => {
                    if arrived_before.replace(arrived) != Some(arrived) {
                        moved = Instant::now();
                    }
                    let waited = moved.elapsed();
                    if self.deadline() <= waited {
                        return Err(BlobError::Stalled { oid, waited }.into());
                    }
                    self.pass(blobs).await;
                    continue;
                }
            };
            if !self.driver().standing().is_connected() {
                // Others may have a connection, and fetch meanwhile.
                drop(into);
                self.tie().await?;
                continue;
            }
            self.storage_keeps_blobs()?;
            tries += 1;
            let order = Order::any(Question::Blob { oid, serial, into });
            match self.driver().call(order, Some(self.deadline())).await {
                Ok(Answer::Blob(received)) => {
                    let path = received.publish()?;
                    return take(&path).map_err(|error| BlobError::reading(&path, error).into());
                }
                Err(ClientError::Disconnected(_)) if tries < TRIES_MAX => {}
                // A large blob takes its time. It goes on arriving, and is waited for as if
                // somebody else had asked for it.
                Err(ClientError::Deadline { .. })
                    if tries < TRIES_MAX && blobs.is_coming(oid, serial) => {}
                Err(error) => return Err(error),
                Ok(other) => return unexpected("sendBlob", &other),
            }
        }
    }

    /// Servers end the connection over the blobs of a storage that has none.
    pub(crate) fn storage_keeps_blobs(&self) -> Result<(), ClientError> {
        let is_of_blobs = |name: &String| name.rsplit('.').next() == Some(INTERFACE);
        let lacks = self.view().info().is_some_and(|info| !info.interfaces.iter().any(is_of_blobs));
        if lacks { Err(BlobError::NotKept.into()) } else { Ok(()) }
    }

    /// Puts the file of a blob that was committed where blobs are kept. The server has it in any
    /// case: what cannot be kept is fetched from there when it is wanted.
    pub(crate) async fn keep_blob(&self, oid: Oid, tid: Tid, file: &Path, stored: &Stamp) {
        let Ok(blobs) = self.blobs() else { return };
        for _ in 0..KEEP_TRIES {
            match blobs.keep(oid, tid, file, stored) {
                Ok(Some(_)) => return,
                Ok(None) => self.pass(blobs).await,
                Err(_) => break,
            }
        }
        blobs.give_up(file, stored);
    }

    async fn pass(&self, blobs: &BlobDirectory) {
        self.driver().wait_at(&blobs.pause, LOCK_PAUSE, |()| None::<()>).await;
    }
}
