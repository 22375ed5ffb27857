"""Coarse groups of ImageNet classes: WordNet 3.0 numbers its nouns by topic, so a wnid's range tells animals apart."""

from __future__ import annotations

import re
from bisect import bisect_right

WNID = re.compile(r"n\d{8}")

# The first offset of each range, read off the ordering of the 1,000 ImageNet challenge classes (ILSVRC 2012).
_RANGES = [
    (0, "other"),
    (1_440_000, "fish"),
    (1_503_000, "bird"),
    (1_627_000, "reptile"),
    (1_767_000, "invertebrate"),
    (1_791_000, "bird"),
    (1_861_000, "mammal"),
    (1_905_000, "invertebrate"),
    (2_000_000, "bird"),
    (2_062_000, "mammal"),
    (2_084_000, "dog"),
    (2_114_000, "mammal"),
    (2_159_000, "invertebrate"),
    (2_323_000, "mammal"),
    (2_512_000, "fish"),
    (2_660_000, "artifact"),
    (4_620_000, "other"),
    (7_550_000, "food"),
    (9_190_000, "place"),
    (9_600_000, "person"),
    (11_400_000, "plant"),
]
_STARTS = [start for start, _ in _RANGES]

# Artifacts are numbered alphabetically, so they are told apart by the last word of their name; the rest are tools.
_WORDS = {
    "vehicle": "airliner airship ambulance amphibian barrow bicycle boat bus cab canoe car catamaran engine jeep"
    " limousine liner locomotive minivan moped motor plane schooner scooter ship snowmobile snowplow speedboat"
    " submarine tank tractor train tricycle truck unicycle van wagon warplane yawl",
    "place": "barn beacon boathouse bridge castle church cinema dam dome fence fountain greenhouse house library"
    " monastery mosque palace pier prison restaurant shop stage store stupa telescope theater tower toyshop viaduct",
    "instrument": "accordion banjo cello cornet drum flute gong guitar harmonica harp horn oboe organ piano sax"
    " trombone upright violin",
    "device": "camera clock computer desktop digital dial heater hub iPod iron keyboard laptop lock microwave modem"
    " monitor mouse pay-phone phone photocopier player printer projector radio refrigerator remote screen telephone"
    " television toaster washer watch",
}
_BY_WORD = {word.lower(): group for group, words in _WORDS.items() for word in words.split()}


def group_of(wnid: str, name: str) -> str:
    """The coarse group of a class, for example ``group_of("n02087394", "Rhodesian ridgeback") == "dog"``."""
    group = _RANGES[bisect_right(_STARTS, int(wnid[1:])) - 1][1]
    if group != "artifact":
        return group
    return _BY_WORD.get(name.lower().replace("_", " ").split()[-1], "tool")
