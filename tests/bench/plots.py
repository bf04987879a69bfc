"""Bars of medians with every run as a dot, one picture for each round trip; needs matplotlib (the extra `bench`)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, Final

from tests.bench.report import Row, Run, rows

_COLUMNS: Final = 3
_LOST: Final = "#c0392b"
_KEPT: Final = "#2c7fb8"


def draw(runs: Sequence[Run], directory: Path) -> list[Path]:
    """Write the pictures and return where they are. Raises ImportError without matplotlib."""
    figure_module: Any = import_module("matplotlib.figure")
    table = [row for row in rows(runs) if row.figures]
    written = []
    for round_trip in dict.fromkeys(row.round_trip_ms for row in table):
        here = [row for row in table if row.round_trip_ms == round_trip]
        titles = list(dict.fromkeys(row.what for row in here))
        height = -(-len(titles) // _COLUMNS)
        picture = figure_module.Figure(figsize=(5 * _COLUMNS, 2.6 * height), layout="constrained")
        axes = picture.subplots(height, _COLUMNS, squeeze=False).flat
        for axis, title in zip(axes, titles, strict=False):
            _bars(axis, [row for row in here if row.what == title])
        for axis in list(axes)[len(titles) :]:
            axis.axis("off")
        written.append(directory / f"round-trip-{round_trip:g}-ms.png")
        picture.savefig(written[-1], dpi=110)
    return written


def _bars(axis: Any, table: Sequence[Row]) -> None:
    """Draw one figure of all file systems; those that have lost something are red."""
    names = [row.file_system for row in table]
    colours = [_LOST if row.failures else _KEPT for row in table]
    axis.barh(names, [median(row.values) for row in table], color=colours, alpha=0.7)
    for row in table:
        axis.plot(row.values, [row.file_system] * len(row.values), "k.", markersize=4)
    better = "more" if table[0].figures[0].more_is_better else "less"
    axis.set_title(f"{table[0].what.strip()} ({table[0].figures[0].unit}, {better} is better)", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.invert_yaxis()
