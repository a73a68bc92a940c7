"""Fuzzing of all readers except those of splat files (`tests/formats/fuzz.py`).

    python -m tests.fuzz_readers --reader=model --count=10000

Each input starts as a valid one. Its JSON values are replaced by ones of different type, size or sign, or are
removed, renamed or swapped, and bytes are flipped, cut and spliced. Reading must succeed or give a one-line
UserError, without other exceptions and without much time or memory. Faulty inputs are kept and counted. A
hundred thousand inputs take some minutes per reader, ten thousand models a quarter of an hour; the tests run
only a few.
"""

import argparse
import math
import resource
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz_readers.attempts import fuzz
from tests.fuzz_readers.readers import READERS

# Address space in addition to that of the starting process; an input takes a few kilobytes.
FREE_BYTES = 2**31


def main() -> None:
    """Run with a limited address space, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reader", choices=READERS, required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after these")
    arguments = parser.parse_args()
    fuzz(READERS[arguments.reader], 3, Path(tempfile.mkdtemp(prefix="fuzz-")))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + FREE_BYTES, resource.RLIM_INFINITY))
    start = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{arguments.reader}-"))
    outcome = fuzz(READERS[arguments.reader], arguments.count, folder, arguments.seed, arguments.seconds)
    examples, outcome.examples = outcome.examples, []
    print(f"{arguments.reader}: {outcome}, {time.monotonic() - start:.0f} s")
    print("\n".join(examples))
    sys.exit(outcome.faults > 0)


if __name__ == "__main__":
    main()
