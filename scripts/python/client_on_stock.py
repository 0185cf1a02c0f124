"""Runs our client's main job against stock runzeo, with both codecs announced, and reads its file with Python afterwards.

    client_on_stock.py --bench target/release/zeoring-bench
"""

import argparse
import os
import subprocess
import sys
import tempfile

from ZODB.FileStorage import FileStorage

from server import Server, file_storage_config, leave_on_sigterm


def main():
    leave_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bench", required=True, help="the program zeoring-bench")
    parser.add_argument("--stock", default=os.path.join(os.path.dirname(sys.executable), "runzeo"))
    options = parser.parse_args()
    passed = failed = 0
    for name, environment in (("Z5", {}), ("M5", {"ZEO_MSGPACK": "1"})):
        with tempfile.TemporaryDirectory() as folder:
            with Server(options.stock, file_storage_config(), folder, environment, strict=False) as server:
                host, port = server.address
                command = [options.bench, "run", f"{host}:{port}", "--transactions", "20", "--repeat", "1"]
                done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            if done.returncode:
                print(f"FAILED on stock announcing {name}: {done.stderr}")
                failed += 1
                continue
            storage = FileStorage(os.path.join(folder, "Data.fs"), read_only=True)
            try:
                transactions = sum(1 for _ in storage.iterator())
            finally:
                storage.close()
            print(f"stock announcing {name}: the job ran, Python reads {transactions} transactions")
            passed, failed = (passed + 1, failed) if 40 <= transactions else (passed, failed + 1)
    print(f"client: {passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
