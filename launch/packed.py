"""What ``cadiff pack`` says of a finished pack: drops, counts, and what a newcomer would not expect to be in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_FIRST = 5  # subjects without a mask that are told one by one


def report(told: dict[str, Any]) -> Iterator[str]:
    """Lines about what ``pack_folder`` returned."""
    for entry in told["dropped"]:
        yield f"dropped {entry['what']}: {entry['why']}"
    samples = ", ".join(f"{count:,} {split}" for split, count in told["samples"].items())
    state = "already packed" if told["already"] else f"packed in {told['seconds']:.1f} s"
    size = f"{told['bytes'] / 1e6:.1f} MB"
    yield f"{told['folder']}: {state}: {samples} samples, {len(told['subjects'])} subjects, {size}"
    yield from _partly(told)
    yield from _unmasked(told["notes"].get("no_mask", {}))
    if told["already"]:
        yield (
            "Options and hashes of the inputs are as they were. Of the packed files only the sizes were compared: "
            f"`cadiff shards verify {told['folder']}` reads them again."
        )


def _partly(told: dict[str, Any]) -> Iterator[str]:
    """What some samples have and others have not."""
    total = sum(told["samples"].values())
    for name, what in (("labelled", "a label"), ("with_stimulus", "a stimulus"), ("with_picture", "a picture")):
        count = told[name]
        # Where every stimulus has its picture, one line says both.
        if not 0 < count < total or (name == "with_stimulus" and count == told["with_picture"]):
            continue
        how = " (--drop-unlabelled leaves them out)" if (told["kind"], name) == ("table", "labelled") else ""
        yield f"{count:,} of {total:,} samples have {what}, {total - count:,} have none{how}"


def _unmasked(volumes: dict[str, dict[str, int]]) -> Iterator[str]:
    for subject, found in list(volumes.items())[:_FIRST]:
        yield (
            f"no mask: all {found['voxels']:,} voxels of subject {subject} are taken, {found['constant']:,} of them "
            "constant or not finite"
        )
    if len(volumes) > _FIRST:
        yield f"no mask: {len(volumes) - _FIRST:,} more subjects, see no_mask in the manifest's notes"
