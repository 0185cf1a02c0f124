//! The processes a measurement needs at the other end, which never outlive it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use zeoring_client::{Access, Address, DrivenClient, Options};

use crate::error::{BenchError, doing};
use crate::machine::{SERVER_CPU, pinned};

/// A server that has not answered by then does not come up.
const START_MAX: Duration = Duration::from_secs(20);

/// How much of a dead server's log an error shows.
const LOG_LINES_SHOWN: usize = 12;

/// Kills the process when it goes out of scope, however that happens.
pub(crate) struct Guard(pub(crate) Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A responder: this program again, as a process of its own, as the servers are.
pub(crate) struct Responder {
    address: SocketAddr,
    _process: Guard,
}

impl Responder {
    /// Starts `zeoring-bench respond KIND`, pinned to the server's CPU.
    pub(crate) fn start(kind: &str) -> Result<Self, BenchError> {
        let program = std::env::current_exe().map_err(doing("finding this program"))?;
        let mut command = Command::new(program);
        command.args(["respond", kind]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = pinned(&[SERVER_CPU], || {
            Ok(Guard(command.spawn().map_err(doing("starting a responder"))?))
        })?;
        let stdout = process.0.stdout.take().expect("its standard output is a pipe");
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .map_err(doing("reading the address of a responder"))?;
        let address = line.trim().parse().map_err(|_| BenchError::WrongAnswer {
            peer: "responder",
            fact: "it printed no address",
        })?;
        Ok(Self { address, _process: process })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// How to start a ZEO server.
#[derive(Clone, Debug)]
pub(crate) enum Program {
    /// Our server: the path of its binary.
    Zeoring(PathBuf),
    /// The stock server: the path of a Python that has the package `ZEO`.
    Stock(PathBuf),
}

impl Program {
    /// How reports call it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Zeoring(_) => "server",
            Self::Stock(_) => "stock",
        }
    }
}

/// A ZEO server on a fresh FileStorage in a directory of its own.
pub(crate) struct Server {
    name: &'static str,
    socket: SocketAddr,
    process: Guard,
    folder: PathBuf,
    /// The folder, if it is to go away with the server.
    directory: Option<TempDir>,
}

impl Server {
    /// Starts a server bound to `cpus`, and waits until a client can register.
    ///
    /// Its data file lies in a new directory below `parent`, which goes away with it.
    pub(crate) fn start(
        program: &Program,
        cpus: &[usize],
        parent: &Path,
    ) -> Result<Self, BenchError> {
        let directory = TempDir::with_prefix_in("zeoring-bench-", parent)
            .map_err(doing("making a temporary directory"))?;
        let mut server = Self::start_in(program, cpus, directory.path())?;
        server.directory = Some(directory);
        Ok(server)
    }

    /// The same on `Data.fs` in a directory that there is, and that stays.
    pub(crate) fn start_in(
        program: &Program,
        cpus: &[usize],
        folder: &Path,
    ) -> Result<Self, BenchError> {
        let socket = free_port()?;
        let mut command = match program {
            Program::Zeoring(path) => {
                let mut command = Command::new(path);
                command.args(["--reactors", "1", "--spin-us", "1000"]);
                command
            }
            Program::Stock(python) => {
                let mut command = Command::new(python);
                command.args(["-m", "ZEO.runzeo"]);
                command
            }
        };
        let log = File::create(folder.join("log")).map_err(doing("making a log file"))?;
        let log_too = log.try_clone().map_err(doing("making a log file"))?;
        command.arg("-a").arg(socket.to_string());
        command.arg("-f").arg(folder.join("Data.fs"));
        command.stdin(Stdio::null()).stdout(log).stderr(log_too);
        let process =
            pinned(cpus, || Ok(Guard(command.spawn().map_err(doing("starting a ZEO server"))?)))?;
        let folder = folder.to_owned();
        let mut server = Self { name: program.name(), socket, process, folder, directory: None };
        server.wait_until_it_answers()?;
        Ok(server)
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> SocketAddr {
        self.socket
    }

    /// Where it listens, as clients say it.
    pub(crate) fn address(&self) -> Address {
        Address::from(self.socket)
    }

    /// The data file that it serves.
    pub(crate) fn data_file(&self) -> PathBuf {
        self.folder.join("Data.fs")
    }

    /// Lets it stop in order: it saves its index.
    pub(crate) fn stop(mut self) -> Result<(), BenchError> {
        let child = &mut self.process.0;
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .map_err(|e| doing("stopping a server")(e.into()))?;
        child.wait().map_err(doing("waiting for the end of a server"))?;
        Ok(())
    }

    /// The server's resident memory in bytes: `VmRSS` of `/proc/PID/status`.
    pub(crate) fn resident_bytes(&self) -> Result<u64, BenchError> {
        let path = format!("/proc/{}/status", self.process.0.id());
        let status = fs::read_to_string(path).map_err(doing("reading the server's memory"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        let Some(kib) = kib else {
            return Err(BenchError::WrongAnswer { peer: "/proc", fact: "it has no VmRSS" });
        };
        Ok(kib * 1024)
    }

    fn wait_until_it_answers(&mut self) -> Result<(), BenchError> {
        let deadline = Instant::now() + START_MAX;
        let address = self.address();
        loop {
            let options = Options {
                access: Access::Read,
                wait: Duration::from_secs(1),
                ..Options::new([address.clone()])
            };
            if DrivenClient::open(options).is_ok() {
                return Ok(());
            }
            if let Ok(Some(_)) = self.process.0.try_wait() {
                return Err(self.failure("went away at its start"));
            }
            if deadline < Instant::now() {
                return Err(self.failure("does not answer"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn failure(&self, fact: &'static str) -> BenchError {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        BenchError::Server { name: self.name, fact, log: shown.join("\n") }
    }
}

/// A loopback port that nobody listens on now.
fn free_port() -> Result<SocketAddr, BenchError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(doing("finding a port"))?;
    listener.local_addr().map_err(doing("finding a port"))
}
