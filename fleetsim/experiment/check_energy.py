"""Checks of what energy and machines cost, and of sites: part of `check.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.catalog.price import price_of
from fleetsim.catalog.series import StepSeries, series_of
from fleetsim.errors import DataError, Finding, nearest
from fleetsim.scenario.load import LoadedScenario
from fleetsim.scenario.schema import MixWorkload, SyntheticWorkload
from fleetsim.scenario.timed import Price, Series
from fleetsim.units import show

Findings = Iterator[Finding]
Where = tuple[str | int, ...]
_ENERGY = (("carbon_intensity", "carbon intensity"), ("electricity_price", "price of energy"))


def series_can_be_used(loaded: LoadedScenario) -> Findings:
    """Series that cannot be read, or that end before the run is sure to."""
    scenario = loaded.scenario
    blocks = [(("energy",), scenario.energy), *((("sites", name), site) for name, site in scenario.sites.items())]
    longest_s = _least_s(loaded)
    for where, block in blocks:
        for key, dimension in _ENERGY:
            value = getattr(block, key)
            if isinstance(value, Series):
                yield from _usable(loaded, (*where, key), value, dimension, longest_s)
    for index, pool in enumerate(scenario.pools):
        if isinstance(pool.price, Price):
            yield from _price_usable(loaded, index, longest_s)


def _least_s(loaded: LoadedScenario) -> float:
    """Time that the run lasts at least, as far as the scenario says [s]."""
    scenario = loaded.scenario
    if scenario.run.horizon is not None:
        return scenario.run.horizon
    workload = scenario.workload
    parts = workload.parts.values() if isinstance(workload, MixWorkload) else (workload,)
    lasting = [part.duration or 0.0 for part in parts if isinstance(part, SyntheticWorkload) and not part.requests]
    return max(lasting, default=0.0)


def _usable(loaded: LoadedScenario, where: Where, value: Series, dimension: str, longest_s: float) -> Findings:
    try:
        series = series_of(value, dimension, loaded.base_dir, ".".join(map(str, where)))
    except DataError as error:
        key = "grid" if value.grid is not None else "file" if value.file is not None else ""
        yield from _retold(loaded, (*where, key) if key else where, error)
        return
    yield from _long_enough(loaded, where, series, longest_s)


def _price_usable(loaded: LoadedScenario, index: int, longest_s: float) -> Findings:
    pool = loaded.scenario.pools[index]
    where = ("pools", index, "price")
    try:
        accelerator = load_accelerator(pool.accelerator)
    except DataError:
        return  # told already
    try:
        series = price_of(pool.price, accelerator, loaded.base_dir)
    except DataError as error:
        yield from _retold(loaded, where, error)
        return
    yield from _long_enough(loaded, where, series, longest_s)


def _long_enough(loaded: LoadedScenario, where: Where, series: StepSeries, longest_s: float) -> Findings:
    if series.known_s < longest_s:
        message = f"the series ends after {_time(series.known_s)}, the run lasts {_time(longest_s)} at least"
        hint = "`repeat: true` begins it again; else give a longer one, or a shorter run (`run.horizon`)"
        yield loaded.finding(where, message, hint)


def _time(seconds: float) -> str:
    return show(seconds / 3600.0, "h") if seconds >= 3600.0 else show(seconds, "s")


def _retold(loaded: LoadedScenario, where: Where, error: DataError) -> Findings:
    """Findings about a file or the catalogue, told where the scenario names it."""
    for found in error.findings:
        place = ":".join(str(part) for part in (Path(found.file).name, found.line) if part) if found.file else ""
        yield loaded.finding(where, f"{place}: {found.message}" if place else found.message, found.hint)


def embodied_is_known(loaded: LoadedScenario) -> Findings:
    """Whether somebody says what making the accelerators emits."""
    embodied = loaded.scenario.energy.embodied
    if embodied is None or embodied.per_accelerator is not None:
        return
    for pool in loaded.scenario.pools:
        try:
            accelerator = load_accelerator(pool.accelerator)
        except DataError:
            continue  # told already
        if accelerator.embodied_g is None:
            message = f"nobody says what making one {pool.accelerator} emits"
            yield loaded.finding(("energy", "embodied"), message, "give per_accelerator, such as 150 kg")


# --- sites --------------------------------------------------------------------------------------------------------------


def sites_fit(loaded: LoadedScenario) -> Findings:
    """Names of sites that there are not, pools that stand nowhere, pairs of sites without a round trip."""
    scenario = loaded.scenario
    sites = scenario.sites
    for where, name in _named(loaded):
        if name not in sites:
            hint = nearest(name, sites, "sites") if sites else "give top-level `sites: {NAME: …}`"
            yield loaded.finding(where, f'no site "{name}"', hint)
    if not sites:
        return
    for index, pool in enumerate(scenario.pools):
        if pool.site is None:
            message = f'pool "{pool.name}" stands nowhere: with `sites`, every pool has a site'
            yield loaded.finding(("pools", index), message, f"give it `site: {next(iter(sites))}`, say")
    yield from _round_trips(loaded)
    for key, _ in _ENERGY:
        given = {name: getattr(site, key) is not None for name, site in sites.items()}
        if any(given.values()) and not all(given.values()) and getattr(scenario.energy, key) is None:
            missing = next(name for name, has in given.items() if not has)
            message = f"other sites have {key}, {missing} has none: figures of the whole fleet would mean nothing"
            yield loaded.finding(("sites", missing), message, f"give it one, or one for all in `energy.{key}`")


def _named(loaded: LoadedScenario) -> Iterator[tuple[Where, str]]:
    """Every place that names a site."""
    scenario, workload = loaded.scenario, loaded.scenario.workload
    parts = workload.parts if isinstance(workload, MixWorkload) else {}
    places: list[tuple[Where, str | None]] = [
        *((("pools", index, "site"), pool.site) for index, pool in enumerate(scenario.pools)),
        (("gateway", "site"), scenario.gateway.site),
        *((("workload", "parts", name, "origin"), part.origin) for name, part in parts.items()),
        (("workload", "origin"), None if isinstance(workload, MixWorkload) else workload.origin),
        *((("classes", name, "origin"), block.origin) for name, block in scenario.classes.items()),
        *((("tenants", name, "origin"), block.origin) for name, block in scenario.tenants.items()),
        *((("sites", name, "rtt", other), other) for name, site in scenario.sites.items() for other in site.rtt),
    ]
    yield from ((where, name) for where, name in places if name is not None)


def _round_trips(loaded: LoadedScenario) -> Findings:
    sites = loaded.scenario.sites
    names = list(sites)
    for place, name in enumerate(names):
        if name in sites[name].rtt:
            yield loaded.finding(("sites", name, "rtt", name), f"{name} is no way off itself", "its own is `local_rtt`")
        for other in names[place + 1 :]:
            there, back = sites[name].rtt.get(other), sites[other].rtt.get(name)
            if there is None and back is None:
                message = f"no round trip between {name} and {other}"
                yield loaded.finding(
                    ("sites", name), message, f"give `rtt: {{{other}: 80 ms}}`, say; one way says both"
                )
            elif there is not None and back is not None and there != back:
                message = f"the round trip to {other} takes {there:g} s here and {back:g} s there"
                yield loaded.finding(("sites", name, "rtt", other), message, "say it once")


_NEEDS = (
    ("needs_carbon", "carbon_intensity", "carbon intensity"),
    ("needs_electricity", "electricity_price", "price of electricity"),
)


def policies_have_what_they_need(loaded: LoadedScenario) -> Findings:
    """Policies that go by sites, carbon or tariffs that the scenario does not state."""
    scenario = loaded.scenario
    for where, choice in (("router", scenario.gateway.router), ("admission", scenario.gateway.admission)):
        if choice is None:
            continue
        if choice.says("needs_sites") and not scenario.sites:
            message = f"{choice.name} chooses between sites, and the scenario has none"
            yield loaded.finding(("gateway", where), message, "give top-level `sites`, and each pool a `site`")
        for need, key, what in _NEEDS:
            values = [getattr(scenario.energy, key), *(getattr(site, key) for site in scenario.sites.values())]
            if not choice.says(need):
                continue
            if not any(value is not None for value in values):
                message = f"{choice.name} goes by the {what}, and the scenario states none"
                yield loaded.finding(("gateway", where), message, f"give energy.{key}, or one at each site")
            elif where == "admission" and not any(isinstance(value, Series) for value in values):
                message = f"{choice.name} waits for a lower {what}, which never changes: nobody is put off"
                yield loaded.finding(("gateway", where), message, f"give energy.{key} as a series", "warning")


CHECKS = (series_can_be_used, embodied_is_known, sites_fit, policies_have_what_they_need)
