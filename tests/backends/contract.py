"""What every store promises, as tests: a class is run against a store by subclassing.

    class TestMyStorage(StorageContract):
        @pytest.fixture
        async def storage(self) -> AsyncIterator[ObjectStorage]:
            ...yield an empty, probed store...

The words of `backends.base` are the promise; each test holds one of them. A server that is known to behave
otherwise is described with data in its subclass: `expected_capabilities` for what it lacks, `deviations` for what
it does differently, `refused_keys` and `renamed_keys` for keys that it cannot hold. A test then asserts what such
a store really does.

Few tests need parts of 5 MiB, and they share the bytes: the suite stays quick against a server on the same host.
"""

from __future__ import annotations

from tests.backends.contract_changes import ChangeContract
from tests.backends.contract_names import NameContract
from tests.backends.contract_objects import ObjectContract
from tests.backends.contract_support import (
    ACCEPTS_SMALL_PARTS,
    COMPLETIONS_RACE,
    DROPS_MARKER_BODIES,
    IGNORES_MISSING_CONDITIONS,
    METADATA,
    NASTY_KEYS,
    OPAQUE_ETAGS,
    PART_DATA,
    REFUSED_KEYS,
    TAIL_DATA,
    all_keys,
    all_pages,
    names,
    page_names,
    put_all,
    race,
)
from tests.backends.contract_uploads import UploadContract

__all__ = [
    "ACCEPTS_SMALL_PARTS",
    "COMPLETIONS_RACE",
    "DROPS_MARKER_BODIES",
    "IGNORES_MISSING_CONDITIONS",
    "METADATA",
    "NASTY_KEYS",
    "OPAQUE_ETAGS",
    "PART_DATA",
    "REFUSED_KEYS",
    "TAIL_DATA",
    "StorageContract",
    "all_keys",
    "all_pages",
    "names",
    "page_names",
    "put_all",
    "race",
]


class StorageContract(ObjectContract, ChangeContract, NameContract, UploadContract):
    """The promises of `ObjectStorage`. A subclass provides the fixture `storage`: an empty, probed store."""
