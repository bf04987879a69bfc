"""Fixtures of the tests of the tree."""

from __future__ import annotations

import logging

import pytest

from tests.core.small_parts import small_parts

__all__ = ["small_parts"]


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Keep what mounts log out of the report: of hundreds that die, each complains."""
    caplog.set_level(logging.CRITICAL)
