"""From a URL, flags and a TOML file to one frozen `Config`, or to one line that names the key at fault.

A flag wins over the file, key by key. The URL wins as a whole: it says which store is used and where it is, and the
file's table of that kind keeps what a URL cannot say (endpoint, credentials, part size). Tables of stores that are not
used are checked all the same, except that they need not be complete.

Messages never quote a credential, and `ConfigError` has no cause, because pydantic's own error holds the input.
"""

from __future__ import annotations

import difflib
import logging
import os
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from pydantic import ValidationError

from fusefs.errors import ConfigError
from fusefs.locations import BucketLocation, DirectoryLocation, Location, MemoryLocation, parse_url
from fusefs.options import BucketStore, DirectoryStore, MemoryStore, MountOptions, Store, Table
from fusefs.quantities import shown

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_log = logging.getLogger(__name__)

_Tree: TypeAlias = dict[str, Any]
_TableT = TypeVar("_TableT", bound=Table)

_STORES: Final[Mapping[str, type[Store]]] = MappingProxyType(
    {"fs": DirectoryStore, "object": BucketStore, "memory": MemoryStore}
)
_STORAGE: Final = "system.storage"
_OBJECT: Final = "system.storage.object"
_CREDENTIALS: Final = "system.storage.object.credentials"
_MOUNT: Final = "mount"

_SHARED_REVALIDATE_SECONDS: Final = 1.0

#: What to say instead of pydantic's sentence; `{...}` are filled from the error's context.
_WORDING: Final = {
    "missing": "must be given",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "string_type": "must be a string",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "model_type": "must be a table",
}
_WITHOUT_VALUE: Final = {"missing", "string_too_short", "too_short", "model_type"}


def _toml_names(model: type[Table], *, without: Iterable[str]) -> list[str]:
    names = [field.alias or name for name, field in model.model_fields.items()]
    return [name for name in names if name not in without]


#: The key that each flag sets; a flag's name here is what it is on a command line, with underscores.
FLAG_KEYS: Final[Mapping[str, str]] = MappingProxyType(
    {name: f"{_MOUNT}.{name}" for name in _toml_names(MountOptions, without={"mountpoint"})}
    | {
        name: f"{_OBJECT}.{name}"
        for name in _toml_names(BucketStore, without={"service", "bucket", "prefix", "credentials"})
    }
    | {name: f"{_CREDENTIALS}.{name}" for name in ("profile", "anonymous")}
)
#: Flags that say how a store is reached.
STORE_FLAGS: Final = frozenset(
    {name for name, key in FLAG_KEYS.items() if key.startswith(_OBJECT)} | {"retry_timeout"}
)
#: Flags whose value is a path, relative to where the command is run.
_PATH_FLAGS: Final = frozenset({"cache_dir", "log_file", "ca_bundle"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that a mount is told; nothing else reads the environment or a file."""

    store: Store
    mount: MountOptions

    @classmethod
    def of_store(
        cls,
        url: str,
        *,
        config_path: str | os.PathLike[str] | None = None,
        flags: Mapping[str, object] = MappingProxyType({}),
    ) -> Config:
        """Merge and check what a command needs that only reads the store. Raises `ConfigError`."""
        return cls.from_sources(
            url=url, mountpoint=os.devnull, config_path=config_path, flags={**flags, "read_only": True}
        )

    @classmethod
    def from_sources(
        cls,
        *,
        url: str | None = None,
        mountpoint: str | os.PathLike[str] | None = None,
        config_path: str | os.PathLike[str] | None = None,
        flags: Mapping[str, object] = MappingProxyType({}),
        environment: Mapping[str, str] = os.environ,
    ) -> Config:
        """Merge and check all sources. `flags` maps names of `FLAG_KEYS` to values, where None means not given.

        Raises `ConfigError`.
        """
        given = {name: value for name, value in flags.items() if value is not None}
        document = {} if config_path is None else _read_file(Path(config_path))
        if url is not None:
            _apply_location(document, parse_url(url))
        if mountpoint is not None:
            _table(document, _MOUNT)["mountpoint"] = _from_command_line(os.fspath(mountpoint))
        _apply_flags(document, given)
        try:
            config = _build(document, environment)
        except _Mistake as mistake:
            raise ConfigError(_one_line(f"{_named(mistake.key, given)}: {mistake}")) from None
        _refuse_useless_flags(config.store, given)
        _refuse_anonymous_writes(config)
        _refuse_overlaps(config)
        return config


class _Mistake(Exception):
    """One wrong key; it becomes a `ConfigError` where it is known which flag set the key."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def default_cache_dir(environment: Mapping[str, str]) -> Path:
    """Return where the cache is kept if nobody says: `$XDG_CACHE_HOME/fusefs`, or `~/.cache/fusefs`."""
    return _xdg_directory(environment, "XDG_CACHE_HOME", ".cache") / "fusefs"


def default_bucket_dir(environment: Mapping[str, str]) -> Path:
    """Return where the embedded store is: `$XDG_DATA_HOME/fusefs/bucket`, or `~/.local/share/fusefs/bucket`."""
    return _xdg_directory(environment, "XDG_DATA_HOME", ".local/share") / "fusefs" / "bucket"


def _xdg_directory(environment: Mapping[str, str], variable: str, below_home: str) -> Path:
    named = environment.get(variable, "")
    if os.path.isabs(named):  # the XDG specification has relative ones ignored
        return Path(named)
    return Path(environment.get("HOME") or os.path.expanduser("~")) / below_home


def _read_file(path: Path) -> _Tree:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigError(_one_line(f"{path}: cannot be read: {error.strerror}")) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(_one_line(f"{path}: is not TOML: {error}")) from None
    if mode & stat.S_IROTH and _holds_secret(document):
        _log.warning("%s: holds secret_key and everybody may read it; chmod 600 would be better", path)
    return document


def _holds_secret(document: _Tree) -> bool:
    found: object = document
    for name in (*_CREDENTIALS.split("."), "secret_key"):
        if not isinstance(found, dict) or name not in found:
            return False
        found = found[name]
    return True


def _table(document: _Tree, key: str) -> _Tree:
    """Return the table of a dotted key, made if it is missing."""
    found = document
    for depth, name in enumerate(key.split("."), start=1):
        found = found.setdefault(name, {})
        if not isinstance(found, dict):
            raise ConfigError(f"{'.'.join(key.split('.')[:depth])}: must be a table")
    return found


def _apply_location(document: _Tree, location: Location) -> None:
    storage = _table(document, _STORAGE)
    match location:
        case BucketLocation(bucket=bucket, prefix=prefix):
            storage["kind"] = "object"
            _table(document, _OBJECT).update(bucket=bucket, prefix=prefix)
        case DirectoryLocation(path=path):
            storage["kind"] = "fs"
            _table(document, f"{_STORAGE}.fs")["path"] = str(path)
        case MemoryLocation():
            storage["kind"] = "memory"


def _apply_flags(document: _Tree, given: Mapping[str, object]) -> None:
    if any(value is not False for name, value in given.items() if FLAG_KEYS[name].startswith(_CREDENTIALS)):
        # One way to say who asks replaces another: a profile and the file's key pair would contradict each other.
        _table(document, _OBJECT)["credentials"] = {}
    for name, value in given.items():
        table, _, key = FLAG_KEYS[name].rpartition(".")
        _table(document, table)[key] = _from_command_line(str(value)) if name in _PATH_FLAGS else value


def _from_command_line(path: str) -> str:
    """Return the path as the shell's user means it; an empty one stays empty, to be refused with its key."""
    return os.path.abspath(os.path.expanduser(path)) if path else path


def _build(document: _Tree, environment: Mapping[str, str]) -> Config:
    mount, storage = _table(document, _MOUNT), _table(document, _STORAGE)
    _refuse_unknown(document, {"system", "mount"}, at="")
    _refuse_unknown(document["system"], {"storage"}, at="system")
    _refuse_unknown(storage, {"kind", "fs", "object"}, at=_STORAGE)
    kind = _kind(storage)
    if kind == "fs":
        _table(document, f"{_STORAGE}.fs").setdefault("path", str(default_bucket_dir(environment)))
    for other in _STORES.keys() - {kind}:
        _check_unused(_STORES[other], storage.get(other, {}), at=f"{_STORAGE}.{other}")
    store = _validate(_STORES[kind], storage.get(kind, {}), at=f"{_STORAGE}.{kind}")
    mount.setdefault("cache_dir", str(default_cache_dir(environment)))
    if mount.get("shared") is True:
        mount.setdefault("wait_on_close", True)
        mount.setdefault("revalidate_interval", _SHARED_REVALIDATE_SECONDS)
    return Config(store=store, mount=_validate(MountOptions, mount, at=_MOUNT))


def _kind(storage: _Tree) -> str:
    kind = storage.get("kind")
    if kind is None:
        raise _Mistake(f"{_STORAGE}.kind", "must be given, or a URL such as s3://bucket/prefix")
    if not isinstance(kind, str) or kind not in _STORES:
        raise _Mistake(f"{_STORAGE}.kind", f'must be "fs", "object" or "memory" (got {shown(kind)})')
    return kind


def _refuse_unknown(table: _Tree, known: set[str], *, at: str) -> None:
    for name in table:
        if name not in known:
            raise _Mistake(_join(at, name), _unknown(name, known))


def _unknown(name: str, known: Iterable[str]) -> str:
    if name in FLAG_KEYS:  # it is in the wrong table
        return f"unknown key; did you mean {FLAG_KEYS[name]}?"
    similar = difflib.get_close_matches(name, list(known), n=1)
    return f"unknown key; did you mean {similar[0]}?" if similar else "unknown key"


def _validate(model: type[_TableT], data: object, *, at: str) -> _TableT:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _mistake(model, error.errors()[0], at) from None


def _check_unused(model: type[Table], data: object, *, at: str) -> None:
    try:
        model.model_validate(data)
    except ValidationError as error:
        for details in error.errors():
            if details["type"] != "missing":
                raise _mistake(model, details, at) from None


def _mistake(model: type[Table], details: ErrorDetails, at: str) -> _Mistake:
    path = [str(part) for part in details["loc"]]
    key, kind, context = _join(at, *path), details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        known = _toml_names(model, without=()) if len(path) == 1 else ()
        return _Mistake(key, _unknown(path[-1], known))
    if kind == "value_error":
        return _Mistake(key, str(context["error"]))
    message = _WORDING[kind].format_map(context) if kind in _WORDING else details["msg"]
    if kind in _WITHOUT_VALUE or key.startswith(_CREDENTIALS):
        return _Mistake(key, message)
    return _Mistake(key, f"{message} (got {shown(details['input'])})")


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)


def _named(key: str, given: Mapping[str, object]) -> str:
    """Return the key, after the flag that set it if one did."""
    for name in given:
        if FLAG_KEYS[name] == key:
            return f"{_flag(name)} ({key})"
    return key


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _one_line(message: str) -> str:
    return " ".join(message.split())


def _refuse_useless_flags(store: Store, given: Mapping[str, object]) -> None:
    if isinstance(store, BucketStore):
        return
    for name in given:
        if FLAG_KEYS[name].startswith(_OBJECT):
            raise ConfigError(
                f"{_flag(name)}: only for a bucket of an S3 server, and the store is {store.url}"
            )


def _refuse_anonymous_writes(config: Config) -> None:
    if (
        isinstance(config.store, BucketStore)
        and config.store.credentials.anonymous
        and not config.mount.read_only
    ):
        raise ConfigError(f"{_CREDENTIALS}.anonymous: needs a read-only mount (mount.read_only, --read-only)")


def _refuse_overlaps(config: Config) -> None:
    """Refuse directories inside each other: a cache inside the mount would wait for itself."""
    mount, store = config.mount, config.store
    named = [("mount.mountpoint", mount.mountpoint), ("mount.cache_dir", mount.cache_dir)]
    if isinstance(store, DirectoryStore):
        named.append((f"{_STORAGE}.fs.path", store.path))
    places = [(key, Path(os.path.realpath(path))) for key, path in named]
    for key, place in places:
        for other_key, other in places:
            if key != other_key and place.is_relative_to(other):
                raise ConfigError(f"{key}: must not be {other_key} or inside it ({other})")
    if mount.log_file is not None and Path(os.path.realpath(mount.log_file)).is_relative_to(places[0][1]):
        raise ConfigError(f"mount.log_file: must not be inside mount.mountpoint ({places[0][1]})")
