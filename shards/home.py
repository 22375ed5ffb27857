"""Where the files of a packed folder are: a local folder, or a URL with a local cache."""

from __future__ import annotations

from pathlib import Path

from cadiff.errors import DataError
from cadiff.files import sha256
from cadiff.shards.index import Index, read_index
from cadiff.shards.manifest import Manifest, PackedFile, parse_manifest, read_manifest

CACHE_BYTES = 100 * 10**9  # of all remote sets together, unless told otherwise


class Home:
    """The files of one packed folder, by shard number.

    Attributes:
        name: the folder or URL, as the user gave it.
        manifest: read and checked; ``manifest_path`` is its file.
        shards: the tar shards in the order in which the index numbers them; ``sizes`` their bytes.
    """

    def __init__(self, folder: str | Path, cache: Path | None = None, cap_bytes: int = CACHE_BYTES) -> None:
        """Raises: DataError: not a packed folder, damaged, or out of reach."""
        self.name = str(folder)
        self._remote = None
        if "://" in self.name:
            from cadiff.shards.remote import Remote, cache_folder

            self._remote = Remote(self.name, cache or cache_folder(), cap_bytes)
        if self._remote is None:
            self.folder = Path(folder)
            self.manifest: Manifest = read_manifest(self.folder)
            self.manifest_path = self.folder / "manifest.json"
        else:
            self.folder = self._remote.root
            self.manifest_path = self._remote.small("manifest.json")
            self.manifest = parse_manifest(self.manifest_path)
        self.hash = sha256(self.manifest_path)  # now: a remote file may leave the cache at any time
        self.shards: list[PackedFile] = [entry for entry in self.manifest.files if entry.path.endswith(".tar")]
        self.sizes = [entry.bytes for entry in self.shards]

    @property
    def is_remote(self) -> bool:
        """Whether the files lie behind a URL and are fetched when they are needed."""
        return self._remote is not None

    def index(self) -> Index:
        """Read and check the index."""
        entry = next((entry for entry in self.manifest.files if entry.path == "index.npz"), None)
        if entry is None:
            raise DataError(f"{self.manifest_path}: lists no index.npz. Damaged; copy the folder again or pack again.")
        path = self._local(entry)
        if self._remote is not None:
            from cadiff.shards import remote_cache

            with remote_cache.alone(path):
                if path.is_file() and sha256(path) != entry.sha256:  # the copy on this disk went bad: fetch it again
                    remote_cache.clear(path)
            path = self._local(entry)
        return read_index(path, self.manifest)

    def path(self, shard: int) -> Path:
        """The local file of a shard; a remote one is fetched and checked first."""
        return self._local(self.shards[shard])

    def remedy(self, shard: int) -> str:
        """What to do about a shard that is damaged on this disk."""
        if self._remote is not None:
            return f"Delete {self.folder / self.shards[shard].path}, so that it is downloaded again"
        return "Restore the file with `cadiff shards repair`"

    def _local(self, entry: PackedFile) -> Path:
        if self._remote is not None:
            return self._remote.file(entry.path, entry.bytes, entry.sha256)
        return self.folder / entry.path
