"""What a second of a replica and a joule at its site cost, in money and in greenhouse gases, over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

from fleetsim.catalog.accelerator import Accelerator
from fleetsim.catalog.price import price_of
from fleetsim.catalog.series import StepSeries, series_of
from fleetsim.errors import DataError, Finding
from fleetsim.fleet.pool import Pool
from fleetsim.fleet.ways import Ways
from fleetsim.routing.places import Place, Places
from fleetsim.scenario import schema
from fleetsim.scenario.timed import Series
from fleetsim.units import UNITS

KWH_J = UNITS["energy"]["kWh"]


@dataclass(frozen=True, slots=True)
class EnergyPrices:
    """What energy costs at a place."""

    pue: float
    carbon: StepSeries | None
    """[g/kWh]; None where nobody says."""
    electricity: StepSeries | None
    """[USD/kWh]; None where nobody says."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a replica costs from some time on."""

    usd_per_s: float
    """While it is on [USD/s]."""
    embodied_g_per_s: float
    """While it is on [g/s]."""
    pue: float
    g_per_j: float
    """Of the site's energy [g/J]."""
    usd_per_j: float
    """Of the site's energy [USD/J]."""


class Tariffs:
    """Prices and intensities of a scenario by pool and by site.

    Parameters
    ----------
    scenario : Scenario
        The validated scenario.
    base_dir : Path
        Folder that names of files start from.
    accelerators : sequence of Accelerator
        Of each pool.

    Raises
    ------
    DataError
        If a series cannot be read, or the catalogue does not know a price or what making an accelerator emits.
    """

    def __init__(self, scenario: schema.Scenario, base_dir: Path, accelerators: Sequence[Accelerator]) -> None:
        energy = scenario.energy
        self.default = _prices(energy.pue, energy.carbon_intensity, energy.electricity_price, base_dir, "energy")
        """Where no site says otherwise."""
        self.sites = {
            name: _prices(
                energy.pue if site.pue is None else site.pue,
                energy.carbon_intensity if site.carbon_intensity is None else site.carbon_intensity,
                energy.electricity_price if site.electricity_price is None else site.electricity_price,
                base_dir,
                f"sites.{name}",
            )
            for name, site in scenario.sites.items()
        }
        self.energy = [self.sites.get(pool.site or "", self.default) for pool in scenario.pools]
        """Of each pool."""
        self._gateway = scenario.gateway.site
        self._first_site = next(iter(self.sites), None)
        self.prices: list[StepSeries] = []
        """Of one accelerator of each pool [USD/h]."""
        self._chips = [pool.parallelism.accelerators for pool in scenario.pools]
        self._embodied_g_per_s: list[float] = []
        for number, (pool, accelerator) in enumerate(zip(scenario.pools, accelerators, strict=True)):
            self.prices.append(price_of(pool.price, accelerator, base_dir, f"pools[{number}].price"))
            made_g = 0.0 if energy.embodied is None else _embodied_g(energy.embodied, accelerator)
            life_s = 1.0 if energy.embodied is None else energy.embodied.lifetime
            self._embodied_g_per_s.append(made_g / life_s * pool.parallelism.accelerators)
        self.replica_prices = [series.times(chips) for series, chips in zip(self.prices, self._chips, strict=True)]
        """Of one replica of each pool [USD/h]."""
        self.reports_carbon = any(prices.carbon is not None for prices in self.energy)
        self.reports_electricity = any(prices.electricity is not None for prices in self.energy)
        self.reports_embodied = energy.embodied is not None

    @property
    def constant(self) -> bool:
        """Whether one price of each pool and one of energy hold everywhere and for ever."""
        return not (self.series() or self.sites or self.reports_embodied)

    def series(self) -> list[StepSeries]:
        """All that change or end."""
        found = list(self.prices)
        for prices in (*self.energy, *self.sites.values()):
            found += [series for series in (prices.carbon, prices.electricity) if series is not None]
        return [series for series in dict.fromkeys(found) if not series.constant]

    def next_change_s(self, now_s: float) -> float:
        """When any of them changes or ends next [s]."""
        return min([series.next_change_s(now_s) for series in self.series()], default=inf)

    def require(self, time_s: float) -> None:
        """Refuse a run that goes on at `time_s` if a series does not.

        Raises
        ------
        DataError
            If one ends by then.
        """
        for series in self.series():
            if series.known_s <= time_s:
                raise series.ended()

    def rates(self, pool: int, now_s: float) -> Rates:
        """What a replica of a pool costs from now on."""
        usd_per_h = self.replica_prices[pool].at(now_s)
        return _rates(self.energy[pool], usd_per_h / 3600.0, self._embodied_g_per_s[pool], now_s)

    def gateway_rates(self, origin: str | None, now_s: float) -> Rates:
        """What decisions about a request from `origin` cost now: where the gateway stands, or the front end that took it."""
        site = self._gateway or origin or self._first_site or ""
        return _rates(self.sites.get(site, self.default), 0.0, 0.0, now_s)


def _prices(
    pue: float, carbon: float | Series | None, electricity: float | Series | None, base_dir: Path, where: str
) -> EnergyPrices:
    return EnergyPrices(
        pue,
        None if carbon is None else series_of(carbon, "carbon intensity", base_dir, f"{where}.carbon_intensity"),
        None
        if electricity is None
        else series_of(electricity, "price of energy", base_dir, f"{where}.electricity_price"),
    )


def _rates(prices: EnergyPrices, usd_per_s: float, embodied_g_per_s: float, now_s: float) -> Rates:
    carbon, electricity = prices.carbon, prices.electricity
    return Rates(
        usd_per_s,
        embodied_g_per_s,
        prices.pue,
        0.0 if carbon is None else carbon.at(now_s) / KWH_J,
        0.0 if electricity is None else electricity.at(now_s) / KWH_J,
    )


def _embodied_g(embodied: schema.Embodied, accelerator: Accelerator) -> float:
    each_g = embodied.per_accelerator or accelerator.embodied_g
    if each_g is None:
        raise DataError(
            Finding(
                f"nobody says what making one {accelerator.name} emits",
                hint="give energy.embodied.per_accelerator, such as 150 kg",
            )
        )
    return each_g


def places_of(
    tariffs: Tariffs,
    ways: Ways | None,
    pools: Sequence[Pool],
    chosen: Sequence[int],
    spent_g: Callable[[], float] | None = None,
) -> Places:
    """What policies may know of where some replicas stand.

    Parameters
    ----------
    tariffs : Tariffs
        Of the scenario.
    ways : Ways or None
        Between its sites; None where it has none.
    pools : sequence of Pool
        Of each replica of the fleet.
    chosen : sequence of int
        The replicas, by their numbers over the fleet.
    spent_g : callable, optional
        Reads their meters: greenhouse gases of their steps until now [g].
    """
    own = [pools[i] for i in chosen]
    names = [name for name in tariffs.sites if any(pool.config.site == name for pool in own)] or [""]
    prices = [tariffs.sites.get(name, tariffs.default) for name in names]
    return Places(
        [Place(name, p.pue, p.carbon, p.electricity) for name, p in zip(names, prices, strict=True)],
        [names.index(pool.config.site or "") for pool in own],
        [tariffs.replica_prices[pool.index] for pool in own],
        [pool.accelerator.power.limit_w * pool.config.parallelism.accelerators + pool.host_busy_w for pool in own],
        None if ways is None else ways.both_s,
        spent_g if tariffs.reports_carbon else None,
    )
