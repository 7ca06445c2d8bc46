"""Clocks, caps, temperature and the logistic curve over step-time models: exact leaps, and the laws they keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.engine.api import StepTimeModel
from fleetsim.engine.steptime.governor import STRETCH, clocked
from fleetsim.errors import ScenarioError
from fleetsim.experiment.run import run
from fleetsim.fleet.pool import describe_pool
from fleetsim.scenario.schema import Pool
from fleetsim.testing import check_step_time_model
from tests.engine.test_leaps import assert_same, run_both, scenarios
from tests.engine.test_steptime_affine import NUMBERS

ANYTHING = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
DENSE = {"llm": "llama-3.1-8b", "accelerator": "h100-sxm"}
POOLS: dict[str, dict[str, Any]] = {
    "dense": DENSE,
    "split": {**DENSE, "llm": "llama-3.1-70b", "parallelism": {"tp": 4}},
    "experts over ranks": {"llm": "qwen3-30b-a3b", "accelerator": "b200-sxm", "parallelism": {"dp": 2, "ep": 2}},
    "windows": {"llm": "gemma-3-12b", "accelerator": "a100-80"},
    "affine": {**DENSE, "engine": {"step_time": {"model": "affine", **NUMBERS}}},
}
STEPS = [(64, 64, 0, 0, 0, 64), (1, 1, 0, 0, 0, 1), (300, 41, 900, 700, 1, 40), (2048, 1, 2_000_000, 2048, 1, 0)]


def model(pool: dict[str, Any], **power: Any) -> StepTimeModel:
    config = Pool.model_validate({"name": "p", **pool, "power": power})
    return describe_pool(config, 0, Path()).model


def ranks(pool: dict[str, Any]) -> int:
    return int(pool.get("parallelism", {}).get("dp", 1))


def cap_of(name: str, share: float) -> str:
    """A cap between an accelerator's idle power and its limit."""
    power = load_accelerator(name).power
    return f"{power.idle_w + share * (power.limit_w - power.idle_w):.3f} W"


def mean_power_w(made: StepTimeModel, step: tuple[int, ...], ctx: int, dp: int) -> float:
    """Power of a replica whose ranks all do the same step, as the meter has it."""
    time_s, energy_j = made.mixed(*step, ctx, step[0] * dp)
    return min(made.static_w * time_s + dp * energy_j, made.limit_w * time_s) / time_s


@ANYTHING
@given(
    scenario=scenarios(),
    share=st.floats(0.05, 0.95),
    clock=st.sampled_from([0.3, 0.7, 1.0]),
    affine=st.booleans(),
    curve=st.sampled_from(["roofline", "roofline", "logistic"]),
)
def test_leaps_stay_exact(
    scenario: dict[str, Any], share: float, clock: float, affine: bool, curve: str, tmp_path: Path
) -> None:
    """Under every cap and clock, with every model, the step-by-step run gives the same."""
    pools = []
    for pool in scenario["pools"]:
        chip = "h100-sxm" if curve == "logistic" else pool["accelerator"]
        power = {"cap": cap_of(chip, share), "clock_ratio": clock, "curve": curve, "host_busy": "90 W"}
        engine = {**pool["engine"], **({"step_time": {"model": "affine", **NUMBERS}} if affine else {})}
        pools.append({**pool, "accelerator": chip, "engine": engine, "power": power})
    energy = {"pue": 1.2, "carbon_intensity": "300 g/kWh"}
    assert_same(*run_both({**scenario, "pools": pools, "energy": energy}, tmp_path))


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_a_cap_is_never_exceeded_and_reached_where_it_bites(name: str, share: float) -> None:
    pool = POOLS[name]
    chips = Pool.model_validate({"name": "p", **pool}).parallelism.accelerators
    cap = cap_of(pool["accelerator"], share)
    cap_w = float(cap.split()[0]) * chips
    plain, capped = model(pool), model(pool, cap=cap)
    bites = 0
    for step in STEPS:
        for ctx in (step[5], step[5] * 50, step[5] * 3000):
            usual = mean_power_w(plain, step, ctx, ranks(pool))
            found = mean_power_w(capped, step, ctx, ranks(pool))
            assert found <= cap_w * (1 + 1e-12)
            time, usual_time = (m.mixed(*step, ctx, step[0] * ranks(pool))[0] for m in (capped, plain))
            if usual <= cap_w:
                assert (time, found) == (usual_time, usual)
            else:
                bites += 1
                assert found == pytest.approx(cap_w)
                unlimited = (
                    plain.static_w + ranks(pool) * plain.mixed(*step, ctx, step[0] * ranks(pool))[1] / usual_time
                )
                longer = 1 + STRETCH * (unlimited - cap_w) / (cap_w - plain.idle_w)
                assert time / usual_time == pytest.approx(longer)
    assert bites or share > 0.3


@pytest.mark.parametrize("name", POOLS)
def test_a_lower_clock_is_never_faster_and_takes_less_energy_per_operation(name: str) -> None:
    pool = POOLS[name]
    made = [model(pool, clock_ratio=ratio) for ratio in (1.0, 0.8, 0.6, 0.4)]
    for step in STEPS:
        for ctx in (step[5], step[5] * 1000):
            times, energies = zip(*(m.mixed(*step, ctx, step[0] * ranks(pool)) for m in made), strict=True)
            assert list(times) == sorted(times)
            assert energies[2] < energies[0]
    assert [m.static_w for m in made] == sorted((m.static_w for m in made), reverse=True)
    assert len({m.idle_w for m in made}) == 1


def test_compute_bound_steps_slow_down_with_the_clock_and_memory_bound_ones_hardly_do() -> None:
    usual, half = model(DENSE), model(DENSE, clock_ratio=0.5)
    prompt, decode = STEPS[3], STEPS[1]
    assert half.mixed(*prompt, 0, 2048)[0] / usual.mixed(*prompt, 0, 2048)[0] > 1.7
    assert half.mixed(*decode, 100, 1)[0] / usual.mixed(*decode, 100, 1)[0] < 1.05


def test_energy_per_operation_follows_the_voltage() -> None:
    chip = load_accelerator("h100-sxm")
    for ratio, voltage in ((0.9, 0.9), (0.6, 0.6), (0.3, 0.6)):
        slow = clocked(chip, ratio)
        one, two = (c.power.compute_w / c.peak_flop_per_s["bf16"] for c in (chip, slow))
        assert two / one == pytest.approx(voltage**2)
        assert slow.power.memory_w == chip.power.memory_w


def test_prompts_at_half_the_limit_last_as_long_as_measured() -> None:
    """Splitwise: prompts of Llama 2 70B on eight H100 capped at 350 W take 1.30 times as long, decode steps no longer."""
    pool = {"llm": "llama-2-70b", "accelerator": "h100-sxm", "parallelism": {"tp": 8}}
    usual, capped = model(pool), model(pool, cap="350 W")
    prompt = (2048, 1, 2048 * 2049 // 2, 2048, 1, 0)
    assert capped.mixed(*prompt, 0, 2048)[0] / usual.mixed(*prompt, 0, 2048)[0] == pytest.approx(1.30, abs=0.07)
    assert capped.decode(1, 1000, 1).time_s / usual.decode(1, 1000, 1).time_s < 1.05


def test_heat_leaks() -> None:
    cool, usual, hot = (model(DENSE, temperature=f"{t} C") for t in (40, 60, 85))
    assert cool.static_w < usual.static_w < hot.static_w
    assert cool.idle_w < usual.idle_w < hot.idle_w
    assert cool.decode(8, 800, 8) == hot.decode(8, 800, 8)
    assert hot.static_w / usual.static_w == pytest.approx(1.1)


def test_the_logistic_curve_is_the_power() -> None:
    curve = load_accelerator("h100-sxm").power.logistic
    assert curve is not None
    made = model(DENSE, curve="logistic")
    for batch in (1, 8, 64, 512):
        assert mean_power_w(made, (batch, batch, 0, 0, 0, batch), batch * 700, 1) == pytest.approx(curve.watts(batch))
    assert curve.watts(8) < curve.watts(64) < curve.watts(512)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize(
    "power", [{"cap": 0.2}, {"clock_ratio": 0.5}, {"cap": 0.1, "clock_ratio": 0.7, "temperature": "80 C"}]
)
def test_the_public_checker_passes(name: str, power: dict[str, Any]) -> None:
    pool = POOLS[name]
    if "cap" in power:
        power = {**power, "cap": cap_of(pool["accelerator"], power["cap"])}
    check_step_time_model(model(pool, **power))


@pytest.mark.parametrize(
    ("chip", "power", "message"),
    [
        ("h100-sxm", {"cap": "60 W"}, "is no cap for h100-sxm"),
        ("h100-sxm", {"cap": "900 W"}, "is no cap for h100-sxm"),
        ("l4", {"curve": "logistic"}, "has no logistic power curve"),
        ("h100-sxm", {"cap": "350"}, "has no unit"),
        ("h100-sxm", {"clock_ratio": 1.2}, "clock_ratio"),
        ("h100-sxm", {"temperature": "350 W"}, "unit of power"),
    ],
)
def test_impossible_powers_are_told(chip: str, power: dict[str, Any], message: str, tmp_path: Path) -> None:
    workload = {
        "kind": "synthetic",
        "requests": 3,
        "arrivals": {"process": "poisson", "rate": "1 req/s"},
        "prompt_tokens": {"distribution": "fixed", "value": 10},
        "output_tokens": {"distribution": "fixed", "value": 10},
    }
    pool = {"name": "p", "llm": "llama-3.1-8b", "accelerator": chip, "power": power}
    with pytest.raises(ScenarioError, match=message):
        run({"schema": 1, "name": "bad", "workload": workload, "pools": [pool]}, out=tmp_path / "out")
