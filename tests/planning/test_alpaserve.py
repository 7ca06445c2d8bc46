"""AlpaServe's pipelines and placements: DistServe's formulas, the paper's two models on two accelerators, and enumeration."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetsim.errors import InputError
from fleetsim.kernel.clock import Clock
from fleetsim.planning.alpaserve import Pipeline, StatedAlpaServe, served
from fleetsim.planning.distserve import first_token_mean_s
from fleetsim.planning.problems import load_problem


def stated(**changes: Any) -> StatedAlpaServe:
    model = {"size": 13, "latency": "0.4 s", "rate": "1.5 req/s", "cv": 1, "limit": "2 s"}
    problem = {"kind": "alpaserve", "accelerators": 2, "memory": 13, "models": {"a": model, "b": model}} | changes
    found = load_problem({"name": "test", "problem": problem}).problem
    assert isinstance(found, StatedAlpaServe)
    return found


@pytest.mark.parametrize(
    ("rate", "speed_up", "stages"), [(2.0, 1.0, 1), (1.25, 1.0, 1), (3.0, 1.5, 1), (4.0, 1.0, 2), (2.5, 1.0, 2)]
)
def test_the_formulas_of_the_first_token_agree_with_the_simulation_within_3_percent(
    rate: float, speed_up: float, stages: int
) -> None:
    service_s, count, means = 0.4, 200_000, []
    for seed in range(3):
        arrivals = np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate, count))
        step = np.array([[service_s / speed_up / stages]])
        took = served([Pipeline(1, stages, (0,))], step, [inf], arrivals, np.zeros(count, dtype=np.int64))
        means.append(took.mean())
    assert np.mean(means) == pytest.approx(first_token_mean_s(service_s, rate, speed_up, stages), rel=0.03)


def test_formulas_know_overload_and_their_own_limits() -> None:
    assert first_token_mean_s(0.1, 5.0) == pytest.approx(0.15)
    assert first_token_mean_s(0.1, 10.0) == inf
    assert first_token_mean_s(0.1, 5.0, stages=2) == pytest.approx(0.1 + 5 * 0.01 / (4 * (2 - 0.5)))
    with pytest.raises(ValueError, match="tensor parallelism or for a pipeline"):
        first_token_mean_s(0.1, 5.0, speed_up=2.0, stages=2)


def mean_latency_s(cv: float, overhead: float, together: bool) -> float:
    """Of two models on two accelerators, nobody refused."""
    one = stated(pipeline_overhead=overhead, requests=40_000).model_copy()
    models = {name: model.model_copy(update={"cv": cv}) for name, model in one.models.items()}
    one = one.model_copy(update={"models": models})
    groups = (Pipeline(1, 2, (0, 1)),) if together else (Pipeline(1, 1, (0,)), Pipeline(1, 1, (1,)))
    return float(served(groups, one.stages(groups), [inf, inf], *one.arrivals()).mean())


@pytest.mark.parametrize("cv", [3.0, 4.0])
def test_bursts_are_better_shared(cv: float) -> None:
    """Two models on two accelerators: with bursts a pipeline for both beats one accelerator each, overhead or not."""
    assert mean_latency_s(cv, 1.1, together=True) < mean_latency_s(cv, 1.1, together=False)


@pytest.mark.parametrize("overhead", [1.25, 1.4])
def test_even_arrivals_with_a_dear_pipeline_are_not(overhead: float) -> None:
    assert mean_latency_s(1.0, overhead, together=True) > mean_latency_s(1.0, overhead, together=False)
    assert mean_latency_s(1.0, 1.0, together=True) < mean_latency_s(1.0, 1.0, together=False)


@pytest.mark.parametrize("cv", [3, 5])
def test_the_search_puts_bursty_models_together(cv: int) -> None:
    """Weights fill one accelerator each, so that only a pipeline over both holds both."""
    model = {"size": 13, "latency": "0.4 s", "rate": "1.5 req/s", "cv": cv, "limit": "2 s"}
    problem = stated(models={"a": model, "b": model}, tensor=False, requests=2000)
    plan = problem.solve()
    assert plan.figures["pp"] == 2
    assert plan.objective > plan.figures["attainment_dedicated_ratio"] + 0.05
    best = stated(models={"a": model, "b": model}, tensor=False, requests=2000, method="exhaustive").solve()
    assert plan.objective == best.objective
    assert best.status == "optimal"


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_greedy_is_no_better_than_enumeration_and_places_what_fits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    models = {
        name: {
            "size": float(rng.integers(4, 14)),
            "latency": f"{rng.uniform(0.1, 0.5)} s",
            "rate": f"{rng.uniform(0.5, 3)} req/s",
            "cv": float(rng.uniform(0.5, 5)),
            "limit": f"{rng.uniform(0.6, 2)} s",
        }
        for name in "abc"[: int(rng.integers(1, 4))]
    }
    given_ = {"models": models, "memory": 14, "requests": 300, "seed": seed}
    greedy, best = stated(**given_), stated(**given_, method="exhaustive")
    found, optimum = greedy.solve(), best.solve()
    assert found.objective <= optimum.objective + 1e-12
    drawn = greedy.arrivals()
    for groups in greedy.empty_groups():
        share, placed = greedy.greedy(groups, drawn)
        assert all(map(greedy.has_room, placed))
        assert share == pytest.approx(greedy.attainment(placed, drawn))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 1)), min_size=1, max_size=25), st.integers(1, 3))
def test_pipelines_equal_the_event_driven_kernel(requests: list[tuple[float, int]], stages: int) -> None:
    """Every stage as a queue on the simulator's clock gives the same times."""
    requests = sorted(requests)
    steps = [0.3, 0.7]
    arrivals = np.array([at for at, _ in requests])
    models = np.array([model for _, model in requests], dtype=np.int64)
    took = served([Pipeline(1, stages, (0, 1))], np.array([steps]), [inf, inf], arrivals, models)
    clock = Clock()
    queues: list[list[int]] = [[] for _ in range(stages)]
    busy = [False] * stages
    ended = [0.0] * len(requests)

    def begin(stage: int) -> None:
        if busy[stage] or not queues[stage]:
            return
        number = queues[stage].pop(0)
        busy[stage] = True
        clock.at(clock.now_s + steps[requests[number][1]], lambda: end(stage, number))

    def end(stage: int, number: int) -> None:
        busy[stage] = False
        if stage + 1 < stages:
            queues[stage + 1].append(number)
            begin(stage + 1)
        else:
            ended[number] = clock.now_s
        begin(stage)

    def arrive(number: int) -> None:
        queues[0].append(number)
        begin(0)

    for number, (at, _) in enumerate(requests):
        clock.at(at, partial(arrive, number))
    clock.run()
    assert took == pytest.approx(np.array(ended) - arrivals)


def test_who_would_be_late_is_refused_and_delays_nobody() -> None:
    one = Pipeline(1, 1, (0,))
    took = served([one], np.array([[1.0]]), [1.5], np.array([0.0, 0.1, 0.6, 1.2]), np.zeros(4, dtype=np.int64))
    assert took[0] == 1.0
    assert np.isnan(took[1])  # would end 1.9 s after its arrival
    assert took[2] == pytest.approx(1.4)
    assert np.isnan(took[3])


def test_what_fits_nowhere_is_told() -> None:
    big = {"size": 50, "latency": "0.4 s", "rate": "1 req/s", "limit": "2 s"}
    with pytest.raises(InputError, match="no placement serves any request in time"):
        stated(models={"a": big}).solve()
    small = {"size": 5, "latency": "0.4 s", "rate": "1 req/s", "limit": "2 s"}
    plan = stated(models={"a": big, "b": small}).solve()
    assert any(note.startswith("a lie nowhere") for note in plan.notes)
    with pytest.raises(InputError, match="rate"):
        stated(models={"a": small | {"rate": "-1 req/s"}})
