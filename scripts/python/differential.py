"""Applies the same random transactions to stock ZEO and to the server under test, and compares every answer.

    python differential.py --server COMMAND [--seeds 1,2,3] [--codec Z5|M5] [--steps N]

Each seed: stores, conflicts and their resolution, undo in all its forms, restore, deleteObject, checkCurrentSerial,
empty and aborted transactions, two transactions in flight at once; both servers are restarted half way. Replies must
be equal but for transaction ids, which are compared by number. Then Python reads both files and must find them equal,
Python's checkers must accept ours, and our server must read stock's file in every state a crash leaves it
(python_files.py). Stock runs with client-conflict-resolution, as ours always behaves.

What is meant to differ is not compared: a deletion or restore is missing from stock's invalidations (ours must have
every object written, and may have no other), and which oids new_oids gives.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter

from persistent.TimeStamp import TimeStamp
from ZODB.FileStorage import FileStorage
from ZODB.tests.MinPO import MinPO
from ZODB.tests.StorageTestBase import zodb_pickle

import python_files
from raw import MAXTID, Z64, Client, RemoteError, plain
from server import Server, file_storage_config, leave_on_sigterm
from sides import Side, questions, tid_after, transaction_of, transactions

CHECK_EVERY = 40
# Neighbours, and some that fall into other buckets of the index.
OIDS = [number.to_bytes(8, "big") for number in (*range(20), 65_535, 65_536, 70_000, 200_001)]
UNKNOWN_OID = (9_999).to_bytes(8, "big")
NOTICE_SECONDS_MAX = 10


class Difference(AssertionError):
    """The servers differ. The message tells where and how."""


def tid_now():
    """The id the clock says now."""
    now = time.time()
    return TimeStamp(*time.gmtime(now)[:5], now % 60).raw()


class Run:
    """One random history on two servers. All choices come from the seed."""

    def __init__(self, stock, tested, codec, seed, strict):
        self.sides = [stock, tested]
        self.codec, self.strict = codec, strict
        self.random = random.Random(seed)
        # The numbers of the transactions that wrote an oid, oldest first.
        self.written = {}
        self.log = []
        self.transaction_id = 1 << 40
        # What happened how often: a history without conflicts proves nothing about them.
        self.counts = Counter()
        # A dictionary has many pickles. How many bytes longer than stock's a transaction is on the tested side, by
        # its number, and all of them together.
        self.longer = []
        self.connect()

    def connect(self):
        """Two writers and an observer on each side."""
        for side in self.sides:
            side.clients = [Client(side.server.address, self.codec) for _ in range(3)]

    def restart(self):
        """Stops and starts both servers on their files."""
        for side in self.sides:
            for client in side.clients:
                client.close()
            side.server.stop()
            shutil.copy(os.path.join(side.folder, "Data.fs.index"), os.path.join(side.folder, "half.index"))
            side.server.start()
        self.connect()

    # Comparing

    def same(self, what, stock, tested):
        """Fails unless both are equal."""
        tested = self.leveled(tested)
        if stock != tested:
            where, stock, tested = first_difference(stock, tested)
            history = "\n  ".join(map(repr, self.log[-8:]))
            raise Difference(
                f"{what!r}, at {where or 'the whole'}\n stock:  {brief(stock)!r}\n tested: {brief(tested)!r}\n"
                f" after:\n  {history}"[:6000]
            )
        return stock

    def both(self, client, name, *arguments):
        """One call on both sides; its common outcome."""
        answers = [side.ask(side.clients[client], name, *arguments) for side in self.sides]
        return self.same((name, arguments), *answers)

    def leveled(self, value):
        """An answer of the tested side with its sizes less what other pickles of extensions add."""
        if isinstance(value, (tuple, list)):
            return type(value)(map(self.leveled, value))
        if isinstance(value, dict) and "size" in value:
            kind, number = value.get("id", (None, None))
            if kind == "base64":
                return {**value, "size": value["size"] - self.longer[number]}
            if "length" in value:
                return {**value, "size": value["size"] - sum(self.longer)}
        return value

    # Choosing

    def payload(self):
        """A record: small mostly, sometimes large."""
        size = self.random.choice((0, 3, 10, 100, 1000, 1000, 70_000 if self.random.random() < 0.05 else 30))
        return zodb_pickle(MinPO(self.random.randbytes(size)))

    def serial(self, oid):
        """Mostly the serial a store of `oid` needs, sometimes another."""
        history = self.written.get(oid)
        if self.random.random() < 0.8:
            return ("tid", history[-1]) if history else Z64
        others = [Z64, b"\3\0\0\0\0\0\0\1"] + [("tid", number) for number in (history or ())]
        return self.random.choice(others)

    def metadata(self):
        """User, description and extension."""
        choose = self.random.choice
        user = choose((b"", b"", b"ann", "/éà/jürgen bob".encode(), b"u" * 300))
        description = choose((b"", b"edit", "zwölf".encode(), b"d" * 2000))
        extension = choose(
            (
                {},
                {},
                {"k": choose((1, -1, 0, 255, 256, 65_536, -70_000, 2**31, -(2**31) - 1, 2**62, True, None, 2.5))},
                {"text": choose(("", "a", "ü" * 200)), "b": b"\0\xff"},
                # With a long description, the three fill more than 65,535 bytes; each alone does not.
                {"text": "x" * (65_000 if self.random.random() < 0.3 else 20)},
                {"nest": {"list": [1, "two", [3.0, None]], "empty": {}, "none": []}, "tuple": ("a", (1, 2), 3, 4, 5)},
                {"description": "from the extension", "time": 1},
            )
        )
        return user, description, extension

    def operations(self):
        """The operations of an ordinary transaction."""
        found = []
        for _ in range(self.random.choice((1, 1, 1, 2, 3, 6))):
            oid = self.random.choice(OIDS)
            kind = self.random.choices(("store", "delete", "check", "twice"), (80, 6, 10, 4))[0]
            if kind == "delete":
                found.append(("deleteObject", oid, self.serial(oid)))
            elif kind == "check":
                found.append(("checkCurrentSerialInTransaction", oid, self.serial(oid)))
            else:
                found += [("storea", oid, self.serial(oid), self.payload()) for _ in range(1 + (kind == "twice"))]
        return found

    def undos(self):
        """Undo of some transactions, recent ones mostly, newest first as undoMultiple does, or not."""
        count = len(self.sides[0].tids)
        chosen = set()
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            oldest = max(0, count - 6) if self.random.random() < 0.8 else 0
            chosen.add(self.random.randrange(oldest, count))
        ordered = sorted(chosen, reverse=self.random.random() < 0.8)
        return [("undoa", ("base64", number)) for number in ordered]

    def restores(self, tid):
        """Records as a copy of another database brings them, with back pointers that hold, do not, or lead nowhere."""
        found = []
        for oid in self.random.sample(OIDS, self.random.choice((1, 2, 4))):
            data, previous = self.payload(), None
            history = self.written.get(oid)
            choice = self.random.random()
            if choice < 0.15:
                data = None
            elif choice < 0.6 and history:
                number = self.random.choice(history)
                previous = ("tid", number)
                if self.random.random() < 0.7:
                    outcome = self.both(0, "loadSerial", oid, previous)
                    data = outcome[1] if outcome[0] == "ok" else data
            elif choice < 0.65:
                previous = ("tid", self.random.randrange(len(self.sides[0].tids)))
            elif choice < 0.68:
                previous = b"\3\0\0\0\0\0\0\1"
            found.append(("restorea", oid, tid, data, previous))
        return found

    def explicit_tid(self):
        """An id after everything on both sides."""
        newest = max([side.tids[-1] for side in self.sides if side.tids] + [tid_now()])
        return tid_after(newest, self.random.randrange(1, 1000))

    # Transactions

    def begin(self, client, operations, tid=None, status=" "):
        """tpc_begin and the operations on both sides; gives the transaction's id."""
        self.transaction_id += self.random.randrange(1, 1 << 20)
        if self.random.random() < 0.02:
            self.transaction_id |= 1 << 63
        metadata = self.metadata()
        self.log.append((client, operations and [tuple(map(brief, each)) for each in operations], tid, status))
        for side in self.sides:
            side.clients[client].begin(self.transaction_id, *metadata, tid=tid, status=status)
            self.send_operations(side, client, self.transaction_id, operations)
        return self.transaction_id

    @staticmethod
    def send_operations(side, client, transaction, operations):
        """Sends operations to one side."""
        for name, *arguments in operations:
            side.clients[client].cast(name, *map(side.real, arguments), transaction)

    def voted(self, outcome):
        """A vote's outcome without the order and repetition of its list: ("ok", oids, conflicts by oid)."""
        if outcome[0] == "error":
            return outcome
        items = outcome[1] or ()
        conflicts = {item["oid"]: item for item in items if isinstance(item, dict)}
        return ("ok", sorted({item for item in items if not isinstance(item, dict)}), conflicts)

    def vote(self, client, transaction):
        """Votes on both sides, resolving or giving up on conflicts; True when the transaction may finish."""
        outcomes = [side.ask(side.clients[client], "vote", transaction) for side in self.sides]
        return self.after_vote(client, transaction, outcomes)

    def after_vote(self, client, transaction, outcomes):
        """Goes on from the replies to a vote."""
        outcome = self.same("vote", *map(self.voted, outcomes))
        attempts = 0
        while outcome[0] == "ok" and outcome[2]:
            attempts += 1
            self.counts["conflicts"] += len(outcome[2])
            if self.random.random() < 0.3 or 5 < attempts:
                self.log.append("gave up on conflicts")
                break
            resolved = [
                ("storea", oid, conflict["serials"][0], self.payload()) for oid, conflict in sorted(outcome[2].items())
            ]
            self.log.append(("resolved", [oid[-1] for oid in sorted(outcome[2])]))
            for side in self.sides:
                self.send_operations(side, client, transaction, resolved)
            outcome = self.same(
                "vote again",
                *(self.voted(side.ask(side.clients[client], "vote", transaction)) for side in self.sides),
            )
        if outcome[0] == "ok" and not outcome[2]:
            return True
        if outcome[0] == "error":
            self.counts[outcome[1].rpartition(".")[2]] += 1
        self.log.append(("vote", brief(outcome)))
        self.both(client, "tpc_abort", transaction)
        return False

    def finish(self, client, transaction, tid=None):
        """tpc_finish on both sides, then what everyone must know of it."""
        for side in self.sides:
            # What a voted transaction looks like from outside: nothing.
            committed = side.clients[client].call("tpc_finish", transaction)
            if tid is not None and committed != tid:
                raise Difference(f"{side.name} finished with {committed!r} and not with the id asked for, {tid!r}")
            if side.tids and committed <= side.tids[-1]:
                raise Difference(f"{side.name} finished with {committed!r}, not after {side.tids[-1]!r}")
            side.learn(committed)
        number = len(self.sides[0].tids) - 1
        found = [
            side.shown(plain(transactions(side.clients[client], side.tids[number], side.tids[number])))
            for side in self.sides
        ]
        ((header, records),) = self.same(f"iterator over transaction {number}", *found)
        oids = {record[0] for record in records}
        for oid in oids:
            self.written.setdefault(oid, []).append(number)
        self.log.append(("committed", number))
        self.counts["committed"] += 1
        self.counts["back pointers"] += sum(record[3] is not None for record in records)
        self.counts["deletions"] += sum(record[2] is None for record in records)
        self.invalidations(client, number, oids, bool(header[4]))

    def invalidations(self, committer, number, oids, extended):
        """Everyone but the committer is told; the committer is told the size."""
        told = []
        for side in self.sides:
            for which, client in enumerate(side.clients):
                deadline = time.monotonic() + NOTICE_SECONDS_MAX
                client.poll()
                while which != committer and not client.notifications and time.monotonic() < deadline:
                    client.poll(0.5)
                notices = [side.shown(notice) for notice in client.notifications]
                client.notifications.clear()
                if which == committer:
                    told.append(notices)
                    continue
                names = [(name, arguments[0]) for name, arguments in notices]
                if names != [("invalidateTransaction", ("tid", number))]:
                    raise Difference(f"{side.name} told connection {which} of transaction {number}: {notices!r}")
                listed = set(notices[0][1][1])
                # Stock leaves out what was deleted or restored.
                right = listed == oids if self.strict and side is self.sides[1] else listed <= oids
                if not right:
                    raise Difference(f"{side.name} lists {listed!r} for transaction {number}, which wrote {oids!r}")
        sizes = [notices[0][1][0]["size"] for notices in told]
        self.longer.append(sizes[1] - sizes[0] - sum(self.longer) if extended else 0)
        self.same("what the committer is told", *told)

    def step(self):
        """One random step."""
        client = self.random.randrange(2)
        some = len(self.sides[0].tids)
        kinds = ["ordinary", "undo", "mixed", "restore", "empty", "abort", "voted abort", "two"]
        kind = self.random.choices(kinds, (50, 18 if some else 0, 3 if some else 0, 8, 4, 4, 5, 10))[0]
        if kind == "two":
            return self.two()
        tid, status = None, " "
        if kind == "restore":
            tid = self.explicit_tid()
            status = "p" if some < 6 else " "
            operations = self.restores(tid) if some else [("restorea", OIDS[1], tid, self.payload(), None)]
        elif kind == "undo":
            operations = self.undos()
        elif kind == "mixed":
            operations = self.undos() + self.operations()
            self.random.shuffle(operations)
        else:
            operations = [] if kind == "empty" else self.operations()
        if tid is None and self.random.random() < 0.4:
            tid = self.explicit_tid()
        transaction = self.begin(client, operations, tid, status)
        if kind == "abort":
            self.log.append("aborted")
            return self.both(client, "tpc_abort", transaction)
        if self.vote(client, transaction):
            if kind == "voted abort":
                self.log.append("aborted after vote")
                return self.both(client, "tpc_abort", transaction)
            self.finish(client, transaction, tid)

    def two(self):
        """A second transaction votes while the first one is between vote and finish."""
        first = self.begin(0, self.operations())
        second = self.begin(1, self.operations())
        if not self.vote(0, first):
            if self.vote(1, second):
                self.finish(1, second)
            return
        waiting = [side.clients[1].send("vote", second) for side in self.sides]
        if self.random.random() < 0.7:
            # The observers' order is checked with the first finish, before the second vote is read.
            self.finish(0, first)
        else:
            self.log.append("aborted after vote")
            self.both(0, "tpc_abort", first)
        outcomes = []
        for side, message_id in zip(self.sides, waiting):
            outcomes.append(side.outcome(receive(side.clients[1], message_id)))
        if self.after_vote(1, second, outcomes):
            self.finish(1, second)

    # Questions

    def check(self, sample=400):
        """Asks both sides everything that can be asked about the storage; `sample` pairs of object and transaction."""
        count = len(self.sides[0].tids)
        calls = questions([*OIDS, UNKNOWN_OID], count, self.random, sample)
        calls += [("undoInfo", 0, -20, None), ("undoInfo", 0, -20, {"user_name": b"ann"})]
        calls += [("undoInfo", 0, -20, {"description": b"edit", "user_name": b""}), ("undoInfo", 0, -20, {"k": 1})]
        calls += [("get_info",), ("ping",), ("tpc_abort", 1), ("iterator_next", 77), ("loadSerial", OIDS[0], Z64)]
        client = self.random.randrange(3)
        answers = [side.ask_all(side.clients[client], calls) for side in self.sides]
        for call, stock, tested in zip(calls, *answers):
            self.same(call, stock, tested)
        for oid in self.random.sample(OIDS, 6):
            # One by one, with the message id ZEO's clients give a load: its arguments.
            self.both(client, "loadBefore", oid, MAXTID)
        for _ in range(4):
            bounds = []
            if count:
                bounds = [self.random.choice((None, ("tid", self.random.randrange(count)))) for _ in range(2)]
            found = [
                side.shown(plain(transactions(side.clients[client], *map(side.real, bounds)))) for side in self.sides
            ]
            self.same(("iterator", bounds), *found)
        if count:
            found = [plain(transactions(side.clients[client], tid_after(side.tids[-1]))) for side in self.sides]
            self.same("iterator after the end", *found)
        for number in {count - 1, count - 2, count - 9, count // 2, 0} & set(range(count)):
            self.check_invalidations(client, number)
        fresh = [side.clients[0].call("new_oids", 5) for side in self.sides]
        for side, oids in zip(self.sides, fresh):
            if len(set(oids)) != 5 or set(oids) & set(self.written):
                raise Difference(f"{side.name} gives out oids {oids!r}")
        statuses = [side.clients[client].call("server_status") for side in self.sides]
        self.same("the keys of server_status", *(sorted(status) for status in statuses))

    def check_invalidations(self, client, number):
        """getInvalidations since a transaction."""
        answers = [side.ask(side.clients[client], "getInvalidations", ("tid", number)) for side in self.sides]
        stock, tested = [(kind, value and value[0]) for kind, value in answers]
        self.same(("getInvalidations", number), stock, tested)
        if stock[1] is None:
            return
        later = {oid for oid, numbers in self.written.items() if number < numbers[-1]}
        possible = {oid for oid, numbers in self.written.items() if number <= numbers[-1]}
        stock, tested = [set(value[1]) for _, value in answers]
        fine = stock <= possible and tested <= possible and (not self.strict or later <= tested)
        if not fine:
            raise Difference(f"getInvalidations({number}): stock {stock!r}, tested {tested!r}, written {later!r}")


def receive(client, message_id):
    """A reply as (value, None) or (None, error)."""
    try:
        return client.receive(message_id), None
    except RemoteError as error:
        return None, error


def brief(value):
    """For the log: long bytes by their length and start."""
    if isinstance(value, bytes) and 40 < len(value):
        return f"<{len(value)} bytes: {value[:12]!r}...>"
    if isinstance(value, tuple):
        return tuple(map(brief, value))
    if isinstance(value, dict):
        return {key: brief(item) for key, item in value.items()}
    return value


def first_difference(stock, tested, where=""):
    """Descends to the first part that differs: (path, part, part)."""
    if isinstance(stock, tuple) and isinstance(tested, tuple) and len(stock) == len(tested):
        for index, pair in enumerate(zip(stock, tested)):
            if pair[0] != pair[1]:
                return first_difference(*pair, f"{where}[{index}]")
    if isinstance(stock, dict) and isinstance(tested, dict) and stock.keys() == tested.keys():
        for key in stock:
            if stock[key] != tested[key]:
                return first_difference(stock[key], tested[key], f"{where}[{brief(key)!r}]")
    return where, stock, tested


def compare_files(run):
    """Python reads both files and finds them equal."""
    found = []
    for side in run.sides:
        storage = FileStorage(os.path.join(side.folder, "Data.fs"), read_only=True)
        found.append([side.shown(plain(transaction_of(item))) for item in storage.iterator()])
        storage.close()
    for number, (stock, tested) in enumerate(zip(*found)):
        run.same(f"transaction {number} in the files", stock, tested)
    run.same("transactions in the files", len(found[0]), len(found[1]))


def python_accepts(path):
    """Python's checkers read the file to its end."""
    for module in ("fstest", "fsdump"):
        code = {
            "fstest": "from ZODB.scripts.fstest import main; import sys; main(sys.argv[1:])",
            "fsdump": "from ZODB.FileStorage.fsdump import fsdump; import sys; fsdump(sys.argv[1])",
        }[module]
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        if done.returncode != 0 or "error" in done.stderr.lower():
            raise Difference(f"{module} does not accept {path}: {done.stdout[-500:]}{done.stderr[-1500:]}")


def run_seed(options, seed, codec, folder):
    """One seed in a folder of its own; gives what happened how often, and the number of file states."""
    sides = []
    for name, command, lenient in (("stock", options.stock, True), ("tested", options.server, options.lenient)):
        side = Side(name)
        side.folder = os.path.join(folder, name)
        os.mkdir(side.folder)
        config = file_storage_config(zeo="  client-conflict-resolution true")
        side.server = Server(command, config, side.folder, strict=not lenient)
        sides.append(side)
    try:
        for side in sides:
            side.server.start()
        run = Run(*sides, codec, seed, not options.lenient)
        run.check()
        for step in range(1, options.steps + 1):
            run.step()
            if step % CHECK_EVERY == 0:
                run.check()
            if step == options.steps // 2:
                run.restart()
                run.check()
        run.check(sample=1_000_000)
        for side in sides:
            for client in side.clients:
                client.close()
            side.server.stop()
        compare_files(run)
        python_accepts(os.path.join(sides[1].folder, "Data.fs"))
        states = python_files.check(options, sides[0], OIDS, folder, random.Random(seed), codec)
        return run.counts, states
    finally:
        for side in sides:
            side.server.kill()


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--server", required=True, help="the command under test; gets -C FILE")
    arguments.add_argument("--stock", default=os.path.join(os.path.dirname(sys.executable), "runzeo"))
    arguments.add_argument("--seeds", default="1,2,3")
    arguments.add_argument("--codec", choices=("Z5", "M5"), help="only this one")
    arguments.add_argument("--steps", type=int, default=160)
    arguments.add_argument("--lenient", action="store_true", help="the server under test is stock too")
    options = arguments.parse_args()
    leave_on_sigterm()
    passed = failed = 0
    for codec in [options.codec] if options.codec else ["Z5", "M5"]:
        for seed in map(int, options.seeds.split(",")):
            begun = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="zeoring-differential-") as folder:
                try:
                    counts, states = run_seed(options, seed, codec, folder)
                except Exception:
                    failed += 1
                    print(f"FAILED seed {seed} {codec}")
                    traceback.print_exc(file=sys.stdout)
                else:
                    passed += 1
                    print(
                        f"seed {seed} {codec}: {options.steps} steps ("
                        + ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
                        + f"), {states} states of a file, {time.monotonic() - begun:.0f} s"
                    )
            sys.stdout.flush()
    print(f"differential: {passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
