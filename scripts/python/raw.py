"""A ZEO client as bare as it gets: frames, both codecs, calls, pipelining. No cache, no thread, no manners.

For tests that must see every reply, send calls in any order, or send what no proper client sends. One `Client` is one
connection and belongs to one thread. It reads the socket only while it waits for a reply or is told to.

    client = Client(("127.0.0.1", 8100), codec="M5")
    tid = client.call("lastTransaction")
    waiting = [client.send("loadBefore", oid, MAXTID) for oid in oids]      # pipelined
    replies = [client.receive(each) for each in waiting]
"""

import io
import pickle
import select
import socket
import struct
import time
from collections import deque

import msgpack

Z64 = b"\0" * 8
MAXTID = b"\x7f" + b"\xff" * 7

# A reply may wait for another connection's commit, but no test wants to wait for ever.
REPLY_SECONDS_MAX = 30


class RemoteError(Exception):
    """An error reply: the class's name, and its arguments (a tuple) or attributes (a dict)."""

    def __init__(self, class_name, arguments):
        super().__init__(class_name, arguments)
        self.class_name = class_name
        self.arguments = arguments


class Closed(ConnectionError):
    """The server closed the connection."""


class ServerObject:
    """An object a server may send inside an error: shown as its class and attributes."""

    def __init__(self, name, attributes):
        self.name, self.attributes = name, attributes


def _rebuild(_class_name, attributes):
    return ServerObject("ZODB.POSException.UndoError", {k: v for k, v in attributes.items() if k != "args"})


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) == ("ZODB.POSException", "_recon"):
            return _rebuild
        if module == "ZODB.POSException":
            return f"{module}.{name}"
        raise pickle.UnpicklingError(f"a server must not send {module}.{name}")


def encode_pickle(message):
    """A message in Z5: protocol 3 without a memo, as ZEO's clients write it."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 3)
    pickler.fast = True
    pickler.dump(message)
    return buffer.getvalue()


def decode_pickle(body):
    """A message from a server in Z5."""
    return _Unpickler(io.BytesIO(body)).load()


def encode_msgpack(message):
    """A message in M5."""
    return msgpack.packb(message, use_bin_type=True)


def decode_msgpack(body):
    """A message from a server in M5."""
    return msgpack.unpackb(body, raw=False, use_list=False)


CODECS = {b"Z": (encode_pickle, decode_pickle), b"M": (encode_msgpack, decode_msgpack)}


def plain(value):
    """The same value however a codec spells it: lists are tuples, objects are (class, attributes)."""
    if isinstance(value, ServerObject):
        return (value.name, plain(value.attributes))
    if isinstance(value, (list, tuple)):
        return tuple(plain(item) for item in value)
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    return value


class Client:
    """One connection. `codec` None answers what the server announced; `storage` None leaves out register."""

    def __init__(self, address, codec=None, storage="1", read_only=False, timeout=REPLY_SECONDS_MAX):
        self.timeout = timeout
        # What the server sent that was no reply: (name, arguments), in order.
        self.notifications = deque()
        # Everything received, in order: ("reply", id) and ("notification", name), for tests of order.
        self.order = []
        self._replies = {}
        self._input = b""
        self._id = 0
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        if family == socket.AF_INET and ":" in address[0]:
            family = socket.AF_INET6
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self.socket.settimeout(timeout)
            self.socket.connect(address if isinstance(address, str) else tuple(address))
            if family != socket.AF_UNIX:
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.announced = self.read_frame()
            self.codec = self.announced if codec is None else codec.encode()
            self._encode, self._decode = CODECS[self.codec[:1]]
            self.last_tid = None
            if storage is not None:
                self.send_frame(self.codec)
                self.last_tid = self.call("register", storage, read_only)
        except BaseException:
            self.socket.close()
            raise

    # Bytes and frames

    def send_bytes(self, data):
        """Sends bytes as they are."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed(str(error)) from error

    def send_frame(self, body):
        """Sends one frame."""
        self.send_bytes(struct.pack(">I", len(body)) + body)

    def _split(self):
        if 4 <= len(self._input):
            end = 4 + int.from_bytes(self._input[:4], "big")
            if end <= len(self._input):
                body, self._input = self._input[4:end], self._input[end:]
                return body
        return None

    def read_frame(self, timeout=None):
        """The next frame; TimeoutError when none comes in time, Closed at the end of the stream."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while (body := self._split()) is None:
            # A frame that has arrived is read even when the time is up.
            if not select.select([self.socket], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError("no frame came in time")
            try:
                received = self.socket.recv(1 << 20)
            except ConnectionResetError as error:
                raise Closed(str(error)) from error
            if not received:
                raise Closed("the server closed the connection")
            self._input += received
        return body

    # Messages

    def message(self, message_id, oneway, name, arguments):
        """The frame of one message."""
        body = self._encode((message_id, oneway, name, tuple(arguments)))
        return struct.pack(">I", len(body)) + body

    def send(self, name, *arguments):
        """Sends a call and gives the id to `receive` its reply with. loadBefore's id is its arguments, as ZEO's."""
        if name == "loadBefore" and arguments not in self._replies:
            message_id = arguments
        else:
            self._id += 1
            message_id = self._id
        self.send_bytes(self.message(message_id, False, name, arguments))
        return message_id

    def cast(self, name, *arguments):
        """Sends a call that has no reply."""
        self.send_bytes(self.message(0, True, name, arguments))

    def _take(self, timeout):
        message_id, flag, name, value = self._decode(self.read_frame(timeout))
        if name == ".reply":
            self.order.append(("reply", message_id))
            self._replies[message_id] = (flag, value)
        else:
            self.order.append(("notification", name))
            self.notifications.append((name, plain(value)))

    def receive(self, message_id, timeout=None):
        """The reply to an earlier `send`; raises RemoteError for an error reply."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while message_id not in self._replies:
            self._take(max(0, deadline - time.monotonic()))
        flag, value = self._replies.pop(message_id)
        if flag:
            class_name, arguments = value
            raise RemoteError(class_name, plain(arguments))
        return plain(value)

    def call(self, name, *arguments, timeout=None):
        """Sends a call and waits for its reply."""
        return self.receive(self.send(name, *arguments), timeout)

    def call_all(self, calls, window=200):
        """Pipelines (name, *arguments) calls; gives (value, None) or (None, RemoteError) for each, in order."""
        calls, results = list(calls), []
        for start in range(0, len(calls), window):
            waiting = []
            for name, *arguments in calls[start : start + window]:
                self._id += 1
                self.send_bytes(self.message(self._id, False, name, arguments))
                waiting.append(self._id)
            for message_id in waiting:
                try:
                    results.append((self.receive(message_id), None))
                except RemoteError as error:
                    results.append((None, error))
        return results

    def poll(self, timeout=0):
        """Takes in what has arrived; waits at most `timeout` for the first message."""
        try:
            while True:
                self._take(timeout)
                timeout = 0
        except TimeoutError:
            pass

    def wait_closed(self, timeout=10):
        """Whether the server closes the connection in time."""
        deadline = time.monotonic() + timeout
        try:
            while True:
                self.read_frame(max(0, deadline - time.monotonic()))
        except TimeoutError:
            return False
        except Closed:
            return True

    # Transactions

    def begin(self, transaction, user=b"", description=b"", extension=None, tid=None, status=" "):
        """tpc_begin."""
        self.cast("tpc_begin", transaction, user, description, extension or {}, tid, status)

    def commit(self, transaction, stores, **metadata):
        """A whole transaction of (oid, serial, data) stores; gives its tid. Conflicts raise RemoteError."""
        self.begin(transaction, **metadata)
        for oid, serial, data in stores:
            self.cast("storea", oid, serial, data, transaction)
        voted = self.call("vote", transaction)
        if any(isinstance(item, dict) for item in voted or ()):
            self.call("tpc_abort", transaction)
            raise RemoteError("conflicts", tuple(voted))
        return self.call("tpc_finish", transaction)

    def close(self):
        """Closes the connection."""
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
