"""Packs the same files with Python's FileStorage and with ours, and compares what is left byte by byte.

    python pack_differential.py --server COMMAND [--seeds 1,2,3] [--objects 60,3000]

Each seed makes a database by Python's FileStorage: objects that refer to each other in cycles, by weak references and
into other databases, in trees, to objects that are not there; objects that are cut off and come back; deletions; undo,
undo of undo, undo of creations; records that cannot be read. It is packed to several times in turn, with and without
garbage collection, by both. Equal must be: Data.fs and Data.fs.old, byte by byte, Data.fs.index
as Python reads it, and the blobs that are left and kept.

Where stock fails, or keeps less than it should (see `Truth`), ours is held against a corrected copy of stock's rules.
"""

import argparse
import contextlib
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from base64 import encodebytes
from collections import Counter
from unittest import mock

import transaction
import ZODB.FileStorage.fspack as fspack
from BTrees.OOBTree import OOBTree
from persistent.list import PersistentList
from persistent.mapping import PersistentMapping
from persistent.TimeStamp import TimeStamp
from persistent.wref import WeakRef
from ZODB import DB
from ZODB.blob import Blob
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.fsIndex import fsIndex
from ZODB.POSException import POSError
from ZODB.serialize import referencesf
from ZODB.utils import p64

from raw import Client, RemoteError
from server import Server, leave_on_sigterm

# Seconds between two transactions.
STEP = 10


def tid_of(seconds):
    return TimeStamp(*time.gmtime(seconds)[:5] + (seconds % 60,)).raw()


class Record:
    """A record's pickles, put together by hand."""

    CLASS = b"\x80\x03cmodule\nClass\nq\x00."

    @staticmethod
    def of(rng, oids, missing):
        """References to `oids`, of several forms, and some that do not count."""
        parts = []
        for oid in oids:
            short = b"C\x08" + p64(oid)
            parts.append(
                rng.choice(
                    (
                        short + b"h\x00\x86Q",
                        short + b"q\x05h\x00\x86Qh\x05h\x00\x86Q0",
                        short + b"Q",
                        b"U\x08" + p64(oid) + b"h\x00\x86Q" if max(p64(oid)) < 0x80 else short + b"Q",
                    )
                )
            )
        if rng.random() < 0.3:
            other = b"C\x08" + p64(rng.randrange(1, 40))
            parts.append(
                rng.choice(
                    (
                        b"]q\x01(U\x01w" + other + b"\x85eQ",
                        b"](U\x01m(U\x02db" + other + b"h\x00teQ",
                        b"](U\x01n(U\x02db" + other + b"teQ",
                        b"](" + other + b"eQ",
                    )
                )
            )
        if missing:
            parts.append(b"C\x08" + p64(missing) + b"h\x00\x86Q")
        filler = b"B" + rng.choice((0, 3, 300, 3000)).to_bytes(4, "little")
        filler += bytes(rng.randrange(256) for _ in range(min(8, filler[1])))
        filler += b"x" * (int.from_bytes(filler[1:5], "little") - (len(filler) - 5))
        return Record.CLASS + b"\x80\x03(" + b"".join(parts) + filler + b"t."


class Maker:
    """A database full of everything that a pack has to get right."""

    def __init__(self, path, seed, objects, missing, unreadable):
        self.rng = random.Random(seed)
        self.storage = FileStorage(path, create=True)
        self.objects, self.missing, self.unreadable = objects, missing, unreadable
        self.now = 1_700_000_000 + 0.25
        self.times = []
        self.committed = []
        self.last = 0
        self.known = []
        self.counts = Counter()
        while self.last < objects:
            self.transaction()
        for _ in range(30):
            self.transaction()
        self.storage.close()

    def commit(self, work):
        """Runs `work(transaction)` in a transaction of its own."""
        self.now += STEP
        meta = TransactionMetaData(b"user", b"what", {"number": len(self.committed)} if self.rng.random() < 0.2 else {})
        tid = tid_of(self.now)
        self.storage.tpc_begin(meta, tid)
        try:
            work(meta)
            self.storage.tpc_vote(meta)
            self.storage.tpc_finish(meta)
        except (POSError, KeyError, TypeError):
            self.storage.tpc_abort(meta)
            self.counts["refused"] += 1
            return
        self.committed.append(tid)
        self.times.append(self.now)

    def serial(self, oid):
        try:
            return self.storage.getTid(p64(oid))
        except KeyError:
            return None

    def store(self, meta, oid, data):
        serial = self.serial(oid)
        if serial is None:
            position = self.storage._index.get(p64(oid))
            serial = self.storage._read_data_header(position).tid if position else p64(0)
        self.storage.store(p64(oid), serial, data, "", meta)

    def data(self, near):
        rng = self.rng
        count = rng.choice((0, 0, 1, 2, 3, 8))
        # Mostly among those that were made together, and never into nowhere but on purpose.
        near_or_any = (self.known[-60:], self.known[-60:], self.known)
        oids = [rng.choice(rng.choice(near_or_any)) for _ in range(count)]
        missing = 0
        if self.missing and rng.random() < 0.02:
            missing = rng.choice((1 << 20, 1 << 41)) + rng.randrange(50)
        if self.unreadable and rng.random() < 0.01:
            self.counts["unreadable"] += 1
            return rng.choice((b"garbage", Record.of(rng, oids, 0)[:-3], b"cnowhere\nC\n.\xff"))
        return Record.of(rng, oids + near, missing)

    def transaction(self):
        rng = self.rng
        kind = rng.random()
        if not self.committed:
            self.known = [0, 1, 2]
            self.last = 2
            self.commit(lambda meta: [self.store(meta, oid, Record.of(rng, [1, 2], 0)) for oid in (0, 1, 2)])
        elif kind < 0.22 and len(self.committed) > 2:
            tids = rng.sample(self.committed[-8:], min(len(self.committed[-8:]), rng.choice((1, 1, 1, 2))))
            tids.sort(reverse=True)
            self.counts["undo"] += 1
            self.commit(lambda meta: [self.storage.undo(encodebytes(tid).rstrip(b"\n"), meta) for tid in tids])
        elif kind < 0.27 and len(self.known) > 5:
            oid = rng.choice(self.known[2:])
            self.counts["deleted"] += 1
            self.commit(lambda meta: self.storage.deleteObject(p64(oid), self.serial(oid), meta))
        elif kind < 0.3:
            self.commit(lambda meta: None)
        else:
            size = rng.choice((1, 2, 5, 20, max(1, self.objects // 10)))
            new = [self.last + 1 + number for number in range(size)] if rng.random() < 0.7 else []
            if rng.random() < 0.02:
                new.append((1 << rng.choice((24, 40, 63))) + self.last)
            old = rng.sample(self.known, min(len(self.known), rng.choice((0, 1, 2, 6))))

            def work(meta):
                for place, oid in enumerate(new):
                    # A chain of those made together, begun from an object that is there.
                    self.store(meta, oid, self.data(new[place + 1 : place + 2]))
                for oid in old:
                    self.store(meta, oid, self.data(new[:1]))

            before = len(self.committed)
            self.commit(work)
            if len(self.committed) != before:
                self.known += new
                self.last = max([self.last] + [oid for oid in new if oid < 1 << 24])


class BlobMaker:
    """A database as applications make it, through ZODB: trees, weak references, blobs, undo."""

    def __init__(self, path, seed, objects):
        rng = random.Random(seed)
        self.counts, self.times, now = Counter(), [], [1_700_000_000.25]
        layout = rng.choice(("bushy", "lawn"))
        folder = os.path.join(os.path.dirname(path), "blobs")
        os.mkdir(folder)
        with open(os.path.join(folder, ".layout"), "w") as marker:
            marker.write(layout)
        storage = FileStorage(path, create=True, blob_dir=folder)
        clock = mock.patch.object(time, "time", lambda: now[0])
        with clock:
            db = DB(storage)
            connection = db.open()
            root = connection.root()
            root["tree"] = tree = OOBTree()
            root["list"] = PersistentList()
            root["blobs"] = PersistentMapping()

            def commit():
                now[0] += STEP
                transaction.commit()
                self.times.append(now[0])

            commit()
            for step in range(40):
                for _ in range(objects // 40):
                    tree[rng.random()] = rng.choice((PersistentMapping, PersistentList))()
                for key in rng.sample(list(tree), min(len(tree), objects // 80)):
                    del tree[key]
                if rng.random() < 0.5:
                    name = f"blob{rng.randrange(8)}"
                    blob = root["blobs"].get(name) if rng.random() < 0.6 else None
                    if blob is None:
                        blob = root["blobs"][name] = Blob()
                    with blob.open("w") as file:
                        file.write(b"%d" % step * 10)
                    self.counts["blobs"] += 1
                elif len(root["blobs"]) and rng.random() < 0.5:
                    del root["blobs"][rng.choice(list(root["blobs"]))]
                target = PersistentMapping()
                target["list"] = root["list"]
                connection.add(target)
                root["list"].append(WeakRef(target))
                root["list"].append(target if rng.random() < 0.5 else None)
                commit()
                if rng.random() < 0.3:
                    try:
                        db.undo(db.undoLog(0, 3)[rng.randrange(3)]["id"])
                        commit()
                        self.counts["undo"] += 1
                    except Exception:
                        transaction.abort()
                        self.counts["refused"] += 1
                    connection.sync()
            # Ours leaves blobs later than the last transaction alone: they may be of one that is under way.
            root["end"] = True
            commit()
            self.now = now[0]
            connection.close()
            db.close()


class Truth(fspack.GC):
    """Stock's rules, but nothing that is still wanted is lost, and nothing ends the pack.

    - What only a later back pointer leads to keeps what it refers to; stock forgets that if the object itself was not
      reachable at the pack time. It does not stand in for the object's record at the pack time either.
    - A reference into nowhere does not end the pack, but for the root.
    - If a reachable record cannot be read, no object is removed.
    - Of two records of an object in one transaction, a back pointer leads to the one it led to (see `TrueCopier`).
    - Without garbage collection, too, records are kept that a later back pointer leads to; stock fails there.
    """

    unreadable = False

    def isReachable(self, oid, pos):
        return self.reachable.get(oid) == pos or pos in self.reach_ex.get(oid, ())

    def findReachable(self):
        self.buildPackIndex()
        roots = []
        self.findFuture(roots)
        if self.gc:
            if p64(0) not in self.oid2curpos and len(self.oid2curpos):
                raise KeyError(p64(0))
            todo = [p64(0)]
            for pos in roots:
                todo += self.findrefs(pos)
            while todo:
                oid = todo.pop()
                pos = self.oid2curpos.get(oid)
                if pos is not None and oid not in self.reachable:
                    self.reachable[oid] = pos
                    todo += self.findrefs(pos)
        if not self.gc or self.unreadable:
            self.reachable = self.oid2curpos

    def findFuture(self, roots):
        pos = self.packpos
        while pos < self.eof:
            th = self._read_txn_header(pos)
            end = pos + th.tlen
            pos += th.headerlen()
            while pos < end:
                dh = self._read_data_header(pos)
                if dh.back and dh.back < self.packpos:
                    positions = self.reach_ex.setdefault(dh.oid, [])
                    if dh.back not in positions:
                        positions.append(dh.back)
                        roots.append(dh.back)
                pos += dh.recordlen()
            pos += 8

    def findrefs(self, pos):
        try:
            refs = super().findrefs(pos)
        except Exception:
            self.unreadable = True
            return []
        if any(len(oid) != 8 for oid in refs):
            self.unreadable = True
        return refs


class TrueCopier(fspack.PackCopier):
    """Leads back pointers to a record with the same data.

    A transaction that undoes several has several records of an object. Stock leads every back pointer into it to the
    first of them, whatever that one holds.
    """

    def _data_find(self, tpos, oid, data):
        header = self._read_txn_header(tpos)
        end, pos, found = tpos + header.tlen, tpos + header.headerlen(), 0
        while pos < end:
            record = self._read_data_header(pos)
            if record.oid == oid and self.data_at(pos) == data:
                found = pos
            pos += record.recordlen()
        return found

    def data_at(self, pos):
        record = self._read_data_header(pos)
        while record.back:
            record = self._read_data_header(record.back)
        return self._file.read(record.plen) if record.plen else None


def pack_by_python(folder, seconds, gc, keep_old, truth=False):
    """Gives the class of the error, or None."""
    path = os.path.join(folder, "Data.fs")
    with contextlib.ExitStack() as patches:
        if truth:
            patches.enter_context(mock.patch.object(fspack, "GC", Truth))
            patches.enter_context(mock.patch.object(fspack, "PackCopier", TrueCopier))
        blobs = os.path.join(folder, "blobs")
        options = {"blob_dir": blobs} if os.path.exists(blobs) else {}
        storage = FileStorage(path, pack_gc=gc, pack_keep_old=keep_old, **options)
        try:
            storage.pack(seconds, referencesf)
        except (Exception, AssertionError) as error:
            return type(error).__name__
        finally:
            # A failed pack may have left the lock behind.
            with contextlib.suppress(Exception):
                storage.close()
    return None


def config(gc, keep_old, blobs):
    flags = f"  pack-gc {str(gc).lower()}\n  pack-keep-old {str(keep_old).lower()}\n"
    flags += f"  blob-dir {blobs}\n" if os.path.exists(blobs) else ""
    return f"<zeo>\n  address 127.0.0.1:0\n</zeo>\n<filestorage 1>\n  path Data.fs\n{flags}</filestorage>\n"


def pack_by_server(command, folder, seconds, gc, keep_old, codec):
    """Gives the class of the error, or None."""
    with Server(command, config(gc, keep_old, os.path.join(folder, "blobs")), folder) as server:
        with Client(server.address, codec=codec) as client:
            try:
                client.call("pack", seconds, True)
            except RemoteError as error:
                return error.class_name.rpartition(".")[2]
    return None


def contents(folder):
    """What is compared of a folder."""
    found = {}
    for name in ("Data.fs", "Data.fs.old"):
        path = os.path.join(folder, name)
        found[name] = open(path, "rb").read() if os.path.exists(path) else None
    index = fsIndex.load(os.path.join(folder, "Data.fs.index"))
    found["index"] = (index["pos"], sorted(index["index"].items()))
    for name in ("blobs", "blobs.old"):
        # Stock moves empty folders, too.
        found[name] = sorted(
            os.path.relpath(os.path.join(where, name_), folder)
            for where, _, names in os.walk(os.path.join(folder, name))
            for name_ in names
            if name_ not in (".lock", ".removed")
        )
    found["empty folders"] = [
        where
        for where, folders, names in os.walk(os.path.join(folder, "blobs"))
        if not folders and not names and os.path.basename(where) not in ("tmp", "blobs")
    ]
    found["rest"] = sorted(
        name for name in os.listdir(folder) if name.endswith((".pack", ".index_tmp")) or ".tr" in name
    )
    return found


def difference(one, other):
    for name in one:
        if one[name] != other[name]:
            if isinstance(one[name], bytes) and isinstance(other[name], bytes):
                at = next((n for n, pair in enumerate(zip(one[name], other[name])) if pair[0] != pair[1]), -1)
                return f"{name}: {len(one[name])} and {len(other[name])} bytes, first difference at {at}"
            if name.startswith("blobs"):
                first, second = set(one[name]), set(other[name])
                return f"{name}: only {sorted(first - second)}, only {sorted(second - first)}"
            return f"{name}: {str(one[name])[:200]} and {str(other[name])[:200]}"
    return None


def has_record(data, blob):
    """Whether a file has the revision that a blob is named for."""
    *folders, name = blob.split(os.sep)[1:]
    if not name.endswith(".blob"):
        return False
    oid = bytes.fromhex("".join(folder[2:] for folder in folders)).rjust(8, b"\0")
    return oid + bytes.fromhex(name[2:-5]).rjust(8, b"\0") in data


class Difference(AssertionError):
    pass


def accepts(path):
    """Python reads the file to its end, without its index."""
    with tempfile.TemporaryDirectory(prefix="zeoring-pack-") as folder:
        copy = os.path.join(folder, "Data.fs")
        shutil.copy(path, copy)
        storage = FileStorage(copy, read_only=True)
        for transaction in storage.iterator():
            for _ in transaction:
                pass
        storage.close()


def run(options, seed, objects, counts):
    rng = random.Random(seed)
    codec = rng.choice(("Z5", "M5"))
    gc, keep_old = rng.random() < 0.8, rng.random() < 0.5
    with tempfile.TemporaryDirectory(prefix="zeoring-pack-") as base:
        folders = {name: os.path.join(base, name) for name in ("stock", "truth", "ours")}
        os.mkdir(folders["stock"])
        path = os.path.join(folders["stock"], "Data.fs")
        if rng.random() < 0.3:
            maker = BlobMaker(path, seed, objects)
        else:
            maker = Maker(path, seed, objects, rng.random() < 0.4, rng.random() < 0.4)
        counts.update(maker.counts)
        times = [maker.times[int(len(maker.times) * rng.uniform(0.1, 0.9))] + STEP / 2]
        times += [rng.choice(maker.times) + rng.choice((0, 1)), times[0], maker.now + STEP, maker.now + STEP, 0.5]
        if rng.random() < 0.5:
            rng.shuffle(times)
        for seconds in times:
            for name in ("truth", "ours"):
                shutil.rmtree(folders[name], ignore_errors=True)
                shutil.copytree(folders["stock"], folders[name])
            before = contents(folders["stock"])
            errors = {
                "stock": pack_by_python(folders["stock"], seconds, gc, keep_old),
                "truth": pack_by_python(folders["truth"], seconds, gc, keep_old, truth=True),
                "ours": pack_by_server(options.server, folders["ours"], seconds, gc, keep_old, codec),
            }
            found = {}
            for name, folder in folders.items():
                if errors[name] is None or name == "ours":
                    found[name] = contents(folder)
                    if found[name]["Data.fs"] == before["Data.fs"]:
                        # Stock removes the old file even if it then does nothing.
                        found[name]["Data.fs.old"] = found[name]["blobs.old"] = None
            for name in set(found) - {"ours"}:
                # Stock takes all blobs of an object that was not reachable at the pack time.
                lost = [blob for blob in found["ours"]["blobs"] if blob not in found[name]["blobs"]]
                lost = [blob for blob in lost if has_record(found["ours"]["Data.fs"], blob)]
                counts["blobs that stock loses"] += len(lost)
                found[name]["blobs"] = sorted(found[name]["blobs"] + lost)
            if errors["ours"] != errors["truth"]:
                raise Difference(f"to {seconds}: {errors}")
            like_stock = "stock" in found and difference(found["stock"], found["ours"]) is None
            if not like_stock and errors["ours"] is None:
                wrong = difference(found["truth"], found["ours"])
                if wrong:
                    stock = difference(found["stock"], found["ours"]) if "stock" in found else errors["stock"]
                    raise Difference(f"to {seconds}, gc {gc}: {wrong}; stock: {stock}")
            accepts(os.path.join(folders["ours"], "Data.fs"))
            counts["packs"] += 1
            counts["as stock"] += like_stock
            counts["stock failed"] += errors["stock"] is not None
            counts["stock loses objects"] += not like_stock and errors["stock"] is None
            counts["changed nothing"] += found["ours"]["Data.fs"] == before["Data.fs"]
            # What ours has left is packed next.
            shutil.rmtree(folders["stock"])
            shutil.copytree(folders["ours"], folders["stock"])


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--server", required=True, help="the command under test; gets -C FILE")
    arguments.add_argument("--seeds", default="1,2,3,4,5,6,7,8")
    arguments.add_argument("--objects", default="60,2000", help="sizes, for each of which each seed is run")
    options = arguments.parse_args()
    leave_on_sigterm()
    logging.disable(logging.CRITICAL)
    passed = failed = 0
    for objects in map(int, options.objects.split(",")):
        counts, begun = Counter(), time.monotonic()
        for seed in map(int, options.seeds.split(",")):
            try:
                run(options, seed, objects, counts)
            except Exception:
                failed += 1
                print(f"FAILED seed {seed}, {objects} objects")
                traceback.print_exc(file=sys.stdout)
            else:
                passed += 1
        shown = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        print(f"{objects} objects: {shown}, {time.monotonic() - begun:.0f} s")
        sys.stdout.flush()
    print(f"pack: {passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
