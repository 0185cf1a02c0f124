"""The stock client's side of `zeoring-bench seed`: measures one round for every line that it reads, and answers with JSON.

    seed.py --address HOST:PORT --loop asyncio
    seed.py --address HOST:PORT --loop uvloop --uvloop FOLDER     (pip install --target FOLDER uvloop)

Figures are microseconds: of a transaction of ten objects, and of one loadBefore.
"""

import argparse
import asyncio
import json
import sys
import time

RECORD = b"\x80\x03cpersistent.mapping\nPersistentMapping\n.\x80\x03}(X\x04\x00\x00\x00data}X\x01\x00\x00\x00xB"
LENGTH = 1000


def record(oid, version):
    payload = LENGTH - len(RECORD) - 4 - 2
    return RECORD + payload.to_bytes(4, "little") + oid + bytes([version % 256]) * (payload - 8) + b"u."


def microseconds(since, count):
    return (time.perf_counter() - since) * 1e6 / count


class Round:
    """One storage, and the objects that a round writes and reads."""

    def __init__(self, storage, transactions, objects, loads):
        self.storage = storage
        self.transactions = transactions
        self.objects = objects
        self.loads = loads

    def commit(self, oids, serials, version):
        from ZODB.Connection import TransactionMetaData

        storage, transaction = self.storage, TransactionMetaData()
        storage.tpc_begin(transaction)
        for oid, serial in zip(oids, serials):
            storage.store(oid, serial, record(oid, version), "", transaction)
        storage.tpc_vote(transaction)
        return storage.tpc_finish(transaction)

    def measure(self):
        from ZODB.utils import maxtid, z64

        storage, figures = self.storage, {}
        groups = [[storage.new_oid() for _ in range(self.objects)] for _ in range(self.transactions)]
        count = len(groups)

        begin = time.perf_counter()
        tids = [self.commit(oids, [z64] * len(oids), 0) for oids in groups]
        figures["add"] = microseconds(begin, count)

        begin = time.perf_counter()
        for oids, tid in zip(groups, tids):
            self.commit(oids, [tid] * len(oids), 1)
        figures["update"] = microseconds(begin, count)

        begin = time.perf_counter()
        for oids in groups:
            for oid in oids:
                storage.loadBefore(oid, maxtid)
        figures["cached"] = microseconds(begin, count)

        storage._cache.clear()
        begin = time.perf_counter()
        for oids in groups:
            for oid in oids:
                storage.loadBefore(oid, maxtid)
        figures["read"] = microseconds(begin, count)

        storage._cache.clear()
        begin = time.perf_counter()
        for oids in groups:
            storage.prefetch(oids, maxtid)
            for oid in oids:
                storage.loadBefore(oid, maxtid)
        figures["prefetch"] = microseconds(begin, count)

        # The call itself, without the client's cache on its way: across threads, and within the loop.
        server, oid = storage._server, groups[0][0]
        begin = time.perf_counter()
        for _ in range(self.loads):
            server.call("loadBefore", oid, maxtid)
        figures["across"] = microseconds(begin, self.loads)

        async def within():
            begin = time.perf_counter()
            for _ in range(self.loads):
                await server.call_sync_co("loadBefore", (oid, maxtid), 30)
            return microseconds(begin, self.loads)

        figures["within"] = asyncio.run_coroutine_threadsafe(within(), server.loop).result()
        return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), required=True)
    parser.add_argument("--uvloop", help="the folder that holds the package uvloop")
    parser.add_argument("--transactions", type=int, default=20)
    parser.add_argument("--objects", type=int, default=10)
    parser.add_argument("--loads", type=int, default=1000)
    options = parser.parse_args()
    # ZEO takes uvloop wherever it can be imported (ZEO/asyncio/compat.py).
    if options.loop == "asyncio":
        sys.modules["uvloop"] = None
    else:
        sys.path.insert(0, options.uvloop)
        import uvloop  # noqa: F401
    from ZEO.ClientStorage import ClientStorage

    host, port = options.address.rsplit(":", 1)
    storage = ClientStorage((host, int(port)), wait_timeout=30)
    print("ready", flush=True)
    work = Round(storage, options.transactions, options.objects, options.loads)
    for _ in sys.stdin:
        print(json.dumps(work.measure()), flush=True)
    storage.close()


if __name__ == "__main__":
    main()
