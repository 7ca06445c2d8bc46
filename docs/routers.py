"""The picture of the README: share of requests within the objective against the rate of arrivals, by router.

    python docs/routers.py

runs the embedded quickstart fleet at each rate under each router (a minute or so) and writes docs/routers.svg.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

import fleetsim
from fleetsim.scenario.template import scenario_path

RATES = range(60, 116, 5)
ROUTERS = {
    "least-outstanding": "#0b6e4f",
    "power-of-two-choices": "#2c6fbb",
    "round-robin": "#c8641b",
    "random": "#8a3b8f",
}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 360, 60, 170, 36, 48


def attainment(router: str, rate: int, folder: str) -> float:
    """Share of requests within all limits, 0 to 1."""
    overrides = [f"gateway.router.policy={router}", f"workload.arrivals.rate={rate} req/s", "workload.requests=10000"]
    result = fleetsim.run(scenario_path(None), f"{folder}/run", overrides=overrides)
    return float(result.summary["slo_attainment_ratio"])


def x(rate: float) -> float:
    """Place of a rate."""
    return LEFT + (rate - RATES[0]) / (RATES[-1] - RATES[0]) * (WIDTH - LEFT - RIGHT)


def y(share: float) -> float:
    """Place of a share."""
    return TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)


def text(at_x: float, at_y: float, words: str, anchor: str = "middle", colour: str = "#444") -> str:
    """A line of text."""
    return f'<text x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def axes() -> list[str]:
    """Grid, ticks and titles."""
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<path d="M{LEFT} {y(share):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(text(LEFT - 8, y(share) + 4, f"{share:.0%}", "end"))
    parts += [text(x(rate), HEIGHT - BOTTOM + 18, str(rate)) for rate in RATES if rate % 10 == 0]
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "arrivals [requests/s]"))
    objective = "requests with TTFT ≤ 300 ms and TPOT ≤ 25 ms; Llama 3.1 8B on four H100, simulated"
    parts.append(text(LEFT, TOP - 16, objective, "start"))
    parts.append(
        f'<path d="M{LEFT} {y(0.99):.1f}H{WIDTH - RIGHT}" stroke="#b00" stroke-dasharray="4 3"/>'
        + text(WIDTH - RIGHT + 8, y(0.99) + 4, "objective 99 %", "start", "#b00")
    )
    return parts


def curve(router: str, shares: list[float], row: int) -> list[str]:
    """Line and label of one router."""
    colour = ROUTERS[router]
    points = " ".join(f"{x(rate):.1f},{y(share):.1f}" for rate, share in zip(RATES, shares, strict=True))
    legend = TOP + 50 + 20 * row
    return [
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>',
        f'<path d="M{WIDTH - RIGHT + 8} {legend - 4}h18" stroke="{colour}" stroke-width="2"/>',
        text(WIDTH - RIGHT + 32, legend, router, "start", colour),
    ]


def main() -> None:
    """Run and draw."""
    parts = axes()
    with tempfile.TemporaryDirectory() as folder:
        for row, router in enumerate(ROUTERS):
            parts += curve(router, [attainment(router, rate, folder) for rate in RATES], row)
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    body = "\n".join(['<rect width="100%" height="100%" fill="#fff"/>', *parts])
    Path(__file__).with_suffix(".svg").write_text(f"{head}\n{body}\n</svg>\n", encoding="utf-8")


if __name__ == "__main__":
    main()
