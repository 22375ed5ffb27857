"""The sections about how well it decodes: headline, intervals beside chance, the table of all metrics."""

from __future__ import annotations

from typing import Any

from cadiff.conclusions import HEADLINE, conclusions, spoken
from cadiff.report.content import ReportContent
from cadiff.report.html import Html, figure, join, table, tag
from cadiff.report.plots import Bar, intervals
from cadiff.statistics import Interval, against_chance

MARKS = {"above": ("above chance", "good"), "below": ("below chance", "warn"), "consistent with": ("at chance", "warn")}
FIXED_COLOURS = {"cadiff": 0, "ridge": 1, "shuffled": 2, "nearest": 3}


def colour(name: str, position: int) -> int:
    """The same method has the same colour in every plot."""
    return FIXED_COLOURS.get(name, 4 + position % 2)


def headline(content: ReportContent) -> Html:
    """Three numbers and the sentences they allow."""
    metrics = content.metrics
    if metrics is None:
        missing = tag("p", "There is no evaluation in this report: no reconstructions were scored.", class_="note")
        return join([tag("h2", "Result"), missing, _said(content.notes)])
    main = metrics["methods"][metrics["main"]]
    cards = [_card(metrics["definitions"][key]["title"], main[key]) for key in HEADLINE if key in main]
    return join(
        [
            tag("h2", "Result"),
            tag("div", *cards, class_="cards"),
            _said([*conclusions(metrics), *content.notes]),
        ]
    )


def _card(title: str, entry: dict[str, Any]) -> Html:
    relation, mood = MARKS[against_chance(Interval(entry["value"], entry["low"], entry["high"]), entry["chance"])]
    return tag(
        "div",
        tag("p", title, class_="small"),
        tag("p", f"{entry['value']:.2f}", class_="big"),
        tag("p", f"95 % interval {entry['low']:.2f} to {entry['high']:.2f}", class_="small"),
        tag("p", tag("span", relation, class_=f"mark {mood}"), f" ({entry['chance']:.2f})", class_="small"),
        class_="card",
    )


def _said(sentences: list[str]) -> Html:
    return tag("ul", *(tag("li", sentence) for sentence in sentences), class_="said") if sentences else Html("")


def scores(content: ReportContent) -> Html:
    """Drawings for the scores between 0 and 1, then every number."""
    metrics = content.metrics
    names = list(metrics["methods"])
    drawn = [key for key in metrics["definitions"] if metrics["definitions"][key]["low"] == 0 and key != "mse"]
    panels = [
        figure(
            join([tag("h3", metrics["definitions"][key]["title"]), _panel(metrics, names, key, content.ceiling)]),
            f"{metrics['definitions'][key]['meaning'][0].upper()}{metrics['definitions'][key]['meaning'][1:]}.",
        )
        for key in drawn
    ]
    judge = metrics["classifier"]
    accuracy = judge.get("accuracy_on_stimuli")
    return join(
        [
            tag("h2", "Scores"),
            tag(
                "p",
                f"{metrics['stimuli']} test stimuli; {metrics['interval']}. Scores are averaged over the samples of a "
                "stimulus first, except where the name says best column. The dashed line is chance",
                ", the dotted line the best possible reconstruction" if content.ceiling else "",
                ".",
            ),
            tag("div", *panels, class_="panels"),
            _all_numbers(metrics, names, content.ceiling),
            _differences(metrics),
            tag(
                "p",
                f"Classes and features are read by {judge.get('note', 'the given classifier')}"
                + (f"; it reads {accuracy:.0%} of the real test stimuli correctly" if accuracy is not None else "")
                + ". Scores that depend on it compare the methods of this page and are not comparable with published "
                "figures.",
                class_="quiet",
            ),
        ]
    )


def _panel(metrics: dict[str, Any], names: list[str], key: str, ceiling: dict[str, float]) -> Html:
    entries = [(name, metrics["methods"][name][key]) for name in names]
    bars = [
        Bar(_short(name), entry["value"], entry["low"], entry["high"], colour(name, position))
        for position, (name, entry) in enumerate(entries)
    ]
    chance, title = metrics["methods"][metrics["main"]][key]["chance"], metrics["definitions"][key]["title"]
    return intervals(bars, chance=chance, ceiling=ceiling.get(key), low=0, high=1, title=title)


def _short(name: str) -> str:
    return {"nearest": "nearest train", "shuffled": "shuffled"}.get(name, spoken(name))[:17]


def _all_numbers(metrics: dict[str, Any], names: list[str], ceiling: dict[str, float]) -> Html:
    head = ["Metric", *(spoken(name)[:1].upper() + spoken(name)[1:] for name in names), "Chance"]
    head += ["Ceiling"] if ceiling else []
    rows = []
    for key, definition in metrics["definitions"].items():
        better = "higher is better" if definition["better"] == "higher" else "lower is better"
        entries = [metrics["methods"][name][key] for name in names]
        title = [definition["title"], tag("span", f"{better}; ", tag("code", definition["protocol"]), class_="small")]
        chance = f"{metrics['methods'][metrics['main']][key]['chance']:.3f}"
        cells = [_number(entry) for entry in entries]
        rows.append([join(title), *cells, chance, *([_ceiling(ceiling, key)] if ceiling else [])])
    return table("All metrics with 95 % intervals", head, rows, class_="numbers")


def _ceiling(ceiling: dict[str, float], key: str) -> str:
    return f"{ceiling[key]:.3f}" if key in ceiling else "–"


def _number(entry: dict[str, Any]) -> Html:
    return join([f"{entry['value']:.3f}", tag("span", f"{entry['low']:.3f} to {entry['high']:.3f}", class_="range")])


def _differences(metrics: dict[str, Any]) -> Html:
    if not metrics["differences"]:
        return Html("")
    main, pairs = metrics["main"], metrics["differences"]
    keys = list(next(iter(pairs.values())))
    head = ["Paired difference", *(f"{spoken(main)} minus {spoken(pair.removeprefix(f'{main} - '))}" for pair in pairs)]
    rows = [
        [metrics["definitions"][key]["title"], *(_signed(pair[key]) for pair in pairs.values())] for key in keys
    ]  # fmt: skip
    caption = "Differences over the same stimuli; an interval that leaves out 0 is marked"
    return table(caption, head, rows, class_="numbers")


def _signed(entry: dict[str, Any]) -> Html:
    sure = entry["low"] > 0 or entry["high"] < 0
    ahead = (entry["value"] > 0) == (entry["better"] == "higher")
    mark = tag("span", " better" if ahead else " worse", class_=f"mark {'good' if ahead else 'warn'}") if sure else ""
    interval = tag("span", f"{entry['low']:+.3f} to {entry['high']:+.3f}", class_="range")
    return join([f"{entry['value']:+.3f}", mark, interval])
