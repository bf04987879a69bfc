"""Every key of the configuration can be said on the command line, and nothing else."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final

import click
from click.testing import CliRunner

from fusefs.cli import check, mount, recover
from fusefs.config import FLAG_KEYS, STORE_FLAGS
from fusefs.flags import default_of

_README: Final = Path(__file__).parents[2] / "README.md"


def test_every_key_has_its_flag() -> None:
    """A key that is added to the configuration needs a flag; a flag without a key would be refused by its own name."""
    assert isinstance(mount, click.Command)
    of_the_command = {"url", "mountpoint", "config_path", "foreground"}
    named = {parameter.name for parameter in mount.params}
    assert named - of_the_command == FLAG_KEYS.keys()


def test_a_flag_that_has_no_effect_is_none() -> None:
    """`check` writes nothing and `recover` no files, but what that sets aside is written as everything else."""
    of_mount, of_check, of_recover = (
        {parameter.name for parameter in command.params if parameter.name in STORE_FLAGS}
        for command in (mount, check, recover)
    )
    assert of_mount - of_recover == {"multipart_part_size", "ack_after_upload"}
    assert of_recover - of_check == {"server_side_encryption", "kms_key_id", "storage_class"}


def test_every_flag_says_what_it_does() -> None:
    """--help has a line for each flag that users may give."""
    for parameter in mount.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help


def test_the_help_has_the_defaults_of_the_readme() -> None:
    """In the same words, for whoever reads the one and means the other."""
    (text,) = re.findall(r"```toml\n(.*?)```", _README.read_text(), re.DOTALL)
    document = tomllib.loads(text)
    told = {name: default_of(name) for name in FLAG_KEYS}
    for name, default in told.items():
        table = document
        *places, key = FLAG_KEYS[name].split(".")
        for place in places:
            table = table[place]
        if default:
            value = table.get(key, False)
            assert default == ({True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value))
    examples = (
        "endpoint region profile cache_dir uid gid log_file ca_bundle server_side_encryption kms_key_id"
    )
    assert {name for name, default in told.items() if not default} == {*examples.split(), "storage_class"}
    help_of_mount = " ".join(CliRunner().invoke(mount, ["--help"]).output.split())
    assert "an open file. [default: 30 s]" in help_of_mount
