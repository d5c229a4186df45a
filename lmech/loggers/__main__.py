"""The process beside the training: it replays a sweep until its standard input ends."""

import os
import pickle
import signal
import sys
import threading
from contextlib import suppress

from lmech.mistakes import one_line


def main() -> int:
    """Follow what ``replay.Beside`` has put on the standard input; returns the exit code."""
    with suppress(OSError, AttributeError):
        os.nice(19)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a cluster's: the training ends, and so do we
    logger, folder = pickle.load(sys.stdin.buffer)  # noqa: S301 of the process that started us
    over = threading.Event()

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    try:
        lines = logger.follow(folder, over.wait)
    except Exception as error:
        with suppress(BrokenPipeError):
            print(one_line(error), file=sys.stderr, flush=True)
        return 1
    with suppress(BrokenPipeError):
        print("".join(f"{line}\n" for line in lines), end="", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
