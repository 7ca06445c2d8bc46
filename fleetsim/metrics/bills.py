"""What machines cost by pool and site: accelerators, energy, carbon, and the part of each that no request is charged for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fleetsim.fleet.ledger import Ledger
from fleetsim.fleet.pool import Pool
from fleetsim.fleet.supply import idle_j as idle_energy_j
from fleetsim.scenario.schema import Energy
from fleetsim.units import UNITS

KWH_J = UNITS["energy"]["kWh"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What something cost; None for what the scenario says nothing of."""

    usd: float
    """Accelerators [USD]."""
    site_j: float
    """Energy with servers and cooling [J]."""
    carbon_g: float | None
    """Of that [g]."""
    electricity_usd: float | None
    """For that [USD]."""
    embodied_g: float | None = None
    """Share of what making the accelerators emitted [g]."""


@dataclass(frozen=True, slots=True)
class Meters:
    """What the machines of a run cost."""

    pools: Sequence[tuple[Cost, Cost]]
    """Of each pool: all of it, and what is idle of that."""
    gateway: Cost
    """Decisions of the gateway."""

    def whole(self) -> tuple[Cost, Cost]:
        """Of all pools and the gateway: all of it, and what is idle of that."""
        return added([*(whole for whole, _ in self.pools), self.gateway]), added([idle for _, idle in self.pools])


def added(costs: Iterable[Cost]) -> Cost:
    """Several costs as one; None stays None."""
    rows = list(costs)

    def each(name: str) -> float | None:
        known = [value for value in (getattr(cost, name) for cost in rows) if value is not None]
        return sum(known) if known else None

    return Cost(
        each("usd") or 0.0, each("site_j") or 0.0, each("carbon_g"), each("electricity_usd"), each("embodied_g")
    )


def meters(pools: Sequence[Pool], energy: Energy, ledger: Ledger | None, gateway_j: float, end_s: float) -> Meters:
    """What all machines cost until the end of a run.

    Parameters
    ----------
    pools : sequence of Pool
        The fleet.
    energy : Energy
        What energy costs, where nothing changes.
    ledger : Ledger, optional
        What charged at prices that change.
    gateway_j : float
        Energy of the gateway's decisions [J].
    end_s : float
        Time simulated [s].
    """
    if ledger is None:
        return Meters([_constant(pool, energy, end_s) for pool in pools], constant_cost(0.0, gateway_j, energy))
    tariffs, found = ledger.tariffs, []

    def cost(bill: object, idle: object | None) -> Cost:
        def of(name: str, reported: bool) -> float | None:
            return float(getattr(bill, name) + (getattr(idle, name) if idle is not None else 0.0)) if reported else None

        return Cost(
            of("usd", True) or 0.0,
            of("site_j", True) or 0.0,
            of("carbon_g", tariffs.reports_carbon),
            of("electricity_usd", tariffs.reports_electricity),
            of("embodied_g", tariffs.reports_embodied),
        )

    for pool in pools:
        busy, idle = ledger.total([replica.index for replica in pool.replicas], end_s)
        found.append((cost(busy, idle), cost(idle, None)))
    return Meters(found, cost(ledger.gateway, None))


def _constant(pool: Pool, energy: Energy, end_s: float) -> tuple[Cost, Cost]:
    usd = idle_usd = used_j = idle_j = 0.0
    for replica, life in zip(pool.replicas, pool.lives, strict=True):
        meter, on_s = replica.meter(end_s), life.on_s(end_s)
        idle_s = on_s - meter.busy_s
        seat = pool.seats.get(replica.index)
        lost_j = idle_energy_j(pool, replica, life, end_s) + pool.host_idle_w * idle_s
        lost_j += 0.0 if seat is None else seat.loading_j(end_s)
        usd += pool.price_usd_per_h * on_s / 3600.0
        idle_usd += pool.price_usd_per_h * idle_s / 3600.0
        idle_j += lost_j
        used_j += lost_j + meter.energy_j + pool.host_busy_w * meter.busy_s
    return constant_cost(usd, used_j, energy), constant_cost(idle_usd, idle_j, energy)


def constant_cost(usd: float, energy_j: float, energy: Energy) -> Cost:
    """Money for accelerators and energy of accelerators and servers, at prices that hold everywhere and for ever."""
    site_j = energy.pue * energy_j
    carbon, price = energy.carbon_intensity, energy.electricity_price
    return Cost(
        usd,
        site_j,
        site_j / KWH_J * carbon if isinstance(carbon, float) else None,
        site_j / KWH_J * price if isinstance(price, float) else None,
    )
