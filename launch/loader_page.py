"""The loader benchmark as one HTML page: a bar for each contender, with its limit, and the figures below."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cadiff.files import write_text
from cadiff.report.html import Html, join, tag

_WIDTH, _ROW, _LEFT = 720, 34, 250
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1c2733}
svg{width:100%;height:auto}text{font-size:13px;fill:#1c2733}.limit{fill:#d5dde5}.bar{fill:#1f6f8b}.quiet{color:#5b6b7a}
pre{background:#f3f6f8;padding:1rem;overflow:auto;font-size:13px}
"""


def write_page(path: Path, told: dict[str, Any]) -> None:
    """Write the page, whole or not at all."""
    on = told["machine"]
    kind = f"samples of {told['voxels']:,} voxels ({told['dtype']})" if told["voxels"] else "pictures"
    title = f"Loader: {told['samples']:,} {kind}"
    body = join(
        [
            tag("h1", title),
            tag("p", f"Batch {told['batch']}; {on['cores']} cores, {on['processor']}; torch {on['versions']['torch']}. "
                "The pale bar is the limit, measured in the same process, taking turns with what is measured.",
                class_="quiet"),
            _bars(told["contenders"]),
            tag("h2", "All figures"),
            tag("pre", json.dumps(told, indent=1)),
        ]
    )  # fmt: skip
    head = join([tag("meta", charset="utf-8"), tag("title", title), tag("style", _STYLE)])
    write_text(path, "<!doctype html>\n" + str(tag("html", tag("head", head), tag("body", body), lang="en")))


def _bars(contenders: list[dict[str, Any]]) -> Html:
    longest = max(max(entry["samples_per_s"], _limit(entry)) for entry in contenders)
    scale = (_WIDTH - _LEFT - 90) / longest
    parts = []
    for row, entry in enumerate(contenders):
        top, rate, limit = row * _ROW + 6, entry["samples_per_s"], _limit(entry)
        parts.append(tag("text", entry["name"], x=_LEFT - 8, y=top + 15, text_anchor="end"))
        parts.append(tag("rect", class_="limit", x=_LEFT, y=top, width=f"{limit * scale:.1f}", height=22))
        parts.append(tag("rect", class_="bar", x=_LEFT, y=top + 4, width=f"{rate * scale:.1f}", height=14))
        at = max(rate, limit) * scale + _LEFT + 6
        parts.append(tag("text", f"{rate:,.0f}/s", x=f"{at:.1f}", y=top + 15))
    words = ", ".join(f"{entry['name']}: {entry['samples_per_s']:,.0f} samples per second" for entry in contenders)
    return tag("svg", *parts, viewBox=f"0 0 {_WIDTH} {len(contenders) * _ROW + 10}", role="img", aria_label=words)


def _limit(entry: dict[str, Any]) -> float:
    """The limit in samples per second, 0 where there is none."""
    if "limit_per_s" in entry:
        return entry["limit_per_s"]
    return entry["samples_per_s"] / entry["share_of_disk"] if "share_of_disk" in entry else 0.0
