"""What a mount can gain from the kernel after it was made, where the process may set it, and from its own interpreter.

Each setting is tried and, where it is refused, left as it is: everything works without, only slower.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import resource
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

READ_AHEAD_KIB: Final = 1024
"""The kernel's own read-ahead: with it, sequential reads arrive as requests of 1 MiB instead of 128 KiB."""

MAX_RATIO_PERCENT: Final = 100
"""FUSE's dirty pages are held to 1 % of the machine's limit by default, on which writers stall."""

MAX_BACKGROUND: Final = 256
"""Asynchronous requests (read-ahead, writeback) under way at once: those that wait for the store keep others back. The
kernel's default is 12."""

_PR_SET_IO_FLUSHER: Final = 57
"""prctl(2), Linux 5.6: this process writes back for others and must not wait for its own writeback."""


_COLLECTOR_THRESHOLDS: Final = (50_000, 20, 100)
"""How many objects come and go before Python looks for cycles. There are few here, and with the usual 700 that search
takes a third of the time of a long listing."""


def tune_process() -> None:
    """Raise the limit of open descriptors to the hard one, and tell the kernel that it writes back through us."""
    gc.set_threshold(*_COLLECTOR_THRESHOLDS)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # a hard limit over fs.nr_open
        _log.debug("RLIMIT_NOFILE is refused: %s", error)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0:
        _log.debug("PR_SET_IO_FLUSHER is refused: %s", os.strerror(ctypes.get_errno()))


def tune_mount(device: int) -> None:
    """Tune the mount whose files have `device` as their st_dev."""
    minor = os.minor(device)
    backing = Path(f"/sys/class/bdi/{os.major(device)}:{minor}")
    connection = Path(f"/sys/fs/fuse/connections/{minor}")
    _set(backing / "read_ahead_kb", READ_AHEAD_KIB)
    _set(backing / "max_ratio", MAX_RATIO_PERCENT)
    _set(connection / "max_background", MAX_BACKGROUND)
    _set(connection / "congestion_threshold", MAX_BACKGROUND * 3 // 4)


def _set(path: Path, value: int) -> None:
    try:
        path.write_text(str(value))
    except OSError as error:
        _log.debug("%s stays as it is: %s", path, error.strerror)
