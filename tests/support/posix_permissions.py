"""What POSIX programs are allowed to do, bit by bit, for `tests.support.posix_calls`: the table is `PERMISSIONS`."""

from __future__ import annotations

import os
from functools import partial
from typing import Final

from tests.support.posix_attributes import GROUP, OTHER
from tests.support.posix_calls import EXCHANGE, Calls, Scenario, as_root, rename_with


def access_rights(do: Calls) -> None:
    """Each bit of a file's mode and of a directory's, asked for and used."""
    for mode in (0o000, 0o100, 0o200, 0o400, 0o010, 0o001, 0o444, 0o222, 0o755):
        file, directory = f"file {mode:o}", f"d {mode:o}"
        do.write_file(file)
        do(os.mkdir, directory)
        do(os.chmod, file, mode)
        do(os.chmod, directory, mode)
        for wanted in (os.F_OK, os.R_OK, os.W_OK, os.X_OK, os.R_OK | os.X_OK):
            for path in (file, directory):
                do(os.access, path, wanted, effective_ids=True)
        for flags in (
            os.O_RDONLY,
            os.O_WRONLY,
            os.O_RDWR,
            os.O_RDONLY | os.O_TRUNC,
            os.O_WRONLY | os.O_APPEND,
            os.O_PATH,
        ):
            do.close(do.open(file, flags))
        do(os.listdir, directory)
        do(os.mkdir, f"{directory}/e")
        do(os.rmdir, f"{directory}/e")
        do.close(do.open(f"{directory}/file", os.O_CREAT | os.O_WRONLY))
        do(partial(os.access, f"{directory}/file", os.F_OK))
        do(os.link, file, f"{directory}/link")
        do(os.rename, file, f"{directory}/file")
        do(os.unlink, f"{directory}/file")
        do(os.rename, directory, f"{directory} renamed")
        do(os.mkdir, f"into {mode:o}")
        do(os.rename, f"{directory} renamed", f"into {mode:o}/d")


def sticky_directories(do: Calls) -> None:
    """Who may rename and remove what: its owner, and the owner of the directory."""
    with as_root():
        for directory in ("ours", "theirs"):
            do(os.mkdir, directory)
            do(os.chmod, directory, 0o1777)
            do(os.mkdir, f"{directory}/d")
            for name in ("a", "b", "c"):
                do.write_file(f"{directory}/{name}")
                do(os.chown, f"{directory}/{name}", OTHER, OTHER)
        do(os.chown, "theirs", OTHER, OTHER)
        do(os.chown, "ours", do.user.uid, do.user.gid)
    for directory in ("ours", "theirs"):
        do.write_file(f"{directory}/mine")
        do(os.rename, f"{directory}/a", f"{directory}/renamed")
        do(os.rename, f"{directory}/mine", f"{directory}/b")
        do(rename_with, f"{directory}/mine", f"{directory}/c", EXCHANGE)
        do(os.unlink, f"{directory}/c")
        do(os.rename, f"{directory}/d", f"{directory}/e")
        do(os.rmdir, f"{directory}/d")
        do.write_file(f"{directory}/another")
        do(os.unlink, f"{directory}/another")
    do.write_file("ours/mine")
    do(os.rename, "ours/mine", "theirs/moved")
    do(os.rename, "theirs/b", "ours/moved")


def set_id_bits(do: Calls) -> None:
    """Which of them each change of a file takes away, from its own owner, too."""
    do.write_file("file")
    descriptor = do.open("file", os.O_RDWR)
    for mode in (0o6777, 0o6755, 0o2745, 0o4644, 0o2644):
        for call in (
            partial(os.write, descriptor, b"x"),
            partial(os.pwrite, descriptor, b"", 0),
            partial(os.writev, descriptor, [b"a", b"b"]),
            partial(os.ftruncate, descriptor, 2),
            partial(os.truncate, "file", 1),
            partial(os.utime, "file", (1, 2)),
            partial(os.chown, "file", -1, GROUP),
            partial(os.chown, "file", -1, -1),
            partial(os.link, "file", "link"),
            partial(os.rename, "link", "renamed"),
            partial(os.unlink, "renamed"),
        ):
            do(os.chmod, "file", mode)
            do(call)
        do(os.chmod, "file", mode)
        do.close(do.open("file", os.O_WRONLY | os.O_TRUNC))
        do(os.chmod, "file", mode)
        do.close(do.open("file", os.O_WRONLY | os.O_TRUNC))  # which is empty already
        do.fstat(descriptor)


PERMISSIONS: Final[dict[str, Scenario]] = {
    scenario.__name__: scenario for scenario in (access_rights, sticky_directories, set_id_bits)
}
