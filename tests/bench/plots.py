"""Pictures of the results: medians as bars with every run as a dot, and curves; needs matplotlib.

A file system has the same colour everywhere. The colours are those of Okabe and Ito, which people with colour blindness
tell apart; what has lost data or failed is hatched, or dashed, as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, Final

from tests.bench.report import Report
from tests.bench.runs import Row, number, rows
from tests.bench.verdicts import CLIENT, NULL, OURS, OURS_LOCAL, PLAIN

MAIN_ROUND_TRIP_MS: Final = 20
OVERVIEW: Final = (
    "commit of 8 KiB, p50",
    "append of 1 KiB + fsync to a large file, p50",
    "pgbench, clients: 64",
    "create + write + close of 4 KiB",
    "sequential write, to published",
    "sequential read, cold",
)
"""What the first picture shows."""

_STYLES: Final = {
    OURS: ("#0072B2", "o"),
    OURS_LOCAL: ("#56B4E9", "s"),
    "JuiceFS": ("#009E73", "D"),
    "s3fs": ("#E69F00", "^"),
    "rclone": ("#CC79A7", "v"),
    "GeeseFS": ("#D55E00", "P"),
    "goofys": ("#F0E442", "X"),
    "mountpoint-s3": ("#882255", "*"),
    CLIENT: ("#000000", "h"),
    NULL: ("#666666", "<"),
    PLAIN: ("#AAAAAA", ">"),
}
"""Colour and marker of each, in the order in which they are drawn."""
_COLUMNS: Final = 3
_LOGARITHMIC_FROM: Final = 20.0
"""Where the largest value is that many times the smallest, an axis is logarithmic."""
_WIDEST: Final = 1e6
"""What is less by more than that has no bar worth looking at."""
_LABEL_SHARE: Final = 0.22
"""Of the width of bars, what the numbers beside them need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Curves:
    """Figures over something that was varied."""

    title: str
    across: str
    up: str
    lines: Mapping[str, Sequence[tuple[float, Row]]]


def draw(report: Report, directory: Path) -> list[Path]:
    """Write the pictures and return where they are."""
    pictures: dict[str, Any] = {}
    table = [row for row in rows(report.runs) if row.figures]
    main = [row for row in table if row.round_trip_ms == MAIN_ROUND_TRIP_MS]
    pictures["overview"] = draw_bars([row for row in main if row.what in OVERVIEW], "20 ms of round trip")
    for round_trip in dict.fromkeys(row.round_trip_ms for row in table):
        here = [row for row in table if row.round_trip_ms == round_trip]
        pictures[f"round-trip-{round_trip:g}-ms"] = draw_bars(here, f"{round_trip:g} ms of round trip")
    pictures["commit-latency"] = _draw_curves([_over_round_trips(table)])
    pictures["clients"] = _draw_curves(list(_over_clients(main)))
    written = [directory / f"{name}.png" for name in pictures]
    for path, picture in zip(written, pictures.values(), strict=True):
        picture.savefig(path, dpi=100)
    return written


def _place(name: str) -> int:
    return list(_STYLES).index(name)


def _picture(width: float, height: float) -> Any:
    module: Any = import_module("matplotlib.figure")
    return module.Figure(figsize=(width, height), layout="constrained")


def draw_bars(table: Sequence[Row], title: str) -> Any:
    """Draw a panel for each figure."""
    titles = list(dict.fromkeys(row.what for row in table))
    panels = [sorted((row for row in table if row.what == what), key=_row_place) for what in titles]
    lines = [panels[first : first + _COLUMNS] for first in range(0, len(panels), _COLUMNS)]
    heights = [0.27 * max(len(panel) for panel in line) + 0.9 for line in lines] or [1]
    picture = _picture(5.2 * _COLUMNS, sum(heights) + 0.5)
    picture.suptitle(f"{title}; medians, each run as a dot; hatched: data lost, or failed", fontsize=13)
    grid = picture.subplots(len(heights), _COLUMNS, squeeze=False, height_ratios=heights)
    axes = list(grid.flat)
    for place, (axis, panel) in enumerate(zip(axes, panels, strict=False)):
        _bars(axis, panel)
        axis.set_ylim(max(len(each) for each in lines[place // _COLUMNS]) - 0.5, -0.5)
    for axis in axes[len(panels) :]:
        axis.axis("off")
    return picture


def _row_place(row: Row) -> int:
    return _place(row.file_system)


def _bars(axis: Any, table: Sequence[Row]) -> None:
    """Draw one figure of all file systems, with room for the numbers within the frame."""
    names = [row.file_system for row in table]
    colours = [_STYLES[name][0] for name in names]
    bars = axis.barh(names, [median(row.values) for row in table], color=colours, edgecolor="white")
    _scale(axis, [value for row in table for value in row.values if value > 0])
    for bar, row in zip(bars, table, strict=True):
        axis.plot(row.values, [row.file_system] * len(row.values), "k.", markersize=4)
        bar.set_hatch("////" if row.failures else "")
        axis.annotate(
            number(median(row.values)),
            (max(row.values), row.file_system),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    better = "more" if table[0].figures[0].more_is_better else "less"
    axis.set_title(f"{table[0].what}\n{table[0].figures[0].unit}, {better} is better", fontsize=9, loc="left")
    axis.tick_params(labelsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def _scale(axis: Any, values: Sequence[float]) -> None:
    """Choose the scale, and leave room beside the longest bar."""
    if not values:
        return
    high = max(values)
    low = max(min(values), high / _WIDEST)
    if high > _LOGARITHMIC_FROM * low:
        axis.set_xscale("log")
        axis.set_xlim(low / 2, high * (2 * high / low) ** (_LABEL_SHARE / (1 - _LABEL_SHARE)))
        axis.xaxis.set_major_formatter(_tick)
    else:
        axis.set_xlim(0, high / (1 - _LABEL_SHARE))


def _tick(value: float, position: int) -> str:
    """Return a power of ten without its exponent."""
    return f"{value:,.0f}" if value >= 1 else f"{value:.8f}".rstrip("0")


def _over_round_trips(table: Sequence[Row]) -> _Curves:
    """Of a commit; what sends nothing over the way is no curve."""
    wanted = ("commit of 8 KiB, p50", "one PUT of 8 KiB, p50")
    varied = [row for row in table if row.what in wanted and row.file_system not in (PLAIN, NULL)]
    return _Curves(
        title="Commit of 8 KiB in a large file, beside one PUT of 8 KiB",
        across="round trip to the store, ms",
        up="median, ms",
        lines=_lines(varied, lambda row: row.round_trip_ms),
    )


def _over_clients(main: Sequence[Row]) -> Iterator[_Curves]:
    for prefix, title in (("commits of 144 B", "Appends of 144 B, each synced"), ("pgbench", "pgbench")):
        found = [row for row in main if row.what.startswith(f"{prefix}, clients: ")]
        lines = _lines(found, lambda row: float(row.what.rpartition(" ")[2]))
        yield _Curves(title=title, across="clients", up="commits per second", lines=lines)


def _lines(table: Sequence[Row], place: Callable[[Row], float]) -> Mapping[str, Sequence[tuple[float, Row]]]:
    """Gather the points of each file system, in order."""
    lines: dict[str, list[tuple[float, Row]]] = {}
    for row in table:
        lines.setdefault(row.file_system, []).append((place(row), row))
    return {name: sorted(lines[name], key=lambda point: point[0]) for name in sorted(lines, key=_place)}


def _draw_curves(panels: Sequence[_Curves]) -> Any:
    """Draw medians over what was varied; the span of all runs is a thin line."""
    picture = _picture(7.5 * len(panels), 5)
    axes = picture.subplots(1, len(panels), squeeze=False).flat
    for axis, curves in zip(axes, panels, strict=True):
        for name, points in curves.lines.items():
            _curve(axis, name, points)
        axis.set(title=curves.title, xlabel=curves.across, ylabel=curves.up, yscale="log")
        places = sorted({place for points in curves.lines.values() for place, _ in points})
        axis.set_xscale("symlog" if 0 in places else "log", base=2)
        axis.set_xticks(places, [f"{place:g}" for place in places], minor=False)
        axis.yaxis.set_major_formatter(_tick)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if curves.lines:
            axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return picture


def _curve(axis: Any, name: str, points: Sequence[tuple[float, Row]]) -> None:
    colour, marker = _STYLES[name]
    places, table = [place for place, _ in points], [row for _, row in points]
    lost = any(row.failures for row in table)
    label, line = (f"{name}\n(data lost, or failed)", "--") if lost else (name, "-")
    medians = [median(row.values) for row in table]
    axis.plot(places, medians, color=colour, marker=marker, linestyle=line, label=label)
    axis.vlines(
        places, [row.values[0] for row in table], [row.values[-1] for row in table], color=colour, lw=1
    )
