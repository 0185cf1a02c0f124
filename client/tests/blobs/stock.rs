//! The stock server with a blob directory, and Python programs that use it.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use zeoring_client::Options;
use zeoring_client::blob::BlobOptions;

/// The program `runzeo` of a Python that has ZEO.
const STOCK: &str = "ZEORING_STOCK_SERVER";

/// How long it may take to start, on a slow machine.
const START_MAX: Duration = Duration::from_secs(60);

/// What each Python program begins with: `storage` is a client of the server.
const PRELUDE: &str = r#"
import binascii, os, sys, hashlib
from ZEO.ClientStorage import ClientStorage, _lock_blob
from ZODB.Connection import TransactionMetaData
from ZODB.utils import p64, z64
port, directory, is_shared = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "shared"
args = sys.argv[4:]
storage = ClientStorage(("127.0.0.1", port), blob_dir=directory, shared_blob_dir=is_shared)
def oid_of(text): return p64(int(text, 16))
def told(data): return hashlib.sha1(data).hexdigest() + " " + str(len(data))
def load(oid, tid):
    with open(storage.loadBlob(oid_of(oid), oid_of(tid)), "rb") as file:
        return file.read()
"#;

/// The server, and the folder of its files.
pub(crate) struct Server {
    pub(crate) folder: TempDir,
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Server {
    /// Starts a server with an empty storage, if there is one.
    pub(crate) fn start() -> Option<Self> {
        let program = std::env::var_os(STOCK)?;
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let config = folder.path().join("zeo.conf");
        let text = format!(
            "<zeo>\n address {address}\n</zeo>\n\
             <filestorage 1>\n path {}\n blob-dir {}\n</filestorage>\n",
            folder.path().join("Data.fs").display(),
            folder.path().join("blobs").display()
        );
        fs::write(&config, text).unwrap();
        let output = File::create(folder.path().join("server.out")).unwrap();
        let mut child = Command::new(program)
            .arg("-C")
            .arg(&config)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let begin = Instant::now();
        while TcpStream::connect(address).is_err() {
            let is_alive = child.try_wait().unwrap().is_none() && begin.elapsed() < START_MAX;
            assert!(is_alive, "{}", fs::read_to_string(folder.path().join("server.out")).unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Self { folder, address, child })
    }

    /// Where the blobs are of clients that say so.
    pub(crate) fn cache(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A client with a blob cache.
    pub(crate) fn cached(&self, name: &str) -> Options {
        let mut options = Options::new([self.address.into()]);
        options.blobs = Some(BlobOptions::new(self.cache(name)));
        options
    }

    /// A client that shares the server's blob directory.
    pub(crate) fn shared(&self) -> Options {
        let mut options = Options::new([self.address.into()]);
        options.blobs = Some(BlobOptions::shared(self.folder.path().join("blobs")));
        options
    }

    /// Starts a Python program, with a client whose blobs are in a cache of this name, or in the
    /// server's directory if it is `None`.
    pub(crate) fn python(&self, cache: Option<&str>, program: &str, args: &[&str]) -> Python {
        let runzeo = std::env::var_os(STOCK).unwrap();
        let python = Path::new(&runzeo).with_file_name("python");
        let child = Command::new(python)
            .arg("-c")
            .arg(format!("{PRELUDE}{program}\nstorage.close()\n"))
            .arg(self.address.port().to_string())
            .arg(self.cache(cache.unwrap_or("blobs")))
            .arg(if cache.is_none() { "shared" } else { "cache" })
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Python { child: child.unwrap() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A server may sleep through SIGTERM: its files go anyway.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A Python program that runs.
pub(crate) struct Python {
    pub(crate) child: Child,
}

impl Python {
    /// Waits for its end, and tells what it printed.
    pub(crate) fn printed(self) -> String {
        let output = self.child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}
