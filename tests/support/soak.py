"""The differential test for as long as it is told, with seeds that no run had before; `scripts/soak` starts it.

Each round has a seed of its own, counted up from the first, and a new mount; rounds take turns between the variants.
The first difference ends it. The line that it prints replays that round alone, and shortens what led there.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.support.differential import run
from tests.support.seaweedfs import SeaweedFS
from tests.support.variants import VARIANTS, open_arena

RUNS: Final = 4
STEPS: Final = 150


def _round(server: SeaweedFS, name: str, seed: int, *, shrink: bool) -> None:
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="fusefs-soak-") as place,
        open_arena(VARIANTS[name], Path(place), server, seed=seed) as arena,
    ):
        run(arena, random_seed=seed, runs=RUNS, steps=STEPS, shrink=shrink)
    print(f"seed {seed}, {name}: the same, {time.monotonic() - began:.0f} s", flush=True)


def soak(seconds: float, seed: int, names: Sequence[str]) -> None:
    """Go on for `seconds`; 0 is one round, whose steps are shortened if it fails."""
    print(f"soaking from seed {seed}", flush=True)
    deadline = time.monotonic() + seconds
    server = SeaweedFS()
    try:
        server.start()
        while True:
            name = names[seed % len(names)]
            try:
                _round(server, name, seed, shrink=seconds == 0)
            except BaseException:
                print(f"seed {seed} ended early; to replay it: scripts/soak 0 {seed} {name}", flush=True)
                raise
            seed += 1
            if time.monotonic() >= deadline:
                return
    finally:
        server.close()


def main() -> None:
    variants = "\n".join(f"  {name:19} {variant.about}" for name, variant in VARIANTS.items())
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description="Make random calls on a mount and on a plain directory, and compare everything after each one.",
        epilog=f"variants:\n{variants}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "seconds", nargs="?", type=float, default=3600, help="0: one round, shortened if it fails"
    )
    parser.add_argument(
        "seed", nargs="?", type=int, default=random.randrange(10**6), help="of the first round"
    )
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help="in turn; all, unless told otherwise")
    options = parser.parse_args()
    for name in options.variants:
        if name not in VARIANTS:
            parser.error(f"there is no variant {name!r}")
    soak(options.seconds, options.seed, options.variants or [*VARIANTS])


if __name__ == "__main__":
    main()
