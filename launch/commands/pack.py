"""``cadiff pack``: raw scans and pictures into shards; each packer streams, restarts safely, and reports its drops."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

pack = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Pack raw scans and pictures into shards.

    The packed folder appears whole or not at all; packing again with the same inputs and options does nothing.
    """,
)
ROOT = typer.Argument(help="Folder (or file) with the raw data.")
OUT = typer.Argument(help="Packed folder to make.")
SUBJECTS = typer.Option(None, "--subjects", help="Comma-separated; default: all that are there.")
VAL = typer.Option(0.1, "--val", min=0.0, max=0.9, help="Part of the training stimuli held out for validation.")
NORMALISE = typer.Option(None, help="voxel (default): z-score each; scalar: one mean and deviation per subject.")
JSON = typer.Option(False, "--json", help="Print one JSON object.")
# Parameters of the packers that have another name on the command line.
FLAGS = {"val_fraction": "--val", "lag_s": "--lag", "unlabelled": "--drop-unlabelled"}


def register(app: typer.Typer) -> None:
    from cadiff.launch.commands import pack_features  # which needs this file

    pack_features.register(pack)
    app.add_typer(pack, name="pack")


@pack.command("hcp")
def hcp(
    root: Path = ROOT,
    out: Path = OUT,
    roi: str = typer.Option("VC", help="VC (V1-V4: the paper's 4,183), cortex, all, or comma-separated MMP areas."),
    window: int = typer.Option(10, min=1, help="Frames averaged into one sample (paper: 10). 1 keeps every TR."),
    runs: str = typer.Option("", help="Comma-separated patterns such as 'rfMRI_REST*'; default: every run."),
    version: str = typer.Option(None, help="Version of each run, such as _Atlas_MSMAll; default: the cleanest there."),
    preset: str = typer.Option(None, help="paper: rest1_LR, V1-V4 and windows exactly as the paper's code."),
    subjects: str = typer.Option(None, help="Comma-separated, or a text file of them; default: all that are there."),
    val: float = typer.Option(0.05, "--val", min=0.0, max=0.9, help="Part of the subjects held out for validation."),
    families: Path = typer.Option(None, help="CSV with Subject and Family_ID: relatives stay on one side."),
    split: Path = typer.Option(None, help="CSV with subject and split (train, val, test), instead of --val."),
    dtype: str = typer.Option("float16", help="How signals are stored: float16, float32, int16 or int8."),
    scans: bool = typer.Option(True, help="Also keep every z-scored frame in scans.zarr."),
    skip_bad: bool = typer.Option(False, "--skip-bad", help="Leave out runs that cannot be used, and report them."),
    workers: int = typer.Option(None, min=1, help="Processes; default: every core where there is enough to do."),
    as_json: bool = JSON,
) -> None:
    """Pack CIFTI dense time series: the HCP release's folders, a flat folder, or one .dtseries.nii file."""
    from cadiff.shards.hcp import pack_hcp

    named = Path(subjects) if subjects and Path(subjects).is_file() else _list(subjects)
    options = {"roi": _one_or_list(roi), "window": window, "runs": _list(runs), "version": version, "preset": preset}
    options |= {"subjects": named, "families": families, "split": split, "dtype": dtype, "scans": scans}
    _run(pack_hcp, root, out, as_json, val_fraction=val, skip_bad=skip_bad, workers=workers, **options)


@pack.command("god")
def god(
    root: Path = ROOT,
    out: Path = OUT,
    roi: str = typer.Option("VC", help="A region mask in the files, or several, comma-separated."),
    normalise: str | None = NORMALISE,
    legacy: bool = typer.Option(False, "--legacy", help="Statistics of the paper's code: see docs/data.md."),
    test: str = typer.Option("averaged", help="averaged, or averaged+trials to add single test trials."),
    subjects: str = SUBJECTS,
    val: float = VAL,
    workers: int = typer.Option(None, min=1, help="Processes; default: every core where there is enough to do."),
    as_json: bool = JSON,
) -> None:
    """Pack Generic Object Decoding: sbj_N.npz, images_256.npz and the label files. Statistics are of train only."""
    from cadiff.shards.god import pack_god

    options = {"roi": _one_or_list(roi), "normalise": normalise, "test": test, "subjects": _list(subjects)}
    _run(pack_god, root, out, as_json, val_fraction=val, legacy=legacy, workers=workers, **options)


@pack.command("bold5000")
def bold5000(
    root: Path = ROOT,
    out: Path = OUT,
    normalise: str | None = NORMALISE,
    legacy: bool = typer.Option(False, "--legacy", help="Statistics of the paper's code: see docs/data.md."),
    subjects: str = SUBJECTS,
    val: float = typer.Option(0.05, "--val", min=0.0, max=0.9, help="Part of the training stimuli held out."),
    workers: int = typer.Option(None, min=1, help="Processes; default: every core where there is enough to do."),
    as_json: bool = JSON,
) -> None:
    """Pack BOLD5000's GLMsingle betas: training trials, and the mean over repeats of each of the 113 test pictures."""
    from cadiff.shards.bold5000 import pack_bold5000

    options = {"normalise": normalise, "legacy": legacy, "subjects": _list(subjects)}
    _run(pack_bold5000, root, out, as_json, val_fraction=val, workers=workers, **options)


@pack.command("things")
def things(
    root: Path = ROOT,
    out: Path = OUT,
    roi: str = typer.Option("visual", help="visual, all, or regions of VoxelMetadata, comma-separated."),
    images: Path = typer.Option(None, help="Folder of THINGS' pictures, CONCEPT/FILE.jpg; default: none are packed."),
    normalise: str = typer.Option("voxel", help="voxel: z-score each; scalar: one mean and deviation."),
    test: str = typer.Option("averaged", help="averaged, or averaged+trials to add single test trials."),
    min_noise_ceiling: float = typer.Option(0.0, help="Least nc_singletrial of a voxel, in per cent."),
    subjects: str = SUBJECTS,
    val: float = typer.Option(0.05, "--val", min=0.0, max=0.9, help="Part of the training stimuli held out."),
    workers: int = typer.Option(None, min=1, help="Processes; default: every core where there is enough to do."),
    as_json: bool = JSON,
) -> None:
    """Pack THINGS-fMRI's single-trial responses in table format: training trials, and the mean of each test picture."""
    from cadiff.shards.things import pack_things

    options = {"roi": _one_or_list(roi), "images": images, "normalise": normalise, "test": test}
    options |= {"min_noise_ceiling": min_noise_ceiling, "subjects": _list(subjects)}
    _run(pack_things, root, out, as_json, val_fraction=val, workers=workers, **options)


@pack.command("nsd")
def nsd(
    root: Path = ROOT,
    out: Path = OUT,
    roi: list[str] = typer.Option(
        ["nsdgeneral"], help="An ROI volume, or labels of one (prf-visualrois:V1v,V1d); give it again for a union."
    ),
    betas: str = typer.Option(
        "fithrf_GLMdenoise_RR", help="Version of the betas, or a table's file name with {subject} in it."
    ),
    normalise: str = typer.Option("session", help="z-score each voxel per session; voxel: over all; scalar: one mean."),
    train: str = typer.Option("trials", help="trials, or averaged: one sample per picture, the mean of its trials."),
    test: str = typer.Option("averaged", help="averaged, or averaged+trials to add single test trials."),
    max_side: int = typer.Option(512, min=16, help="Larger pictures are reduced to this many pixels a side."),
    subjects: str = SUBJECTS,
    val: float = typer.Option(0.05, "--val", min=0.0, max=0.9, help="Part of the pictures that are not shared."),
    workers: int = typer.Option(None, min=1, help="Processes; default: every core where there is enough to do."),
    as_json: bool = JSON,
) -> None:
    """Pack the Natural Scenes Dataset: single-trial betas and pictures; the shared 1000 pictures are the test set."""
    from cadiff.shards.nsd import pack_nsd

    options = {"roi": roi, "betas": betas, "normalise": normalise, "train": train, "test": test, "max_side": max_side}
    _run(pack_nsd, root, out, as_json, val_fraction=val, workers=workers, subjects=_list(subjects), **options)


@pack.command("table")
def table(
    root: Path = typer.Argument(help="A .csv or .parquet that names the files; docs/data.md explains its columns."),
    out: Path = OUT,
    window: int = typer.Option(1, min=1, help="Frames averaged into one sample."),
    lag: float = typer.Option(0.0, help="Seconds from stimulus to response: labels are shifted by it (BOLD: 4 to 6)."),
    roi: str = typer.Option("VC", help="For .dtseries.nii files: VC, cortex, all, or MMP areas."),
    rest: str = typer.Option("rest", help="Label of frames without a stimulus; comma-separated."),
    drop_unlabelled: bool = typer.Option(False, "--drop-unlabelled", help="Leave out frames without a label."),
    workers: int = typer.Option(None, min=1, help="Processes; default: every core where there is enough to do."),
    as_json: bool = JSON,
) -> None:
    """Pack anyone's data: a table naming .npy, .npz, .nii.gz (with a mask) or .dtseries.nii files, runs and labels."""
    from cadiff.shards.table import pack_table

    options = {"window": window, "lag_s": lag, "roi": _one_or_list(roi), "rest": _list(rest) or [], "workers": workers}
    _run(pack_table, root, out, as_json, unlabelled="drop" if drop_unlabelled else "keep", **options)


@pack.command("images")
def images(
    root: Path = ROOT,
    out: Path = OUT,
    val: float = VAL,
    max_side: int = typer.Option(512, min=16, help="Larger pictures are reduced to this many pixels a side."),
    skip_bad: bool = typer.Option(False, "--skip-bad", help="Leave out pictures that cannot be decoded; report them."),
    workers: int = typer.Option(None, min=1, help="Processes; default: every core where there is enough to do."),
    as_json: bool = JSON,
) -> None:
    """Pack a folder of .jpg and .png pictures; labels from labels.csv or from sub-folder names."""
    from cadiff.shards.images import pack_images

    options = {"max_side": max_side, "skip_bad": skip_bad, "workers": workers}
    _run(pack_images, root, out, as_json, val_fraction=val, **options)


def _list(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def _one_or_list(text: str) -> str | list[str]:
    parts = _list(text) or [text]
    return parts[0] if len(parts) == 1 else parts


def _run(packer: Callable[..., dict[str, Any]], root: Path, out: Path, as_json: bool, **options: Any) -> None:
    from cadiff.launch.packed import report
    from cadiff.launch.view import View
    from cadiff.shards.protocol import OtherOptions

    view = View()
    try:
        with terminable(), view.task(f"pack {out.name}") as task:
            told = packer(root, out, progress=task.advance, **options)
    except OtherOptions as other:
        raise OtherOptions(out, _as_flags(other.changed, options)) from None
    if as_json:
        typer.echo(json.dumps(told, indent=1))
        return
    for line in report(told):
        typer.echo(line)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM, which schedulers send, takes the road of Ctrl-C: parts that are finished are kept."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _as_flags(changed: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Changed options under their names on the command line; what only follows from those is left out."""
    names = {name: FLAGS.get(name, f"--{name.replace('_', '-')}") for name in options}
    return {names[name]: values for name, values in changed.items() if name in names} or changed
