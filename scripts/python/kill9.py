"""Kills the server with SIGKILL while four clients commit, again and again, and looks for what was lost.

    python kill9.py --server COMMAND [--rounds 200] [--seed N]

After each kill Python's FileStorage opens a copy of the file as it lies there, the server starts again, and:
every commit that was answered is in both, whole; a commit that was not answered is there whole or not at all, and both
agree; nothing else is there. A file is used for some rounds, so that later kills hit a file that was recovered before.
"""

import argparse
import logging
import os
import pickle
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
import traceback

from ZODB.FileStorage import FileIterator, FileStorage
from ZODB.tests.MinPO import MinPO
from ZODB.tests.StorageTestBase import zodb_pickle

from raw import MAXTID, Z64, Client, Closed
from server import Server, file_storage_config, leave_on_sigterm
from sides import tid_after

CLIENTS = 4
ROUNDS_PER_FILE = 25
KILL_SECONDS_MAX = 0.35
# All clients want this one, besides their own.
SHARED_OID = (1).to_bytes(8, "big")


class Lost(AssertionError):
    """A promise about commits was broken."""


class Committer(threading.Thread):
    """Commits as fast as it gets answers, until the connection ends. Its records survive it."""

    def __init__(self, name, address, codec, seed, serials):
        super().__init__(name=name, daemon=True)
        self.client = Client(address, codec)
        self.random = random.Random(seed)
        self.serials = serials
        self.sent = {}
        self.answered = {}
        self.conflicts = 0
        self.failure = None
        self.killed = False

    def run(self):
        try:
            sequence = 0
            while True:
                sequence += 1
                self.commit(sequence)
        except (Closed, OSError) as error:
            if not self.killed:
                self.failure = error
        except BaseException as error:
            self.failure = error
        finally:
            self.client.close()

    def commit(self, sequence):
        """One transaction, whose user field names it."""
        user = f"{self.name}:{sequence}".encode()
        own = [(1000 * (1 + int(self.name[-1])) + number).to_bytes(8, "big") for number in range(20)]
        oids = self.random.sample(own, self.random.choice((1, 1, 2, 5)))
        if self.random.random() < 0.15:
            oids.append(SHARED_OID)
        size = self.random.choice((10, 200, 200, 2000, 60_000 if self.random.random() < 0.1 else 50))
        data = {oid: zodb_pickle(MinPO((user, self.random.randbytes(size)))) for oid in oids}
        self.client.begin(sequence, user)
        for oid in oids:
            self.client.cast("storea", oid, self.serials.get(oid, Z64), data[oid], sequence)
        while conflicts := [item for item in self.client.call("vote", sequence) if isinstance(item, dict)]:
            self.conflicts += 1
            for conflict in conflicts:
                oid = conflict["oid"]
                if oid != SHARED_OID:
                    raise Lost(f"{user} conflicts on an object only it writes: {conflict!r}")
                self.client.cast("storea", oid, conflict["serials"][0], data[oid], sequence)
        self.sent[user] = data
        tid = self.client.call("tpc_finish", sequence)
        self.answered[tid] = user
        for oid in oids:
            if oid != SHARED_OID:
                self.serials[oid] = tid


class Life:
    """One file over some rounds: what must be in it and what may be."""

    def __init__(self, options, folder, random_source):
        self.options, self.folder, self.random = options, folder, random_source
        zeo = "  client-conflict-resolution true"
        self.server = Server(options.server, file_storage_config(zeo=zeo), folder, strict=not options.lenient)
        # The transactions that are in the file for good: tid -> {oid: data}.
        self.committed = {}
        # Where the last of them ends.
        self.end = 4
        self.serials = [{} for _ in range(CLIENTS)]
        self.round = 0

    def run_round(self):
        """Commits, a kill, and the checks; gives facts to report."""
        self.round += 1
        begun = time.monotonic()
        self.server.start()
        start_seconds = time.monotonic() - begun
        before = max(self.committed, default=Z64)
        committers = []
        for number in range(CLIENTS):
            name = f"{self.round}-{number}"
            codec = ("Z5", "M5")[number % 2]
            seed = self.random.random()
            committers.append(Committer(name, self.server.address, codec, seed, self.serials[number]))
        for committer in committers:
            committer.start()
        time.sleep(self.random.uniform(0.01, KILL_SECONDS_MAX))
        for committer in committers:
            committer.killed = True
        if self.server.process.poll() is not None:
            raise Lost(f"the server ended by itself with {self.server.process.returncode}: {self.server.tail()}")
        self.server.kill()
        for committer in committers:
            committer.join(20)
            if committer.is_alive():
                raise Lost(f"client {committer.name} still waits for a server that is gone")
            if committer.failure is not None:
                raise committer.failure

        size, indexed = os.path.getsize(self.path()), self.indexed()
        found = self.read_with_python(before)
        answered, in_doubt = self.judge(committers, found)
        self.ask_server(before, found)
        self.committed.update(found)
        # Which of the unanswered are there decides the serials of the next round.
        for tid, records in sorted(found.items()):
            for oid in records:
                for number, serials in enumerate(self.serials):
                    if int.from_bytes(oid, "big") // 1000 == number + 1:
                        serials[oid] = tid
        return {
            "answered": answered,
            "in doubt": in_doubt,
            "conflicts": sum(committer.conflicts for committer in committers),
            "start": start_seconds,
            "behind the index": size - indexed,
        }

    def path(self):
        """The data file."""
        return os.path.join(self.folder, "Data.fs")

    def indexed(self):
        """The position up to which the saved index speaks; 0 without one."""
        try:
            with open(self.path() + ".index", "rb") as file:
                return pickle.load(file)
        except FileNotFoundError:
            return 0

    def read_with_python(self, before):
        """Python opens a copy, with the index as it lies there or without; gives what it reads after `before`."""
        copy = tempfile.mkdtemp(prefix="copy-", dir=self.folder)
        path = os.path.join(copy, "Data.fs")
        shutil.copy(self.path(), path)
        if self.round % 2 and os.path.exists(self.path() + ".index"):
            shutil.copy(self.path() + ".index", path + ".index")
        storage = FileStorage(path, read_only=True)
        try:
            found = {}
            # Now and then all of it; it must be what it was.
            whole = self.round % 5 == 0 or self.round == ROUNDS_PER_FILE
            # From a position and not from an id: Python cannot find an id in a large file whose end is torn.
            for transaction in FileIterator(path, pos=4 if whole else self.end):
                self.end = transaction._tend + 8
                if transaction.tid in found:
                    raise Lost(f"{transaction.tid!r} is in the file twice")
                records = {record.oid: record.data for record in transaction}
                found[transaction.tid] = (transaction.user, records)
            old = {tid: records for tid, (_, records) in found.items() if tid <= before}
            if whole and old != self.committed:
                raise Lost(f"{len(set(self.committed) ^ set(old))} earlier transactions came or went")
            # lastTransaction is not asked: opened read-only, Python counts an unfinished tail that it then ignores.
            self.users = {tid: user for tid, (user, _) in found.items()}
            return {tid: records for tid, (_, records) in found.items() if before < tid}
        finally:
            storage.close()
            shutil.rmtree(copy)

    def judge(self, committers, found):
        """Every answered commit is in `found`, and all else in it was sent. Gives their numbers."""
        sent, answered = {}, {}
        for committer in committers:
            sent.update(committer.sent)
            answered.update(committer.answered)
        for tid, user in answered.items():
            if tid not in found:
                raise Lost(f"{user!r} was answered with {tid!r} and is not in the file")
        for tid, records in found.items():
            user = self.users[tid]
            if records != sent.get(user):
                raise Lost(f"{user!r} at {tid!r} is in the file, but not as it was sent")
            if tid in answered and answered[tid] != user:
                raise Lost(f"{tid!r} was given to {answered[tid]!r} and holds {user!r}")
        if len(set(map(self.users.get, found))) != len(found):
            raise Lost("a transaction is in the file under two ids")
        return len(answered), len(found) - len(answered)

    def ask_server(self, before, found):
        """The server, started again on the file, answers what Python read."""
        self.server.start()
        client = Client(self.server.address)
        newest = max([before, *found])
        # Stock answers with the id of an unfinished transaction that it has just cut off.
        if client.last_tid != newest and not (self.options.lenient and newest < client.last_tid):
            raise Lost(f"the server's last transaction is {client.last_tid!r}, Python's {newest!r}")
        current, calls, expected = {}, [], []
        for tid, records in sorted(found.items()):
            for oid, data in records.items():
                calls.append(("loadSerial", oid, tid))
                expected.append(data)
                current[oid] = (data, tid, None)
        for oid, answer in current.items():
            calls += [("loadBefore", oid, MAXTID), ("loadBefore", oid, tid_after(answer[1]))]
            expected += [answer, answer]
        for call, wanted, (value, error) in zip(calls, expected, client.call_all(calls)):
            if error is not None or value != wanted:
                raise Lost(f"{call!r} gives {error or value!r}"[:2000])
        client.close()
        # Half of the restarts are killed before they served anyone, half end well and save an index.
        if self.random.random() < 0.5:
            self.server.kill()
        else:
            try:
                self.server.stop()
            finally:
                self.server.kill()


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--server", required=True, help="the command; gets -C FILE")
    arguments.add_argument("--rounds", type=int, default=200)
    arguments.add_argument("--seed", type=int, default=None)
    arguments.add_argument("--lenient", action="store_true", help="the server is stock ZEO")
    options = arguments.parse_args()
    leave_on_sigterm()
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    source = random.Random(seed)
    # A torn end is what this test makes; Python warns of each.
    logging.getLogger("ZODB").setLevel(logging.CRITICAL)
    print(f"kill9: seed {seed}", flush=True)
    begun, facts, done = time.monotonic(), [], 0
    while done < options.rounds:
        with tempfile.TemporaryDirectory(prefix="zeoring-kill9-") as folder:
            life = Life(options, folder, source)
            try:
                for _ in range(min(ROUNDS_PER_FILE, options.rounds - done)):
                    facts.append(life.run_round())
                    done += 1
            except Exception as error:
                print(f"FAILED in round {done + 1} of seed {seed}: {type(error).__name__}: {error}"[:4000])
                traceback.print_exc(file=sys.stdout)
                print(f"The server's last words:\n{life.server.tail()}")
                print(f"kill9: {done} passed, 1 failed")
                return 1
            finally:
                life.server.kill()
    total = {key: sum(fact[key] for fact in facts) for key in ("answered", "in doubt", "conflicts")}
    behind = [fact["behind the index"] for fact in facts]
    starts = [fact["start"] * 1000 for fact in facts]
    print(
        f"{total['answered']} commits answered, {total['in doubt']} unanswered but there, {total['conflicts']} conflicts; "
        f"start: median {statistics.median(starts):.0f} ms, worst {max(starts):.0f} ms; bytes behind the saved index: "
        f"median {statistics.median(behind):.0f}, worst {max(behind)}; "
        f"{time.monotonic() - begun:.0f} s"
    )
    print(f"kill9: {done} passed, 0 failed")
    return 0 if 0 < total["answered"] else 1


if __name__ == "__main__":
    sys.exit(main())
