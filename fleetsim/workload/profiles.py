"""Profiles of public traces: quantiles of lengths, course of the rate, burstiness; the figures are in ``traces/``."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from numpy.random import Generator

from fleetsim.errors import DataError, Finding, nearest
from fleetsim.workload.arrivals import Arrivals, SteppedClock, gamma_gaps
from fleetsim.workload.embedded import read_yaml
from fleetsim.workload.lengths import RecordedLengths

_FILE = "profiles.yaml"


@dataclass(frozen=True)
class Profile:
    """Figures of one trace."""

    name: str
    figures: dict[str, Any]
    levels: tuple[float, ...]
    """Levels of the quantiles."""

    @property
    def requests(self) -> int:
        """Requests that the figures were taken from."""
        return int(self.figures["requests"])

    @property
    def rate(self) -> float | None:
        """Mean arrivals per second, if the trace has times."""
        arrivals = self.figures.get("arrivals")
        return None if arrivals is None else float(arrivals["rate_per_s"])

    def has(self, name: str) -> bool:
        """Whether the profile tells ``arrivals``, ``prompt_tokens`` or ``output_tokens``."""
        return name in self.figures

    def lengths(self, name: str, rng: Generator) -> RecordedLengths:
        """Lengths with the recorded quantiles of ``prompt_tokens`` or ``output_tokens``."""
        return RecordedLengths(self.levels, self.figures[name], self.requests, rng)

    def arrivals(self, requests: int | None, rng: Generator) -> Arrivals:
        """Arrivals with the recorded course of the rate and burstiness.

        If the number of requests is known, the recorded course is stretched (or squeezed) in time so that they fill a
        whole number of passes, and the mean rate is the recorded one exactly; otherwise the course repeats at its own
        pace.
        """
        figures = self.figures["arrivals"]
        bin_s, rate = float(figures["bin_s"]), float(figures["rate_per_s"])
        rates = [float(r) for r in figures["bins_per_s"]]
        level = rate * len(rates) / sum(rates)
        stretch = 1.0
        if requests is not None:
            recorded = rate * bin_s * len(rates)
            stretch = requests / (max(1, round(requests / recorded)) * recorded)
        pieces = itertools.cycle([(bin_s * stretch, r * level) for r in rates])
        return Arrivals(gamma_gaps(float(figures["burstiness"])), SteppedClock(pieces), rng, requests)


def list_profiles() -> list[Profile]:
    """Every profile, by name."""
    content = read_yaml(_FILE)
    common = content["levels"]
    return [
        Profile(name, figures, tuple(float(level) for level in figures.get("levels", common)))
        for name, figures in sorted(content["profiles"].items())
    ]


def load_profile(name: str) -> Profile:
    """The profile called `name`.

    Raises
    ------
    DataError
        If there is none; the hint lists those that are.
    """
    profiles = {profile.name: profile for profile in list_profiles()}
    if name not in profiles:
        raise DataError(Finding(f'unknown trace profile "{name}"', hint=nearest(name, profiles, "profiles")))
    return profiles[name]
