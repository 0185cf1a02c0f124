//! Blobs of a transaction: from a file to the server, and after the commit to where blobs are kept.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::request::Request;

use super::{Open, Transaction};
use crate::blob::{BlobError, CHUNK_LENGTH, Staged, Stamp};
use crate::driver::Driver;
use crate::error::ClientError;

/// What a transaction has done about blobs.
#[derive(Default)]
pub(super) struct Blobs {
    /// Files that the server has or will have; the last one of an object counts.
    files: Vec<(Oid, PathBuf, Stamp)>,
    /// Files that were put where the server takes them over, and of which it has not heard.
    staged: Vec<Staged>,
    /// The one that is being stored. Where one stays, something went wrong with it, or nobody
    /// waited for its end: the transaction is good for nothing but its abort.
    upload: Option<(Oid, Stage)>,
}

/// How far a blob is.
#[derive(Clone, Copy)]
enum Stage {
    /// The object comes first.
    Ahead,
    /// Its beginning has gathered.
    Begun,
    /// The server has heard of its beginning, and waits for its end.
    Sent,
}

impl Blobs {
    /// The object whose blob was not stored to its end.
    pub(super) fn unfinished(&self) -> Option<Oid> {
        self.upload.map(|(oid, _)| oid)
    }

    /// Hears that what has gathered leaves.
    pub(super) fn tell(&mut self) {
        if let Some((_, stage @ Stage::Begun)) = &mut self.upload {
            *stage = Stage::Sent;
        }
        self.staged.drain(..).for_each(Staged::tell);
    }

    /// Hears that what has gathered is dropped. Tells of which object's blob the server still waits
    /// for the end.
    pub(super) fn drop_unsent(&mut self) -> Option<Oid> {
        self.staged.clear();
        match self.upload.take() {
            Some((oid, Stage::Sent)) => Some(oid),
            _ => None,
        }
    }
}

impl<D: Driver> Transaction<'_, D> {
    pub(super) async fn store_blob_(
        &mut self,
        oid: Oid,
        serial: Tid,
        data: &[u8],
        file: &Path,
    ) -> Result<(), ClientError> {
        let client = self.open.client;
        let is_shared = client.blobs()?.is_shared();
        client.storage_keeps_blobs()?;
        if is_shared {
            self.store_shared(oid, serial, data, file).await
        } else {
            self.send_blob(oid, serial, data, file).await
        }
    }

    async fn store_shared(
        &mut self,
        oid: Oid,
        serial: Tid,
        data: &[u8],
        file: &Path,
    ) -> Result<(), ClientError> {
        let staged = self.open.client.blobs()?.stage_shared(oid, file)?;
        self.open.blobs.upload = Some((oid, Stage::Ahead));
        // Python's clients store the object by itself too, and servers count on that.
        self.store_(oid, serial, data).await?;
        let (filename, data, id) = (staged.name().into(), data.into(), self.open.id);
        self.open.add(Request::StoreBlobShared { oid, serial, data, filename, id });
        self.open.blobs.staged.push(staged);
        self.open.blobs.upload = None;
        self.open.send_if_much().await
    }

    async fn send_blob(
        &mut self,
        oid: Oid,
        serial: Tid,
        data: &[u8],
        file: &Path,
    ) -> Result<(), ClientError> {
        let read = |error| ClientError::from(BlobError::reading(file, error));
        let mut source = File::open(file).map_err(read)?;
        let stamp = Stamp::of(&source.metadata().map_err(read)?);
        self.open.blobs.upload = Some((oid, Stage::Ahead));
        // As above.
        self.store_(oid, serial, data).await?;
        self.open.add(Request::StoreBlobStart);
        self.open.blobs.upload = Some((oid, Stage::Begun));
        let mut chunk = vec![0; CHUNK_LENGTH];
        loop {
            let count = source.read(&mut chunk).map_err(read)?;
            if count == 0 {
                break;
            }
            self.open.add(Request::StoreBlobChunk { chunk: (&chunk[..count]).into() });
            self.open.send_if_much().await?;
        }
        let (data, id) = (data.into(), self.open.id);
        self.open.add(Request::StoreBlobEnd { oid, serial, data, id });
        self.open.blobs.upload = None;
        self.open.blobs.files.retain(|(stored, ..)| *stored != oid);
        self.open.blobs.files.push((oid, file.to_owned(), stamp));
        self.open.send_if_much().await
    }
}

impl<D: Driver> Open<'_, D> {
    /// Moves the files of its blobs to where the client keeps blobs.
    pub(super) async fn keep_blobs(&mut self, tid: Tid) {
        for (oid, file, stamp) in std::mem::take(&mut self.blobs.files) {
            self.client.keep_blob(oid, tid, &file, &stamp).await;
        }
    }
}
