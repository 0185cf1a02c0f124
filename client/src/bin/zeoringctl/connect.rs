//! Which server, and how to reach it: the options that every command has.

use std::path::PathBuf;
use std::time::Duration;

use zeoring_client::cache::CacheOptions;
use zeoring_client::tls::{Authenticate, TlsOptions};
use zeoring_client::{Access, Address, DrivenClient, Options};

use crate::Opened;

/// The server and the way to it.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Connect {
    /// Where it listens: PORT, HOST:PORT, `[IPV6]:PORT`, or the path of a Unix socket.
    pub(crate) server: Address,
    #[command(flatten)]
    pub(crate) way: Way,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// How to reach a server.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Way {
    /// The storage.
    #[arg(long, default_value = "1")]
    storage: String,
    /// Seconds to wait for the connection, and for each answer.
    #[arg(long, default_value = "30", value_parser = seconds)]
    timeout: Duration,
    /// Encrypt, and trust this certificate, this folder of them, or DYNAMIC: the system's.
    #[arg(long, value_name = "FILE|FOLDER|DYNAMIC")]
    tls: Option<PathBuf>,
    /// Our certificate, for servers that ask for one.
    #[arg(long, value_name = "FILE", requires = "tls")]
    certificate: Option<PathBuf>,
    /// The key of our certificate [default: in the certificate's file].
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// The name that the server's certificate must have [default: the host's].
    #[arg(long, value_name = "NAME", requires = "tls")]
    server_hostname: Option<String>,
    /// Do not compare the name of the server's certificate.
    #[arg(long, requires = "tls")]
    no_check_hostname: bool,
}

impl Connect {
    /// Connects, to read.
    pub(crate) fn open(&self) -> Opened {
        self.way.open(&self.server, Access::Read)
    }
}

impl Way {
    /// Connects.
    pub(crate) fn open(&self, server: &Address, access: Access) -> Opened {
        self.open_storage(server, None, access)
    }

    /// Connects to another storage than the usual one, if it is named.
    pub(crate) fn open_storage(
        &self,
        server: &Address,
        storage: Option<&str>,
        access: Access,
    ) -> Opened {
        let tls = self.tls.as_ref().map(|authenticate| TlsOptions {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            authenticate: Authenticate::from_setting(authenticate),
            check_hostname: !self.no_check_hostname,
            server_hostname: self.server_hostname.clone(),
        });
        DrivenClient::open(Options {
            storage: storage.unwrap_or(&self.storage).to_owned(),
            label: Some("zeoringctl".to_owned()),
            access,
            wait: self.timeout,
            deadline: self.timeout,
            // Nobody is in a hurry here, and whoever shares the machine wants the processor.
            spin: Duration::ZERO,
            cache: CacheOptions { memory_max: 0, ..CacheOptions::default() },
            tls,
            ..Options::new([server.clone()])
        })
    }
}

/// Reads a time: so many seconds, with or without a fraction.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| format!("{text:?} is not a number of seconds"))
}
