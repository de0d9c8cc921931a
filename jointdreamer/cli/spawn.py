"""Several ranks of one run on this machine: python -m jointdreamer.cli.spawn 4 train.py prompt=... cameras.n_rigs=4

What torchrun does, but with the exit status of the run, and with every signal handed on to all ranks: for launchers.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from jointdreamer.runs.processes import POLL_SECONDS, threads_env
from jointdreamer.runs.signals import stop_on_signals

GRACE_SECONDS = 60.0  # for the others to end by themselves, once one has failed


def spawn(ranks: int, command: Sequence[str]) -> int:
    """Run `python COMMAND` in so many ranks; the exit status of the run: the first that is not 0.

    A signal of `signals.ENDING` goes to all of them, which save and stop.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    threads = {} if "OMP_NUM_THREADS" in os.environ else threads_env(max(1, (os.cpu_count() or 1) // ranks))
    status, ends, told = 0, float("inf"), False
    with stop_on_signals() as stop:
        running = [
            subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, **threads, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            for rank in range(ranks)
        ]
        try:
            while running:
                if stop.requested is not None and not told:
                    told = True
                    for process in running:
                        process.send_signal(stop.requested)
                for process in [process for process in running if process.poll() is not None]:
                    running.remove(process)
                    if process.returncode and not status:
                        status, ends = process.returncode, time.monotonic() + GRACE_SECONDS
                if time.monotonic() > ends and not told:
                    break
                time.sleep(POLL_SECONDS)
        finally:
            for process in running:
                process.kill()
                process.wait()
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(spawn(int(sys.argv[1]), sys.argv[2:]))
