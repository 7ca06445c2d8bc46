"""Places for views that checkers make: three sites whose grids and tariffs change by the hour."""

from __future__ import annotations

from fleetsim.catalog.series import constant, hourly
from fleetsim.routing.places import Place, Places

ORIGINS = ("east", "middle", "west", None)
"""Where requests of checkers come from; None: nobody says."""
_NAMES = ("east", "middle", "west")


def some_places(replicas: int) -> Places:
    """Where so many replicas stand: as many sites as there are replicas, at most three."""
    names = _NAMES[: max(min(replicas, 3), 1)]
    places = [
        Place(
            name,
            1.1 + 0.1 * number,
            hourly([300.0 + 100.0 * ((hour + 8 * number) % 24) for hour in range(24)], 0.99, True, "intensity"),
            hourly([0.1 + 0.02 * ((hour + 8 * number) % 24) for hour in range(24)], 0.99, True, "price"),
        )
        for number, name in enumerate(names)
    ]
    kinds = [constant(2.0 + kind) for kind in range(5)]
    prices = [kinds[replica % 5] for replica in range(replicas)]
    return Places(places, [i % len(names) for i in range(replicas)], prices, [700.0] * replicas, _both_s)


def _both_s(origin: str | None, site: str) -> float:
    return 0.0 if origin is None else 0.001 + 0.08 * abs(_NAMES.index(origin) - _NAMES.index(site))
