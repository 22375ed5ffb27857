"""Mend a damaged packed folder with another copy of it, file by file; without a copy see ``salvage``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cadiff.errors import ConfigError, DataError
from cadiff.files import copy_file, sha256, whole_file
from cadiff.shards.home import CACHE_BYTES
from cadiff.shards.manifest import REMEDY, Manifest, PackedFile, parse_manifest
from cadiff.shards.record import Progress, silent
from cadiff.shards.verify import check_file, examine
from cadiff.shards.zarr_store import archive_hash


@dataclass(frozen=True)
class _Copy:
    """Another copy of the set, a folder or a URL: where a file of it can be read."""

    name: str
    manifest: Callable[[], Path]
    file: Callable[[PackedFile], Path]
    folder: Path | None  # None: behind a URL

    @cached_property
    def said(self) -> tuple[Manifest | None, str]:
        """What its manifest says, or what is wrong with that."""
        return _try(lambda: parse_manifest(self.manifest()))


def repair_from(folder: str | Path, copy: str | Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Replace every missing or damaged file by the copy's, if that has the sha256 that the manifest lists.

    The copy need not be whole. A missing or damaged manifest.json is restored only if all other files are as the
    copy's manifest lists them: then that is the manifest they were written with.

    Returns:
        ``{"folder", "from", "hash", "replaced", "problems", "files", "bytes", "blocks", "pictures"}``: the names of the
        files replaced, and what a check of everything afterwards still finds.

    Raises:
        ConfigError: the folder or the copy is not there, or they are one.
        DataError: the manifest is damaged and cannot be restored.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder. Name the packed folder to mend.")
    copied = _open_copy(folder, copy)
    manifest, replaced, bad = _sound_manifest(folder, copied, progress)
    failed = []
    for entry in bad:
        try:
            _replace(folder / entry.path, entry, manifest, copied)
            replaced.append(entry.path)
        except DataError as problem:
            failed.append(f"{folder / entry.path}: not replaced: {problem}")
    if manifest.scans:
        done, why = _mend_scans(folder, manifest, copied)
        replaced, failed = replaced + done, failed + why
    checked = examine(folder, progress)
    return {
        "folder": str(folder),
        "from": copied.name,
        "hash": sha256(folder / "manifest.json"),
        "replaced": replaced,
        "problems": (_unlike(folder, manifest, copied) if failed else []) + failed + checked.problems,
        **{name: getattr(checked, name) for name in ("files", "bytes", "blocks", "pictures")},
    }


def _open_copy(folder: Path, copy: str | Path) -> _Copy:
    if "://" in str(copy):
        from cadiff.shards.remote import Remote, cache_folder

        remote = Remote(str(copy), cache_folder(), CACHE_BYTES)
        return _Copy(
            str(copy),
            lambda: remote.small("manifest.json"),
            lambda entry: remote.file(entry.path, entry.bytes, entry.sha256),
            None,
        )
    other = Path(copy)
    if not other.is_dir():
        raise ConfigError(f"{other}: no such folder. Name a copy of {folder}, or its URL.")
    if other.resolve() == folder.resolve():
        raise ConfigError(f"{other}: is the folder to be mended itself. Name another copy of it.")
    return _Copy(str(other), lambda: other / "manifest.json", lambda entry: other / entry.path, other)


def _sound_manifest(folder: Path, copied: _Copy, progress: Progress) -> tuple[Manifest, list[str], list[PackedFile]]:
    """The manifest to mend by, what was replaced for it, and the files that are not as it lists them."""
    path = folder / "manifest.json"
    own, why = _try(lambda: parse_manifest(path))
    bad = damaged_files(folder, own, progress) if own else []
    if own and not bad:
        return own, [], []
    theirs, not_theirs = copied.said
    if theirs and theirs != own:
        differ = [entry.path for entry in damaged_files(folder, theirs, progress)] + damaged_scans(folder, theirs)
        if not differ:
            with whole_file(path) as beside:
                copy_file(copied.manifest(), beside)
                parse_manifest(beside)
            return theirs, [path.name], []
        not_theirs = (
            f"{', '.join(differ[:3])} differ from what the manifest of {copied.name} lists, so that is another set, or "
            "these files are damaged too."
        )
    if own is None:
        raise DataError(f"{why} It is not restored, as nothing tells which version this is: {not_theirs}")
    return own, [], bad


def _try(read: Callable[[], Manifest]) -> tuple[Manifest | None, str]:
    """A manifest, or what is wrong with it."""
    try:
        return read(), ""
    except DataError as problem:
        return None, str(problem).removesuffix(f" {REMEDY}")


def damaged_files(folder: Path, manifest: Manifest, progress: Progress) -> list[PackedFile]:
    """The files that are not as listed, the archive of scans aside."""
    found = []
    for done, entry in enumerate(manifest.files):
        progress("files", done, len(manifest.files))
        if check_file(folder / entry.path, entry.bytes, entry.sha256):
            found.append(entry)
    return found


def damaged_scans(folder: Path, manifest: Manifest) -> list[str]:
    """The archive's name if it is not as listed."""
    if not manifest.scans:
        return []
    listed = (manifest.scans.bytes, manifest.scans.sha256)
    return [] if archive_hash(folder / manifest.scans.path) == listed else [manifest.scans.path]


def _unlike(folder: Path, manifest: Manifest, copied: _Copy) -> list[str]:
    """A sentence if the copy's manifest is not this one."""
    says, why = copied.said
    if says is None or says == manifest:
        return [why] if why else []
    theirs, own = sha256(copied.manifest()), sha256(folder / "manifest.json")
    return [
        f"{copied.name}: another set, or another version of this one: the sha256 of its manifest.json is {theirs}, "
        f"that of {folder} {own}. Name a copy of that version."
    ]


def _replace(path: Path, entry: PackedFile, manifest: Manifest, copied: _Copy) -> None:
    source = copied.file(entry)
    try:
        with whole_file(path) as beside:
            copy_file(source, beside)
            _refuse_other(beside, entry, manifest, copied)
    except OSError:
        _refuse_other(source, entry, manifest, copied)
        raise  # the copy's file is sound, so it is the folder's own disk that fails


def _refuse_other(file: Path, entry: PackedFile, manifest: Manifest, copied: _Copy) -> None:
    if problem := check_file(file, entry.bytes, entry.sha256):
        fault = "is damaged too" if copied.said[0] == manifest else "cannot replace it"
        raise DataError(f"the file in {copied.name} {fault}: {problem.removeprefix(f'{file}: ')}")


def _mend_scans(folder: Path, manifest: Manifest, copied: _Copy) -> tuple[list[str], list[str]]:
    """Replace files of the archive that differ from the copy's, if the copy's archive as a whole is as listed."""
    if not damaged_scans(folder, manifest):
        return [], []
    name = manifest.scans.path
    if copied.folder is None:
        return [], [f"{folder / name}: not mended: an archive of scans is not fetched from a URL. Name a local copy."]
    if damaged_scans(copied.folder, manifest):
        return [], [f"{folder / name}: not mended: the archive in {copied.name} is damaged too, or of another version."]
    replaced = []
    for source in sorted(path for path in (copied.folder / name).rglob("*") if path.is_file()):
        inside = source.relative_to(copied.folder)
        if check_file(folder / inside, source.stat().st_size, sha256(source)):
            with whole_file(folder / inside) as beside:
                copy_file(source, beside)
            replaced.append(inside.as_posix())
    known = {path.relative_to(copied.folder) for path in (copied.folder / name).rglob("*")}
    strangers = [path for path in sorted((folder / name).rglob("*")) if path.relative_to(folder) not in known]
    return replaced, [f"{path}: is not in the copy. Remove it." for path in strangers if path.is_file()]
