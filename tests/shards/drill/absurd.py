"""Absurd sizes, paths that lead elsewhere, and codes that misbehave, in sets whose hashes agree.

An injury is a function (folder, rng, turn) -> names, as in tampering.py.
"""

import io
import json
import os
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from drill.injuries import members, sorts
from drill.tampering import TRILLION, any_file, npy_header, put, reindex, reseal

from cadiff.shards.encoding import crc32c
from cadiff.shards.writer import digest


def block_header_absurd(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
    """The .npy header of a block claims rows that nobody has, or is none."""
    paths = sorts(folder)["signals"]
    path = paths[turn % len(paths)]
    at = next(m.offset_data for m in members(path) if m.name.endswith(".npy"))
    data = bytearray(path.read_bytes())
    shapes = (f"({TRILLION}, 40)", "(-1, 40)", "(((((", "(1e400,)", "(" * 60 + ")" * 60, "'x'", "(2,), 'descr': '|O'")
    header = npy_header(shapes[turn % len(shapes)])
    if turn % 9 == 8:
        header = npy_header("\x00\xff{[(" + "-" * 100, whole=True)
    data[at : at + 128] = header[:128]
    return put(folder, path.name, bytes(data))


def picture_absurd(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
    """A stored picture is replaced by one that decodes to terabytes, or to nothing; its checksums agree."""
    number = int(rng.integers(20))
    made = list(PICTURES.values())[turn % len(PICTURES)](rng)

    def change(arrays: dict) -> None:
        shard, offset, length = (int(arrays[f"image_{name}"][number]) for name in ("shard", "offset", "bytes"))
        path = [*sorts(folder)["signals"], *sorts(folder)["pictures"]][shard]
        data = made[:length].ljust(length, b"\0")
        with open(path, "rb+") as handle:
            handle.seek(offset)
            handle.write(data)
        arrays["image_crc32c"][number], arrays["image_digest"][number] = crc32c(data), digest(data)

    return reindex(folder, change)


def _png(width: int, height: int, pixels: bytes = b"", colour: int = 2, extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def _jpeg(rng: np.random.Generator) -> bytearray:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(stream, "JPEG", quality=60)
    return bytearray(stream.getvalue())


def _large_jpeg(rng: np.random.Generator) -> bytes:
    data = _jpeg(rng)
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, 65_500, 65_500)
    return bytes(data)


def _mutated_png(rng: np.random.Generator) -> bytes:
    data = bytearray(_png(24, 24, rng.bytes(24 * 73)))
    for at in rng.integers(8, len(data), 6).tolist():
        data[at] = int(rng.integers(256))
    return bytes(data)


PICTURES = {
    "PNG of 10^5 pixels a side": lambda rng: _png(10**5, 10**5),
    "PNG of 2^31 - 1": lambda rng: _png(2**31 - 1, 2**31 - 1),
    "PNG of no width": lambda rng: _png(0, 10),
    "PNG cut short": lambda rng: _png(4000, 4000, b"\0" * 100),
    "PNG without pixels": lambda rng: _png(24, 24),
    "PNG of an unknown colour": lambda rng: _png(24, 24, bytes(24 * 25), colour=5),
    "PNG mutated": _mutated_png,
    "JPEG of 65,500": _large_jpeg,
    "JPEG cut short": lambda rng: bytes(_jpeg(rng)[:-200]),
    "JPEG that is a header": lambda rng: bytes(_jpeg(rng)[:30]),
    "JPEG without a picture": lambda rng: bytes(_jpeg(rng).partition(b"\xff\xda")[0] + b"\xff\xd9"),
    "PostScript": lambda rng: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100000 100000\n%%EndComments\nshowpage\n",
    "a bitmap": lambda rng: b"BM" + struct.pack("<IHHIIiiHH", 2**31, 0, 0, 54, 40, 2**30, 2**30, 1, 24) + bytes(24),
    "nothing": lambda rng: b"",
}  # fmt: skip


def tar_absurd(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
    """A member that claims absurd sizes, leads elsewhere, or is no file; the values stay where the index says."""
    paths = sorts(folder)["signals"]
    path = paths[int(rng.integers(len(paths)))]
    kind = list(TARS)[turn % len(TARS)]
    return put(folder, path.name, TARS[kind](path))


def _first_header(**fields: bytes):
    """Overwrite fields of the first header, and make its checksum agree."""
    places = {"name": (0, 100), "size": (124, 12), "typeflag": (156, 1), "linkname": (157, 100)}

    def make(path: Path) -> bytes:
        data = bytearray(path.read_bytes())
        for name, value in fields.items():
            at, length = places[name]
            data[at : at + length] = value.ljust(length, b"\0")
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
        return bytes(data)

    return make


def _appended(name: str, kind: bytes = tarfile.REGTYPE, pax: dict | None = None, **fields):
    """The tar with one more member."""

    def make(path: Path) -> bytes:
        end = max(m.offset_data + -(-m.size // 512) * 512 for m in members(path))
        stream = io.BytesIO(path.read_bytes()[:end])
        stream.seek(end)
        member = tarfile.TarInfo(name)
        member.type, member.pax_headers = kind, pax or {}
        for field, value in fields.items():
            setattr(member, field, value)
        with tarfile.open(fileobj=stream, mode="w:", format=tarfile.PAX_FORMAT) as archive:
            archive.addfile(member)
        return stream.getvalue()

    return make


_SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(TRILLION)}
TARS = {
    "8 GB": _first_header(size=b"77777777777"),
    "negative": _first_header(size=b"\xff" * 12),
    "2^94": _first_header(size=b"\x80" + b"\x7f" * 11),
    "upwards": _first_header(name=b"../../../outside/evil.json"),
    "from the root": _first_header(name=b"/etc/passwd.json"),
    "a symbolic link": _first_header(typeflag=b"2", linkname=b"../../outside"),
    "a hard link": _first_header(typeflag=b"1", linkname=b"/etc/passwd"),
    "a device": _first_header(typeflag=b"3"),
    "a pipe": _first_header(typeflag=b"6"),
    "a folder": _first_header(typeflag=b"5"),
    "an old sparse file": _first_header(typeflag=b"S"),
    "an unknown type": _first_header(typeflag=b"\xee"),
    "one more, upwards": _appended("../../evil.npy"),
    "one more link": _appended("evil.json", tarfile.SYMTYPE, linkname="/etc/passwd"),
    "pax size below zero": _appended("a.json", pax={"size": "-1024"}),
    "pax size without end": _appended("a.json", pax={"size": "9" * 30}),
    "pax that is no number": _appended("a.json", pax={"size": "1e9", "mtime": "nan"}),
    "pax sparse map": _appended("a.json", pax=_SPARSE),
    "pax sparse map of text": _appended("a.json", pax={"GNU.sparse.map": "0,x,2", "GNU.sparse.size": "7"}),
}  # fmt: skip


def json_member_absurd(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
    """What a tar says of its own block or picture is deep, no JSON, or something else than the index says."""
    paths = [*sorts(folder)["signals"], *sorts(folder).get("pictures", [])]
    path = paths[int(rng.integers(len(paths)))]
    found = [m for m in members(path) if m.name.endswith(".json")]
    member = found[int(rng.integers(len(found)))]
    data = bytearray(path.read_bytes())
    before = bytes(data[member.offset_data : member.offset_data + member.size])
    after = (b"[" * len(before), b"\xff" * len(before), b"9" * len(before), before.replace(b"1", b"2"))[turn % 4]
    data[member.offset_data : member.offset_data + member.size] = after
    return put(folder, path.name, bytes(data))


def manifest_absurd(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
    """JSON that is too deep, too large, or no table."""
    path = folder / "manifest.json"
    text = path.read_text()
    kind = turn % 7
    if kind == 0:
        path.write_text('{"format": "cadiff-shards/2", "notes": ' + "[" * 10**5 + "]" * 10**5 + "}")
    elif kind == 1:
        os.truncate(path, 300 * 10**6)  # a hole: it takes no room on the disk
    elif kind == 2:
        path.write_text(text.replace('"bytes": ', '"bytes": ' + "9" * 5000, 1))
    elif kind == 3:
        path.write_text(("null", "7", "[]", '"x"', "{}")[int(rng.integers(5))])
    elif kind == 4:
        path.write_text('{"a":' * 10**5)
    elif kind == 5:
        path.write_text(text.replace('"bytes": ', '"bytes": 1e', 1))
    else:
        path.write_bytes(text.encode("utf-16"))
    return any_file(folder)


def no_voxels_at_all(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
    """A subject of no voxels whose blocks' checksums are those of nothing: all agrees, and there is nothing to read."""

    def change(arrays: dict) -> None:
        arrays["block_crc32c"][:], arrays["sample_crc32c"][:] = crc32c(b""), crc32c(b"")

    reindex(folder, change)
    return reseal(folder, lambda m: [subject.update(voxels=0) for subject in m["subjects"][turn % 2 :]])


def link_outside(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
    """A file is a symbolic link to another file outside the set; of the same size, but not the same."""
    paths = [path for group in sorts(folder).values() for path in group]
    path = paths[turn % len(paths)]
    target = folder.parent / "outside" / "linked"
    target.write_bytes(rng.bytes(path.stat().st_size))
    path.unlink()
    path.symlink_to(target)
    return {path.relative_to(folder).parts[0]}


def zarr_absurd(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
    """The archive's own description is absurd, and the manifest agrees with it: nothing of it is read in training."""
    from cadiff.shards.zarr_store import archive_hash

    paths = sorts(folder)["zarr.json"]
    path = paths[0] if turn % 2 else paths[int(rng.integers(len(paths)))]
    described = json.loads(path.read_text())
    changes = ({"node_type": "grouq"}, {"shape": [TRILLION, TRILLION]}, {"zarr_format": 9}, {"data_type": "object"})
    described.update(changes[turn % 4])
    path.write_text(("[" * 10**5) if turn % 5 == 4 else json.dumps(described))
    size, found = archive_hash(folder / "scans.zarr")
    return reseal(folder, lambda m: m["scans"].update(bytes=size, sha256=found)) | {"scans.zarr"}
