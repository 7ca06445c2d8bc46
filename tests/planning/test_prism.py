"""Prism's placement: the published baseline, and the optimum against enumeration."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetsim.errors import InputError
from fleetsim.planning.prism import PlacedModel, exact, greedy, pressure_of, published_cases, score


def test_the_published_baseline_scores_20_8916() -> None:
    pressures = [greedy(models, accelerators, 80.0).pressure for accelerators, models in published_cases()]
    assert score(pressures) == pytest.approx(20.8916, abs=5e-5)
    assert score(pressures) == pytest.approx(20.891622105, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 5))
def test_the_optimum_equals_enumeration(seed: int, accelerators: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    models = [
        PlacedModel(size=float(rng.integers(10, 40)), rate=float(rng.integers(1, 10)), slo=float(rng.integers(5, 10)))
        for _ in range(count)
    ]
    found = []
    for place in product(range(accelerators), repeat=count):
        try:
            found.append(pressure_of(models, place, accelerators, 80.0))
        except ValueError:
            continue
    if not found:
        with pytest.raises(InputError, match="do not fit"):
            exact(models, accelerators, 80.0)
        return
    placement, bound = exact(models, accelerators, 80.0)
    assert placement.pressure == pytest.approx(min(found), rel=2e-4)
    assert bound <= min(found) * (1 + 1e-9)


def test_memory_and_completeness_are_checked() -> None:
    models = [PlacedModel(size=50.0, rate=1.0, slo=1.0)] * 2
    with pytest.raises(ValueError, match="not every model"):
        pressure_of(models, [0], 2, 80.0)
    with pytest.raises(ValueError, match="holds 100 of 80 GB"):
        pressure_of(models, [0, 0], 2, 80.0)
    with pytest.raises(InputError, match="no accelerator has 50 GB left for model 1"):
        greedy(models, 1, 80.0)
