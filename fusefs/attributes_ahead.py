"""Asks for attributes of entries before they are looked up: always as many at once, the next as soon as one has come.

Whoever wants them, reader or lookup, waits for those alone that they have come to; a bounded number of entries behind
these are on their way meanwhile. What fails ahead is told to nobody: whoever looks that entry up asks again, and gets
their own error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

import trio

from fusefs.content import Spawn
from fusefs.inodes import Directory, Inode
from fusefs.resolver import RESOLVE_TASKS, Resolver, costs_a_request

_log = logging.getLogger(__name__)


class AttributesAhead:
    """What is asked for ahead, in all directories."""

    def __init__(self, spawn: Spawn, resolver: Resolver) -> None:
        self._spawn = spawn
        self._resolver = resolver
        #: Those of lookups, as long as something of them is under way.
        self._windows: dict[Directory, RollingWindow] = {}

    async def look_up(self, directory: Directory, name: bytes) -> Inode:
        """Return the inode of an entry, and let those come that will be looked up next. Raises `NoSuchEntry`."""
        if directory.look_ahead is not None and costs_a_request(directory, name):
            following = directory.look_ahead.next_after(name, partial(costs_a_request, directory))
            if following is not None:
                self._window_of_lookups(directory).go_on_with(following)
        return await self._resolver.resolve(directory, name)

    def window(self, directory: Directory) -> RollingWindow:
        """Return the window of one reader."""
        return RollingWindow(self._spawn, self._resolver, directory)

    def _window_of_lookups(self, directory: Directory) -> RollingWindow:
        if directory not in self._windows:
            forget = partial(self._windows.pop, directory, None)
            self._windows[directory] = RollingWindow(self._spawn, self._resolver, directory, when_idle=forget)
        return self._windows[directory]


class RollingWindow:
    """Entries of one directory, ahead of somebody who goes through them in an order."""

    def __init__(
        self,
        spawn: Spawn,
        resolver: Resolver,
        directory: Directory,
        *,
        when_idle: Callable[[], object] = lambda: None,
    ) -> None:
        self._spawn: Final = spawn
        self._resolver: Final = resolver
        self._directory: Final = directory
        self._when_idle: Final = when_idle
        #: What has not been begun, in order; each event is set when the name is in neither of these any more.
        self._waiting: dict[bytes, trio.Event] = {}
        self._under_way: dict[bytes, trio.Event] = {}
        #: What was asked for in vain, and is not asked for again.
        self._failed: set[bytes] = set()
        #: One for each task.
        self._scopes: set[trio.CancelScope] = set()

    async def resolve(self, names: Sequence[bytes], following: Iterable[bytes]) -> None:
        """Make inodes of entries, as far as that succeeds; those that follow are on their way then."""
        self._resolver.recall(self._directory, names)
        self.go_on_with([*names, *following])
        # The last one first: most others have come by then, and each wait is a turn of this task.
        for name in reversed(names):
            for landed in (self._waiting.get(name), self._under_way.get(name)):
                if landed is not None:
                    await landed.wait()

    def go_on_with(self, names: Iterable[bytes]) -> None:
        """Let these be the next, those of them that cost a request; others that have not begun are left out."""
        left_out, self._waiting = self._waiting, {}
        for name in names:
            if name not in self._under_way and self._is_wanted(name):
                self._waiting[name] = left_out.pop(name) if name in left_out else trio.Event()
        for landed in left_out.values():
            landed.set()
        while len(self._scopes) < min(RESOLVE_TASKS, len(self._waiting) + len(self._under_way)):
            scope = trio.CancelScope()
            self._scopes.add(scope)
            self._spawn(self._work, scope)
        if not self._scopes:
            self._when_idle()

    def stop(self) -> None:
        """End what is under way: nobody is interested any more."""
        self.go_on_with(())
        for scope in self._scopes:
            scope.cancel()

    def _is_wanted(self, name: bytes) -> bool:
        return costs_a_request(self._directory, name) and name not in self._failed

    async def _work(self, scope: trio.CancelScope) -> None:
        try:
            with scope:
                while self._waiting:
                    await self._resolve_next()
        finally:
            self._scopes.remove(scope)
            if not self._scopes:
                self._when_idle()

    async def _resolve_next(self) -> None:
        name = next(iter(self._waiting))
        landed = self._under_way[name] = self._waiting.pop(name)
        try:
            await self._resolver.learn(self._directory, name)
        except Exception as error:  # of any kind: it is for whoever looks the entry up
            self._failed.add(name)
            _log.debug("the attributes of %r cannot be had ahead: %s", name, error)
        finally:
            del self._under_way[name]
            landed.set()
