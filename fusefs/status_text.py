"""How a mount stands, as lines for people, from the JSON object that its daemon sends (`fusefs.status`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fusefs.quantities import brief_size, counted

_Document = Mapping[str, Any]


def lines(status: _Document) -> Iterator[str]:
    """Yield what `fusefs status` prints."""
    yield (
        f"{status['url']} on {status['mountpoint']}"
        f" ({status['mode']}, process {status['pid']}, for {duration(status['uptime_seconds'])})"
    )
    if status["starting"]:
        yield f"starting      {status['starting']}"
        return
    yield f"unpublished   {_unpublished(status['unpublished'])}"
    yield f"log           {_log(status['log']) if status['log'] else 'none'}"
    yield f"lease         {_lease(status['lease']) if status['lease'] else 'none'}"
    requests = status["requests"]
    yield (
        f"requests      {requests['made']:,}, {requests['failed']:,} of them failed;"
        f" {brief_size(requests['bytes_sent'])} sent, {brief_size(requests['bytes_received'])} received"
    )
    warning = status["last_warning"]
    if warning:
        yield f"last {warning['level']:<8} {duration(warning['seconds_ago'])} ago: {warning['message']}"


def duration(seconds: float) -> str:
    """Return a time in its two largest units: "3.1 s", "2 min 5 s", "26 h 0 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _changes(count: int) -> str:
    return counted(count, "change", "changes")


def _batches(count: int) -> str:
    return counted(count, "batch", "batches")


def _unpublished(left: _Document) -> str:
    if not left["changes"] and not left["deletions"]:
        return "nothing"
    renamed = ""
    if left["renamed_directories"]:
        renamed = f"; {counted(left['renamed_directories'], 'directory', 'directories')} to be looked through"
    return (
        f"{_changes(left['changes'])} with {brief_size(left['bytes'])},"
        f" {counted(left['deletions'], 'deletion', 'deletions')};"
        f" {left['under_way']:,} under way, {left['failing']:,} failing{renamed}"
    )


def _log(log: _Document) -> str:
    there = "empty"
    if log["batches"]:
        there = (
            f"{_batches(log['batches'])}, {brief_size(log['bytes'])}, since {duration(log['age_seconds'])}"
        )
    behind = f"{_changes(log['unlogged_changes'])} with {brief_size(log['unlogged_bytes'])} not in it yet"
    return f"in {log['place']}: {there}; {behind}, {_batches(log['batches_under_way'])} under way"


def _lease(lease: _Document) -> str:
    if lease["lost"]:
        return f"term {lease['term']}, lost: {lease['lost']}"
    state = f"held for another {duration(lease['seconds_left'])}" if lease["held"] else "lapsed"
    failed = counted(lease["failed_renewals"], "renewal", "renewals")
    return f"term {lease['term']}, {state}; {failed} failed, {counted(lease['lapses'], 'lapse', 'lapses')}"
