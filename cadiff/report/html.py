"""HTML from Python values: every piece of text is escaped unless it is Html already, so nothing slips through."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

VOID = {"img", "meta", "br"}  # written without an end tag; the shapes of SVG need theirs


class Html(str):
    """Text that is markup and must not be escaped again."""


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. ``class_`` and ``for_`` lose their underscore, others turn it into a hyphen.

    None and False drop a child or an attribute, True leaves a bare attribute; numbers and other values become text.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{escape(_text(value))}"')
    opening = Html(f"<{' '.join(words)}>")
    return opening if name in VOID else Html(f"{opening}{join(children)}</{name}>")


def join(children: Iterable[Any], between: str = "") -> Html:
    """Escape and concatenate."""
    kept = (child for child in children if child is not None and child is not False)
    return Html(between.join(child if isinstance(child, Html) else escape(_text(child)) for child in kept))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(caption: str, head: Sequence[Any], rows: Iterable[Sequence[Any]], *, class_: str = "") -> Html:
    """A table whose first column heads its rows, in a box that scrolls by itself on narrow screens."""
    header = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = [
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in cells)) for first, *cells in rows
    ]  # fmt: skip
    inner = tag("table", tag("caption", caption), tag("thead", header), tag("tbody", *body), class_=class_ or None)
    return tag("div", inner, class_="scroll", role="region", aria_label=caption, tabindex="0")


def facts(pairs: Iterable[tuple[Any, Any]]) -> Html:
    """A list of names and values."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs), class_="facts")


def figure(content: Any, caption: Any, *, class_: str | None = None) -> Html:
    return tag("figure", content, tag("figcaption", caption), class_=class_)
