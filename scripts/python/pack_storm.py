"""Packs without a pause while clients commit, undo and load, and looks for anything that is not right.

    python pack_storm.py --server COMMAND [--seconds 20]

Two clients commit to objects of their own: none may see a conflict. One stores and undoes in turn, with a pause between
vote and finish, so that packs end in it: what it loads must be what its last transaction left. Two load everything, and
may never see an object go back. At the end Python's FileStorage opens the file without its index and must find what
every client was answered.
"""

import argparse
import base64
import logging
import os
import random
import sys
import tempfile
import threading
import time
import traceback

from ZODB.FileStorage import FileStorage
from ZODB.utils import load_current, p64

from pack_kill9 import COMMITTERS, OBJECTS, Committer, Lost, make, record
from raw import MAXTID, Client, RemoteError
from server import Server, file_storage_config, leave_on_sigterm


class Worker(threading.Thread):
    """Does something until it is told to stop, and counts."""

    def __init__(self, address, codec):
        super().__init__(daemon=True)
        self.client = Client(address, codec)
        self.stop = threading.Event()
        self.count = 0
        self.failure = None

    def run(self):
        try:
            while not self.stop.is_set():
                self.step()
        except BaseException as error:
            self.failure = error
        finally:
            self.client.close()


class Reader(Worker):
    """Loads everything, again and again."""

    def __init__(self, address, codec):
        super().__init__(address, codec)
        self.seen = {}

    def step(self):
        for oid in range(1, 1 + OBJECTS):
            _, tid, end = self.client.call("loadBefore", p64(oid), MAXTID)
            if end is not None or tid < self.seen.get(oid, b""):
                raise Lost(f"{oid} is at {tid!r}, ended by {end!r}, and was at {self.seen[oid]!r}")
            self.seen[oid] = tid
            self.count += 1


class Undoer(Worker):
    """Stores an object, or undoes what it did last."""

    def __init__(self, address, codec, oid):
        super().__init__(address, codec)
        self.oid = p64(oid)
        self.last = None
        self.current = self.load()[0]
        self.transaction = self.undone = self.refused = 0

    def load(self):
        data, tid, _ = self.client.call("loadBefore", self.oid, MAXTID)
        return data, tid

    def step(self):
        data, serial = self.load()
        if data != self.current:
            raise Lost(f"loaded {data!r}, and not {self.current!r}")
        self.transaction += 1
        self.client.begin(self.transaction)
        undo = self.last is not None and random.random() < 0.5
        if undo:
            self.client.cast("undoa", base64.b64encode(self.last[0]), self.transaction)
            data = self.last[1]
        else:
            data = record([], b"%d" % self.transaction * 20)
            self.client.cast("storea", self.oid, serial, data, self.transaction)
        try:
            self.client.call("vote", self.transaction)
        except RemoteError:
            # The transaction was packed meanwhile.
            self.client.call("tpc_abort", self.transaction)
            self.last = None
            self.refused += 1
            return
        time.sleep(random.choice((0, 0, 0.03)))
        tid = self.client.call("tpc_finish", self.transaction)
        self.last, self.current = (tid, self.current), data
        self.count += 1
        self.undone += undo


def run(options, folder):
    path = os.path.join(folder, "Data.fs")
    serials = make(path)
    config = file_storage_config(zeo="  client-conflict-resolution true")
    with Server(options.server, config, folder) as server:
        committers = [Committer(number, server.address, dict(serials)) for number in range(COMMITTERS - 1)]
        undoer = Undoer(server.address, "M5", COMMITTERS)
        readers = [Reader(server.address, codec) for codec in ("Z5", "M5")]
        for worker in [*committers, undoer, *readers]:
            worker.start()
        packs, deadline = 0, time.monotonic() + options.seconds
        with Client(server.address) as packer:
            while time.monotonic() < deadline:
                packer.call("pack", time.time() - random.choice((0, 0.05, 0.3)), True)
                packs += 1
                failures = [worker.failure for worker in [*committers, undoer, *readers] if worker.failure]
                if failures:
                    raise failures[0]
        for worker in [undoer, *readers]:
            worker.stop.set()
            worker.join(20)
        for committer in committers:
            committer.killed = True
    os.remove(path + ".index")
    storage = FileStorage(path, read_only=True)
    try:
        for committer in committers:
            for oid in committer.oids:
                # A commit may have been carried out whose answer came too late.
                if load_current(storage, p64(oid))[1] < committer.serials[oid]:
                    raise Lost(f"{oid} was answered with {committer.serials[oid]!r}")
        if load_current(storage, undoer.oid)[0] != undoer.current:
            raise Lost("what was undone last is not there")
    finally:
        storage.close()
    answered = sum(len(committer.answered) for committer in committers)
    print(
        f"{packs} packs, {answered + undoer.count} commits, of which {undoer.undone} undid; {undoer.refused} undos"
        f" refused as packed; {sum(reader.count for reader in readers)} loads"
    )
    return packs


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--server", required=True, help="the command; gets -C FILE")
    arguments.add_argument("--seconds", type=float, default=20)
    options = arguments.parse_args()
    leave_on_sigterm()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="zeoring-pack-") as folder:
        try:
            packs = run(options, folder)
        except Exception:
            traceback.print_exc(file=sys.stdout)
            print("pack_storm: 0 passed, 1 failed")
            return 1
    print(f"pack_storm: {packs} passed, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
