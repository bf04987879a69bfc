"""Fixtures of the tests of the tree."""

from __future__ import annotations

from tests.core.small_parts import small_parts

__all__ = ["small_parts"]
