"""A mount while the kernel knows it: signals, readiness, and an end after which nothing is lost.

Only when a request has gone round through the kernel is the mount called ready.

End, whoever asks for it (SIGTERM, SIGINT, SIGHUP, `fusefs umount`, umount(8)): what the kernel still holds is fetched
from it, everything is published, the mount goes away, and what came in meanwhile is published. What cannot be published
is in the log or, where that cannot take it either, moved to `cache_dir/rescued`; the process ends with an error that
says so. A second signal stops the waiting.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import signal
import urllib.parse
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Final, Protocol

import pyfuse3
import trio

from backends.errors import NoThread
from backends.threads import or_left_behind
from fusefs.arrivals import Arrivals
from fusefs.assembly import Tree, freshness_seconds, kernel_owns_times
from fusefs.cache_directory import CacheDirectory
from fusefs.config import Config
from fusefs.control import Progress
from fusefs.control_server import ControlServer
from fusefs.errors import MountError
from fusefs.kernel_pages import KernelPages
from fusefs.kernel_tuning import tune_mount
from fusefs.log_places import log_place
from fusefs.mountpoints import check_mountpoint
from fusefs.operations import FuseOperations, KernelOptions
from fusefs.page_collector import BriefCollector, PageCollector
from fusefs.quantities import counted
from fusefs.request_turns import Trio
from fusefs.rescue import rescue
from fusefs.start_progress import REPEAT_SECONDS
from fusefs.status import LastComplaint, Requests, Status, document, identity_of
from fusefs.stores import OpenStore
from fusefs.term import Term

_log = logging.getLogger(__name__)

MAX_REQUESTS: Final = 2_000
"""Under way at once. Those that wait for the store must not keep others from being read: of pyfuse3's own accord 99."""


class Observer(Protocol):
    """Whoever has started a mount, and is told how far it is."""

    def starting(self, line: str) -> None:
        """Be told, every few seconds, how far a mount is that does not answer yet."""

    def ready(self) -> None:
        """Be told that the mount answers. Raises `MountError` where nobody wants it any more."""

    def ending(self, left: Progress) -> None:
        """Be told, every few seconds, what is left to be published by a mount that ends."""


class Session:
    """The mount while the kernel knows it."""

    def __init__(
        self,
        config: Config,
        tree: Tree,
        cache: CacheDirectory,
        store: OpenStore,
        term: Term | None,
        control: ControlServer,
        began_at: float,
    ) -> None:
        self._config = config
        self._mountpoint = config.mount.mountpoint
        self._filesystem = tree.filesystem
        self._publisher = tree.publisher
        self._index_writer = tree.index_writer
        self._committer = term.committer if term is not None else None
        self._lease = term.lease if term is not None else None
        self._cache = cache
        self._store = store
        self._control = control
        self._began_at = began_at
        self._complaints = LastComplaint()
        arrivals = Arrivals()
        self._pages = KernelPages(self._mountpoint, arrivals)
        self._operations = _operations(config, tree, arrivals, self._pages)
        self._page_collector = _page_collector(config, tree, term, self._pages) if term is not None else None
        self._mounted = False
        self._ending = trio.Event()
        #: Whether what could not be published has been rescued.
        self._ended = False
        #: Why the kernel may have had more of what was written than it has handed over.
        self._pages_missing: str | None = None
        #: Of all that waits for uploads, or has done so.
        self._patiences: list[trio.CancelScope] = []
        self._impatient = False

    async def run(self, observer: Observer) -> None:
        """Mount, serve until somebody ends it, and publish what is left."""
        with (
            trio.open_signal_receiver(*_ending_signals()) as signals,
            self._complaints.noted(),
        ):
            self._mount()
            try:
                async with trio.open_nursery() as nursery:
                    if not self._control.is_serving:
                        await nursery.start(self._control.serve)
                    nursery.start_soon(self._stop_on_signal, signals, nursery)
                    nursery.start_soon(self._announce, observer)
                    nursery.start_soon(self._tell_of_end, observer)
                    if self._page_collector is not None:
                        nursery.start_soon(self._page_collector.run)
                    await self._serve()
                    self._ending.set()
                    self._unmount()
                    await self._filesystem.release_all()
                    await self._end()
                    nursery.cancel_scope.cancel()
            except BaseException:
                self._unmount()
                if not self._ended and not (self._committer and self._committer.has_everything):
                    self._rescue()  # whatever ended the mount, what was written is not thrown away with the stage
                raise

    async def _serve(self) -> None:
        """Answer the kernel until the mount goes away, or `_stop` ends that.

        Where the unmount comes while a request is being read, the kernel says so with ECONNABORTED, and not as usual.
        """
        try:
            await pyfuse3.main(max_tasks=MAX_REQUESTS)
        except BaseExceptionGroup as group:
            _, others = group.split(_is_cut_off)
            if others is not None:
                raise
            _log.debug("the mount has gone while a request was being read")

    def _mount(self) -> None:
        check_mountpoint(self._mountpoint)  # again: it may have taken minutes to come here
        pyfuse3.trio = Trio  # type: ignore[attr-defined]
        try:
            pyfuse3.init(self._operations, str(self._mountpoint), set(self._options()))
        except RuntimeError as error:
            raise MountError(f"{self._mountpoint} cannot be mounted: {_why_not(self._config)}") from error
        self._mounted = True

    def _unmount(self) -> None:
        if self._mounted:
            self._mounted = False
            pyfuse3.close(unmount=True)

    def _options(self) -> Iterable[str]:
        yield "default_permissions"
        yield "subtype=fusefs"
        yield "fsname=" + _in_ascii(self._config.store.url).replace("\\", "\\\\").replace(",", "\\,")
        if self._config.mount.read_only:
            yield "ro"
        if self._config.mount.allow_other:
            yield "allow_other"

    async def _announce(self, observer: Observer) -> None:
        """Send one request round through the kernel, and then say that the mount is there."""

        def ask_and_tune() -> None:
            tune_mount(os.stat(self._mountpoint).st_dev)

        try:
            # If the mount fails before it has answered, only its end lets the call return.
            await or_left_behind(ask_and_tune)
        except NoThread as error:
            raise MountError(str(error)) from error
        _log.info("%s is mounted on %s", self._config.store.url, self._mountpoint)
        observer.ready()

    async def _tell_of_end(self, observer: Observer) -> None:
        await self._ending.wait()
        while True:
            observer.ending(self.progress())
            await trio.sleep(REPEAT_SECONDS)

    async def _stop_on_signal(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
        number = await anext(signals)
        self._ending.set()
        _log.info("%s: publishing what is left, then unmounting", signal.Signals(number).name)
        nursery.start_soon(self._stop)
        number = await anext(signals)
        while number == signal.SIGHUP:  # of which a terminal that goes may send several
            number = await anext(signals)
        _log.warning("%s again: not waiting for uploads any more", signal.Signals(number).name)
        self._impatient = True
        for patience in self._patiences:
            patience.cancel()

    def _with_patience(self) -> trio.CancelScope:
        """Return a scope that a second signal ends."""
        patience = trio.CancelScope(deadline=-math.inf if self._impatient else math.inf)
        self._patiences.append(patience)
        return patience

    async def _stop(self) -> None:
        with self._with_patience():
            for step in (self.drain, self._collect_pages):  # again, for what was written meanwhile
                try:
                    await step()
                except Exception as error:
                    _log.error("not everything could be published while mounted: %s", error)
        if self._mounted:
            pyfuse3.terminate()

    async def drain(self) -> None:
        """Publish everything, the pages that only the kernel holds included. Raises why something was not."""
        self._pages_missing = None
        await self._collect_pages()
        await self._publisher.publish_all()

    async def _collect_pages(self) -> None:
        if not self._mounted or self._config.mount.read_only:
            return
        try:
            await self._pages.collect()
        except OSError as error:
            self._pages_missing = _why_pages_stay(error)
            if self._committer is not None:
                self._committer.check()  # which says why they are refused, where that is for good
            raise MountError(self._pages_missing) from error
        except trio.Cancelled:
            if self._impatient:
                self._pages_missing = (
                    "the kernel was not waited for, which may have had more of what was written"
                )
            raise

    def progress(self) -> Progress:
        """Return what is left to be published."""
        left = self._publisher.statistics()
        return Progress(
            pending_inodes=left.pending_inodes + left.leftovers,
            pending_bytes=left.pending_bytes,
            ending=self._ending.is_set(),
        )

    def status(self) -> Mapping[str, object]:
        """Return how the mount stands, as `fusefs status --json` prints it."""
        options, used = self._config.mount, self._store.meter.statistics()
        return document(
            Status(
                identity=identity_of(self._config, trio.current_time() - self._began_at),
                publishing=self._publisher.statistics(),
                log_place=log_place(self._config),
                log=self._committer.statistics() if self._committer is not None else None,
                lease=self._lease.statistics() if self._lease is not None and options.lease else None,
                requests=Requests(used.requests, used.failures, used.bytes_sent, used.bytes_received),
                complaint=self._complaints.last,
            )
        )

    async def _end(self) -> None:
        """Publish what is left after the mount has gone; rescue what cannot be. Raises `MountError` for that."""
        error: str | None = None
        with self._with_patience():
            try:
                await self._publisher.publish_all()
            except Exception as failure:
                _log.error("not everything could be published: %s", failure)
            await self._finish_log()
        in_log = self._committer is not None and self._committer.has_everything
        rescued = 0 if in_log else self._rescue()
        self._ended = True
        left = self.progress().pending_inodes
        if in_log and left:
            error = (
                f"{counted(left, 'change is', 'changes are')} in the log and not published yet;"
                f" the next mount of {self._config.store.url} does that"
            )
        elif rescued:
            error = (
                f"{counted(rescued, 'changed file', 'changed files')} could not be published; what could be saved is in"
                f" {self._cache.rescued}, and the log file names each"
            )
        elif left:
            error = "not every change of names and attributes could be published; the log file says which"
        if error is None and self._index_writer is not None:
            with self._with_patience():
                await self._index_writer.finish()
        error = error or self._pages_missing
        await self._control.tell_end(error)
        if error is not None:
            raise MountError(error)
        _log.info("%s is unmounted, everything is published", self._mountpoint)

    async def _finish_log(self) -> None:
        """Let the log have what the bucket lacks, or empty it; what that leaves goes when the lease is given back."""
        if self._committer is None:
            return
        try:
            await self._committer.finish()
        except Exception as failure:
            _log.error("the log could not be finished: %s", failure)

    def _rescue(self) -> int:
        self._cache.give_room()
        return rescue(self._publisher.pending_inodes(), self._cache.rescued)


def _operations(config: Config, tree: Tree, arrivals: Arrivals, pages: KernelPages) -> FuseOperations:
    mount = config.mount
    kernel_gathers_writes = kernel_owns_times(mount)
    return FuseOperations(
        tree.filesystem,
        KernelOptions(
            entry_timeout_seconds=freshness_seconds(mount),
            keep_cache=not mount.shared,
            writeback_cache=kernel_gathers_writes,
        ),
        tree.xattrs if mount.xattr else None,
        arrivals=arrivals,
        collect_pages=BriefCollector(pages.collect).collect if kernel_gathers_writes else None,
    )


def _page_collector(config: Config, tree: Tree, term: Term, pages: KernelPages) -> PageCollector:
    return PageCollector(
        pages.collect,
        has_writers=lambda: tree.filesystem.has_writers,
        commit=term.committer.commit,
        interval_seconds=config.mount.commit_interval_seconds,
    )


def _ending_signals() -> Iterator[signal.Signals]:
    """Yield what ends a mount: the end of its terminal, too, unless it is to survive that (nohup)."""
    yield from (signal.SIGTERM, signal.SIGINT)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        yield signal.SIGHUP


def _in_ascii(url: str) -> str:
    """Return what the kernel is to show as the source of the mount: pyfuse3 can tell it nothing else than ASCII."""
    return "".join(
        character if character.isascii() else urllib.parse.quote(character, errors="surrogateescape")
        for character in url
    )


def _is_cut_off(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.ECONNABORTED


def _why_pages_stay(error: OSError) -> str:
    """Return why the kernel could not hand over its pages; of what was refused it tells once."""
    if error.errno == errno.EFBIG:
        why = "what was written beyond the largest object (5 TiB) cannot be kept"
    else:
        why = f"the log file may say more ({error.strerror})"
    return f"not everything that was written could be taken over from the kernel: {why}"


def _why_not(config: Config) -> str:
    """Return what most likely made fusermount3 refuse; libfuse tells its reason on standard error only."""
    if not os.path.exists("/dev/fuse"):
        return "/dev/fuse is missing; load the module with: modprobe fuse"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse may not be opened by this user; let it, as root, with: chmod 666 /dev/fuse"
    if config.mount.allow_other and os.getuid() != 0:
        return "--allow-other needs the line user_allow_other in /etc/fuse.conf"
    return "see the message of fusermount3 above"
