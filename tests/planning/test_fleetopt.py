"""FleetOpt's two models, and the 1/W law."""

from __future__ import annotations

from typing import Any

import pytest

from fleetsim.errors import InputError
from fleetsim.planning.fleetopt import StatedFleetOpt, StepProfile
from fleetsim.planning.problems import load_problem

H100 = StepProfile.model_validate(
    {
        "base": "4 ms",
        "per_request": "0.32 ms",
        "chunk_tokens": 1024,
        "kv_blocks": 65536,
        "max_slots": 256,
        "price": "4.02 USD/h",
        "idle": "300 W",
        "nominal": "600 W",
        "midpoint": 4.2,
    }
)


def stated(**changes: Any) -> StatedFleetOpt:
    problem = load_problem("embedded:plans/fleetopt").problem.model_dump(mode="json", exclude_none=True)
    problem |= changes
    problem = {key: value for key, value in problem.items() if value is not None}
    found = load_problem({"name": "f", "problem": problem}).problem
    assert isinstance(found, StatedFleetOpt)
    return found


def test_the_codes_model_says_18_and_6() -> None:
    plan = stated().solve()
    assert plan.figures["gamma"] == 1.2
    assert (plan.figures["replicas_short"], plan.figures["replicas_long"]) == (18, 6)
    assert plan.figures["cost_usd_per_y"] == pytest.approx(464_600, abs=50)
    uncompressed = stated(gammas=[1.0]).solve()
    assert (uncompressed.figures["replicas_short"], uncompressed.figures["replicas_long"]) == (18, 10)


def test_the_papers_model_says_62_60_and_89() -> None:
    paper = {"version": "paper", "drawn": None, "compressed_share": 0.5}
    plain = stated(**paper, gammas=[1.0]).solve().figures
    assert (plain["replicas_short"], plain["replicas_long"]) == (49, 13)
    assert stated(**paper, gammas=[1.3]).solve().figures["replicas"] == pytest.approx(60, abs=2)
    assert plain["replicas_homogeneous"] == 89
    growth = {50: 18, 100: 31, 150: 46, 200: 60, 250: 73, 300: 88}
    for rate, published in growth.items():
        replicas = stated(**paper, rate=f"{rate} req/s", gammas=[1.3]).solve().figures["replicas"]
        assert replicas == pytest.approx(published, abs=3)


def test_draws_come_near_the_integral() -> None:
    drawn, exact = stated(), stated(drawn=None)
    one, two = drawn.candidate(6144, 1.2), exact.candidate(6144, 1.2)
    assert one.short.service_s == pytest.approx(two.short.service_s, rel=0.04)
    assert one.long.service_s == pytest.approx(two.long.service_s, rel=0.04)
    assert one.short.service_s != two.short.service_s


@pytest.mark.parametrize(
    ("context", "slots", "published"),
    [
        (2048, 512, 35.0),
        (4096, 256, 17.6),
        (8192, 128, 9.0),
        (16384, 64, 4.7),
        (32768, 32, 2.6),
        (65536, 16, 1.5),
        (131072, 8, 0.9),
    ],
)
def test_tokens_per_watt_halve_when_windows_double(context: int, slots: int, published: float) -> None:
    by_memory = H100.model_copy(update={"max_slots": 10**9})
    assert by_memory.slots(context) == slots
    assert by_memory.step_s(slots, context / 2) == pytest.approx(24.48e-3)
    assert by_memory.tokens_per_joule(context) == pytest.approx(published, abs=0.05)


def test_power_curve_of_the_h100() -> None:
    expected = {1: 304, 8: 369, 16: 435, 32: 507, 64: 557, 128: 583, 256: 593}
    for batch, watts in expected.items():
        assert H100.power_w(batch) == pytest.approx(watts, abs=0.5)


def test_bad_histograms_are_told() -> None:
    for lengths, message in (
        ([[10, 0.5]], "end at 1"),
        ([[10, 0.5], [5, 1.0]], "must rise"),
        ([[5, 0.6], [9, 0.5]], "fall"),
    ):
        with pytest.raises(InputError, match=message):
            stated(lengths=lengths)
