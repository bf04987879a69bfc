"""Every key of the configuration can be said on the command line, and nothing else."""

from __future__ import annotations

import click

from fusefs.cli import mount
from fusefs.config import FLAG_KEYS


def test_every_key_has_its_flag() -> None:
    """A key that is added to the configuration needs a flag; a flag without a key would be refused by its own name."""
    assert isinstance(mount, click.Command)
    of_the_command = {"url", "mountpoint", "config_path", "foreground"}
    named = {parameter.name for parameter in mount.params}
    assert named - of_the_command == FLAG_KEYS.keys()


def test_every_flag_says_what_it_does() -> None:
    """--help has a line for each flag that users may give."""
    for parameter in mount.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help
