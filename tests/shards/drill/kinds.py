"""The kinds of injuries of the drill: which sets they befall, how often each comes, and in which order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from drill import absurd, tampering
from drill.sets import DTYPES

SEEN = ("half", "whole")  # the sets with pictures
ALL = tuple(DTYPES)
PACKED = ("god", "bold5000", "things", "hcp", "table", "images", "table", "nsd")  # raw files, the quick ones more often
# Kind of an accident -> the sets it befalls in turn, and how often it comes.
ACCIDENTS: dict[str, tuple[tuple[str, ...], int]] = {
    "cut short": (ALL, 16),
    "grown": (ALL, 10),
    "missing": (ALL, 8),
    "another thing in its place": (ALL, 10),
    "exchanged": (ALL, 8),
    "from another set": (ALL, 8),
    "flip: block": (ALL, 8),
    "flip: .npy header": (ALL, 5),
    "flip: tar header": (ALL, 5),
    "flip: .json member": (ALL, 5),
    "flip: padding": (ALL, 2),
    "flip: index.npz": (ALL, 8),
    "flip: manifest.json": (ALL, 16),
    "flip: picture": (SEEN, 8),
    "flip: tar of pictures": (SEEN, 3),
    "flip: zarr chunk": (("scans",), 3),
    "flip: zarr.json": (("scans",), 4),
    "manifest: edited by hand": (ALL, 9),
}
TAMPERING: dict[str, tuple[Callable, tuple[str, ...], int]] = {
    "manifest: wrong": (tampering.manifest_wrong, ALL, len(tampering.MANIFESTS)),
    "manifest: absurd": (absurd.manifest_absurd, ALL, 7),
    "index: wrong array": (tampering.index_wrong, ALL, 50),
    "index: odd archive": (tampering.index_odd, ALL, 7),
    "block header absurd": (absurd.block_header_absurd, ALL, 9),
    "picture absurd": (absurd.picture_absurd, SEEN, len(absurd.PICTURES)),
    "tar absurd or leading away": (absurd.tar_absurd, ALL, len(absurd.TARS)),
    ".json member wrong": (absurd.json_member_absurd, ALL, 8),
    "no voxels": (absurd.no_voxels_at_all, ALL, 2),
    "link to elsewhere": (absurd.link_outside, ALL, 5),
    "zarr.json absurd": (absurd.zarr_absurd, ("scans",), 5),
}
OTHERS: dict[str, tuple[tuple[str, ...], int]] = {
    "cut short or gone after opening": (SEEN, 8),
    "remote: accident at the source": (SEEN, 12),
    "remote: tampering at the source": (SEEN, 8),
    "remote: accident in the cache": (SEEN, 12),
    "remote: replaced by another set": (SEEN, 2),
    "remote: disk of the cache full": (SEEN, 4),
    "raw file damaged": (PACKED, 40),
    "disk full while packing": (("half", "scans", "god", "images"), 8),
    "quota while packing": (("half", "scans", "god", "images"), 4),
    "killed while packing": (("half", "scans", "god"), 6),
}
COUNTS = {kind: row[-1] for table in (ACCIDENTS, TAMPERING, OTHERS) for kind, row in table.items()}
TARGETS = {kind: row[-2] for table in (ACCIDENTS, TAMPERING, OTHERS) for kind, row in table.items()}


@dataclass(frozen=True)
class Injury:
    """One injury: its kind, what it befalls, its number within the kind, and the seed of its random places."""

    kind: str
    target: str
    turn: int
    seed: tuple[int, int]


def plan(seed: int, times: int = 1) -> Iterator[Injury]:
    """All injuries of a drill, each kind as often as it is listed, ``times`` over; another seed, other places."""
    for number, (kind, count) in enumerate(COUNTS.items()):
        for turn in range(count * times):
            target = TARGETS[kind][turn % len(TARGETS[kind])]
            yield Injury(kind, target, turn, (seed + 1000 * number, turn))
