//! A server in this process, and clients that speak to it over real sockets, byte by byte.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

pub mod house;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use zeoring_server::config::{
    Address, FileSettings, LogSettings, Reactors, Settings, StorageKind, StorageSettings, Tuning,
};
use zeoring_server::server::{Bound, Server};
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::io::{Access, Disk, DiskFile, Machine};
use zeoring_shared::wire::frame::split_frame;
use zeoring_shared::wire::handshake;
use zeoring_shared::wire::reply::{FromServer, decode_from_server};
use zeoring_shared::wire::request::{Call, Request, TransactionId, encode_call};
use zeoring_shared::wire::value::Value;
use zeoring_shared::wire::{Codec, MessageId};

/// A test that waits longer than this for bytes has failed, and says so.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Settings of a server on a free loopback port with an empty FileStorage in `folder`.
pub fn settings(folder: &Path) -> Settings {
    Settings {
        address: Address::Tcp { host: Some("127.0.0.1".to_owned()), port: 0 },
        read_only: false,
        invalidation_queue_size: 100,
        invalidation_age: None,
        transaction_timeout: Some(Duration::from_secs(30)),
        pid_file: None,
        msgpack: false,
        client_conflict_resolution: true,
        storages: vec![StorageSettings {
            name: "1".to_owned(),
            kind: StorageKind::File(FileSettings {
                path: folder.join("Data.fs"),
                create: false,
                read_only: false,
                quota_bytes: None,
                blob_dir: None,
                packer: None,
                pack_gc: true,
                pack_keep_old: true,
            }),
        }],
        log: LogSettings { handlers: Vec::new(), ..LogSettings::default() },
        tuning: Tuning { reactors: Reactors::Count(2.try_into().unwrap()), ..Tuning::default() },
        stop_at_once: false,
        notices: Vec::new(),
    }
}

/// A server that stops when the test ends.
pub struct Running {
    server: Option<Server>,
    address: SocketAddr,
}

impl Running {
    /// Starts with these settings on this machine.
    pub fn start(settings: &Settings, machine: &Machine) -> Self {
        let server = Server::start(settings, machine).unwrap();
        let Bound::Tcp(addresses) = server.address().clone() else {
            panic!("the settings say TCP");
        };
        Self { server: Some(server), address: addresses[0] }
    }

    /// A connection that has done nothing yet.
    pub fn socket(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(WAIT_MAX)).unwrap();
        socket.set_nodelay(true).unwrap();
        socket
    }

    /// A connection that has shaken hands and registered with storage `1`.
    pub fn client(&self, codec: Codec) -> Client {
        let mut client = Client::greet(self.socket(), codec);
        let register = Request::Register { storage: "1".into(), read_only: false };
        client.last = tid(&client.call(register));
        client
    }

    /// A client whose good work nobody else should hinder.
    pub fn neighbour(&self, codec: Codec) -> Neighbour {
        let mut client = self.client(codec);
        let oid = match client.call(Request::NewOids { count: 1 }) {
            Heard::Reply(_, Value::List(oids) | Value::Tuple(oids)) => match &oids[..] {
                [Value::Bytes(oid)] => Oid::from_bytes((**oid).try_into().unwrap()),
                other => panic!("{other:?} is no oid"),
            },
            other => panic!("{other:?} are no oids"),
        };
        let mut neighbour = Neighbour { client, oid, serial: Tid::ZERO, commits: 0 };
        neighbour.commit();
        neighbour
    }

    /// Stops the server and closes its storages.
    pub fn stop(mut self) {
        self.server.take().unwrap().stop().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            drop(server.stop());
        }
    }
}

/// Something that a server has sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// The answer to a call.
    Reply(MessageId, Value<'static>),
    /// The answer to a load.
    Load(MessageId, Vec<u8>, Tid, Option<Tid>),
    /// An error: the class, and its arguments.
    Error(MessageId, String, Value<'static>),
    /// `invalidateTransaction`
    Invalidate(Tid, Vec<Oid>),
    /// Another asynchronous call.
    Notice(String),
}

/// A client that hears everything in the order in which it came.
pub struct Client {
    socket: TcpStream,
    codec: Codec,
    inbound: Vec<u8>,
    calls: u32,
    /// What was heard while waiting for something else.
    pub heard: VecDeque<Heard>,
    /// The tid that registration answered.
    pub last: Tid,
}

impl Client {
    /// Shakes hands.
    pub fn greet(socket: TcpStream, codec: Codec) -> Self {
        let mut client = Self { codec, ..Self::raw(socket) };
        let announcement = client.frame().unwrap();
        handshake::read_announcement(&announcement).unwrap();
        let mut answer = Vec::new();
        handshake::answer(codec, &mut answer);
        client.send(&answer);
        client
    }

    /// Begins to speak without having shaken hands.
    pub fn raw(socket: TcpStream) -> Self {
        let codec = Codec::Pickle;
        Self {
            socket,
            codec,
            inbound: Vec::new(),
            calls: 0,
            heard: VecDeque::new(),
            last: Tid::ZERO,
        }
    }

    /// The socket itself.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Sends bytes as they are, though the server may have closed the connection.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// Sends the same bytes again and again until the server closes the connection.
    pub fn is_closed_while_sending(&mut self, bytes: &[u8]) {
        let start = std::time::Instant::now();
        while self.try_send(bytes).is_ok() {
            assert!(start.elapsed() < WAIT_MAX, "the server listens for ever");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for the server to close the connection; what it says before does not matter.
    pub fn is_closed(&mut self) {
        while self.frame().is_some() {}
    }

    /// The same connection, to write on another thread.
    pub fn twin(&self) -> TcpStream {
        self.socket.try_clone().unwrap()
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// The next frame's body, or `None` at the end of the stream.
    pub fn frame(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(frame) = split_frame(&self.inbound, u32::MAX).unwrap() {
                let body = frame.body.to_vec();
                let rest = frame.rest.len();
                self.inbound.drain(..self.inbound.len() - rest);
                return Some(body);
            }
            let mut chunk = [0; 65536];
            match self.socket.read(&mut chunk) {
                Ok(0) => return None,
                Ok(count) => self.inbound.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing came: {error}"),
            }
        }
    }

    /// The next thing that the server says, or `None` once it has closed the connection.
    pub fn hear(&mut self) -> Option<Heard> {
        if let Some(heard) = self.heard.pop_front() {
            return Some(heard);
        }
        let codec = self.codec;
        let body = self.frame()?;
        Some(match decode_from_server(codec, &body).unwrap() {
            FromServer::Reply { id, value } => Heard::Reply(id, value.into_owned()),
            FromServer::Load { id, data, serial, end } => {
                Heard::Load(id, data.to_vec(), serial, end)
            }
            FromServer::Error { id, class, args } => {
                Heard::Error(id, class.into_owned(), args.into_owned())
            }
            FromServer::Invalidate { tid, oids } => Heard::Invalidate(tid, oids),
            FromServer::Notice { name, .. } => Heard::Notice(name.into_owned()),
        })
    }

    /// Sends a call that wants a reply, without waiting for it.
    pub fn ask(&mut self, request: Request<'_>) -> MessageId {
        self.calls += 1;
        let id = MessageId::int(self.codec, self.calls);
        let mut bytes = Vec::new();
        let call = Call { id: id.clone(), oneway: false, request };
        encode_call(self.codec, &call, &mut bytes);
        self.send(&bytes);
        id
    }

    /// Sends a call that wants no reply.
    pub fn tell(&mut self, request: Request<'_>) {
        let mut bytes = Vec::new();
        let call = Call { id: MessageId::int(self.codec, 0), oneway: true, request };
        encode_call(self.codec, &call, &mut bytes);
        self.send(&bytes);
    }

    /// Waits for the answer to a call; what else is heard meanwhile is kept.
    pub fn answer(&mut self, wanted: &MessageId) -> Heard {
        let mut others = VecDeque::new();
        let answer = loop {
            let heard = self.hear().expect("the server answers before it closes");
            match &heard {
                Heard::Reply(id, ..) | Heard::Load(id, ..) | Heard::Error(id, ..)
                    if id == wanted =>
                {
                    break heard;
                }
                _ => others.push_back(heard),
            }
        };
        others.append(&mut self.heard);
        self.heard = others;
        answer
    }

    /// Calls, and waits for the answer.
    pub fn call(&mut self, request: Request<'_>) -> Heard {
        let id = self.ask(request);
        self.answer(&id)
    }

    /// Loads what an object was before a transaction.
    pub fn load(&mut self, oid: Oid, before: Tid) -> Heard {
        self.call(Request::LoadBefore { oid, before })
    }

    /// Begins a transaction and stores these objects, each with its serial and data.
    pub fn store(&mut self, id: u64, objects: &[(Oid, Tid, &[u8])]) {
        self.tell(begin(id));
        for (oid, serial, data) in objects {
            self.tell(Request::Storea {
                oid: *oid,
                serial: *serial,
                data: (*data).into(),
                id: TransactionId(id),
            });
        }
    }

    /// Votes for and finishes the transaction that has begun.
    pub fn commit(&mut self, id: u64) -> Tid {
        let vote = self.call(Request::Vote { id: TransactionId(id) });
        assert!(
            matches!(&vote, Heard::Reply(_, Value::Tuple(list) | Value::List(list)) if list.is_empty()),
            "{vote:?}"
        );
        tid(&self.call(Request::TpcFinish { id: TransactionId(id) }))
    }
}

/// A client that behaves well beside one that does not.
pub struct Neighbour {
    /// Its connection.
    pub client: Client,
    oid: Oid,
    serial: Tid,
    commits: u64,
}

impl Neighbour {
    fn data(&self) -> Vec<u8> {
        format!("state {}", self.commits).into_bytes()
    }

    fn commit(&mut self) {
        self.commits += 1;
        let data = self.data();
        self.client.store(self.commits, &[(self.oid, self.serial, &data)]);
        self.serial = self.client.commit(self.commits);
    }

    /// Loads and commits, and sees that nobody else holds a lock or waits for one.
    pub fn goes_on(&mut self) {
        let loaded = self.client.load(self.oid, Tid::MAX);
        let Heard::Load(_, data, serial, None) = loaded else {
            panic!("{loaded:?} is no current revision");
        };
        assert_eq!((data, serial), (self.data(), self.serial));
        self.commit();
        // A commit is answered before its locks are free.
        self.wait_for_status("lock_time", &Value::None);
        self.wait_for_status("waiting", &Value::Int(0));
    }

    /// One entry of `server_status`.
    pub fn status(&mut self, name: &str) -> Value<'static> {
        let Heard::Reply(_, Value::Dict(entries)) = self.client.call(Request::ServerStatus) else {
            panic!("a status is a dictionary");
        };
        let found = entries.into_iter().find(|(key, _)| *key == Value::Str(name.into()));
        found.expect("the status has that entry").1
    }

    /// Waits until an entry of `server_status` has this value.
    pub fn wait_for_status(&mut self, name: &str, value: &Value<'_>) {
        let start = std::time::Instant::now();
        while self.status(name) != *value {
            assert!(start.elapsed() < WAIT_MAX, "{name} does not become {value:?}");
            std::thread::yield_now();
        }
    }

    /// Waits until so many clients are registered.
    pub fn wait_for_connections(&mut self, count: i64) {
        self.wait_for_status("connections", &Value::Int(count));
    }
}

/// `tpc_begin` without anything to say.
pub fn begin(id: u64) -> Request<'static> {
    Request::TpcBegin {
        id: TransactionId(id),
        user: b"".into(),
        description: b"".into(),
        extension: b"".into(),
        tid: None,
        status: b' ',
    }
}

/// The tid that a reply is.
pub fn tid(heard: &Heard) -> Tid {
    match heard {
        Heard::Reply(_, Value::Bytes(bytes)) => {
            Tid::from_bytes(bytes.as_ref().try_into().expect("a tid has eight bytes"))
        }
        other => panic!("{other:?} is no tid"),
    }
}

/// A disk whose data files are never in memory, and whose reads or syncs wait until they may go on.
#[derive(Debug)]
pub struct SlowDisk {
    disk: Arc<dyn Disk>,
    reads: Arc<Gate>,
    syncs: Arc<Gate>,
}

/// Where the reads or syncs of a [`SlowDisk`] wait.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    /// How many of the next ones are to be held.
    to_hold: usize,
    held: usize,
    openings: usize,
}

impl Gate {
    /// Holds the next `count` reads until the gate is opened. Others pass.
    pub fn hold(&self, count: usize) {
        self.state.lock().unwrap().to_hold = count;
    }

    /// Lets the reads go on that are held.
    pub fn open(&self) {
        let mut state = self.state.lock().unwrap();
        state.openings += 1;
        state.to_hold = 0;
        self.changed.notify_all();
    }

    /// Waits until that many reads are held.
    pub fn wait_for(&self, count: usize) {
        let state = self.state.lock().unwrap();
        let (_state, timeout) =
            self.changed.wait_timeout_while(state, WAIT_MAX, |state| state.held < count).unwrap();
        assert!(!timeout.timed_out(), "no read came to the gate");
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        if state.to_hold == 0 {
            return;
        }
        state.to_hold -= 1;
        state.held += 1;
        self.changed.notify_all();
        let opening = state.openings;
        while state.openings == opening {
            state = self.changed.wait(state).unwrap();
        }
        state.held -= 1;
    }
}

impl SlowDisk {
    /// This machine, but with a disk that is slow to read.
    pub fn machine() -> (Machine, Arc<Gate>) {
        let (machine, reads, _) = Self::machine_and_gates();
        (machine, reads)
    }

    /// This machine, but with a disk that is slow to sync.
    pub fn slow_to_sync() -> (Machine, Arc<Gate>) {
        let (machine, _, syncs) = Self::machine_and_gates();
        (machine, syncs)
    }

    fn machine_and_gates() -> (Machine, Arc<Gate>, Arc<Gate>) {
        let machine = Machine::real();
        let (reads, syncs) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
        let disk = Arc::clone(&machine.disk);
        let disk = Arc::new(Self { disk, reads: Arc::clone(&reads), syncs: Arc::clone(&syncs) });
        (Machine { disk, ..machine }, reads, syncs)
    }
}

impl Disk for SlowDisk {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.open(path, access)?;
        let (reads, syncs) = (Arc::clone(&self.reads), Arc::clone(&self.syncs));
        Ok(Arc::new(SlowFile { file, reads, syncs }))
    }

    fn rename(&self, source: &Path, target: &Path) -> io::Result<()> {
        self.disk.rename(source, target)
    }

    fn link(&self, source: &Path, target: &Path) -> io::Result<()> {
        self.disk.link(source, target)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.disk.exists(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<std::ffi::OsString>> {
        self.disk.list(folder)
    }

    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        self.disk.make_folder(folder)
    }

    fn remove_folder(&self, folder: &Path) -> io::Result<()> {
        self.disk.remove_folder(folder)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.disk.sync_folder(folder)
    }
}

#[derive(Debug)]
struct SlowFile {
    file: Arc<dyn DiskFile>,
    reads: Arc<Gate>,
    syncs: Arc<Gate>,
}

impl DiskFile for SlowFile {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.reads.pass();
        self.file.read_at(buffer, position)
    }

    fn read_at_now(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, position)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.syncs.pass();
        self.file.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.file.set_length(length)
    }

    fn reserve(&self, position: u64, length: u64) -> io::Result<()> {
        self.file.reserve(position, length)
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.file.try_lock()
    }

    fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}
