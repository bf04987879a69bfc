"""Every promise of SEMANTICS.md is carried by a test with the same words."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_WITHOUT_TESTS = "## What it does not do"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _promises() -> list[str]:
    text = (_ROOT / "SEMANTICS.md").read_text()
    _, _, sections = text.partition("\n## ")
    promised, separator, _ = sections.partition(_WITHOUT_TESTS)
    assert separator
    paragraphs = [_one_line(paragraph) for paragraph in promised.split("\n\n")[1:]]
    return [paragraph for paragraph in paragraphs if paragraph and not paragraph.startswith("#")]


def _docstrings() -> Iterator[str]:
    for path in (_ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield _one_line(ast.get_docstring(node) or "")


def test_every_promise_has_its_test() -> None:
    """A paragraph of SEMANTICS.md is the docstring of a test; a changed word is a changed promise."""
    promises = _promises()
    assert len(promises) > 15
    assert sorted(set(promises) - set(_docstrings())) == []
