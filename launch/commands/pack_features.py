"""``cadiff pack features``: what the frozen image encoder of phase 2 makes of pictures, computed once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from cadiff.launch.commands.pack import JSON, terminable


def register(pack: typer.Typer) -> None:
    pack.command("features")(features)


def features(
    paths: list[Path] = typer.Argument(metavar="SHARDS... OUT", help="Packed folders, then the folder to make."),
    vit: Path = typer.Option(..., help="Folder with the ViT-MAE: what init.image names in the job."),
    image_size: int = typer.Option(224, min=16, help="Pixels per side: data.image_size of the job."),
    masks: int = typer.Option(
        0, min=0, help="Also keep the visible patches of so many fixed masks per picture: loss.image_masks of the job."
    ),
    mask_ratio: float = typer.Option(0.5, min=0.0, max=0.99, help="Hidden part: loss.image_mask. Only with --masks."),
    seed: int = typer.Option(2022, help="Keys the masks: the job's seed. Only with --masks."),
    dtype: str = typer.Option(
        "float32",
        help="float32: losses are those without the features in an fp32 job, and closer to them than bf16 is in "
        "a bf16 job. float16: half the size; every value is rounded by up to "
        "0.05 %, losses differ accordingly, and a run with them counts as another experiment.",
    ),
    as_json: bool = JSON,
) -> None:
    """Keep what a frozen image encoder makes of all training and validation pictures, for `data.features` of phase 2.

    At 224 pixels a picture takes 605 kB in float32, and each mask of half the patches 304 kB more. Interrupted, the
    same command goes on after the finished shards.

    Example: `cadiff pack features data/god data/god_features --vit models/vit-mae-base`
    """
    from cadiff.errors import ConfigError
    from cadiff.feature_pack import FixedMasks, pack_features
    from cadiff.launch.view import View

    *shards, out = paths
    if not shards:
        raise ConfigError(f"{out}: only one folder was given. Name the packed folders, then the folder to make.")
    options = {"image_size": image_size, "masks": FixedMasks(masks, mask_ratio, seed), "dtype": dtype}
    with terminable(), View().task(f"pack {out.name}") as task:
        told = pack_features(shards, out, vit, progress=task.advance, **options)
    typer.echo(json.dumps(told, indent=1) if as_json else _line(told))


def _line(told: dict[str, Any]) -> str:
    state = "already packed" if told["already"] else f"packed in {told['seconds']:.1f} s"
    tokens = " x ".join(map(str, told["whole"]))
    beside = f" and {' x '.join(map(str, told['visible']))} of its masks" if told["visible"] else ""
    size = f"{told['bytes'] / 1e6:,.1f} MB"
    return f"{told['folder']}: {state}: {told['pictures']:,} pictures of {tokens} values{beside}, {size}"
