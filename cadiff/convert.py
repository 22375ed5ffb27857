"""Read the paper's checkpoints without executing anything in them, turn them into CADiff exports, and back.

A torch checkpoint is a zip with a pickle inside, and the paper's hold instances of its own config classes, so the
ordinary loader would run code from the file. Here every global outside a short list becomes an inert record.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from cadiff.config import FmriModel
from cadiff.errors import DataError
from cadiff.exports import load_part, read_card, save_export
from cadiff.files import sha256, whole_file

_DTYPES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class Inert:
    """Stands for an object of a class that is not rebuilt; keeps its attributes and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}/data.pkl"))
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        return type(name, (Inert,), {"__module__": module})

    def persistent_load(self, pid: tuple) -> Tensor:
        _, dtype, key, _, count = pid
        if not isinstance(dtype, torch.dtype) or not str(key).isalnum():
            raise DataError(f"unexpected storage {pid!r}")
        raw = self._archive.read(f"{self._root}/data/{key}")
        if len(raw) < count * dtype.itemsize:
            raise DataError(f"storage {key} holds {len(raw)} bytes, {count * dtype.itemsize} expected")
        return torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)


def _rebuild(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    last = offset + sum((length - 1) * step for length, step in zip(size, stride)) if math.prod(size) else offset
    if offset < 0 or min(stride, default=0) < 0 or last >= max(1, storage.numel()):
        raise DataError(f"a tensor of size {size} reaches outside its storage of {storage.numel()} values")
    return storage.as_strided(size, stride, offset)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a ``torch.save`` file; tensors are rebuilt, objects of any class become ``Inert`` records.

    Raises:
        DataError: not a torch zip checkpoint, damaged, or reaching outside its own storages.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            roots = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(roots) != 1:
                raise DataError(f"{path}: a zip, but not a torch checkpoint (no data.pkl).")
            value = _Reader(archive, roots[0]).load()
    except DataError as problem:
        raise DataError(f"{path}: {problem}") from None
    except (zipfile.BadZipFile, pickle.UnpicklingError, OSError, KeyError, EOFError, ValueError, TypeError) as problem:
        raise DataError(f"{path}: not a readable torch checkpoint ({problem}). Download it again.") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a {type(value).__name__}, expected a dictionary with 'model'.")
    return value


def convert_fmri(path: str | Path, out: Path) -> dict[str, Any]:
    """Turn a phase-1 or phase-2 file of the paper (or MinD-Vis) into an export that ``init.fmri`` reads.

    Sizes come from tensor shapes, never from the config object in the file (spec 9.4).

    Returns:
        What was found: phase, sizes, number of tensors.
    """
    content = read_checkpoint(path)
    model = content.get("model")
    if not isinstance(model, dict):
        raise DataError(f"{path}: has no dictionary 'model'; expected a phase-1 or phase-2 file of the paper.")
    state = {str(key).removeprefix("module."): value for key, value in model.items()}
    state = {key: value.float() for key, value in state.items() if isinstance(value, Tensor)}
    needed = ("patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight")
    missing = [key for key in needed if key not in state]
    if missing:
        raise DataError(f"{path}: no fMRI autoencoder in it ({missing[0]} is missing). Is it a phase-3 file?")
    if state["patch_embed.proj.weight"].ndim != 3 or state["pos_embed"].ndim != 3:
        raise DataError(f"{path}: its patch embedding is not one-dimensional; this is no fMRI autoencoder.")
    width, _, patch = state["patch_embed.proj.weight"].shape
    found = {
        "phase": "phase2" if "cross_map_in.weight" in state else "phase1",
        "patch": patch,
        "width": width,
        "voxels": (state["pos_embed"].shape[1] - 1) * patch,
        "depth": _count(state, "blocks."),
        "decoder_depth": _count(state, "decoder_blocks."),
        "tensors": len(state),
    }
    card = {
        "phase": found["phase"],
        "job": {"model": {key: found[key] for key in ("patch", "width", "depth", "decoder_depth")}},
        "space": {"voxels": found["voxels"], "classes": 0},
        "lineage": {"imported": sha256(path), "parents": {}},
    }
    save_export(out, {"fmri": state}, card)
    return found


def revert_fmri(folder: str | Path, path: Path) -> dict[str, Any]:
    """Write the fMRI autoencoder of a phase-1 or phase-2 export as a file that the paper's code loads.

    The file holds ``model``, float32 tensors under the paper's names, and ``config``, whose attributes are the sizes
    that its second phase reads. Its optimizer's state is left out: the next phase starts a new one.

    Returns:
        The attributes of ``config``.

    Raises:
        DataError: no such export, or one of a network that the paper's code does not have.
    """
    state, card = load_part(folder, "fmri"), read_card(folder)
    weight = state["patch_embed.proj.weight"]
    if weight.ndim != 3:
        raise DataError(
            f"{folder}: its patches span several frames (model.patch_frames), which the paper's code does not know. "
            "Export a run with patch_frames = 1."
        )
    model = FmriModel.model_validate(card["job"].get("model", {}))
    config = {
        "patch_size": weight.shape[2],
        "embed_dim": weight.shape[0],
        "depth": _count(state, "blocks."),
        "num_heads": model.heads,
        "decoder_embed_dim": state["mask_token"].shape[2],
        "decoder_depth": _count(state, "decoder_blocks."),
        "decoder_num_heads": model.decoder_heads,
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / weight.shape[0],
        "num_voxels": (state["pos_embed"].shape[1] - 1) * weight.shape[2],
    }
    with whole_file(path) as beside:
        torch.save({"model": state, "epoch": 0, "config": SimpleNamespace(**config)}, beside)
    return config


def _count(state: dict[str, Tensor], prefix: str) -> int:
    return len({key.split(".")[1] for key in state if key.startswith(prefix)})
