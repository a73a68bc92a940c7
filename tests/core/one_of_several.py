"""One of several processes, for the tests: joins, compares what it was asked for, and leaves or dies.

python -m tests.core.one_of_several PORT PROCESSES PROCESS TEXT [dies]
"""

import os
import sys
import time

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.processes import Cluster, check_same, join, leave


def main() -> None:
    """As the arguments say; prints a line for each thing that went well."""
    port, processes, process, text, *dies = sys.argv[1:]
    join(Cluster(f"localhost:{port}", int(processes), int(process), wait_seconds=30, heartbeat_seconds=10))
    try:
        check_same(text)
    except UserError as error:
        print(error)
        leave()
        return
    print("the same", flush=True)
    if dies:
        os._exit(9)
    if text == "waits":
        time.sleep(60)
    leave()
    print("left")


if __name__ == "__main__":
    main()
