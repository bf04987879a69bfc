"""From URL, flags and file to one `Config`; every mistake is one line that names the key."""

from __future__ import annotations

import logging
import os
import re
import tomllib
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends.base import GIB, MIB
from backends.part_sizes import PartSizes
from fusefs.config import FLAG_KEYS, Config, default_bucket_dir, default_cache_dir
from fusefs.errors import ConfigError
from fusefs.options import BucketStore, DirectoryStore, MemoryStore, MountOptions, Table

README = Path(__file__).parents[2] / "README.md"
SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"

FromFile = Callable[..., Config]


@pytest.fixture
def from_file(tmp_path: Path) -> FromFile:
    """Return a function that builds a Config from TOML text and whatever else `from_sources` takes."""

    def build(text: str, **sources: Any) -> Config:
        path = tmp_path / "fusefs.toml"
        path.write_text(text)
        path.chmod(0o600)
        sources.setdefault("environment", {"HOME": "/home/me"})
        return Config.from_sources(config_path=path, **sources)

    return build


def from_command_line(url: str = "s3://bucket", mountpoint: str = "/mnt/data", /, **flags: object) -> Config:
    return Config.from_sources(url=url, mountpoint=mountpoint, flags=flags, environment={"HOME": "/home/me"})


def bucket_of(config: Config) -> BucketStore:
    assert isinstance(config.store, BucketStore)
    return config.store


# What is accepted


@pytest.mark.parametrize("size", ["5 MiB", "5115 MiB"])
def test_every_part_size_that_is_accepted_can_be_used(size: str) -> None:
    store = bucket_of(from_command_line(multipart_part_size=size))
    assert PartSizes(store.multipart_part_size_bytes).part(1).start == 0


def test_a_url_and_a_mountpoint_are_enough() -> None:
    config = from_command_line("s3://bucket/team/data", "/mnt/data")
    store = bucket_of(config)
    assert (store.service, store.bucket, store.prefix) == ("s3", "bucket", "team/data/")
    assert store.multipart_part_size_bytes == 8 * MIB
    assert store.ack_after_upload
    assert store.verify_tls
    assert store.endpoint is None
    assert store.url == "s3://bucket/team/data"
    mount = config.mount
    assert mount.mountpoint == Path("/mnt/data")
    assert mount.cache_dir == Path("/home/me/.cache/fusefs")
    assert (mount.uid, mount.gid) == (os.getuid(), os.getgid())
    assert (mount.file_mode, mount.directory_mode) == (0o644, 0o755)
    assert mount.cache_size_bytes == 10 * GIB
    assert (mount.publish_delay_seconds, mount.publish_interval_seconds) == (1, 30)
    assert (mount.revalidate_interval_seconds, mount.wait_on_close) == (60, False)


def test_every_key_has_an_effect(from_file: FromFile, tmp_path: Path) -> None:
    """All keys at once, each with a value that is not its default."""
    authorities = tmp_path / "ca.pem"
    authorities.write_text("")
    config = from_file(
        f"""
        [system.storage]
        kind = "object"
        [system.storage.object]
        service = "s3"
        bucket = "my.bucket-1"
        prefix = "a/b"
        region = "eu-central-1"
        endpoint = "https://s3.example.com:9000/"
        multipart_part_size = "16 MiB"
        ack_after_upload = false
        addressing = "path"
        ca_bundle = "{authorities}"
        server_side_encryption = "aws:kms"
        kms_key_id = "alias/key"
        storage_class = "STANDARD_IA"
        requester_pays = true
        checksums = "crc32"
        max_connections = 4
        connect_timeout = 2
        read_timeout = "1 min"
        [system.storage.object.credentials]
        access_key = "AKIA"
        secret_key = "{SECRET}"
        session_token = "token"
        [mount]
        mountpoint = "/mnt/elsewhere"
        read_only = true
        shared = true
        allow_other = true
        uid = 1
        gid = 2
        file_mode = "0600"
        dir_mode = "0700"
        cache_dir = "/var/cache/elsewhere"
        cache_size = "1 GB"
        read_ahead = 1048576
        xattr = true
        wait_on_close = true
        publish_delay = "500 ms"
        publish_interval = "2 min"
        revalidate_interval = 7
        retry_timeout = "1 h"
        upload_workers = 3
        commit_interval = "1500 ms"
        log_size = "32 MiB"
        lease = false
        lease_term = 20
        log_level = "debug"
        log_file = "/var/log/fusefs.log"
        """
    )
    store = config.store.model_dump()
    credentials = store.pop("credentials")
    assert credentials.pop("secret_key").get_secret_value() == SECRET
    assert credentials.pop("session_token").get_secret_value() == "token"
    assert credentials == {"profile": None, "access_key": "AKIA", "anonymous": False}
    assert store == {
        "service": "s3",
        "bucket": "my.bucket-1",
        "prefix": "a/b/",
        "region": "eu-central-1",
        "endpoint": "https://s3.example.com:9000",
        "multipart_part_size_bytes": 16 * MIB,
        "ack_after_upload": False,
        "addressing": "path",
        "verify_tls": True,
        "ca_bundle": authorities,
        "server_side_encryption": "aws:kms",
        "kms_key_id": "alias/key",
        "storage_class": "STANDARD_IA",
        "requester_pays": True,
        "checksums": "crc32",
        "max_connections": 4,
        "connect_timeout_seconds": 2,
        "read_timeout_seconds": 60,
    }
    assert config.mount.model_dump() == {
        "mountpoint": Path("/mnt/elsewhere"),
        "read_only": True,
        "shared": True,
        "allow_other": True,
        "uid": 1,
        "gid": 2,
        "file_mode": 0o600,
        "directory_mode": 0o700,
        "cache_dir": Path("/var/cache/elsewhere"),
        "cache_size_bytes": 10**9,
        "read_ahead_bytes": MIB,
        "xattr": True,
        "wait_on_close": True,
        "publish_delay_seconds": 0.5,
        "publish_interval_seconds": 120,
        "revalidate_interval_seconds": 7,
        "retry_timeout_seconds": 3600,
        "upload_workers": 3,
        "commit_interval_seconds": 1.5,
        "log_size_bytes": 32 * MIB,
        "lease": False,
        "lease_term_seconds": 20,
        "log_level": "debug",
        "log_file": Path("/var/log/fusefs.log"),
    }


@pytest.mark.parametrize(
    ("place", "model", "required"),
    [
        (("system", "storage", "object"), BucketStore, {"bucket": "bucket"}),
        (("system", "storage", "fs"), DirectoryStore, {"path": "/bucket"}),
        (("mount",), MountOptions, {"mountpoint": "/mnt/data", "cache_dir": "/cache"}),
    ],
    ids=["object", "fs", "mount"],
)
def test_the_readme_has_every_key_and_its_default(
    place: tuple[str, ...], model: type[Table], required: dict[str, str]
) -> None:
    """What it has of keys without one are examples; the mount point is said on the command line."""
    (text,) = re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)
    table = tomllib.loads(text)
    for name in place:
        table = table[name]
    assert table.keys() | {"mountpoint"} == {
        field.alias or name for name, field in model.model_fields.items()
    } | {"mountpoint"}
    examples = {"credentials", *required}
    for name, field in model.model_fields.items():
        key = field.alias or name
        if key not in examples and field.default_factory is None and field.default is not None:
            assert getattr(model.model_validate({**required, key: table[key]}), name) == field.default, key


def test_the_other_stores() -> None:
    directory = from_command_line("file:///srv/bucket/").store
    assert isinstance(directory, DirectoryStore)
    assert directory.path == Path("/srv/bucket")
    assert directory.url == "file:///srv/bucket"
    memory = from_command_line("memory://").store
    assert isinstance(memory, MemoryStore)
    assert memory.url == "memory://"


def test_the_directory_store_has_a_default_place(from_file: FromFile) -> None:
    config = from_file('system.storage.kind = "fs"', mountpoint="/mnt/data")
    assert config.store == DirectoryStore(path=Path("/home/me/.local/share/fusefs/bucket"))


def test_default_places_follow_xdg_unless_it_is_relative() -> None:
    environment = {"HOME": "/home/me", "XDG_CACHE_HOME": "/fast", "XDG_DATA_HOME": "/big"}
    assert default_cache_dir(environment) == Path("/fast/fusefs")
    assert default_bucket_dir(environment) == Path("/big/fusefs/bucket")
    assert default_cache_dir({"HOME": "/home/me", "XDG_CACHE_HOME": "here"}) == Path("/home/me/.cache/fusefs")


def test_flags_win_over_the_file(from_file: FromFile) -> None:
    config = from_file(
        """
        [system.storage]
        kind = "object"
        object = { bucket = "bucket", region = "eu-west-1", endpoint = "http://old:1" }
        [mount]
        mountpoint = "/mnt/old"
        upload_workers = 2
        read_only = true
        """,
        mountpoint="/mnt/new",
        flags={"endpoint": "http://new:2", "upload_workers": 5, "read_only": None, "cache_size": "20 MiB"},
    )
    store = bucket_of(config)
    assert (store.endpoint, store.region) == ("http://new:2", "eu-west-1")
    assert config.mount.mountpoint == Path("/mnt/new")
    assert config.mount.upload_workers == 5
    assert config.mount.read_only, "a flag that is not given leaves the file's value"
    assert config.mount.cache_size_bytes == 20 * MIB


def test_the_url_says_which_store_and_where(from_file: FromFile) -> None:
    """The file's bucket and prefix give way together; what a URL cannot say stays."""
    text = """
        [system.storage]
        kind = "fs"
        fs.path = "/srv/bucket"
        object = { bucket = "old", prefix = "old/prefix", endpoint = "http://store:1" }
        """
    store = bucket_of(from_file(text, url="s3://new", mountpoint="/mnt/data"))
    assert (store.bucket, store.prefix, store.endpoint) == ("new", "", "http://store:1")


def test_a_table_of_a_store_that_is_not_used_may_be_incomplete(from_file: FromFile) -> None:
    text = '[system.storage.object]\nregion = "eu-west-1"'
    assert from_file(text, url="memory://", mountpoint="/mnt/data").store == MemoryStore()


def test_a_profile_flag_replaces_the_files_key_pair(from_file: FromFile) -> None:
    text = f'system.storage.object.credentials = {{ access_key = "AKIA", secret_key = "{SECRET}" }}'
    config = from_file(text, url="s3://bucket", mountpoint="/mnt/data", flags={"profile": "work"})
    credentials = bucket_of(config).credentials
    assert (credentials.profile, credentials.access_key, credentials.secret_key) == ("work", None, None)


def test_no_anonymous_replaces_no_key_pair(from_file: FromFile) -> None:
    """It says who does not ask, and not who does."""
    text = f'system.storage.object.credentials = {{ access_key = "AKIA", secret_key = "{SECRET}" }}'
    config = from_file(text, url="s3://bucket", mountpoint="/mnt/data", flags={"anonymous": False})
    assert bucket_of(config).credentials.access_key == "AKIA"
    text = "system.storage.object.credentials.anonymous = true"
    config = from_file(text, url="s3://bucket", mountpoint="/mnt/data", flags={"anonymous": False})
    assert not bucket_of(config).credentials.anonymous


def test_a_shared_mount_looks_again_soon_and_waits_on_close() -> None:
    mount = from_command_line(shared=True).mount
    assert mount.revalidate_interval_seconds == 1
    assert mount.wait_on_close
    assert from_command_line(shared=True, revalidate_interval=5).mount.revalidate_interval_seconds == 5


def test_relative_paths_on_the_command_line_start_where_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mount = from_command_line("memory://", "here", cache_dir="cache", log_file="log").mount
    assert (mount.mountpoint, mount.cache_dir) == (tmp_path / "here", tmp_path / "cache")
    assert mount.log_file == tmp_path / "log"


def test_a_config_cannot_be_changed() -> None:
    config = from_command_line()
    for part, name in ((config, "mount"), (config.mount, "shared"), (config.store, "bucket")):
        with pytest.raises((AttributeError, ValueError)):
            setattr(part, name, None)


# What is refused

OBJECT = "system.storage.object"
BUCKET = '[system.storage]\nkind = "object"\n[system.storage.object]\nbucket = "bucket"\n'
MOUNT = 'system.storage.kind = "memory"\n[mount]\n'
CREDENTIALS = f"{BUCKET}[system.storage.object.credentials]\n"

MISTAKES = [
    # keys nobody knows
    ("sistem = 1", "sistem: unknown key; did you mean system?"),
    ("[system]\nstore = 1", "system.store: unknown key; did you mean storage?"),
    ("[system.storage]\nkind = 'fs'\nsize = 1", "system.storage.size: unknown key"),
    ("[system.storage]\nkind = 'memory'\nmemory.size = 1", "system.storage.memory: unknown key"),
    (BUCKET + "bukket = 'x'", f"{OBJECT}.bukket: unknown key; did you mean bucket?"),
    (BUCKET + "multipart_part_size_bytes = 1", f"{OBJECT}.multipart_part_size_bytes: unknown key; "
     "did you mean multipart_part_size?"),
    (CREDENTIALS + "password = 'x'", f"{OBJECT}.credentials.password: unknown key"),
    (MOUNT + "ack_after_upload = false",
     f"mount.ack_after_upload: unknown key; did you mean {OBJECT}.ack_after_upload?"),
    ("read_only = true", "read_only: unknown key; did you mean mount.read_only?"),
    (BUCKET + "profile = 'x'", f"{OBJECT}.profile: unknown key; did you mean {OBJECT}.credentials.profile?"),
    (MOUNT + "readonly = true", "mount.readonly: unknown key; did you mean read_only?"),
    # tables that are none
    ("system = 'x'", "system: must be a table"),
    ("system.storage = 1", "system.storage: must be a table"),
    ("system.storage.object = 1\nsystem.storage.kind = 'memory'", f"{OBJECT}: must be a table"),
    ("mount = 1", "mount: must be a table"),
    (BUCKET + "credentials = 'x'", f"{OBJECT}.credentials: must be a table"),
    # which store
    ("", 'system.storage.kind: must be given, or a URL such as s3://bucket/prefix'),
    ("system.storage.kind = 'disk'", 'system.storage.kind: must be "fs", "object" or "memory" (got "disk")'),
    ("system.storage.kind = ['fs']", "system.storage.kind: must be \"fs\", \"object\" or \"memory\" (got ['fs'])"),
    ("system.storage.kind = 'object'", f"{OBJECT}.bucket: must be given"),
    (BUCKET + "service = 'gcs'", f"{OBJECT}.service: must be 's3' (got \"gcs\")"),
    # the directory store
    ("system.storage = { kind = 'fs', fs.path = 'data' }",
     'system.storage.fs.path: must be an absolute path (got "data")'),
    ("system.storage = { kind = 'fs', fs.path = 3 }", "system.storage.fs.path: must be a path (got 3)"),
    # part size
    (BUCKET + "multipart_part_size = '1 MiB'", f"{OBJECT}.multipart_part_size: must be at least 5 MiB (got 1 MiB)"),
    (BUCKET + "multipart_part_size = 5242879",
     f"{OBJECT}.multipart_part_size: must be at least 5 MiB (got 5242879 bytes)"),
    (BUCKET + "multipart_part_size = '5 GiB'",
     f"{OBJECT}.multipart_part_size: must be at most 5115 MiB (got 5 GiB)"),
    (BUCKET + "multipart_part_size = 'big'", f"{OBJECT}.multipart_part_size: must be a number of bytes, "
     'or a string such as "8 MiB" (got "big")'),
    (BUCKET + "multipart_part_size = true", f"{OBJECT}.multipart_part_size: must be a number of bytes, "
     'or a string such as "8 MiB" (got true)'),
    (BUCKET + "multipart_part_size = 8.5", f"{OBJECT}.multipart_part_size: must be a number of bytes, "
     'or a string such as "8 MiB" (got 8.5)'),
    # also where the table is not used
    ("[system.storage]\nkind = 'memory'\nobject.multipart_part_size = 1048576",
     f"{OBJECT}.multipart_part_size: must be at least 5 MiB (got 1 MiB)"),
    ("[system.storage]\nkind = 'memory'\nobject.bukket = 'x'",
     f"{OBJECT}.bukket: unknown key; did you mean bucket?"),
    # the bucket and the way to it
    (BUCKET.replace('"bucket"', '"My_Bucket"'), f"{OBJECT}.bucket: must be 3 to 63 lower-case letters, digits, "
     'dots and hyphens, with a letter or digit at both ends, and no IP address (got "My_Bucket")'),
    (BUCKET + "prefix = '/a'", f'{OBJECT}.prefix: must be a prefix such as "team/data", without a slash at its '
     'start, "//", "." or ".." (got "/a")'),
    (BUCKET + "prefix = 'team/.fusefs/journal'", f"{OBJECT}.prefix: must not lead into .fusefs, where mounts keep what "
     'is theirs (got "team/.fusefs/journal")'),
    (BUCKET + "endpoint = 'localhost:9000'",
     f'{OBJECT}.endpoint: must be a URL such as "https://s3.example.com" (got "localhost:9000")'),
    (BUCKET + "endpoint = 'http://host:port'",
     f'{OBJECT}.endpoint: must be a URL such as "https://s3.example.com" (got "http://host:port")'),
    (BUCKET + "region = ''", f"{OBJECT}.region: must not be empty"),
    (BUCKET + "region = 1", f"{OBJECT}.region: must be a string (got 1)"),
    (BUCKET + "addressing = 'dns'", f"{OBJECT}.addressing: must be 'auto', 'path' or 'virtual' (got \"dns\")"),
    (BUCKET + "verify_tls = 'no'", f'{OBJECT}.verify_tls: must be true or false (got "no")'),
    (BUCKET + "ca_bundle = '/no/such/file'", f"{OBJECT}.ca_bundle: there is no file /no/such/file"),
    (BUCKET + "verify_tls = false\nca_bundle = '/etc/passwd'",
     f"{OBJECT}.ca_bundle: has no meaning with verify_tls = false"),
    (BUCKET + "kms_key_id = 'x'", f'{OBJECT}.kms_key_id: needs server_side_encryption = "aws:kms"'),
    (BUCKET + "checksums = 'md5'", f"{OBJECT}.checksums: must be 'auto', 'crc32' or 'none' (got \"md5\")"),
    (BUCKET + "max_connections = 0", f"{OBJECT}.max_connections: must be at least 1 (got 0)"),
    (BUCKET + "max_connections = 5000", f"{OBJECT}.max_connections: must be at most 1024 (got 5000)"),
    (BUCKET + "read_timeout = 0", f"{OBJECT}.read_timeout: must be more than 0 seconds"),
    # credentials
    (CREDENTIALS + "access_key = 'x'",
     f"{OBJECT}.credentials: access_key and secret_key belong together: give both or neither"),
    (CREDENTIALS + "session_token = 'x'", f"{OBJECT}.credentials: session_token needs access_key and secret_key"),
    (CREDENTIALS + "profile = 'x'\nanonymous = true",
     f"{OBJECT}.credentials: give only one of profile, access_key with secret_key, and anonymous"),
    (CREDENTIALS + "anonymous = true",
     f"{OBJECT}.credentials.anonymous: needs a read-only mount (mount.read_only, --read-only)"),
    # the mount
    (MOUNT + "read_only = 1", "mount.read_only: must be true or false (got 1)"),
    (MOUNT + "uid = -1", "mount.uid: must be at least 0 (got -1)"),
    (MOUNT + "uid = 'root'", 'mount.uid: must be a whole number (got "root")'),
    (MOUNT + "file_mode = 644", 'mount.file_mode: must be permission bits in quotes, such as "0644" (got 644)'),
    (MOUNT + "dir_mode = '1777'", 'mount.dir_mode: must be permission bits in quotes, such as "0644" (got "1777")'),
    (MOUNT + "cache_size = '1 KiB'", "mount.cache_size: must be at least 16 MiB (got 1 KiB)"),
    (MOUNT + "cache_dir = 'cache'", 'mount.cache_dir: must be an absolute path (got "cache")'),
    (MOUNT + "publish_delay = '5 parsecs'", "mount.publish_delay: must be a number of seconds, or a string such as "
     '"5 s" or "2 min" (got "5 parsecs")'),
    (MOUNT + "publish_delay = -1", "mount.publish_delay: must be a number of seconds, or a string such as "
     '"5 s" or "2 min" (got -1)'),
    (MOUNT + "retry_timeout = inf", "mount.retry_timeout: must be a number of seconds, or a string such as "
     '"5 s" or "2 min" (got inf)'),
    (MOUNT + "retry_timeout = 0", "mount.retry_timeout: must be more than 0 seconds"),
    (MOUNT + "publish_interval = 0", "mount.publish_interval: must be more than 0 seconds"),
    (MOUNT + "upload_workers = 0", "mount.upload_workers: must be at least 1 (got 0)"),
    (MOUNT + "log_level = 'loud'",
     "mount.log_level: must be 'debug', 'info', 'warning' or 'error' (got \"loud\")"),
    (MOUNT + "shared = true\nwait_on_close = false",
     "mount.wait_on_close: cannot be false on a shared mount, whose close always waits"),
    # directories inside each other
    (MOUNT + "cache_dir = '/mnt/data/cache'",
     "mount.cache_dir: must not be mount.mountpoint or inside it (/mnt/data)"),
    (MOUNT + "log_file = '/mnt/data/log'", "mount.log_file: must not be inside mount.mountpoint (/mnt/data)"),
    ("system.storage = { kind = 'fs', fs.path = '/mnt/data' }",
     "mount.mountpoint: must not be system.storage.fs.path or inside it (/mnt/data)"),
    ("system.storage = { kind = 'fs', fs.path = '/home/me' }",
     "mount.cache_dir: must not be system.storage.fs.path or inside it (/home/me)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), MISTAKES, ids=[message[:60] for _, message in MISTAKES])
def test_a_mistake_in_the_file_is_one_line_with_its_key(from_file: FromFile, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_file(text, mountpoint="/mnt/data")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"multipart_part_size": "1 MiB"},
            "--multipart-part-size (system.storage.object.multipart_part_size): must be at least 5 MiB (got 1 MiB)",
        ),
        (
            {"endpoint": "store"},
            "--endpoint (system.storage.object.endpoint): "
            'must be a URL such as "https://s3.example.com" (got "store")',
        ),
        ({"cache_size": "1"}, "--cache-size (mount.cache_size): must be at least 16 MiB (got 1 bytes)"),
        ({"profile": ""}, "--profile (system.storage.object.credentials.profile): must not be empty"),
        ({"cache_dir": ""}, '--cache-dir (mount.cache_dir): must be an absolute path (got "")'),
    ],
)
def test_a_mistake_in_a_flag_names_the_flag_too(flags: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_command_line(**flags)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["endpoint", "region", "profile", "verify_tls"])
def test_a_flag_that_the_store_has_no_use_for_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"only for a bucket of an S3 server, and the store is memory://$"):
        from_command_line("memory://", **{name: False if name == "verify_tls" else "http://x"})


def test_there_must_be_a_mountpoint() -> None:
    with pytest.raises(ConfigError, match=r"^mount\.mountpoint: must be given$"):
        Config.from_sources(url="memory://")
    with pytest.raises(ConfigError, match=r"^mount\.mountpoint: must be an absolute path"):
        Config.from_sources(url="memory://", mountpoint="")


def test_every_flag_is_the_name_of_its_key() -> None:
    for name, key in FLAG_KEYS.items():
        assert key.rpartition(".")[2] == name


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"/none\.toml: cannot be read: No such file or directory$"):
        Config.from_sources(config_path=tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory$"):
        Config.from_sources(config_path=tmp_path)


@pytest.mark.parametrize("text", ["[mount]\nshared = yes\n", "[mount]\nshared = true\nshared = true\n"])
def test_a_syntax_error_is_named_with_its_line(from_file: FromFile, text: str) -> None:
    with pytest.raises(ConfigError, match=r"fusefs\.toml: is not TOML: .*\(at line [23], column \d+\)$"):
        from_file(text)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fusefs.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        Config.from_sources(config_path=path)


def test_a_message_stays_on_one_line_whatever_the_key_is(from_file: FromFile) -> None:
    with pytest.raises(ConfigError) as caught:
        from_file('"a\\nb" = 1')
    assert str(caught.value) == "a b: unknown key"


# Secrets


@pytest.mark.parametrize(
    "text",
    [
        f"{CREDENTIALS}secret_key = '{SECRET}'",
        f"{CREDENTIALS}secret_key = '{SECRET}'\naccess_key = 3",
        f"{CREDENTIALS}secret_key = ['{SECRET}']\naccess_key = 'x'",
        f"{CREDENTIALS}access_key = ['{SECRET}']",
        f"{CREDENTIALS}password = '{SECRET}'",
        f"{BUCKET}secret_key = '{SECRET}'",
        f"{BUCKET}credentials = '{SECRET}'",
        f"{BUCKET}endpoint = 'http://user:{SECRET}@store'",
        f"{CREDENTIALS}access_key = 'x'\nsecret_key = '{SECRET}'\nsession_token = ''",
        f"{CREDENTIALS}secret_key = '{SECRET}",
    ],
)
def test_no_message_holds_a_secret(from_file: FromFile, text: str) -> None:
    """Not even a printed traceback, with the causes that pydantic and tomllib would add."""
    with pytest.raises(ConfigError) as caught:
        from_file(text, mountpoint="/mnt/data")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_config_does_not_show_its_secrets(from_file: FromFile) -> None:
    text = f"{CREDENTIALS}access_key = 'x'\nsecret_key = '{SECRET}'\nsession_token = '{SECRET}'"
    config = from_file(text, mountpoint="/mnt/data")
    assert SECRET not in repr(config) + str(config) + str(config.store) + repr(config.store)


@pytest.mark.parametrize(
    ("mode", "text", "warned"),
    [
        (0o644, f"system.storage.object.credentials = {{ access_key = 'x', secret_key = '{SECRET}' }}", True),
        (
            0o600,
            f"system.storage.object.credentials = {{ access_key = 'x', secret_key = '{SECRET}' }}",
            False,
        ),
        (0o644, "system.storage.object.credentials = { profile = 'x' }", False),
    ],
)
def test_a_secret_that_everybody_may_read_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, text: str, warned: bool
) -> None:
    path = tmp_path / "fusefs.toml"
    path.write_text(text)
    path.chmod(mode)
    with caplog.at_level(logging.WARNING):
        Config.from_sources(url="s3://bucket", mountpoint="/mnt/data", config_path=path)
    assert [record.getMessage() for record in caplog.records] == (
        [f"{path}: holds secret_key and everybody may read it; chmod 600 would be better"] if warned else []
    )
