"""Scatter plots of predicted against measured values, as SVG that needs nothing to be shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import floor, log10
from xml.sax.saxutils import escape

Point = tuple[float, float]
"""Measured and predicted value, both above zero."""

COLOURS = ("#0b6e4f", "#2c6fbb", "#c8641b", "#8a3b8f", "#b5273a", "#5b6b00", "#00727a", "#7a5a3a")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 440, 64, 170, 40, 52
BAND = 0.1
"""Relative error within which the band around the diagonal lies."""


def scatter(title: str, unit: str, series: Sequence[tuple[str, Iterable[Point]]]) -> str:
    """Predicted over measured on logarithmic axes, with the diagonal and a band of 10 % around it.

    Parameters
    ----------
    title : str
        Above the plot.
    unit : str
        Of both axes.
    series : sequence of (name, points)
        One colour each.
    """
    drawn = [(name, [p for p in points if p[0] > 0 and p[1] > 0]) for name, points in series]
    values = [value for _, points in drawn for point in points for value in point]
    low, high = log10(min(values)) - 0.05, log10(max(values)) + 0.05

    def x(value: float) -> float:
        return LEFT + (log10(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (log10(value) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
    ]
    start, end = 10**low, 10**high
    corners = [
        (start, start * (1 + BAND)),
        (end, end * (1 + BAND)),
        (end, end * (1 - BAND)),
        (start, start * (1 - BAND)),
    ]
    path = " ".join(f"{x(a):.1f},{min(max(y(b), TOP), HEIGHT - BOTTOM):.1f}" for a, b in corners)
    parts.append(f'<polygon points="{path}" fill="#eeeeee"/>')
    for tick in _ticks(low, high):
        parts.append(
            f'<line x1="{x(tick):.1f}" y1="{TOP}" x2="{x(tick):.1f}" y2="{HEIGHT - BOTTOM}" stroke="#e3e3e3"/>'
        )
        parts.append(f'<line x1="{LEFT}" y1="{y(tick):.1f}" x2="{WIDTH - RIGHT}" y2="{y(tick):.1f}" stroke="#e3e3e3"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(
        f'<line x1="{x(start):.1f}" y1="{y(start):.1f}" x2="{x(end):.1f}" y2="{y(end):.1f}" stroke="#666666"/>'
    )
    for index, (name, points) in enumerate(drawn):
        colour = COLOURS[index % len(COLOURS)]
        parts += [
            f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.2" fill="{colour}" fill-opacity="0.6"/>' for a, b in points
        ]
        row = TOP + 8 + 18 * index
        parts.append(f'<circle cx="{WIDTH - RIGHT + 14}" cy="{row}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 24}" y="{row + 4}">{escape(name)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">measured [{escape(unit)}]</text>')
    turned = f'transform="rotate(-90 16 {(TOP + HEIGHT - BOTTOM) / 2})"'
    parts.append(
        f'<text x="16" y="{(TOP + HEIGHT - BOTTOM) / 2}" {turned} text-anchor="middle">predicted [{escape(unit)}]</text>'
    )
    return "\n".join([*parts, "</svg>", ""])


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within the axis; powers alone where that is many."""
    steps = (1, 2, 5) if high - low < 3 else (1,)
    exact = [step * 10.0**power for power in range(floor(low), floor(high) + 1) for step in steps]
    return [value for value in exact if low <= log10(value) <= high]
