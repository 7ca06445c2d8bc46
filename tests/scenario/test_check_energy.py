"""Checks of what energy and machines cost, and of sites."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fleetsim.errors import Finding, ScenarioError
from fleetsim.experiment.check import check_scenario
from fleetsim.scenario.load import load_scenario

from .conftest import SMALL

Check = Callable[..., list[Finding]]


@pytest.fixture
def check(write: Callable[..., Path]) -> Check:
    def found(*overrides: str, text: str = SMALL) -> list[Finding]:
        return check_scenario(load_scenario(write(text), overrides))

    return found


def test_series_and_listed_prices_are_clean(check: Check) -> None:
    assert (
        check(
            "energy={carbon_intensity: {grid: spain, season: summer, begin_hour: 7}, electricity_price: {grid: belgium}}",
            "pools[0].price={term: spot, region: eu-north1}",
        )
        == check("energy={embodied: {per_accelerator: 150 kg}}")
        == []
    )


@pytest.mark.parametrize(
    ("override", "path", "message", "hint"),
    [
        ("energy.carbon_intensity={grid: spane}", "energy.carbon_intensity.grid", 'unknown grid "spane"', "spain"),
        (
            "energy.carbon_intensity={grid: belgium}",
            "energy.carbon_intensity.grid",
            "only the price of energy is known",
            "",
        ),
        ("energy.electricity_price={file: no.csv}", "energy.electricity_price.file", "cannot be read", ""),
        (
            "energy={carbon_intensity: {hourly: [300, 200]}}|run.horizon=3 h",
            "energy.carbon_intensity",
            "the series ends after 2 h, the run lasts 3 h at least",
            "`repeat: true`",
        ),
        (
            "pools[0].price={hourly: [3, 2]}|run.horizon=3 h",
            "pools[0].price",
            "the series ends after 2 h, the run lasts 3 h at least",
            "",
        ),
        ("pools[0].price={term: spot, region: mars}", "pools[0].price", 'no region "mars"', "eu-north1"),
        ("energy.embodied={}", "energy.embodied", "nobody says what making one h100-sxm emits", "150 kg"),
    ],
)
def test_what_cannot_be_priced(check: Check, override: str, path: str, message: str, hint: str) -> None:
    (found,) = check(*override.split("|"))
    assert (found.path, found.severity) == (path, "error")
    assert message in found.message
    assert hint in found.hint
    assert found.line is None or found.line > 0


@pytest.mark.parametrize(
    ("override", "path", "message"),
    [
        ("energy.carbon_intensity=380", "energy.carbon_intensity", "has no unit"),
        ("energy.carbon_intensity={}", "energy.carbon_intensity", "needs one of hourly, grid and file"),
        ("energy.carbon_intensity={hourly: [1, -2]}", "energy.carbon_intensity", "not below 0"),
        ("energy.carbon_intensity={hourly: [1], unit: g}", "energy.carbon_intensity", 'unknown unit "g"'),
        ("energy.carbon_intensity={hourly: [one]}", "energy.carbon_intensity.hourly[0]", "expected a number"),
        ("energy.carbon_intensity={grids: spain}", "energy.carbon_intensity.grids", 'unknown key "grids"'),
        ("energy.carbon_intensity={grid: spain, season: dry}", "energy.carbon_intensity.season", "must be one of"),
        ("energy.carbon_intensity=[300]", "energy.carbon_intensity", "expected a carbon intensity such as 380 g/kWh"),
        ("pools[0].price={term: monthly}", "pools[0].price.term", "must be one of"),
    ],
)
def test_what_is_no_series(write: Callable[..., Path], override: str, path: str, message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        load_scenario(write(SMALL), (override,))
    (found,) = caught.value.findings
    assert found.path == path
    assert message in found.message


# --- sites ----------------------------------------------------------------------------------------------------------------

SITES = """\
schema: 1
name: sites
workload:
  kind: synthetic
  requests: 10
  origin: eu
  arrivals: {process: poisson, rate: 1 req/s}
  prompt_tokens: {distribution: fixed, value: 100}
  output_tokens: {distribution: fixed, value: 10}
gateway: {router: nearest-site}
sites:
  eu: {rtt: {us: 90 ms}, carbon_intensity: {grid: spain}}
  us: {carbon_intensity: {grid: california}}
pools:
  - {name: a, site: eu, llm: llama-3.1-8b, accelerator: h100-sxm}
  - {name: b, site: us, llm: llama-3.1-8b, accelerator: h100-sxm}
"""


def test_sites_are_clean(check: Check) -> None:
    assert check(text=SITES) == []


@pytest.mark.parametrize(
    ("override", "path", "message", "hint"),
    [
        ("pools[0].site=eur", "pools[0].site", 'no site "eur"', 'did you mean "eu"?'),
        ("gateway.site=mars", "gateway.site", 'no site "mars"', "Known sites: eu, us"),
        ("workload.origin=asia", "workload.origin", 'no site "asia"', ""),
        ("tenants={t: {origin: asia}}", "tenants.t.origin", 'no site "asia"', ""),
        ("sites.eu.rtt={us: 90 ms, asia: 1 s}", "sites.eu.rtt.asia", 'no site "asia"', ""),
        (
            "sites.asia={carbon_intensity: {grid: france}}",
            "sites.eu",
            "no round trip between eu and asia",
            "{asia: 80 ms}",
        ),
        ("sites.us.rtt={eu: 80 ms}", "sites.eu.rtt.us", "takes 0.09 s here and 0.08 s there", "once"),
        ("sites.us.rtt={us: 80 ms}", "sites.us.rtt.us", "no way off itself", "local_rtt"),
        ("sites.us.carbon_intensity=null", "sites.us", "us has none", "energy.carbon_intensity"),
        ("gateway.router=cheapest-site|sites.eu.pue=1.1", "", "", ""),
    ],
)
def test_sites_that_do_not_fit(check: Check, override: str, path: str, message: str, hint: str) -> None:
    found = [f for f in check(*override.split("|"), text=SITES) if f.severity == "error"]
    if not path:
        assert found == []
        return
    assert path in [f.path for f in found]
    (first,) = [f for f in found if f.path == path]
    assert message in first.message
    assert hint in first.hint


@pytest.mark.parametrize(
    ("override", "path", "message", "severity"),
    [
        ("gateway.router=nearest-site", "gateway.router", "chooses between sites, and the scenario has none", "error"),
        (
            "gateway.admission=defer-to-green",
            "gateway.admission",
            "goes by the carbon intensity, and the scenario states none",
            "error",
        ),
        (
            "gateway.admission=defer-to-cheap|energy.electricity_price=0.1 USD/kWh",
            "gateway.admission",
            "which never changes: nobody is put off",
            "warning",
        ),
        ("pools[0].site=eu", "pools[0].site", 'no site "eu"', "error"),
    ],
)
def test_policies_that_lack_what_they_need(check: Check, override: str, path: str, message: str, severity: str) -> None:
    found = [f for f in check(*override.split("|")) if f.path == path]
    assert [(f.severity, message in f.message) for f in found] == [(severity, True)]


def test_a_pool_without_a_site(check: Check) -> None:
    found = check(text=SITES.replace("name: b, site: us", "name: b"))
    assert [(f.path, f.line) for f in found] == [("pools[1]", 16)]
    assert 'pool "b" stands nowhere' in found[0].message


def test_names_of_sites_are_plain(write: Callable[..., Path]) -> None:
    with pytest.raises(ScenarioError, match="sites"):
        load_scenario(write(SITES.replace("  us: {carbon", '  "u:s": {carbon')))
