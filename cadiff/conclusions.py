"""What the numbers allow one to say, in sentences: above chance or not, better than a baseline or not."""

from __future__ import annotations

from typing import Any

from cadiff.statistics import Interval, against_chance

HEADLINE = ("two-way-features", "two-way-pixcorr", "class-accuracy")
CONTROL = "shuffled"
FEW = 30  # stimuli


def spoken(method: str) -> str:
    """A method's name as sentences and tables write it."""
    return {"cadiff": "CADiff", "shuffled": "shuffled fMRI", "nearest": "nearest training stimulus"}.get(method, method)


def conclusions(metrics: dict[str, Any]) -> list[str]:
    """Sentences about ``evaluate``'s result; each states the interval that supports it.

    Returns:
        First the main method against chance, then against each other method, then the shuffled control, then caveats.
    """
    main = metrics["main"]
    headline = [key for key in HEADLINE if key in metrics["methods"][main]]
    sentences = [_against_chance(metrics, main, key) for key in headline]
    for pair, differences in metrics["differences"].items():
        other = pair.removeprefix(f"{main} - ")
        if other != CONTROL:
            sentences += [_difference(metrics, main, other, differences, key) for key in headline]
    if CONTROL in metrics["methods"] and main != CONTROL:
        sentences.append(_control(metrics, headline))
    return sentences + _caveats(metrics)


def _against_chance(metrics: dict[str, Any], method: str, key: str) -> str:
    entry = metrics["methods"][method][key]
    relation = against_chance(Interval(entry["value"], entry["low"], entry["high"]), entry["chance"])
    verb = {"above": "lies above", "below": "lies below", "consistent with": "is consistent with"}[relation]
    return f"{_title(metrics, key)}: {method_value(entry)} {verb} chance {entry['chance']:.2f}."


def _title(metrics: dict[str, Any], key: str) -> str:
    return metrics["definitions"][key]["title"]


def method_value(entry: dict[str, float]) -> str:
    """``0.71 [0.66, 0.76]``."""
    return f"{entry['value']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]"


def _difference(metrics: dict[str, Any], main: str, other: str, differences: dict[str, Any], key: str) -> str:
    entry, title = differences[key], _title(metrics, key)
    relation = against_chance(Interval(entry["value"], entry["low"], entry["high"]), 0.0)
    if relation == "consistent with":
        return (
            f"{spoken(main)} and {spoken(other)} cannot be told apart in {title.lower()}: difference {_signed(entry)}."
        )
    return f"{spoken(main)} is {relation} {spoken(other)} in {title.lower()} by {_signed(entry)}."


def _signed(entry: dict[str, float]) -> str:
    return f"{entry['value']:+.2f} [{entry['low']:+.2f}, {entry['high']:+.2f}]"


def _control(metrics: dict[str, Any], headline: list[str]) -> str:
    """The shuffled control must sit at chance: above it, something other than the signal gives the stimulus away."""
    entries = {key: metrics["methods"][CONTROL][key] for key in headline}
    off = {
        key: entry
        for key, entry in entries.items()
        if against_chance(Interval(entry["value"], entry["low"], entry["high"]), entry["chance"]) != "consistent with"
    }
    if not off:
        return "Shuffled fMRI is consistent with chance, as it must be."
    listed = "; ".join(
        f"{_title(metrics, key).lower()} {method_value(entry)} against {entry['chance']:.2f}"
        for key, entry in off.items()
    )
    above = any(entry["low"] > entry["chance"] for entry in off.values())
    if above:
        return f"Shuffled fMRI lies above chance ({listed}): something besides the signal leaks the stimulus."
    return f"Shuffled fMRI lies below chance ({listed}): no leak, but the shuffle avoids the right answer."


def _caveats(metrics: dict[str, Any]) -> list[str]:
    said = list(metrics["notes"])
    if metrics["stimuli"] < FEW:
        said.append(f"Only {metrics['stimuli']} test stimuli: the intervals are wide and themselves uncertain.")
    accuracy = metrics["classifier"].get("accuracy_on_stimuli")
    if accuracy is not None and accuracy < 0.9:
        said.append(
            f"The classifier reads only {accuracy:.0%} of the real test stimuli correctly: class scores are weak."
        )
    return said
