"""`python -m tests.support.hasty_mount mount ...` is `fusefs mount ...` that soon tries again what has failed.

After an outage a test need not wait for half a minute until nothing is remembered of it. In the foreground only.
"""

from __future__ import annotations

from fusefs import publish_queue, renamed_directories, sweeper
from fusefs.cli import main

if __name__ == "__main__":
    for module in (publish_queue, renamed_directories, sweeper):
        module.RETRY_SECONDS = 0.5  # type: ignore[attr-defined]
    main()
