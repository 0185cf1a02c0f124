"""Kills the server with SIGKILL while it packs and three clients commit, and looks for what was lost.

    python pack_kill9.py --server COMMAND [--rounds 40] [--seed N]

The kill comes at a moment that the folder tells of: a file appears, vanishes, or becomes another; or at a random one.
After each kill Python's FileStorage opens a copy of what lies there, with the index and without: every answered commit
must be in it, whole, and every object that the root leads to. Then the server starts again, stock's zeopack packs to
the end, and all must still be there, and the garbage gone.
"""

import argparse
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter

from persistent.TimeStamp import TimeStamp
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileIterator, FileStorage
from ZODB.utils import load_current, p64

from raw import MAXTID, Client, Closed, RemoteError
from server import Server, file_storage_config, leave_on_sigterm

COMMITTERS = 3
OBJECTS = 60
GARBAGE = 3000
WATCH_SECONDS_MAX = 20


class Lost(AssertionError):
    """A promise was broken."""


def record(oids, text):
    """Pickles that refer to these objects."""
    references = b"".join(b"C\x08" + p64(oid) + b"h\x00\x86Q" for oid in oids)
    text = b"B" + len(text).to_bytes(4, "little") + text
    return b"\x80\x03cmodule\nClass\nq\x00.\x80\x03(" + references + text + b"t."


def make(path):
    """A root, objects that it leads to, garbage in a ring, and many old revisions."""
    storage = FileStorage(path, create=True)
    serials = {}

    def commit(records):
        meta = TransactionMetaData(b"base", b"", {})
        storage.tpc_begin(meta)
        for oid, data in records:
            storage.store(p64(oid), serials.get(oid, p64(0)), data, "", meta)
        storage.tpc_vote(meta)
        tid = storage.tpc_finish(meta)
        serials.update((oid, tid) for oid, _ in records)

    live = list(range(1, 1 + OBJECTS))
    commit([(0, record(live, b"root"))])
    for round_ in range(3):
        commit([(oid, record([], b"%d" % round_ * 50)) for oid in live])
    for start in range(1000, 1000 + GARBAGE, 100):
        commit([(oid, record([oid + 1, 1000], b"g" * 2000)) for oid in range(start, start + 100)])
    storage.close()
    return serials


class Committer(threading.Thread):
    """Commits to its own objects as fast as it gets answers."""

    def __init__(self, number, address, serials):
        super().__init__(daemon=True)
        self.client = Client(address, ("Z5", "M5")[number % 2])
        self.oids = range(1 + number, 1 + OBJECTS, COMMITTERS)
        self.serials = serials
        self.number = number
        self.sent, self.answered = {}, {}
        self.killed = False
        self.failure = None

    def run(self):
        sequence = 0
        try:
            while True:
                sequence += 1
                oids = random.sample(self.oids, 3)
                data = {p64(oid): record([], b"%d:%d" % (self.number, sequence) * 20) for oid in oids}
                user = b"%d-%d" % (self.number, sequence)
                self.client.begin(sequence, user)
                for oid in oids:
                    self.client.cast("storea", p64(oid), self.serials[oid], data[p64(oid)], sequence)
                if self.client.call("vote", sequence):
                    raise Lost(f"{user} conflicts")
                self.sent[user] = data
                tid = self.client.call("tpc_finish", sequence)
                self.answered[tid] = user
                self.serials.update((oid, tid) for oid in oids)
        except (Closed, OSError) as error:
            if not self.killed:
                self.failure = error
        except BaseException as error:
            self.failure = error
        finally:
            self.client.close()


class Moments:
    """What the folder shows, to kill at."""

    def __init__(self, folder):
        self.path = os.path.join(folder, "Data.fs")
        self.inode = os.stat(self.path).st_ino

    def at(self, suffix):
        return os.path.exists(self.path + suffix)

    def grown(self):
        try:
            return os.path.getsize(self.path + ".pack") > 4000
        except FileNotFoundError:
            return False

    def switched(self):
        return os.stat(self.path).st_ino != self.inode

    NAMES = {
        "the new file is begun": lambda self: self.at(".pack"),
        "the new file grows": lambda self: self.grown(),
        "the index is gone": lambda self: not self.at(".index"),
        "the old file has two names": lambda self: self.at(".old") and self.at(".pack"),
        "the new file is in place": lambda self: self.switched(),
        "the index is written": lambda self: self.switched() and self.at(".index.index_tmp"),
        "the index is back": lambda self: self.switched() and self.at(".index"),
    }


def check(path, index, base, committers):
    """Python reads a copy; gives the number of unanswered commits that are there."""
    with tempfile.TemporaryDirectory(prefix="zeoring-pack-") as folder:
        copy = os.path.join(folder, "Data.fs")
        shutil.copy(path, copy)
        if index and os.path.exists(path + ".index"):
            shutil.copy(path + ".index", copy + ".index")
        storage = FileStorage(copy, read_only=True)
        try:
            there = {}
            for transaction in FileIterator(copy):
                if transaction.tid > base:
                    there[transaction.tid] = (transaction.user, {item.oid: item.data for item in transaction})
            sent = {user: data for committer in committers for user, data in committer.sent.items()}
            answered = {tid: user for committer in committers for tid, user in committer.answered.items()}
            for tid, user in answered.items():
                if there.get(tid, (None,))[0] != user:
                    raise Lost(f"{user!r} was answered with {tid!r} and is not there")
            for tid, (user, records) in there.items():
                if sent.get(user) != records:
                    raise Lost(f"{user!r} is there, but not as it was sent")
            for oid in range(1 + OBJECTS):
                load_current(storage, p64(oid))
            return len(there) - len(answered), max(there, default=base)
        finally:
            storage.close()


def run_round(options, template, serials, source, moment, folder):
    for name in os.listdir(template):
        shutil.copy(os.path.join(template, name), folder)
    path, base = os.path.join(folder, "Data.fs"), max(serials.values())
    config = file_storage_config(zeo="  client-conflict-resolution true")
    server = Server(options.server, config, folder)
    try:
        server.start()
        moments = Moments(folder)
        serials = dict(serials)
        committers = [Committer(number, server.address, serials) for number in range(COMMITTERS)]
        for committer in committers:
            committer.start()
        time.sleep(0.05)
        packer = Client(server.address)
        # To a time before all that the committers do, which therefore has to stay.
        packer.send("pack", TimeStamp(base).timeTime() + 0.001, True)
        deadline = time.monotonic() + (WATCH_SECONDS_MAX if moment else source.uniform(0, 0.3))
        hit = moment is None
        while time.monotonic() < deadline:
            if moment and Moments.NAMES[moment](moments):
                hit = True
                break
            if moments.switched() and moments.at(".index"):
                # The moment was too short to be seen.
                break
        for committer in committers:
            committer.killed = True
        server.kill()
        packer.close()
        for committer in committers:
            committer.join(20)
            if committer.failure is not None:
                raise committer.failure
        if not hit and time.monotonic() > deadline:
            raise Lost(f"{moment}: never came, and the pack never ended")
        switched = moments.switched()
        doubtful, _ = check(path, True, base, committers)
        check(path, False, base, committers)

        server.start()
        host, port = server.address
        done = subprocess.run(
            [sys.executable, "-c", "from ZEO.scripts.zeopack import main; main()", f"{host}:{port}"],
            capture_output=True,
            text=True,
        )
        if done.returncode or "Error" in done.stderr:
            raise Lost(f"zeopack: {done.stdout}{done.stderr}")
        with Client(server.address) as client:
            for oid in range(1 + OBJECTS):
                client.call("loadBefore", p64(oid), MAXTID)
            try:
                client.call("loadBefore", p64(1000), MAXTID)
            except RemoteError:
                pass
            else:
                raise Lost("the garbage is still there")
        server.stop()
        left = [name for name in os.listdir(folder) if name.endswith((".pack", ".index_tmp"))]
        if left:
            raise Lost(f"left behind: {left}")
        with open(path + ".index", "rb") as file:
            if pickle.load(file) != os.path.getsize(path):
                raise Lost("the index is not that of the file")
        answered = sum(len(committer.answered) for committer in committers)
        facts = {"commits answered": answered, "unanswered but there": doubtful}
        return {**facts, "after the switch": switched, "too late": not hit}
    finally:
        server.kill()


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--server", required=True, help="the command; gets -C FILE")
    arguments.add_argument("--rounds", type=int, default=40)
    arguments.add_argument("--seed", type=int, default=None)
    options = arguments.parse_args()
    leave_on_sigterm()
    logging.disable(logging.CRITICAL)
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    source = random.Random(seed)
    print(f"pack_kill9: seed {seed}", flush=True)
    total, passed, begun = Counter(), 0, time.monotonic()
    names = [*Moments.NAMES, None]
    with tempfile.TemporaryDirectory(prefix="zeoring-pack-") as template:
        serials = make(os.path.join(template, "Data.fs"))
        for name in os.listdir(template):
            if name not in ("Data.fs", "Data.fs.index"):
                os.remove(os.path.join(template, name))
        for number in range(options.rounds):
            moment = names[number % len(names)]
            with tempfile.TemporaryDirectory(prefix="zeoring-pack-") as folder:
                try:
                    total.update(run_round(options, template, serials, source, moment, folder))
                except Exception:
                    print(f"FAILED in round {number + 1} of seed {seed}, killed when {moment or 'chance said so'}")
                    traceback.print_exc(file=sys.stdout)
                    print(f"pack_kill9: {passed} passed, 1 failed")
                    return 1
            passed += 1
    shown = ", ".join(f"{count} {name}" for name, count in sorted(total.items()))
    print(f"{shown}; {time.monotonic() - begun:.0f} s")
    print(f"pack_kill9: {passed} passed, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
