"""Many small files, and trees of them: made, listed, copied, compared, renamed, deleted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.bench.arena import KIB, Arena, DataLost, pattern
from tests.bench.file_systems import FileSystemError

_BLOCK: Final = 4 * KIB
_LEFT_OUT: Final = ("__pycache__", "test", "tests", "site-packages", "dist-packages")


def small_files(arena: Arena) -> None:
    """Make small files, list them, read them cold, delete them."""
    directory, count = arena.path / "small", 0
    directory.mkdir()
    with arena.span() as span:
        for number in arena.repeat(arena.sizes.files):
            (directory / str(number)).write_bytes(pattern(number, _BLOCK))
            count += 1
    arena.tell("create + write + close of 4 KiB", count / span.seconds, "files/s", span)
    with arena.span() as span:
        arena.system.umount()
    arena.tell("unmount with small files pending", span.seconds, "s", span)
    for number in {0, count - 1}:
        arena.check_object(f"small/{number}", pattern(number, _BLOCK))
    arena.system.mount()
    arena.go_cold()
    with arena.span() as span:
        found = {entry.name: entry.stat().st_size for entry in os.scandir(directory)}
    arena.tell("ls -l, cold", len(found) / span.seconds, "files/s", span)
    if found != {str(number): _BLOCK for number in range(count)}:
        raise DataLost(f"{len(found)} of {count} files are listed after an unmount, or sizes are wrong")
    arena.go_cold()
    read = 0
    with arena.span() as span:
        for number in arena.repeat(count):
            arena.check(directory / str(number), pattern(number, _BLOCK))
            read += 1
    arena.tell("cold read of 4 KiB files", read / span.seconds, "files/s", span)
    with arena.span() as span:
        for number in range(count):
            (directory / str(number)).unlink()
    arena.tell("unlink", count / span.seconds, "files/s", span)
    arena.go_cold()
    if directory.exists() and os.listdir(directory):
        raise DataLost("deleted files are there again after an unmount")


def renames(arena: Arena) -> None:
    """Rename a file, and a directory of many."""
    (arena.path / "before").mkdir()
    for number in range(arena.sizes.files):
        (arena.path / "before" / str(number)).write_bytes(b"x")
    (arena.path / "file").write_bytes(b"renamed")
    arena.go_cold()
    with arena.span() as span:
        (arena.path / "file").rename(arena.path / "other")
    arena.tell("rename of a file", span.seconds * 1e3, "ms", span)
    with arena.span() as span:
        (arena.path / "before").rename(arena.path / "after")
    arena.tell("rename of a directory of many", span.seconds * 1e3, "ms", span)
    arena.go_cold()
    arena.check(arena.path / "other", b"renamed")
    # SeaweedFS may show a directory that has become empty: no file is in two places.
    if (arena.path / "before").exists() and os.listdir(arena.path / "before"):
        raise DataLost("after a rename and an unmount, files are under the old name too")
    found = len(os.listdir(arena.path / "after"))
    if found != arena.sizes.files:
        raise DataLost(
            f"{found} of {arena.sizes.files} files of the renamed directory are there after an unmount"
        )


def tree(arena: Arena) -> None:
    """Copy a source tree with `cp -a`, package by package, and compare it cold with `diff -r`."""
    source = arena.scratch / "source"
    packages = list(source_packages(source, arena.sizes.tree_files))
    target, copied = arena.path / "tree", 0
    target.mkdir()
    done = []
    with arena.span() as span:
        for number in arena.repeat(len(packages)):
            arena.run(["cp", "-a", source / packages[number], target])
            done.append(packages[number])
            copied += _files(source / packages[number])
    arena.tell("cp -a of a source tree", copied / span.seconds, "files/s", span)
    arena.go_cold()
    compared = 0
    with arena.span() as span:
        for number in arena.repeat(len(done)):
            if subprocess.run(
                ["diff", "-r", source / done[number], target / done[number]], check=False
            ).returncode:
                raise DataLost(f"diff -r of {done[number]} finds differences after an unmount")
            compared += _files(source / done[number])
    arena.tell("diff -r of a source tree, cold", compared / span.seconds, "files/s", span)


def source_packages(target: Path, files: int) -> Iterator[str]:
    """Copy about as many files of Python's standard library; yield the names of the packages."""
    library, found = Path(sysconfig.get_path("stdlib")), 0
    for package in sorted(path for path in library.iterdir() if (path / "__init__.py").exists()):
        if found < files and package.name not in _LEFT_OUT:
            shutil.copytree(package, target / package.name, ignore=shutil.ignore_patterns(*_LEFT_OUT))
            found += _files(target / package.name)
            yield package.name


def _files(directory: Path) -> int:
    return sum(path.is_file() for path in directory.rglob("*"))


def listings(arena: Arena) -> None:
    """List directories whose objects somebody else has put: names of many, attributes of some, twice."""
    if arena.system.name == "plain directory":
        for name, count in arena.sizes.listed.items():
            (arena.path / name).mkdir()
            for number in range(count):
                (arena.path / name / f"{number:06}").touch()
    elif arena.system.bucket is None:
        raise FileSystemError("it does not show objects that others have put")
    some, many = arena.sizes.listed
    for what, command, name in (
        ("ls of many keys, cold", ["ls", "-U"], many),
        ("ls -l of objects of others, cold", ["ls", "-l"], some),
        ("ls -l of the same once more, cold", ["ls", "-l"], some),
    ):
        arena.go_cold()
        with arena.span() as span:
            listed = arena.run([*command, arena.path / name])
        arena.tell(what, span.seconds, "s", span)
        if (
            sum(line.endswith(tuple("0123456789")) for line in listed.splitlines() if "total" not in line)
            != (arena.sizes.listed[name])
        ):
            raise DataLost(f"{command} does not show all of {arena.sizes.listed[name]} objects")
