"""One of several processes, for the tests: joins, compares its request with the others', and leaves or dies.

python -m tests.core.one_of_several PORT PROCESSES PROCESS TEXT FILE [dies]
"""

import os
import sys
import time
from pathlib import Path

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.processes import Cluster, check_same, join, leave


def main() -> None:
    """Run as the arguments say; appends a line to FILE for each success."""
    port, processes, process, text, file, *dies = sys.argv[1:]

    def tell(line: str) -> None:
        # Avoid standard output, where the library that connects the processes may write at any moment.
        with Path(file).open("a", encoding="utf-8") as lines:
            print(line, file=lines)

    join(Cluster(f"localhost:{port}", int(processes), int(process), wait_seconds=90, heartbeat_seconds=10))
    try:
        check_same(text)
    except UserError as error:
        tell(str(error))
        leave()
        return
    tell("the same")
    if dies:
        os._exit(9)
    if text == "waits":
        time.sleep(60)
    leave()
    tell("left")


if __name__ == "__main__":
    main()
