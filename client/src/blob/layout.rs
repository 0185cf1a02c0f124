//! What the files of blobs are called, in each of the layouts that ZODB and ZEO have.
//!
//! | layout | blob 3e7 of transaction 3f2 is in |
//! |---|---|
//! | `bushy` | `0x00/0x00/0x00/0x00/0x00/0x00/0x03/0xe7/0x03f2.blob` |
//! | `lawn` | `0x03e7/0x03f2.blob` |
//! | `zeocache` | `2/1.00000000000003f2.blob` |

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use zeoring_shared::ids::{Oid, Tid};

/// The file that says which layout a directory has.
pub(super) const MARKER: &str = ".layout";

/// Ends the name of each blob's file.
pub(super) const SUFFIX: &str = ".blob";

/// Folders of a cache (`ZEO/ClientStorage.py`, `BlobCacheLayout`).
const FOLDERS: u64 = 997;

/// How blobs are spread over folders.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Layout {
    /// Eight levels of folders, one a byte of the oid: what servers use.
    Bushy,
    /// One folder an object: what old servers used.
    Lawn,
    /// A fixed number of folders: what clients use.
    Cache,
}

impl Layout {
    /// What the marker says.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Bushy => "bushy",
            Self::Lawn => "lawn",
            Self::Cache => "zeocache",
        }
    }

    /// The layout of a server's directory (`ZODB/blob.py`, `auto_layout_select`): what its marker
    /// says; without one, an unused directory is bushy, and one with files is older than markers.
    /// What a marker says that is neither comes back as the error within.
    pub(super) fn of_server(directory: &Path) -> io::Result<Result<Self, String>> {
        if let Some(name) = marker(directory)? {
            let known = [Self::Bushy, Self::Lawn].into_iter().find(|layout| layout.name() == name);
            return Ok(known.ok_or(name));
        }
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok(Self::Bushy)),
            entries => entries?,
        };
        for entry in entries {
            if !entry?.file_name().as_encoded_bytes().starts_with(b".") {
                return Ok(Ok(Self::Lawn));
            }
        }
        Ok(Ok(Self::Bushy))
    }

    /// The folder of an object's blobs, within the directory.
    pub(super) fn folder(self, oid: Oid) -> PathBuf {
        match self {
            Self::Bushy => oid.to_bytes().iter().map(|byte| format!("0x{byte:02x}")).collect(),
            Self::Lawn => short(oid.to_bytes()).into(),
            Self::Cache => (oid.0 % FOLDERS).to_string().into(),
        }
    }

    /// The file of a blob, within the directory.
    pub(super) fn file(self, oid: Oid, serial: Tid) -> PathBuf {
        let name = match self {
            Self::Bushy | Self::Lawn => format!("{}{SUFFIX}", short(serial.to_bytes())),
            Self::Cache => format!("{}.{serial}{SUFFIX}", oid.0 / FOLDERS),
        };
        self.folder(oid).join(name)
    }
}

/// What the marker of a directory says; `None` if it has none.
pub(super) fn marker(directory: &Path) -> io::Result<Option<String>> {
    match fs::read(directory.join(MARKER)) {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// An id as ZODB writes it in names: without the zero bytes that it begins with
/// (`ZODB/utils.py`, `oid_repr`).
fn short(id: [u8; 8]) -> String {
    let zeros = id.iter().take_while(|byte| **byte == 0).count().min(7);
    let digits: String = id[zeros..].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{digits}")
}
