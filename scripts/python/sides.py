"""What two storages answer, in a form that can be compared although their transaction ids differ.

A transaction that committed on both sides is known by its number. `Side` turns numbers into the ids of its server, and
everything in the server's answers that comes from an id (the id itself, its base64 form, its time) back into numbers.
"""

import base64

from persistent.TimeStamp import TimeStamp

from raw import MAXTID, RemoteError, plain


def tid_after(tid, distance=1):
    """The id `distance` units after `tid`."""
    return (int.from_bytes(tid, "big") + distance).to_bytes(8, "big")


def base64_id(tid):
    """The form of a transaction id in undoLog and undoa."""
    return base64.encodebytes(tid).rstrip()


class Side:
    """One storage: its name, its connections, and its ids of the transactions both sides know by number."""

    def __init__(self, name):
        self.name = name
        self.tids = []
        self._numbers = {}
        self.clients = []

    def learn(self, tid):
        """Gives `tid` the next number."""
        number = len(self.tids)
        self.tids.append(tid)
        self._numbers[tid] = ("tid", number)
        self._numbers[base64_id(tid)] = ("base64", number)
        self._numbers[TimeStamp(tid).timeTime()] = ("time", number)
        self._numbers[tid.hex()] = ("hex", number)

    def real(self, value):
        """A number, ("after", number) or ("base64", number) as bytes; anything else as it is."""
        if isinstance(value, tuple) and value and value[0] == "tid":
            return self.tids[value[1]]
        if isinstance(value, tuple) and value and value[0] == "after":
            return tid_after(self.tids[value[1]])
        if isinstance(value, tuple) and value and value[0] == "base64":
            return base64_id(self.tids[value[1]])
        return value

    def shown(self, value):
        """An answer with its ids turned into numbers."""
        if isinstance(value, (bytes, float, str)) and value in self._numbers:
            return self._numbers[value]
        if isinstance(value, tuple):
            return tuple(self.shown(item) for item in value)
        if isinstance(value, dict):
            return {key: self.shown(item) for key, item in value.items()}
        return value

    def outcome(self, result):
        """("ok", value) or ("error", class, arguments) from what a call gave."""
        value, error = result
        if error is not None:
            return ("error", error.class_name, self.shown(error.arguments))
        return ("ok", self.shown(plain(value)))

    def ask(self, client, name, *arguments):
        """The outcome of one call."""
        try:
            result = client.call(name, *map(self.real, arguments)), None
        except RemoteError as error:
            result = None, error
        return self.outcome(result)

    def ask_all(self, client, calls):
        """The outcomes of many calls, pipelined."""
        real = [(name, *map(self.real, arguments)) for name, *arguments in calls]
        return [self.outcome(result) for result in client.call_all(real)]


class PythonStorage:
    """A FileStorage of Python's behind the calls of a raw client: the truth about a file."""

    METHODS = ("getTid", "loadBefore", "loadSerial", "record_iternext", "undoLog", "lastTransaction")

    def __init__(self, storage):
        self.storage = storage

    def _call(self, name, arguments):
        if name == "history":
            return self.storage.history(arguments[0], size=arguments[1])
        if name not in self.METHODS:
            raise ValueError(f"{name} is not a question about a file")
        return getattr(self.storage, name)(*arguments)

    def call_all(self, calls):
        """As Client.call_all."""
        results = []
        for name, *arguments in calls:
            try:
                results.append((self._call(name, arguments), None))
            except Exception as error:  # every error is an answer to compare
                kind = type(error)
                class_name = f"{kind.__module__}.{kind.__name__}"
                results.append((None, RemoteError(class_name, plain(error.__dict__ or error.args))))
        return results

    def transactions(self, start=None, stop=None):
        """As `transactions` below."""
        return [transaction_of(item) for item in self.storage.iterator(start, stop)]


def transaction_of(item):
    """A transaction of Python's iterator as the tuple a server answers, with its records."""
    header = (item.tid, item.status, item.user, item.description, plain(item.extension))
    return header, tuple((record.oid, record.tid, record.data, record.data_txn) for record in item)


def transactions(client, start=None, stop=None):
    """Everything the server's iterators give: ((tid, status, user, description, extension), records)."""
    found = []
    iterator = client.call("iterator_start", start, stop)
    while (header := client.call("iterator_next", iterator)) is not None:
        records = []
        walk = client.call("iterator_record_start", iterator, header[0])
        while (record := client.call("iterator_record_next", walk)) is not None:
            records.append(record)
        found.append((header, tuple(records)))
    return found


def questions(oids, count, random, sample=400, numbers=None):
    """Calls about a storage of `count` transactions that both sides, and Python's FileStorage, answer alike."""
    numbers = list(range(count)) if numbers is None else numbers
    calls = [("lastTransaction",)]
    for oid in oids:
        calls += [("getTid", oid), ("loadBefore", oid, MAXTID), ("record_iternext", oid)]
        calls += [("history", oid, size) for size in (1, 3, 1000)]
    pairs = [(oid, number) for oid in oids for number in numbers]
    for oid, number in random.sample(pairs, min(sample, len(pairs))):
        calls += [("loadBefore", oid, ("tid", number)), ("loadBefore", oid, ("after", number))]
        calls += [("loadSerial", oid, ("tid", number))]
    calls += [("record_iternext", None), ("record_iternext", b"\xff" * 8), ("loadBefore", oids[0], b"\0" * 7 + b"\1")]
    calls += [("undoLog", *bounds) for bounds in ((0, -20), (0, 5), (2, 10), (3, -4), (0, -100_000), (100_000, -5))]
    return calls
