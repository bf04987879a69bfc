"""The queue knows of every pending inode when it is due, or what it waits for."""

from __future__ import annotations

import math
import stat
from collections.abc import Callable
from typing import Final, cast

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from fusefs.attributes import Attributes, fresh
from fusefs.burst import MAX_SECONDS, QUIET_SECONDS
from fusefs.change_log import NoLog
from fusefs.content import Content
from fusefs.inodes import ROOT_NUMBER, Directory, File, Inode, Special
from fusefs.placement import Placement
from fusefs.publish_queue import LOOK_SECONDS, RETRY_SECONDS, SETTLE_SECONDS, PublishQueue

DELAY: Final = 1.0
INTERVAL: Final = 30.0
FAILURE: Final = OSError("refused")


class Time:
    """The clock of one test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def queue_at(now: Callable[[], float], *, yields_to_bursts: bool = True) -> PublishQueue:
    root = Directory(number=ROOT_NUMBER, attributes=_attributes(stat.S_IFDIR))
    return PublishQueue(
        Placement(root, NoLog(), mount_id="mount"),
        delay_seconds=DELAY,
        interval_seconds=INTERVAL,
        yields_to_bursts=yields_to_bursts,
        now=now,
    )


def new_special(number: int = 2) -> Special:
    return Special(number=number, attributes=_attributes(stat.S_IFIFO))


def new_file(*, writers: int) -> File:
    content = cast(Content, None)  # which bytes it has is nothing to the queue
    return File(number=2, attributes=_attributes(stat.S_IFREG), content=content, writers=writers)


def new_directory() -> Directory:
    return Directory(number=3, attributes=_attributes(stat.S_IFDIR))


def _attributes(kind: int) -> Attributes:
    return fresh(mode=kind | 0o644, uid=0, gid=0, now_ns=0)


def taken(queue: PublishQueue) -> list[Inode]:
    """Let what is due be ready, and take it."""
    queue.advance()
    return [queue.take_ready() for _ in range(len(queue.ready))]


def is_due_after(inode: Inode, seconds: float) -> bool:
    """Return whether an inode that changes is due so long after that, and not before."""
    time = Time()
    queue = queue_at(time)
    queue.changed(inode)
    time.now += seconds - 0.001
    too_early = taken(queue)
    time.now += 0.002
    return not too_early and taken(queue) == [inode]


def test_a_name_settles_before_it_is_due() -> None:
    assert is_due_after(new_special(), SETTLE_SECONDS)


def test_a_file_is_due_soon_unless_it_was_published_just_now() -> None:
    file = new_file(writers=0)
    assert is_due_after(file, SETTLE_SECONDS)
    file.state.published_at = Time().now
    assert is_due_after(file, DELAY)


def test_a_file_that_is_open_for_writing_is_due_at_the_interval() -> None:
    assert is_due_after(new_file(writers=1), INTERVAL)


def test_what_somebody_waits_for_is_due_at_once() -> None:
    queue = queue_at(Time())
    file = new_file(writers=1)
    queue.changed(file)
    queue.ask_for(file)
    assert taken(queue) == [file]
    queue.begin(file, {"key"}, "key")
    assert not queue.is_asked_for(file)


def test_what_is_settled_is_never_due() -> None:
    time = Time()
    queue = queue_at(time)
    inode = new_special()
    queue.changed(inode)
    queue.settle(inode)
    time.now += RETRY_SECONDS
    assert taken(queue) == []
    assert inode not in queue
    assert queue.pending_since(inode) == -math.inf


def test_who_is_parked_has_another_look_before_the_others() -> None:
    time = Time()
    queue = queue_at(time)
    first, second, third = (new_special(number) for number in (2, 3, 4))
    for inode in (first, second):
        queue.schedule_now(inode)
    for due in taken(queue):
        queue.park(due)
    queue.schedule_now(third)
    queue.advance()
    queue.look_again()
    assert taken(queue) == [first, second, third]


def test_the_end_of_an_attempt_lets_everybody_look_again_who_may_have_waited_for_it() -> None:
    queue = queue_at(Time())
    directory, below, other = new_directory(), new_special(4), new_special(5)
    for inode in (directory, below, other):
        queue.schedule_now(inode)
    assert taken(queue) == [directory, below, other]
    queue.end_turn(directory)
    queue.begin(directory, {"directory/"}, "directory/")
    queue.wait_below(directory, below)
    queue.park(other)
    assert queue.busy_keys == {"directory/"}
    assert taken(queue) == []

    queue.end(directory)
    assert {*taken(queue)} == {below, other}
    assert directory.state.attempts == 1
    assert not queue.busy_keys


def test_who_somebody_waits_for_has_not_to_wait_for_the_rest() -> None:
    queue = queue_at(Time())
    first, second, third, fourth = (new_special(number) for number in range(4, 8))
    for inode in (first, second):
        queue.schedule_now(inode)
    queue.advance()
    for inode in (third, fourth):
        queue.ask_for(inode)
    queue.ask_for(second)  # which has been in the line
    assert taken(queue) == [second, third, fourth, first]


def waiting_for_key(time: Time, *, begins: bool = True) -> tuple[PublishQueue, Inode, Inode]:
    """Return a queue, who waits there for a key, and who has that, and is on its way if it `begins`."""
    queue = queue_at(time)
    inode, owner = new_special(4), new_special(5)
    for each in (inode, owner):
        queue.schedule_now(each)
    taken(queue)
    if begins:
        queue.end_turn(owner)
        queue.begin(owner, {"key"}, "other")
    else:
        queue.park(owner)
    queue.wait_for_key(inode, owner)
    assert taken(queue) == []
    return queue, inode, owner


def test_who_waits_for_a_key_has_another_look_when_something_becomes_of_who_has_it() -> None:
    """And not with each end of anything: of thousands that are renamed in a row, each waits for the next."""
    queue, inode, owner = waiting_for_key(Time())
    queue.look_again()
    assert taken(queue) == []
    queue.settle(owner)  # as an attempt does that has succeeded
    assert taken(queue) == []
    queue.end(owner)
    assert taken(queue) == [inode]

    queue, inode, owner = waiting_for_key(Time(), begins=False)
    queue.settle(owner)
    assert taken(queue) == [inode]

    for number in (0, 1):
        queue, *both = waiting_for_key(Time())
        queue.look_again_at(both[number])
        assert taken(queue) == [both[0]]

    queue, inode, _ = waiting_for_key(Time())
    queue.let_go_of_sources()
    assert taken(queue) == [inode]


async def test_who_waits_for_a_key_has_another_look_after_a_while(autojump_clock: MockClock) -> None:
    """Whatever may have happened in between."""
    time = Time()
    queue, inode, owner = waiting_for_key(time)
    time.now += LOOK_SECONDS
    assert taken(queue) == [inode]
    queue.wait_for_key(inode, owner)
    assert taken(queue) == []

    queue = queue_at(trio.current_time)
    queue.schedule_now(inode)
    taken(queue)
    queue.wait_for_key(inode, owner)
    queue.advance()
    began = trio.current_time()
    await queue.wait()
    assert trio.current_time() == began + LOOK_SECONDS


def test_who_fails_is_tried_again_later_and_who_is_below_it_before_that() -> None:
    time = Time()
    queue = queue_at(time)
    directory, below, other = new_directory(), new_special(4), new_special(5)
    for inode in (directory, below, other):
        queue.schedule_now(inode)
    taken(queue)
    queue.park(directory)
    queue.wait_below(directory, below)
    queue.wait_for_source(other)

    queue.fail_all(FAILURE)
    assert directory.state.failure is below.state.failure is FAILURE
    assert directory.state.attempts == below.state.attempts == 1
    assert other.state.failure is None
    assert taken(queue) == [below]
    time.now += RETRY_SECONDS
    assert taken(queue) == [directory]
    queue.let_go_of_sources()
    assert taken(queue) == [other]


def test_what_is_ready_yields_to_a_burst_of_changes() -> None:
    time = Time()
    queue = queue_at(time)
    inode = new_special()
    queue.schedule_now(inode)
    queue.note_activity()
    assert not queue.advance()
    began = time.now
    time.now += QUIET_SECONDS
    assert queue.advance()
    while time.now < began + MAX_SECONDS:
        queue.note_activity()
        assert not queue.advance()
        time.now += QUIET_SECONDS / 2
    queue.note_activity()
    assert queue.advance()


def test_nothing_yields_to_a_burst_that_is_waited_for_or_has_no_log_to_be_in() -> None:
    for yields_to_bursts in (True, False):
        queue = queue_at(Time(), yields_to_bursts=yields_to_bursts)
        inode = new_special()
        queue.schedule_now(inode)
        queue.note_activity()
        if yields_to_bursts:
            queue.ask_for(inode)
        assert queue.advance()


def test_below_a_renamed_directory_all_is_pending_before_anybody_asks() -> None:
    queue = queue_at(Time())
    directory, inode = new_directory(), new_special()
    directory.attach(b"name", inode)
    Directory(number=ROOT_NUMBER, attributes=directory.attributes).attach(b"directory", directory)
    queue.moved(directory)
    queue.note_moves()
    assert inode in queue


async def test_who_waits_is_woken_by_what_is_due_earlier(autojump_clock: MockClock) -> None:
    queue = queue_at(trio.current_time)
    queue.schedule_retry(new_special())
    queue.advance()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.wait)
        await trio.testing.wait_all_tasks_blocked()
        queue.changed(new_special())
    assert trio.current_time() == began
    queue.advance()
    await queue.wait()
    assert trio.current_time() == began + SETTLE_SECONDS


NAMES: Final = (
    "changed",
    "ask_for",
    "settle",
    "advance",
    "look",
    "look_again",
    "moved",
    "sources",
    "end",
    "fail",
    "fail_all",
)
_STEPS = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 3), st.integers(0, 5)), max_size=60)


@given(_STEPS)
def test_no_pending_inode_is_forgotten(steps: list[tuple[str, int, int]]) -> None:
    """Each is in the timetable, on its way, or set aside for something that will end."""
    time = Time()
    queue = queue_at(time)
    inodes: list[Inode] = [new_directory(), *(new_special(number) for number in range(4, 7))]
    for name, which, how in steps:
        _do(queue, time, name, inodes[which], inodes[0], how)
        aside = [*queue.ready, *queue.parked, *queue.waiting_for_source]
        aside += [*queue.waiting_for_key, *queue.waiting_below]
        assert len({*aside}) == len(aside)
        assert {*aside} == queue.due
    for inode in list(queue.running):
        queue.end(inode)
        queue.schedule_retry(inode)
    queue.let_go_of_sources()
    queue.let_go_below(inodes[0])
    queue.look_again()
    time.now += 2 * RETRY_SECONDS
    assert {*queue} <= {*taken(queue)}


def _do(queue: PublishQueue, time: Time, name: str, inode: Inode, directory: Inode, how: int) -> None:
    match name:
        case "changed":
            queue.changed(inode)
        case "ask_for":
            queue.ask_for(inode)
        case "settle":
            queue.settle(inode)
        case "advance":
            time.now += how * RETRY_SECONDS / 4
            queue.advance()
        case "look" if queue.ready:
            _look_at(queue, time, queue.take_ready(), directory, how)
        case "look_again":
            queue.look_again()
        case "moved":
            queue.look_again_at(inode)
        case "sources":
            queue.let_go_of_sources()
        case "end" if inode in queue.running:
            queue.end(inode)
            if not how:
                queue.settle(inode)
            elif inode in queue:
                queue.schedule(inode)
        case "fail":
            queue.fail([inode], FAILURE)
        case "fail_all":
            queue.fail_all(FAILURE)


def _look_at(queue: PublishQueue, time: Time, inode: Inode, directory: Inode, how: int) -> None:
    """Do what may be done with one that is ready."""
    if inode not in queue:
        queue.end_turn(inode)
    elif inode in queue.running or how == 0:
        queue.park(inode)
    elif how == 1:
        queue.wait_for_source(inode)
    elif how == 2 and isinstance(directory, Directory) and inode is not directory:
        queue.wait_below(directory, inode)
    elif how == 4:
        queue.wait_for_key(inode, directory)
    elif how != 3 or not queue.put_off(inode, time.now + 1):
        queue.end_turn(inode)
        queue.begin(inode, set(), None)
    if inode not in queue.due and inode not in queue.running:
        queue.let_go_below(inode)
