"""The mounts on which the differential test runs, by name: each lets something happen often that is rare by default.

Everything that happens in the background happens at once, and the cache is too small, on all of them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tests.support.arena import Arena, DirectoryObjects
from tests.support.bucket import Bucket
from tests.support.mounts import Mount
from tests.support.recording_proxy import RecordingProxy
from tests.support.seaweedfs import SeaweedFS
from tests.support.unreliable import Weather

MOUNT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "cache_size": "16 MiB",
        "publish_delay": "100 ms",
        "publish_interval": "500 ms",
        "revalidate_interval": "300 ms",
    }
)
"""Keys of `[mount]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to mount, and to look at the mount."""

    about: str
    on_s3: bool = True
    #: What is different from `MOUNT`.
    mount: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    has_local_log: bool = False
    #: The module that is the program.
    program: str = "fusefs"
    #: Sizes above it are taken modulo.
    max_size: int | None = None
    #: After how many steps all bytes are compared; what is read is fetched, and what is not stays in the bucket.
    steps_per_comparison: int = 1
    #: Of requests that meet a fault.
    fault_share: float = 0.0
    #: Whether the store is away for a step now and then.
    has_outages: bool = False


SMALL_PARTS: Final = Variant(
    about="parts of 8 KiB, cache and log of 64 KiB: streams, patches, eviction, writers that wait",
    on_s3=False,
    mount={"cache_size": "64 KiB", "log_size": "64 KiB", "read_ahead": "16 KiB"},
    program="tests.support.small_parts_mount",
    max_size=300_000,
)

VARIANTS: Final[Mapping[str, Variant]] = MappingProxyType(
    {
        "directory": Variant(about="a bucket in a directory", on_s3=False),
        "s3": Variant(about="a bucket on a real S3 server"),
        "unread": Variant(
            about="bytes are compared after every tenth step, so that changes meet what is only in the bucket",
            steps_per_comparison=10,
        ),
        "small-parts": SMALL_PARTS,
        "small-parts-unread": replace(
            SMALL_PARTS,
            about="the same, and bytes are compared after every tenth step",
            steps_per_comparison=10,
        ),
        "small-parts-unreliable": replace(
            SMALL_PARTS, about="the same, and calls and answers are lost by chance", fault_share=0.05
        ),
        "local-log": Variant(
            about="ack_after_upload = false", flags=("--no-ack-after-upload",), has_local_log=True
        ),
        "eager": Variant(
            about="everything is published and told to the log at once",
            mount={"publish_delay": "0 s", "publish_interval": "10 ms", "commit_interval": "20 ms"},
        ),
        "lazy": Variant(
            about="nothing is published before somebody waits for it, but for what somebody else is to change",
            on_s3=False,
            mount={"publish_delay": "2 s", "publish_interval": "2 s", "commit_interval": "1 s"},
        ),
        "unreliable": Variant(
            about="calls to the store and its answers are lost, late, refused and cut by chance",
            fault_share=0.06,
        ),
        "outages": Variant(
            about="the store is away for some steps, for longer than it is waited for",
            mount={"retry_timeout": "1 s", "cache_size": "256 MiB"},
            program="tests.support.hasty_mount",
            has_outages=True,
        ),
    }
)


@contextmanager
def open_arena(variant: Variant, place: Path, server: SeaweedFS, *, seed: int = 0) -> Iterator[Arena]:
    """Mount in the directory `place`; `seed` is that of the faults. Everything is gone after the block.

    The mount must not have met a defect.
    """
    configuration = place / "fusefs.toml"
    keys = {**MOUNT, **variant.mount}
    configuration.write_text("[mount]\n" + "".join(f'{key} = "{value}"\n' for key, value in keys.items()))
    flags = ["--config", str(configuration), *variant.flags]
    with ExitStack() as stack:
        weather = None
        objects: Bucket | DirectoryObjects
        if variant.on_s3:
            objects = bucket = Bucket(server.client(), server.bucket, f"t{uuid.uuid4().hex}/")
            url, environment, endpoint = bucket.url, server.environment, server.endpoint
            if variant.fault_share or variant.has_outages:
                weather = Weather(seed, share=variant.fault_share)
                endpoint = stack.enter_context(RecordingProxy(endpoint, fate_of=weather)).endpoint
            flags += ["--endpoint", endpoint, "--multipart-part-size", "5 MiB"]
        else:
            (place / "bucket").mkdir()
            objects, url = DirectoryObjects(place / "bucket"), f"file://{place / 'bucket'}"
            environment = {"FAULT_SHARE": str(variant.fault_share)}
        stack.callback(objects.clear)
        mount = Mount(place / "mount", url, *flags, environment=environment, program=variant.program)
        stack.callback(mount.discard)
        arena = Arena(
            mount,
            objects,
            place / "plain",
            store_is_tree=variant.on_s3,
            log_is_in_bucket=not variant.has_local_log,
            max_size=variant.max_size,
            steps_per_comparison=variant.steps_per_comparison,
            weather=weather,
            has_outages=variant.has_outages,
        )
        arena.start()
        yield arena
        assert "Traceback" not in mount.log, mount.log
