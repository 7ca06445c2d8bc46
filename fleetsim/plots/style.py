"""What all figures share: colours, axes, and the words about where their numbers come from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

COLOURS = ("#2b7bd6", "#f8710c", "#10a858", "#b4208b", "#ff59a1", "#4555f2", "#cd1600", "#087b5b")
"""Told apart with normal sight, deuteranopia and protanopia, and legible on white and on near-black (a test measures both)."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
GREY = "#8a8f98"
GOOD, BAD = "#10a858", "#cd1600"

LOG_RATIO = 20.0
"""An axis is logarithmic where its values range further than this."""
MOST_POINTS = 5000
"""Points of a trace at most."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

_AXIS = {
    "automargin": True,
    "gridcolor": "rgba(128,136,150,0.20)",
    "linecolor": "rgba(128,136,150,0.55)",
    "showline": True,
    "tickfont": {"size": 12},
    "ticks": "outside",
    "ticklen": 4,
    "tickcolor": "rgba(128,136,150,0.55)",
    "title": {"font": {"size": 13}, "standoff": 10},
    "zeroline": False,
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 13, "color": "#24292f"},
        "colorway": list(COLOURS),
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"font": {"family": FONT, "size": 12}, "align": "left", "namelength": -1},
        "hovermode": "closest",
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.02,
            "yanchor": "bottom",
            "font": {"size": 12},
            "itemsizing": "constant",
        },
        "margin": {"l": 8, "r": 16, "t": 70, "b": 8},
        "title": {"x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 8}, "font": {"size": 17}},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)


@dataclass(frozen=True, slots=True)
class Mark:
    """How a policy, a run or a pool looks in every figure of a report."""

    colour: str
    dash: str
    symbol: str


def marks_of(names: Iterable[str], known: Mapping[str, Mark] | None = None) -> dict[str, Mark]:
    """A mark for each name, in the order given; those that `known` has keep theirs.

    After eight names colours come again with other dashes and symbols.
    """
    marks: dict[str, Mark] = {}
    taken = dict(known or {})
    for name in names:
        if name not in taken:
            n = len(taken)
            lap = n // len(COLOURS)
            taken[name] = Mark(
                COLOURS[n % len(COLOURS)], DASHES[lap % len(DASHES)], SYMBOLS[(n + 3 * lap) % len(SYMBOLS)]
            )
        marks[name] = taken[name]
    return marks


def figure(title: str, note: str, table: str, height: int = 400) -> go.Figure:
    """An empty figure that says what it shows (`note`) and from which table; reports set these as text around it."""
    fig = go.Figure(layout={"template": TEMPLATE, "height": height})
    fig.update_layout(
        title={"text": title, "subtitle": {"text": f"{note} · data: {table}", "font": {"size": 12, "color": GREY}}},
        meta={"title": title, "note": note, "table": table},
    )
    return fig


def axis(
    title: str, unit: str = "", values: Iterable[float] = (), log: bool | None = None, from_zero: bool = True
) -> dict[str, Any]:
    """An axis with its unit, logarithmic where the values range over more than `LOG_RATIO`.

    Parameters
    ----------
    title : str
        With the percentile, where it is of one.
    unit : str
        ``%`` for ratios, which are shown as per cent.
    values : iterable of float
        What is drawn.
    log : bool, optional
        Whatever the values are.
    from_zero : bool
        Whether an axis that is not logarithmic begins at 0.
    """
    layout: dict[str, Any] = {"title": {"text": title if not unit else f"{title} [{unit}]"}}
    finite = [v for v in values if v is not None and math.isfinite(v)]
    positive = [v for v in finite if v > 0]
    if unit == "%":
        return layout | {"tickformat": ".0%"}
    if log is None:
        log = len(positive) == len(finite) > 0 and max(positive) > LOG_RATIO * min(positive)
    if not log or not positive:
        return layout | ({"rangemode": "tozero"} if from_zero and positive and len(positive) == len(finite) else {})
    low, high = min(positive), max(positive)
    ticks = _ticks(low, high)
    pad = 0.04 * math.log10(high / low) if high > low else 0.1
    return layout | {
        "type": "log",
        "tickvals": ticks,
        "ticktext": [number(tick) for tick in ticks],
        "range": [math.log10(low) - pad, math.log10(high) + pad],
    }


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade while they are few, else its beginning."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,) if last - first > 5 else (1, 3)
    every = max(1, math.ceil((last - first) / 8))
    decades = range(first, last + 1, every)
    return [step * 10.0**decade for decade in decades for step in (steps if every == 1 else (1,))]


def number(value: float, digits: int = 3) -> str:
    """A number for people: no exponent where it can be read without, thin separators."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    for factor, suffix in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if size >= factor:
            shown = value / (1e3 if suffix == " k" else factor)
            return f"{_plain(shown, digits)}{suffix}"
    return f"{value:.{digits}g}" if size < 1e-4 else _plain(value, digits)


def _plain(value: float, digits: int) -> str:
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def seconds_unit(values: Iterable[float]) -> tuple[str, float]:
    """Milliseconds, seconds or hours, whichever reads better, and the factor from seconds."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    most = max(finite, default=0.0)
    return ("ms", 1e3) if 0.0 < most < 2.0 else ("h", 1 / 3600.0) if most >= 3 * 3600.0 else ("s", 1.0)


def duration(value_s: float) -> str:
    """A time for people, with its unit."""
    if value_s >= 3600.0:
        return f"{number(value_s / 3600.0)} h"
    if value_s >= 300.0:
        return f"{number(value_s / 60.0)} min"
    return f"{number(value_s)} s" if value_s >= 1.0 else f"{number(value_s * 1e3)} ms"


def clock_unit(end_s: float) -> tuple[str, float]:
    """Seconds, minutes, hours or days for an axis of simulated time, and the factor from seconds."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if end_s > 4 * size:
            return unit, 1.0 / size
    return "s", 1.0


def faded(colour: str, alpha: float) -> str:
    """A colour with transparency."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def thinned(length: int, most: int = MOST_POINTS) -> Sequence[int]:
    """Places of at most `most` points spread evenly over `length`, both ends included."""
    if length <= most:
        return range(length)
    return [round(i * (length - 1) / (most - 1)) for i in range(most)]
