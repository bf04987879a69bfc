"""A limit for work that may wait in the kernel for a file system which never answers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class OutOfTime(Exception):
    """The work of a `time_limit` did not end in time. Raised in its block."""


@contextmanager
def time_limit(seconds: float, abandon: Callable[[], None]) -> Iterator[None]:
    """Raise `OutOfTime` if the block takes longer; only in the main thread, which alone gets signals.

    `abandon` is called first, by another thread: a call that waits for a file system returns only when that has ended.
    Whatever the block raises after that is a consequence, and becomes `OutOfTime` too.
    """
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        abandon()
        os.kill(os.getpid(), signal.SIGALRM)

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before, timer = signal.signal(signal.SIGALRM, ring), threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:
        if expired.is_set():
            raise OutOfTime(f"did not end in {seconds:g} s") from error
        raise
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGALRM, before)
