"""Backs a storage up with repozo while our server serves it and a client commits, and compares what comes back.

    repozo.py --server target/release/zeoring-server
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time

from ZEO.ClientStorage import ClientStorage
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.utils import p64, z64

from server import Server, file_storage_config, leave_on_sigterm


def commit(storage, serials, chance):
    """Writes some objects in one transaction."""
    transaction = TransactionMetaData()
    storage.tpc_begin(transaction)
    oids = {p64(chance.randrange(200)) for _ in range(chance.randrange(1, 6))}
    for oid in oids:
        storage.store(oid, serials.get(oid, z64), chance.randbytes(chance.randrange(10, 3000)), "", transaction)
    storage.tpc_vote(transaction)
    tid = storage.tpc_finish(transaction)
    serials.update(dict.fromkeys(oids, tid))
    return tid


def back_up(*arguments):
    """A backup in a second of its own: repozo names files by the second."""
    second = int(time.time())
    while int(time.time()) == second:
        time.sleep(0.05)
    repozo("-B", *arguments)


def repozo(*arguments):
    done = subprocess.run([sys.executable, "-m", "ZODB.scripts.repozo", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"repozo {arguments}: {done.stdout}{done.stderr}")


def history(path):
    """Every record of a storage, as Python reads it."""
    storage = FileStorage(path, read_only=True)
    try:
        return [(t.tid, r.oid, r.data) for t in storage.iterator() for r in t]
    finally:
        storage.close()


def backed_up(server, folder, chance):
    """Backs up three times while commits go on; then what repozo makes of it must be where the file was at some moment."""
    repository, copy = os.path.join(folder, "backups"), os.path.join(folder, "copy.fs")
    os.mkdir(repository)
    data = os.path.join(folder, "Data.fs")
    host, port = server.address
    storage = ClientStorage((host, port), wait_timeout=30)
    serials, done, is_over = {}, [], threading.Event()

    def write():
        while not is_over.is_set():
            done.append(commit(storage, serials, chance))

    done.append(commit(storage, serials, chance))
    writer = threading.Thread(target=write)
    writer.start()
    at_least = []
    for number in range(3):
        at_least.append(done[-1])
        back_up("-r", repository, "-f", data, *([] if number else ["-F"]))
        target = len(done) + 20
        while len(done) < target:
            if not writer.is_alive():
                raise SystemExit("the writer went away")
    is_over.set()
    writer.join()
    last = done[-1]
    back_up("-r", repository, "-f", data)
    storage.close()
    repozo("-R", "-r", repository, "-o", copy)
    repozo("-V", "-r", repository)
    return copy, at_least, last


def main():
    leave_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True, help="the program zeoring-server")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = tempfile.mkdtemp()
    try:
        with Server(options.server, file_storage_config(), folder, {}) as server:
            copy, at_least, last = backed_up(server, folder, random.Random(options.seed))
        original, restored = history(os.path.join(folder, "Data.fs")), history(copy)
        tids = {tid for tid, _, _ in restored}
        is_same = restored == original and last in tids and tids.issuperset(at_least)
        print(f"{len(restored)} records in {len(tids)} transactions came back")
    finally:
        shutil.rmtree(folder)
    print(f"repozo: {int(is_same)} passed, {int(not is_same)} failed")
    return not is_same


if __name__ == "__main__":
    sys.exit(main())
