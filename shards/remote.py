"""Packed folders behind URLs: a file is downloaded once per node, checked, and kept in a cache within a size."""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cadiff.errors import ConfigError, DataError
from cadiff.shards import remote_cache
from cadiff.shards.manifest import FileName

log = logging.getLogger(__name__)

CHUNK_BYTES = 8 * 1024**2
SMALL_BYTES = 256 * 1024**2  # most a manifest may have: its size is not known before, and the server is not trusted
DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0)  # before each retry
LOCAL = ("file", "memory")  # no transfer can spoil these: what differs once differs the next time

PACKAGES = {"file": "", "memory": "", "s3": "s3fs", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
EXTRAS = {"s3fs": "s3", "gcsfs": "gs", "aiohttp": "http"}
# What the libraries raise beside OSError when a transfer breaks.
BREAKS = {
    "aiohttp": ("ClientError",),
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "gcsfs.retry": ("HttpError", "ChecksumError"),
    "google.api_core.exceptions": ("GoogleAPIError",),
    "google.auth.exceptions": ("GoogleAuthError",),
}

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_NAME = TypeAdapter(FileName)
_TOO_LARGE = "more than"


class _Broken(Exception):
    """A transfer that failed and may be tried again; the text is the reason."""


def is_url(folder: str | Path) -> bool:
    """Whether ``folder`` is "scheme://…", ``file://`` included, and so not a path."""
    return _SCHEME.match(str(folder)) is not None


def cache_folder() -> Path:
    """Where downloads are kept: $CADIFF_CACHE, or ~/.cache/cadiff/shards."""
    return Path(os.environ.get("CADIFF_CACHE") or "~/.cache/cadiff/shards").expanduser()


class Remote:
    """One packed folder behind a URL, and its files in the cache.

    Open a returned path at once: a process that needs room may unlink it later. A file that is open or mapped stays
    readable, and its disk space is free when the last process closes it.

    Attributes:
        root: the local folder of this set in the cache.
        sleep: how to wait, in seconds.
    """

    sleep = staticmethod(time.sleep)

    def __init__(self, url: str, cache: Path, cap_bytes: int) -> None:
        """Check the URL and the cache folder; nothing is fetched yet.

        Args:
            url: ``s3://``, ``gs://``, ``http(s)://``, ``file://`` or ``memory://`` and a folder.
            cap_bytes: how much all sets together may take in ``cache``.

        Raises:
            ConfigError: not such a URL, a package is missing, or the cache folder cannot be made.
        """
        self.url, self._cap = str(url).rstrip("/"), cap_bytes
        self._shown = re.sub(r"(?<=://)[^/@]*@", "", self.url)  # passwords stay out of messages
        scheme = _SCHEME.match(self.url)
        if scheme is None or scheme[1] not in PACKAGES:
            known = ", ".join(f"{name}://" for name in PACKAGES)
            raise ConfigError(f"{self._shown}: not the URL of a packed folder; one begins with {known}.")
        self._scheme = scheme[1]
        if PACKAGES[self._scheme] == "aiohttp" and re.search("[?#]", self.url):
            raise ConfigError(f"{self._shown}: a folder's URL has no ? or #. Name the folder that holds manifest.json.")
        _filesystem(self._scheme)
        self._cache = Path(cache).absolute()
        self.root = self._cache / hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self._fetched: set[str] = set()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise ConfigError(
                f"{self.root}: {problem.strerror}. Name a folder you can write with CADIFF_CACHE."
            ) from None

    def small(self, name: str) -> Path:
        """Fetch a file whose hash is not known, such as manifest.json, once per Remote: it names the set's version.

        Raises:
            DataError: a bad name, not there, not downloadable, or the cache cannot be written.
        """
        path = self._path(name)
        if name not in self._fetched or not path.is_file():
            with _disk(path), remote_cache.alone(path), remote_cache.temporary(path) as beside:
                digest = self._download(name, beside, min(SMALL_BYTES, self._cap), None)
                remote_cache.publish(beside, path, digest)
            self._fetched.add(name)
        return path

    def file(self, name: str, size: int, sha256: str) -> Path:
        """The local path of a file with these many bytes and this hash, downloaded unless it is in the cache already.

        Raises:
            ConfigError: the file is larger than the whole cache may be.
            DataError: a bad name, not there, not downloadable, another content, or the cache cannot be written.
        """
        path = self._path(name)
        if size > self._cap:
            raise ConfigError(
                f"{self._shown}/{name}: {size:,} bytes, more than the whole cache of {self._cap:,} bytes may hold. "
                "Raise the cap of the cache."
            )
        with _disk(path):
            if not remote_cache.use(path, size, sha256):
                with remote_cache.alone(path):
                    self._renew(path, size, sha256)
        return path

    def _renew(self, path: Path, size: int, sha256: str) -> None:
        # Another process may have brought it while this one waited for the lock.
        if remote_cache.use(path, size, sha256) or remote_cache.adopt(path, size, sha256):
            return
        remote_cache.clear(path)  # another version, whose room is needed
        with remote_cache.temporary(path) as beside:
            remote_cache.reserve(self._cache, self._cap, beside, size)
            self._download(path.name, beside, size, (size, sha256))
            remote_cache.publish(beside, path, sha256)

    def _path(self, name: str) -> Path:
        try:
            return self.root / _NAME.validate_python(name)
        except ValidationError:
            raise DataError(
                f"{self._shown}: {name!r} is not a file's name (letters, digits, _ - and ., at most 100). Pack again."
            ) from None

    def _download(self, name: str, beside: Path, limit: int, expected: tuple[int, str] | None) -> str:
        """Download until size and sha256 are as expected, at most six times (see LOCAL); return the sha256."""
        url, wanted = f"{self._shown}/{name}", f"at most {limit:,} bytes"
        if expected is not None:
            wanted = f"{expected[0]:,} bytes with sha256 {expected[1]}"
        for tried, delay_s in enumerate((*DELAYS_S, None), start=1):
            try:
                received, digest = self._receive(name, beside, limit)
                if expected is None or (received, digest) == expected:
                    return digest
                found, differs = f"{received:,} bytes with sha256 {digest}", True
            except _Broken as reason:
                found = str(reason)
                differs = found.startswith(_TOO_LARGE)
                if expected is None and differs:  # asking again would not change that
                    raise DataError(f"{url}: {found}, so it is no {name}. Check the URL of the set.") from None
            if differs and self._scheme in LOCAL:
                raise DataError(
                    f"{url}: found {found}; expected {wanted}. Start again if the set was packed anew meanwhile; else "
                    "mend it with `cadiff shards repair FOLDER --from COPY`, or pack it again."
                )
            if delay_s is not None:
                log.warning("%s: found %s; expected %s. Retry %d in %s s.", url, found, wanted, tried, delay_s)
                self.sleep(delay_s)
        raise DataError(
            f"{url}: found {found}; expected {wanted}; tried {tried} times. Start again if the set was packed anew "
            "meanwhile; else check the connection, or upload the set again."
        )

    def _receive(self, name: str, beside: Path, limit: int) -> tuple[int, str]:
        """Download once, hashing on the way: bytes and sha256."""
        received, digest = 0, hashlib.sha256()
        with open(beside, "r+b") as handle:
            for chunk in self._chunks(name):
                received += len(chunk)
                if received > limit:
                    raise _Broken(f"{_TOO_LARGE} {limit:,} bytes")
                digest.update(chunk)
                handle.write(chunk)
            handle.truncate()
            handle.flush()
            os.fsync(handle.fileno())
        return received, digest.hexdigest()

    def _chunks(self, name: str) -> Iterator[bytes]:
        """The remote file in pieces of at most 8 MiB. Only what goes wrong on the remote side is _Broken."""
        # Over HTTP one streamed request: no question for the size before, whose failure fsspec calls "not found".
        options = {"block_size": 0, "size": 1} if PACKAGES[self._scheme] == "aiohttp" else {"block_size": CHUNK_BYTES}
        try:
            filesystem = _filesystem(self._scheme)
            with filesystem.open(f"{self.url}/{name}", "rb", cache_type="none", **options) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    yield chunk
        except FileNotFoundError:
            raise DataError(f"{self._shown}/{name}: no such file. Check the URL of the packed folder.") from None
        except PermissionError as problem:
            reason = self._told(problem)
            raise DataError(f"{self._shown}/{name}: access denied ({reason}). Check your credentials.") from None
        except (OSError, *_breaks()) as problem:
            raise _Broken(self._told(problem)) from None

    def _told(self, problem: Exception) -> str:
        text = f"{type(problem).__name__} {problem}".replace(self.url, self._shown)
        return " ".join(text.split())[:300]


def _filesystem(scheme: str) -> Any:
    """The fsspec file system of a scheme (cached by fsspec for each process)."""
    import fsspec

    package, options = PACKAGES[scheme], {"use_listings_cache": False}  # a changed file must not look like before
    try:
        if package:
            library = importlib.import_module(package)
        if package == "aiohttp":
            # The library's own limit is five minutes for a whole file. Compute nodes often sit behind a proxy.
            timeout = library.ClientTimeout(total=None, sock_connect=30, sock_read=60)
            options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
        return fsspec.filesystem(scheme, **options)
    except ImportError as problem:
        extra = EXTRAS[package]
        raise ConfigError(
            f"{scheme}:// needs the package {package}: pip install 'cadiff[{extra}]' ({problem})."
        ) from None


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Whatever the local disk refuses ends in one line; what the remote side refuses never gets here."""
    try:
        yield
    except OSError as problem:
        raise DataError(
            f"{path}: the cache cannot be used ({problem.strerror or problem}). "
            "Free space there, or name another folder with CADIFF_CACHE."
        ) from None


def _breaks() -> tuple[type[Exception], ...]:
    loaded = [(sys.modules[module], names) for module, names in BREAKS.items() if module in sys.modules]
    return tuple(getattr(module, name) for module, names in loaded for name in names)
