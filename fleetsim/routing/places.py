"""Where replicas stand, how far that is, and what energy and machines cost there: what routers and admissions see of it.

Prices and intensities are read at a time, which may lie ahead: tariffs and day-ahead prices are published, and forecasts of carbon
intensity are sold. A policy that looks ahead says so, and whether it takes what will be, or what was a day before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from fleetsim.catalog.series import StepSeries


@dataclass(frozen=True, slots=True)
class Place:
    """A site; the whole fleet is one, where the scenario has none."""

    name: str
    pue: float
    carbon: StepSeries | None
    """Carbon intensity of its grid [g/kWh]."""
    electricity: StepSeries | None
    """Price of its energy [USD/kWh]."""

    @property
    def known_s(self) -> float:
        """Until when both are known [s]."""
        return min([series.known_s for series in (self.carbon, self.electricity) if series is not None], default=inf)


class Places:
    """Places of the replicas of a view.

    Parameters
    ----------
    places : sequence of Place
        All sites with replicas of the view, in the order of the scenario.
    place_of : sequence of int
        Number of the place of each replica.
    usd_per_h : sequence of StepSeries
        Price of each replica, the same object for those of a kind [USD/h].
    power_w : sequence of float
        What each replica and its servers draw at their limits, without cooling [W].
    both_s : callable, optional
        Time to a site by name and back from there, all the way from an origin [s]; none where there are no sites.
    spent_g : callable, optional
        Greenhouse gases of the steps of all these replicas until now [g].
    """

    __slots__ = ("_both_s", "_power_w", "_usd_per_h", "kinds", "members", "place_of", "places", "spent_g")

    def __init__(
        self,
        places: Sequence[Place],
        place_of: Sequence[int],
        usd_per_h: Sequence[StepSeries],
        power_w: Sequence[float],
        both_s: Callable[[str | None, str], float] | None = None,
        spent_g: Callable[[], float] | None = None,
    ) -> None:
        self.places = tuple(places)
        self.place_of = tuple(place_of)
        """Number of the place of each replica."""
        self.members = tuple(
            tuple(i for i, place in enumerate(place_of) if place == number) for number in range(len(places))
        )
        """Replicas at each place."""
        """Replicas at each place."""
        first: dict[tuple[int, int, float], int] = {}
        for i, place in enumerate(place_of):
            first.setdefault((place, id(usd_per_h[i]), power_w[i]), i)
        self.kinds = tuple(
            tuple(i for (place, _, _), i in first.items() if place == number) for number in range(len(places))
        )
        """One replica of each price and power at each place."""
        self._usd_per_h = tuple(usd_per_h)
        self._power_w = tuple(power_w)
        self._both_s = both_s
        self.spent_g = spent_g
        """Reads the replicas' meters: greenhouse gases of their steps until now, with servers and cooling; None without any."""

    def way_s(self, origin: str | None, place: int) -> float:
        """Time that a place adds to the latency of a request: there and back, by way of the gateway [s]."""
        return 0.0 if self._both_s is None else self._both_s(origin, self.places[place].name)

    def carbon(self, place: int, time_s: float) -> float:
        """Greenhouse gases of a kilowatt-hour of its machines at a time, cooling included; 0 where nobody says [g/kWh]."""
        here = self.places[place]
        return 0.0 if here.carbon is None else here.pue * here.carbon.at(time_s)

    def electricity(self, place: int, time_s: float) -> float:
        """Price of a kilowatt-hour of its machines at a time, cooling included; 0 where nobody says [USD/kWh]."""
        here = self.places[place]
        return 0.0 if here.electricity is None else here.pue * here.electricity.at(time_s)

    def usd_per_h(self, replica: int, time_s: float) -> float:
        """Price of a replica, and of its energy at full power, at a time [USD/h]."""
        energy = self.electricity(self.place_of[replica], time_s) * self._power_w[replica] / 1000.0
        return self._usd_per_h[replica].at(time_s) + energy
