"""The server under test opens a file that Python wrote, in every state a crash may leave it, and answers as Python.

Python's FileStorage opens a copy of each state and is asked the same questions; its answers are the truth. Then the
server commits one more transaction, and Python must find it in the file.
"""

import logging
import os
import shutil

from ZODB.FileStorage import FileStorage
from ZODB.tests.MinPO import MinPO
from ZODB.tests.StorageTestBase import zodb_pickle

from raw import Client, plain
from server import Server, file_storage_config
from sides import PythonStorage, Side, questions, transaction_of, transactions

NEW_OID = (5_000).to_bytes(8, "big")


class FileDifference(AssertionError):
    """The server and Python read a file differently."""


def last_transaction(data):
    """Where the last transaction begins, from the length behind it."""
    return len(data) - 8 - int.from_bytes(data[-8:], "big")


def states(data, index, older_index):
    """(name, bytes of Data.fs, bytes of .index or None): what a clean stop, a crash or an accident leaves."""
    last = last_transaction(data)
    yield "with its index", data, index
    yield "without index", data, None
    yield "with an index from half way", data, older_index
    yield "with a torn index", data, index[: len(index) // 2]
    yield "with an empty index", data, b""
    yield "with an index of another kind", data, b"not an index at all"
    header = last + 23
    cuts = sorted({last + 1, last + 16, last + 17, header, header + 20, (last + len(data)) // 2, len(data) - 9,
                   len(data) - 8, len(data) - 1})
    for cut in cuts:
        yield f"cut {cut - last} bytes into its last transaction", data[:cut], older_index if cut % 2 else None
    yield "cut between transactions, with an index of more", data[:last], index
    voted = data[: last + 16] + b"c" + data[last + 17 :]
    yield "voted and not finished", voted, None
    yield "voted and not finished, with an index from half way", voted, older_index
    yield "voted, not finished and cut", voted[:-5], None
    # The header of a transaction that would end far behind the file.
    junk = b"\x7f" * 8 + (1 << 40).to_bytes(8, "big") + b" " + bytes(23)
    yield "with the start of a long transaction behind it", data + junk, index
    yield "with the start of a long transaction behind it and no index", data + junk, None


def write(folder, data, index):
    """A folder with a Data.fs and perhaps its index."""
    os.makedirs(folder)
    for suffix, content in (("", data), (".index", index)):
        if content is not None:
            with open(os.path.join(folder, "Data.fs" + suffix), "wb") as file:
                file.write(content)


def cut_off(folder):
    """What was moved out of the file at open: the contents of Data.fs.tr0, or None."""
    try:
        with open(os.path.join(folder, "Data.fs.tr0"), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def truth(folder, oids, random):
    """Python's answers: (calls, answers, transactions, what was cut off)."""
    storage = FileStorage(os.path.join(folder, "Data.fs"))
    try:
        python = PythonStorage(storage)
        found = [plain(transaction_of(item)) for item in storage.iterator()]
        side = Side("Python")
        for header, _ in found:
            side.learn(header[0])
        calls = [
            (name, *map(side.real, arguments))
            for name, *arguments in questions(oids, len(found), random, sample=150)
        ]
        answers = [outcome(result) for result in python.call_all(calls)]
        # Python, and so stock ZEO, answers with the id of an unfinished transaction that it has just cut off.
        answers[calls.index(("lastTransaction",))] = ("ok", found[-1][0][0])
    finally:
        storage.close()
    return calls, answers, found, cut_off(folder)


def outcome(result):
    """An answer without what differs between a call and a socket."""
    value, error = result
    return ("ok", plain(value)) if error is None else ("error", error.class_name, error.arguments)


def check_state(options, name, data, index, oids, folder, random, codec):
    """One state of the file."""
    for part in ("python", "server"):
        write(os.path.join(folder, part), data, index)
    calls, answers, found, removed = truth(os.path.join(folder, "python"), oids, random)
    mine = os.path.join(folder, "server")
    with Server(options.server, file_storage_config(), mine, strict=not options.lenient) as server:
        with Client(server.address, codec) as client:
            for call, expected, result in zip(calls, answers, client.call_all(calls)):
                known = options.lenient and call == ("lastTransaction",)
                if outcome(result) != expected and not known:
                    message = f"{name}: {call!r}\n Python: {expected!r}\n server: {outcome(result)!r}"
                    raise FileDifference(message[:5000])
            walked = plain(transactions(client))
            if walked != tuple(found):
                raise FileDifference(f"{name}: the iterator gives {len(walked)} transactions, Python {len(found)}")
            # Python drops what is shorter than a transaction's header; ours saves every byte.
            if cut_off(mine) != removed and removed is not None:
                raise FileDifference(f"{name}: Python moved {removed!r} to .tr0, the server {cut_off(mine)!r}"[:5000])
            committed = client.commit(7, [(NEW_OID, b"\0" * 8, zodb_pickle(MinPO("after")))])
    storage = FileStorage(os.path.join(mine, "Data.fs"), read_only=True)
    try:
        last = [plain(transaction_of(item)) for item in storage.iterator()]
        if last[:-1] != found or last[-1][0][0] != committed or storage.lastTransaction() != committed:
            raise FileDifference(f"{name}: after one more commit Python reads {len(last)} transactions")
    finally:
        storage.close()


def check(options, side, oids, folder, random, codec):
    """All states of the file in `side`'s folder; gives their number."""
    logging.getLogger("ZODB").setLevel(logging.CRITICAL + 1)
    contents = []
    for file_name in ("Data.fs", "Data.fs.index", "half.index"):
        with open(os.path.join(side.folder, file_name), "rb") as file:
            contents.append(file.read())
    count = 0
    for name, data, index in states(*contents):
        work = os.path.join(folder, "state")
        check_state(options, name, data, index, oids, work, random, codec)
        shutil.rmtree(work)
        count += 1
    return count
