"""The pages that only the kernel's writeback cache has: asked for, and waited for until they have come.

syncfs(2) makes the kernel send them, and may return before a single one is here: Linux does not wait for the answers of
a FUSE daemon there, lest one that hangs hold up every sync(2) of the host (fs/fs-writeback.c, `wait_sb_inodes`; before
6.16 it sent copies of the pages, and did not wait for these). But all that it sends of its own accord, a WRITE as a
RELEASEDIR, goes through one queue, first in, first out (fs/fuse/dev.c, `bg_queue`). So the thread that asks has the
root of the mount open, and closes it when syncfs has returned: when the release of its handle comes, all have come that
were sent.

Not all may be sent at once: what is written to while it is on its way waits for the answer, and where many requests are
on their way, the rest may be left for later. So it is asked again until few have come, and twice at least.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Final

from backends.errors import NoThread
from backends.threads import or_left_behind
from fusefs.arrivals import Arrivals, Inquiry
from fusefs.mountpoints import sync_filesystem

FEW: Final = 8
"""Writes. With fewer on their way the kernel keeps none back: its bound is 9, or higher where we may raise it."""

MIN_ROUNDS: Final = 2

MAX_ROUNDS: Final = 8
"""A program that goes on writing always has some more."""


class KernelPages:
    """Those of one mount, whose handlers tell `arrivals`."""

    def __init__(self, mountpoint: Path, arrivals: Arrivals) -> None:
        self._mountpoint: Final = mountpoint
        self._arrivals: Final = arrivals

    async def collect(self) -> None:
        """Return when the kernel has handed over every page that was written before.

        Raises OSError with the reason why a page was refused, or where there is no room for a thread. Whoever is
        cancelled leaves the thread behind: it may have to wait until the mount is gone, and that for who waits here.
        """
        arrivals, refusals = self._arrivals, self._arrivals.refusals
        for rounds in range(1, MAX_ROUNDS + 1):
            before = arrivals.writes
            inquiry = await self._ask()
            if inquiry.handle is None:
                await arrivals.wait_until_quiet()
                break
            await arrivals.wait_for(inquiry)
            if rounds >= MIN_ROUNDS and arrivals.writes - before < FEW:
                break
        if arrivals.refusals > refusals:
            raise OSError(arrivals.refused_with, os.strerror(arrivals.refused_with))

    async def _ask(self) -> Inquiry:
        """Return when the kernel has sent what it has at this moment; the release of the handle comes behind that."""
        try:
            return await or_left_behind(self._sync)
        except NoThread as error:
            raise OSError(errno.EAGAIN, str(error)) from error

    def _sync(self) -> Inquiry:
        with self._arrivals.asked_by(threading.get_native_id()) as inquiry:
            sync_filesystem(self._mountpoint, is_it=lambda: inquiry.handle is not None)
        return inquiry
