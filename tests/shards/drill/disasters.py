"""Raw recordings that are damaged before they are packed, by the kind of file.

An injury is a function (path, rng) -> nothing. It leaves nothing that could be taken for a sound file with other
numbers, as no packer could tell that: raw files carry no hashes.
"""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
from drill.absurd import PICTURES
from drill.injuries import flip_bytes
from drill.tampering import TRILLION, npy_header


class _Bomb:
    """Unpickled, it would write a file."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def cut(path: Path, rng: np.random.Generator) -> None:
    os.truncate(path, int(rng.integers(path.stat().st_size - 8)))


def empty(path: Path, rng: np.random.Generator) -> None:
    os.truncate(path, 0)


def pipe(path: Path, rng: np.random.Generator) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path, rng: np.random.Generator) -> None:
    path.unlink()
    path.mkdir()


def noise(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(rng.bytes(5000))


def broken_text(path: Path, rng: np.random.Generator) -> None:
    """A stretch of bytes that are no UTF-8."""
    data = bytearray(path.read_bytes())
    at = int(rng.integers(len(data)))
    data[at : at + 20] = b"\xff\xfe\x00\x80" * 5
    path.write_bytes(data)


def endless_field(path: Path, rng: np.random.Generator) -> None:
    """A quote is opened at the second line, and a field of half a megabyte follows."""
    first, _, rest = path.read_text().partition("\n")
    path.write_text(first + '\n"' + rest + "x" * 500_000)


def deep(path: Path, rng: np.random.Generator) -> None:
    path.write_text("[" * 10**5)


def long_number(path: Path, rng: np.random.Generator) -> None:
    path.write_text('{"0": ' + "9" * 5000 + "}")


def _npy(kind: str):
    heads = {
        "rows": npy_header(f"({TRILLION},)"),
        "text": npy_header("((((", whole=True),
        "negative": npy_header("(-5, 3)"),
    }

    def injure(path: Path, rng: np.random.Generator) -> None:
        made = heads.get(kind)
        if made is None:
            stream = io.BytesIO()
            np.save(stream, np.array([_Bomb()], dtype=object), allow_pickle=True)
            made = stream.getvalue()
        if path.suffix == ".npy":
            path.write_bytes(made + b"\0" * 500)
            return
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        name = sorted(parts)[0]
        parts[name] = made + b"\0" * 500
        with zipfile.ZipFile(path, "w") as archive:
            for key, data in parts.items():
                archive.writestr(key, data)

    return injure


def flip_inside(path: Path, rng: np.random.Generator) -> None:
    """Within the values of a zip's first member, which has a checksum."""
    with zipfile.ZipFile(path) as archive:
        first = archive.infolist()[0]
    start = first.header_offset + 30 + len(first.filename) + 160
    flip_bytes(path, rng, start, start + first.compress_size - 160)


def zip_directory(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into("<II", data, data.index(b"PK\x01\x02") + 20, 2**32 - 2, 2**32 - 2)
    path.write_bytes(data)


def dimensions(path: Path, rng: np.random.Generator) -> None:
    """A NIfTI header whose sizes are absurd: NIfTI-2 keeps them at byte 16, NIfTI-1 at byte 40."""
    data = bytearray(path.read_bytes())
    values = [7, *rng.integers(2**14, 2**15 - 1, 7).tolist()]
    if struct.unpack_from("<i", data)[0] == 540:
        struct.pack_into("<8q", data, 16, *(value**3 for value in values))
    else:
        struct.pack_into("<8h", data, 40, *values)
    path.write_bytes(data)


def nifti_magic(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[:4] = rng.bytes(4)
    path.write_bytes(data)


def xml(path: Path, rng: np.random.Generator) -> None:
    """Two hundred bytes of noise in CIFTI's description."""
    data = bytearray(path.read_bytes())
    at = data.index(b"<MatrixIndicesMap") + int(rng.integers(5000))
    data[at : at + 200] = rng.bytes(200)
    path.write_bytes(data)


def superblock(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[8:48] = rng.bytes(40)
    path.write_bytes(data)


def picture(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(list(PICTURES.values())[int(rng.integers(len(PICTURES)))](rng))


def pickled(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes()[:128] + pickle.dumps({"x": _Bomb()}))


ANY = (cut, empty, pipe, folder, noise)
TEXT = (empty, pipe, folder, noise, broken_text, endless_field)
BY_SUFFIX = {
    ".npz": (*ANY, _npy("rows"), _npy("text"), _npy("negative"), _npy("pickle"), flip_inside, zip_directory),
    ".npy": (*ANY, _npy("rows"), _npy("text"), _npy("negative"), _npy("pickle"), pickled),
    ".nii": (cut, empty, pipe, folder, noise, dimensions, nifti_magic),
    ".dtseries.nii": (cut, empty, pipe, folder, noise, dimensions, nifti_magic, xml),
    ".gz": ANY,
    ".h5": (*ANY, superblock),
    ".hdf5": (*ANY, superblock),
    ".png": (*ANY, picture),
    ".jpg": (*ANY, picture),
    ".jpeg": (*ANY, picture),
    ".json": (*ANY, deep, long_number),
    ".csv": TEXT,
    ".tsv": TEXT,
    ".txt": TEXT,
}


def injuries_of(path: Path) -> tuple:
    suffix = next((s for s in (".dtseries.nii",) if path.name.endswith(s)), path.suffix.lower())
    return BY_SUFFIX.get(suffix, ())
