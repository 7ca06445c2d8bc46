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
