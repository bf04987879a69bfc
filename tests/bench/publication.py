"""The results that are in the repository, and the section of README.md that is made of them.

python -m tests.bench.publication     makes results.md, the pictures and the section anew from results.json
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.bench.plots import draw
from tests.bench.report import Report
from tests.bench.runs import number
from tests.bench.verdicts import NULL, OURS, Facts, Unmeasured

RESULTS: Final = Path(__file__).parent / "results"
README: Final = Path(__file__).parents[2] / "README.md"

_HEADING: Final = "## Speed\n"
_BEFORE: Final = "## Development\n"
_ROUND_TRIP_MS: Final = 20
FIGURES: Final = (
    ("commit of 8 KiB, p50", "write 8 KiB and fdatasync, median, ms"),
    ("pgbench, clients: 64", "pgbench, 64 clients, transactions/s"),
    ("create + write + close of 4 KiB", "files of 4 KiB made, 1/s"),
    ("sequential write, to published", "sequential write until it is in the bucket, MiB/s"),
    ("sequential read, cold", "sequential read, nothing cached, MiB/s"),
)
"""What a user asks for first."""


def section(report: Report) -> str:
    """Return the section of README.md about these results."""
    names = _systems(report)
    facts = Facts(report.runs, _ROUND_TRIP_MS)
    lines = [
        _HEADING,
        f"With {_ROUND_TRIP_MS} ms of round trip to the store, medians of all runs:",
        "",
        f"| | {' | '.join(names)} |",
        f"|---|{'--:|' * len(names)}",
        *(
            f"| {title} | {' | '.join(_cell(facts, name, what) for name in names)} |"
            for what, title in FIGURES
        ),
        "",
        "![Medians and single runs of each file system](tests/bench/results/overview.png)",
        "",
        "![Latency of a commit over the round trip](tests/bench/results/commit-latency.png)",
        "",
        f"On {report.machine}, by `{report.command}`; \\* marks what has lost data or failed in that work.",
        "[All figures and targets](tests/bench/results/results.md), with memory, CPU and requests;"
        " `scripts/bench` measures again.",
        "",
        "",
    ]
    return "\n".join(lines)


def with_section(text: str, report: Report | None) -> str:
    """Return README.md with the section in its place, or with none where nothing was published."""
    without = re.sub(rf"^{_HEADING}.*?(?=^## )", "", text, flags=re.DOTALL | re.MULTILINE)
    if report is None:
        return without
    before, heading, after = without.partition(_BEFORE)
    return before + section(report) + heading + after


def published() -> Report | None:
    """Return what is in the repository."""
    path = RESULTS / "results.json"
    return Report.from_json(path.read_text()) if path.exists() else None


def publish(report: Report) -> None:
    """Write everything that the repository has of it."""
    write(report, RESULTS)
    README.write_text(with_section(README.read_text(), report))


def write(report: Report, directory: Path) -> None:
    """Write JSON, Markdown and pictures."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(report.as_json())
    (directory / "results.md").write_text(report.as_markdown())
    draw(report, directory)


def _systems(report: Report) -> Sequence[str]:
    wanted = {what for what, _ in FIGURES}
    found = dict.fromkeys(
        run.file_system
        for run in report.runs
        if run.round_trip_ms == _ROUND_TRIP_MS
        and run.file_system != NULL
        and any(each.what in wanted for each in run.figures)
    )
    return sorted(found, key=lambda name: (not name.startswith(OURS), list(found).index(name)))


def _cell(facts: Facts, system: str, what: str) -> str:
    try:
        value = facts.value(system, what)
    except Unmeasured:
        return "–"
    return number(value) + ("" if facts.kept(system, what) else r" \*")


if __name__ == "__main__":
    if (report := published()) is None:
        raise SystemExit("nothing was published")
    publish(report)
