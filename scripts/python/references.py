"""Holds our reader of references against ZODB's own, on generated records.

    python references.py [--records 20000] [--seed N] [--reader COMMAND]

Each record is two pickles as ZODB writes them, of every protocol that it has had and in every form that a reference
may have: ordinary, with and without a class, weak, into other databases, old; the same oid many times, so that it comes
from the memo; BTrees; and what a damaged record may be. What `ZODB.serialize.referencesf` says of it is the truth;
where it raises an error, ours must call the record unreadable.
"""

import argparse
import copyreg
import io
import os
import random
import struct
import subprocess
import sys

from BTrees.OOBTree import OOBTree
from zodbpickle import binary
from zodbpickle.pickle import Pickler
from ZODB.serialize import referencesf

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Referred:
    """Something whose pickle is a persistent id."""

    def __init__(self, pid):
        self.pid = pid


class Plain:
    """Something that is pickled as it is."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Slotted(Plain):
    """Something made by a call."""

    def __reduce__(self):
        return copyreg._reconstructor, (Plain, object, None), self.__dict__


class Grown(list):
    """A list that is made by a call and then filled."""


def oid_of(rng):
    kind = rng.random()
    if kind < 0.5:
        return struct.pack(">Q", rng.randrange(1 << rng.choice((7, 8, 16, 40))))
    if kind < 0.8:
        return bytes(rng.randrange(256) for _ in range(8))
    return bytes(rng.choice(b"abc\\'\"\t09") for _ in range(8))


def pid_of(rng, oids, protocol):
    oid = rng.choice(oids)
    if 0x80 <= max(oid) and protocol < 1:
        oid = b"00000000"
    text = oid if 1 <= protocol else oid.decode("latin-1")
    kind = rng.randrange(9)
    if kind < 4:
        return (text, Plain)
    if kind == 4:
        return text
    if kind == 5:
        return ["m", ("other", text, Plain)]
    if kind == 6:
        return ["n", ("other", text)]
    if kind == 7:
        return ["w", (text,)] if rng.random() < 0.5 else ["w", (text, "other")]
    return [text]


def state_of(rng, pids, depth=0):
    """A state of any shape, with references at any depth."""
    kind = rng.randrange(14)
    if 4 < depth:
        kind = rng.randrange(6)
    if kind == 0:
        return rng.choice((None, True, False, 0, -1, 255, 65536, -(1 << 40), 1 << 300, 2.5, "text", b"bytes", "\xe4"))
    if kind == 1:
        return binary(b"x" * rng.choice((0, 8, 300)))
    if kind < 6:
        return Referred(rng.choice(pids))
    parts = [state_of(rng, pids, depth + 1) for _ in range(rng.randrange(5))]
    if kind < 8:
        return tuple(parts)
    if kind == 8:
        return parts * rng.choice((1, 2))
    if kind < 11:
        return {f"key{number}": part for number, part in enumerate(parts)}
    if kind == 11:
        return rng.choice((Plain, Slotted))(parts=parts, again=parts)
    if kind == 12:
        return Grown(parts)
    tree = OOBTree({f"key{number}": part for number, part in enumerate(parts)})
    return tree.__getstate__()


def record_of(rng):
    """A record, as bytes; whether it is as the pickler wrote it; whether it has strings of Python 2."""
    protocol = rng.choice((0, 1, 2, 3, 3, 3))
    oids = [binary(oid_of(rng)) for _ in range(4)]
    pids = [pid_of(rng, oids, protocol) for _ in range(4)]
    out = io.BytesIO()
    pickler = Pickler(out, protocol)
    pickler.persistent_id = lambda thing: getattr(thing, "pid", None) if isinstance(thing, Referred) else None
    pickler.dump(rng.choice((Plain, (Plain, None), ("module", "name"), ((("module", "name"), None)))))
    pickler.dump(state_of(rng, pids))
    data = out.getvalue()
    old = protocol == 3 and rng.random() < 0.4
    if old:
        # As Python 2 wrote bytes, which Python 3 reads only if they are ASCII.
        data = data.replace(b"C\x08", rng.choice((b"U\x08", b"T\x08\0\0\0")))
    damage = rng.random()
    if damage < 0.03:
        data = data[: rng.randrange(len(data))]
    elif damage < 0.06:
        at = rng.randrange(len(data))
        data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    return data, 0.06 <= damage, old


def truth(data):
    """What ZODB says of a record."""
    try:
        oids = referencesf(data)
    except Exception:
        return "unreadable"
    if any(len(oid) != 8 for oid in oids):
        # There is no such object: Python's pack fails when it looks for it.
        return "unreadable"
    return " ".join(oid.hex() for oid in oids)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--records", type=int, default=20000)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--reader", help="the program that tells references; default: cargo builds it")
    options = arguments.parse_args()
    build = ["cargo", "run", "-q", "-p", "zeoring-shared", "--example", "references"]
    command = [options.reader] if options.reader else build
    rng = random.Random(options.seed)
    records = [record_of(rng) for _ in range(options.records)]
    stdin = b"".join(struct.pack(">I", len(record)) + record for record, _, _ in records)
    done = subprocess.run(command, input=stdin, capture_output=True, cwd=ROOT)
    if done.returncode:
        sys.exit(done.stderr.decode())
    found = done.stdout.decode().split("\n")[:-1]
    if len(found) != len(records):
        sys.exit(f"{len(found)} answers about {len(records)} records")
    failed = unreadable = references = differ = 0
    for (record, whole, old), ours in zip(records, found):
        stock = truth(record)
        unreadable += stock == "unreadable"
        references += 0 if stock == "unreadable" else len(stock.split())
        if ours == stock:
            continue
        if (whole and not (old and stock == "unreadable")) or "unreadable" not in (ours, stock):
            failed += 1
            print(f"FAILED {record!r}: stock {stock!r}, ours {ours!r}")
        else:
            # The readers give up on damage at different places, and ours reads strings of Python 2.
            differ += 1
    print(
        f"{len(records)} records with {references} references, {unreadable} unreadable, {differ} to one reader only"
    )
    print(f"references: {len(records) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
