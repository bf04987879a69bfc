"""The import rules of setup.cfg hold, and would be noticed if they did not."""

from __future__ import annotations

import ast
import configparser
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import errors

ROOT = Path(__file__).parent.parent
PACKAGES = ("fusefs", "backends")
RETRYABLE = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and getattr(value, "retryable", False)
}


def lint(root: Path) -> tuple[bool, str]:
    """Run import-linter on the packages in `root`; return whether all contracts are kept, and its report."""
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as lint; lint()",
            "--no-cache",
            "--no-logo",
            "--config",
            "setup.cfg",
        ],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return ended.returncode == 0, ended.stdout + ended.stderr


def modules(package: str) -> set[str]:
    """Return the names of the package's modules and subpackages, without the package's own."""
    directory = ROOT / package
    found = {path.stem for path in directory.glob("*.py")} - {"__init__"}
    return found | {path.parent.name for path in directory.glob("*/__init__.py")}


def test_the_rules_hold() -> None:
    kept, report = lint(ROOT)
    assert kept, report


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_its_place(package: str) -> None:
    """A new module cannot slip by: some line of the package's layers names it, and only one does."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    named = re.findall(r"\w+", config[f"importlinter:contract:{package}"]["layers"])
    assert len(named) == len(set(named))
    assert modules(package) <= set(named)


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("fusefs/keys.py", "import fusefs.namespace", "nothing refers upward"),
        ("fusefs/keys.py", "def late():\n    from fusefs import namespace", "nothing refers upward"),
        ("fusefs/keys.py", "import fusefs.attributes", "nothing refers upward"),
        ("fusefs/newcomer.py", "", "nothing refers upward"),
        ("backends/newcomer.py", "", "all are above the seam"),
        ("backends/base.py", "import backends.memory", "all are above the seam"),
        ("backends/s3_values.py", "import backends.memory", "No store knows another"),
        ("backends/memory.py", "import fusefs.errors", "Stores know nothing of the file system"),
        ("fusefs/publisher.py", "from backends.s3 import S3Storage", "the rest knows the seam"),
        ("fusefs/publisher.py", "import backends", "the rest knows the seam"),
        ("fusefs/filesystem.py", "import pyfuse3", "Four modules know pyfuse3"),
        ("backends/memory.py", "import pyfuse3", "Four modules know pyfuse3"),
        (
            "fusefs/filesystem.py",
            "from botocore import exceptions",
            "Only the S3 store knows boto3 and obstore",
        ),
        ("backends/memory.py", "import boto3", "Only the S3 store knows boto3 and obstore"),
    ],
)
def test_a_planted_violation_is_refused(tmp_path: Path, module: str, line: str, contract: str) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    with (tmp_path / module).open("a") as file:
        file.write(f"\n{line}\n")
    kept, report = lint(tmp_path)
    assert not kept
    assert re.search(rf"{contract}\s+BROKEN", report), report


def retry_loops(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield where code decides to call again: it asks for `retryable`, or catches what is, inside a loop."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "retryable":
            yield node
        if isinstance(node, ast.For | ast.AsyncFor | ast.While):
            for inner in ast.walk(node):
                if isinstance(inner, ast.ExceptHandler) and inner.type is not None:
                    caught = {
                        getattr(part, "attr", getattr(part, "id", None)) for part in ast.walk(inner.type)
                    }
                    if caught & RETRYABLE:
                        yield inner


def test_only_one_module_retries() -> None:
    """Retries on top of retries multiply: `backends.retrying` is the only loop that makes a call again."""
    found = {
        f"{package}.{path.stem}"
        for package in PACKAGES
        for path in (ROOT / package).glob("*.py")
        for _ in retry_loops(ast.parse(path.read_text()))
    }
    assert found <= {"backends.retrying", "backends.errors"}  # which says what is worth it


@pytest.mark.parametrize(
    "code",
    [
        "while True:\n try:\n  call()\n except Unavailable:\n  pass",
        "for _ in range(3):\n try:\n  call()\n except (KeyError, errors.Throttled):\n  pass",
        "def call():\n if error.retryable:\n  call()",
    ],
)
def test_a_planted_retry_is_found(code: str) -> None:
    assert list(retry_loops(ast.parse(code)))
