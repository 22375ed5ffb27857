"""The section with the pictures: every test stimulus beside what was decoded, best and worst alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from cadiff.conclusions import spoken
from cadiff.report.content import ReportContent
from cadiff.report.html import Html, join, tag
from cadiff.report.pictures import picture

FEW = 6  # cards under each of best, middle, worst
MOST = 120  # cards in the full list
MAIN_SAMPLES = 5  # samples shown of the main method; of every other method the first one
SORT_KEYS = {"two-way-features": "two-way features", "two-way-pixcorr": "two-way pixels", "ssim_rgb": "SSIM"}


def reconstructions(content: ReportContent) -> Html:
    """Best, middle and worst rows by the main method's first sort score, then all of them, sortable."""
    pictures, scores, names = content.pictures, _scores(content.metrics), _names(content)
    count = len(pictures.truth)
    if scores:
        order = np.argsort(-np.asarray(scores[next(iter(scores))]), kind="stable")
        rule = f"ranked by the {SORT_KEYS[next(iter(scores))]} score"
    else:
        order, rule = np.arange(count), "in the order of the test set, for there are no scores"
    cards = [_card(content, row, names[row], rank, scores) for rank, row in enumerate(order.tolist(), 1)]
    parts: list[Any] = [
        tag("h2", "Reconstructions"),
        tag(
            "p", f"{count} test samples, {rule}. Every picture was decoded from signals that no training step has seen."
        ),
    ]
    if count > 3 * FEW:
        middle = (count - FEW) // 2
        for name, start in (("Best", 0), ("Middle", middle), ("Worst", count - FEW)):
            parts += [tag("h3", name), tag("ol", *cards[start : start + FEW], class_="grid")]
        shown = cards[:MOST]
        said = f"All {count} test samples" if count <= MOST else f"The first {MOST} of {count} test samples"
        parts.append(tag("details", tag("summary", said), _sortable(shown, scores)))
    else:
        parts.append(_sortable(cards, scores))
    return join(parts)


def _scores(metrics: dict[str, Any] | None) -> dict[str, list[float]]:
    if metrics is None:
        return {}
    rows = metrics["rows"]["scores"][metrics["main"]]
    return {key: rows[key] for key in SORT_KEYS if key in rows}


def _names(content: ReportContent) -> list[str]:
    given = content.pictures.names
    return [given[row] if row < len(given) else f"test sample {row + 1}" for row in range(len(content.pictures.truth))]


def _sortable(cards: list[Html], scores: dict[str, list[float]]) -> Html:
    named = {f"data_name{at}": SORT_KEYS[key] for at, key in enumerate(scores)}
    keys = " ".join(key.replace("_", "-") for key in scores) or None
    return tag("ol", *cards, class_="grid", data_keys=keys, **named)


def _card(content: ReportContent, row: int, name: str, rank: int, scores: dict[str, list[float]]) -> Html:
    pictures = content.pictures
    cells = [_cell(pictures.truth[row], "stimulus", f"Stimulus {row + 1}: {name}")]
    main = content.metrics["main"] if content.metrics else next(iter(pictures.methods), None)
    for method, recon in pictures.methods.items():
        samples = min(recon.shape[1], MAIN_SAMPLES) if method == main else 1
        for sample in range(samples):
            caption = spoken(method) if samples == 1 else f"{spoken(method)} {sample + 1}"
            said = f"{caption[:1].upper()}{caption[1:]}: decoded picture for stimulus {row + 1}"
            cells.append(_cell(recon[row, sample], caption, said))
    told = " · ".join(f"{SORT_KEYS[key]} {values[row]:.2f}" for key, values in scores.items())
    attributes = {f"data_{key.replace('-', '_')}": f"{values[row]:.6f}" for key, values in scores.items()}
    caption = join([tag("strong", f"{rank}. {name}"), tag("br") if told else "", told])
    return tag("li", tag("figure", tag("div", *cells, class_="row"), tag("figcaption", caption)), **attributes)


def _cell(image: np.ndarray, caption: str, alt: str) -> Html:
    return tag("div", picture(image, alt), tag("span", caption, title=caption))
