"""Failed assertions of the contract explain themselves, as those in test modules do."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "tests.backends.contract_changes",
    "tests.backends.contract_names",
    "tests.backends.contract_objects",
    "tests.backends.contract_support",
    "tests.backends.contract_uploads",
)
