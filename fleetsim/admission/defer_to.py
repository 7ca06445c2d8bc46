"""Work that can wait is put off to the hours in which energy is cleanest or cheapest."""

from __future__ import annotations

from typing import ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.admission.api import ADMIT, Admit, Defer, FleetView, RequestView
from fleetsim.catalog.series import StepSeries
from fleetsim.plugins import PolicyConfig

_DAY_S = 86_400.0


class DeferToConfig(PolicyConfig):
    """Parameters of putting work off to better hours."""

    classes: tuple[str, ...] = ("batch",)
    """Classes that can wait, besides all requests with a priority below zero."""
    slack_s: float = Field(default=6 * 3600.0, gt=0, json_schema_extra={"unit": "s"})
    """How long after its arrival a request may begin at the latest."""
    window_s: float = Field(default=3600.0, gt=0, json_schema_extra={"unit": "s"})
    """Length of the time in which those that were put off begin, spread evenly so that they do not come all at once."""
    min_gain_ratio: float = Field(default=0.05, ge=0, lt=1, json_schema_extra={"unit": "ratio"})
    """Nobody is put off for less than this, relative to now."""
    forecast: Literal["known", "yesterday"] = "known"
    """What is expected of the hours to come: what they will be, as a day-ahead market publishes its prices and a perfect forecast
    would have the carbon intensity; or what they were a day before (in the first day nobody is put off)."""


class DeferTo:
    """Base of both: finds the window with the lowest mean within a request's slack."""

    Config: ClassVar = DeferToConfig

    def __init__(self, config: DeferToConfig, rng: Generator, fleet: FleetView) -> None:
        self._config = config
        self._fleet = fleet
        self._rng = rng
        self._begin_s: dict[int, float] = {}
        """When those that were put off begin, by their ids."""
        self._series = [] if fleet.places is None else self.series(fleet)

    def series(self, fleet: FleetView) -> list[tuple[float, StepSeries]]:
        """Of each site, a factor and the series that counts."""
        raise NotImplementedError

    def decide(self, request: RequestView) -> Admit | Defer:
        """Let the request in, or put it off to the best window."""
        config, now_s = self._config, self._fleet.now_s
        if request.priority >= 0 and request.klass not in config.classes:
            return ADMIT
        begin_s = self._begin_s.pop(request.id, None)
        if begin_s is None:
            begin_s = self._best(request, now_s)
        if begin_s <= now_s:
            return ADMIT
        self._begin_s[request.id] = begin_s
        return Defer(begin_s)

    def _best(self, request: RequestView, now_s: float) -> float:
        """When a request should begin: the earliest of the best windows, and somewhere in that."""
        config = self._config
        latest_s = request.arrival_s + config.slack_s - config.window_s
        back_s = _DAY_S if config.forecast == "yesterday" else 0.0
        if not self._series or latest_s <= now_s or now_s < back_s:
            return now_s
        current = self._mean(now_s, back_s)
        if current is None:
            return now_s
        best_s, lowest = now_s, current - config.min_gain_ratio * abs(current)
        for start_s in self._starts(now_s, latest_s, back_s):
            mean = self._mean(start_s, back_s)
            if mean is not None and mean < lowest:
                best_s, lowest = start_s, mean
        if best_s <= now_s:
            return now_s
        return best_s + float(self._rng.random()) * config.window_s

    def _starts(self, now_s: float, latest_s: float, back_s: float) -> list[float]:
        """Where the lowest window may begin: where values change, or so that it ends there, and at the ends of the slack."""
        found = {latest_s}
        for _, series in self._series:
            time_s = now_s - back_s
            while True:
                time_s = series.next_change_s(time_s)
                if time_s + back_s > latest_s + self._config.window_s:
                    break
                for start_s in (time_s + back_s, time_s + back_s - self._config.window_s):
                    if now_s < start_s <= latest_s:
                        found.add(start_s)
        return sorted(found)

    def _mean(self, start_s: float, back_s: float) -> float | None:
        """Mean over a window at the best of the sites; None where nothing is known of it."""
        begin_s = start_s - back_s
        end_s = begin_s + self._config.window_s
        means = [
            factor * series.mean(begin_s, end_s)
            for factor, series in self._series
            if begin_s >= 0 and end_s <= series.known_s
        ]
        return min(means, default=None)


class DeferToGreen(DeferTo):
    """Requests that can wait begin in the hours with the lowest carbon intensity within their slack.

    Rule: for a request of one of `classes`, or of a priority below zero, the window of `window_s` is found that begins after now,
    ends within `slack_s` of its arrival, and has the lowest mean carbon intensity (times PUE; at the cleanest site, where there
    are several: meant together with the router greenest-site). If that is lower than now's by `min_gain_ratio`, the request waits
    at the gateway and begins at a time drawn evenly from it; else it begins now. All others are let in at once.

    What is charged: the wait. What it knows: the series of the scenario (`forecast`), nothing of other requests.

    References
    ----------
    P. Wiesner et al., "Let's Wait Awhile: How Temporal Workload Shifting Can Reduce Carbon Emissions in the Cloud", Middleware
    2021, doi:10.1145/3464298.3493399.
    """

    needs_carbon = True

    def series(self, fleet: FleetView) -> list[tuple[float, StepSeries]]:
        """Carbon intensities."""
        return [(place.pue, place.carbon) for place in fleet.places.places if place.carbon is not None]


class DeferToCheap(DeferTo):
    """Requests that can wait begin in the hours with the lowest price of energy within their slack.

    Rule: as defer-to-green, with the price of electricity in place of carbon intensity.

    What is charged: the wait. What it knows: the series of the scenario (`forecast`), nothing of other requests.
    """

    needs_electricity = True

    def series(self, fleet: FleetView) -> list[tuple[float, StepSeries]]:
        """Prices of electricity."""
        return [(place.pue, place.electricity) for place in fleet.places.places if place.electricity is not None]
